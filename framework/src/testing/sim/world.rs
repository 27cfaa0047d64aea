//! A simulated cluster while it runs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use send_wrapper::SendWrapper;
use tokio::sync::Notify;

use super::broker::Broker;
use super::clients::Clients;
use super::disk::Disk;
use super::failure_report::deeds;
use super::fault_counts::{FaultCounts, FaultEvent};
use super::fault_profile::FaultProfile;
use super::known::StruckFault;
use super::link::SimLink;
use super::payload::Texts;
use super::step_log::{ObservedDeliveries, Taken};
use super::trace::Trace;
use super::wrong::Wrong;
use super::{Coverage, Sim};
use crate::actor::{Count, Failpoints, ReplayChecker};
use crate::clock::{Clock, Jumps, Timestamp};
use crate::message::{IdSource, Name};
use crate::node::{Node, NodeConfig};
use crate::router::{ActorCard, Manifest};
use crate::spawn::Task;
use crate::worker::Attempt;

/// 2026-01-01T00:00:00Z.
const BEGIN: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// A simulated cluster while it runs. Clones are the same.
#[derive(Clone)]
pub struct World(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub(super) sim: Sim,
    pub(super) names: Vec<String>,
    pub(super) trace: Trace,
    pub(super) seen: ObservedDeliveries,
    pub(super) broker: Broker,
    pub(super) tally: FaultCounts,
    crashes: Cell<u64>,
    pub(super) services: Vec<Service>,
    pub(super) client: RefCell<Option<Node>>,
    pub(super) ids: RefCell<IdSource>,
    pub(super) clients: Clients,
    pub(super) broken: RefCell<Option<Wrong>>,
    pub(super) watching: Cell<bool>,
    /// What must come to hold and has not: the rule's number, and why not.
    pub(super) awaited: RefCell<Vec<(usize, String)>>,
    pub(super) calm: Cell<bool>,
    /// The disturbance that bad weather is.
    pub(super) lossy: Cell<Option<usize>>,
    /// The faults that have begun, with how often each has struck.
    pub(super) struck: RefCell<Vec<(StruckFault, Count)>>,
    pub(super) tasks: RefCell<Vec<Task>>,
    /// Notified after each commit.
    pub(super) committed: Notify,
}

pub(super) struct Service {
    pub(super) name: String,
    pub(super) disk: Disk,
    pub(super) clock: Clock,
    pub(super) jumps: Jumps,
    pub(super) node: RefCell<Option<Node>>,
    lives: Cell<u64>,
    starting: Cell<bool>,
    /// It is killed while it starts.
    dying: Notify,
    /// A node that owns nothing any more and does not know it.
    zombie: RefCell<Option<Zombie>>,
    /// The store as the present node has it.
    plug: RefCell<Option<Disk>>,
    /// Why it could not be started, the last time that it could not.
    pub(super) refused: RefCell<Option<String>>,
    /// What it hosts, as its present version is described.
    pub(super) hosts: RefCell<Option<Manifest>>,
    /// What its versions have hosted so far.
    described: RefCell<Vec<Manifest>>,
    /// The version of its next node.
    pub(super) version: Cell<usize>,
}

impl Service {
    /// Returns whether the service has an actor type of this name in the domain.
    pub(super) fn hosts_actor(&self, domain: &Name, actor: &Name) -> bool {
        let hosts = self.hosts.borrow();
        let mut domains = hosts.iter().flat_map(|hosts| &hosts.domains);
        let is = |card: &ActorCard| card.names().any(|name| name == actor.as_str());
        domains.any(|of| of.name == domain.as_str() && of.actors.iter().any(is))
    }
}

impl Service {
    /// A node of the present version has started.
    fn describe(&self, manifest: &Manifest) {
        *self.hosts.borrow_mut() = Some(manifest.clone());
        let mut described = self.described.borrow_mut();
        if !described.contains(manifest) {
            described.push(manifest.clone());
        }
    }
}

/// A node whose service was taken over by another.
struct Zombie {
    node: Node,
    line: Arc<SimLink>,
    plug: Option<Disk>,
}

impl World {
    pub(super) fn begin(sim: Sim) -> Self {
        // What an earlier cluster on this thread has left behind is none of this one's.
        Failpoints::clear();
        Attempt::record(true);
        ReplayChecker::set(true);
        let trace = Trace::new();
        let seen = ObservedDeliveries::new();
        let (client_clock, client_jumps) = Clock::ticking(BEGIN);
        let ids = IdSource::seeded(client_clock.clone(), sim.seed);
        let tally = FaultCounts::default();
        let broker = Broker::new(ids.fork(), trace.clone(), tally.clone());
        let services = sim
            .services
            .iter()
            .enumerate()
            .map(|(at, (name, _))| {
                let (clock, jumps) = Clock::ticking(BEGIN);
                let dice = ids.fork();
                let ground = sim.keeps.ground(&dice);
                Service {
                    name: name.clone(),
                    disk: Disk::new(name, dice, trace.clone(), seen.clone(), tally.clone(), broker.begun(at), ground),
                    clock,
                    jumps,
                    node: RefCell::default(),
                    lives: Cell::new(0),
                    starting: Cell::new(false),
                    dying: Notify::new(),
                    zombie: RefCell::default(),
                    plug: RefCell::default(),
                    refused: RefCell::default(),
                    hosts: RefCell::default(),
                    described: RefCell::default(),
                    version: Cell::new(0),
                }
            })
            .collect();
        let names = sim.services.iter().map(|(name, _)| name.clone()).collect();
        trace.add(format_args!("the weather is {}", sim.fault_profile));
        let world = Self(Rc::new(Inner {
            awaited: RefCell::new(
                (0..sim.eventually.len()).map(|rule| (rule, "nothing happened".to_owned())).collect(),
            ),
            sim,
            names,
            trace,
            seen,
            broker,
            tally,
            crashes: Cell::new(0),
            services,
            client: RefCell::default(),
            ids: RefCell::new(ids),
            clients: Clients::new(client_clock, client_jumps),
            broken: RefCell::default(),
            watching: Cell::new(false),
            calm: Cell::new(false),
            lossy: Cell::new(None),
            struck: RefCell::default(),
            tasks: RefCell::default(),
            committed: Notify::new(),
        }));
        for service in &world.0.services {
            let inner = SendWrapper::new(Rc::downgrade(&world.0));
            service.disk.watch(Arc::new(move || {
                if let Some(inner) = inner.upgrade() {
                    let world = Self(inner);
                    world.look();
                    world.0.committed.notify_one();
                }
            }));
        }
        let inner = SendWrapper::new(Rc::downgrade(&world.0));
        world.0.broker.witness(Arc::new(move |service, envelope| {
            if let Some(inner) = inner.upgrade() {
                Self(inner).settled(service, envelope);
            }
        }));
        if world.0.sim.reload {
            world.reload_actors();
        }
        world
    }

    pub(super) fn broker(&self) -> &Broker {
        &self.0.broker
    }

    pub(super) fn seen(&self) -> &ObservedDeliveries {
        &self.0.seen
    }

    pub(super) fn services(&self) -> &[Service] {
        &self.0.services
    }

    pub(super) fn set_weather(&self, weather: FaultProfile) {
        self.0.broker.set_weather(weather);
        for service in &self.0.services {
            service.disk.set_slowest(weather.disk, weather.load);
        }
    }

    pub(super) async fn start_all(&self) {
        for service in 0..self.0.services.len() {
            self.start(service).await;
        }
        let clients = self.0.services.len();
        let ids = self.0.ids.borrow().next_u64();
        let started = Node::builder("clients", crate::store::memory::MemoryStore::new())
            .bridge(self.0.broker.bridge(clients))
            .clock(self.0.clients.clock.clone())
            .seed(ids)
            .start()
            .await;
        match started {
            Ok(node) => *self.0.client.borrow_mut() = Some(node),
            Err(error) => self.violated(format!("the clients' node cannot start: {error}")),
        }
    }

    async fn start(&self, at: usize) {
        let Some(service) = self.0.services.get(at) else { return };
        let Some(build) = self.0.sim.build_of(at, service.version.get()) else { return };
        // Two crashes may overlap; there is one node of a service all the same.
        if service.starting.replace(true) {
            return;
        }
        let lives = service.lives.get() + 1;
        service.lives.set(lives);
        if lives > 1 {
            self.disturb();
        }
        // Each life has its own randomness, and the same in each run.
        let seed = self.0.sim.seed.wrapping_mul(31).wrapping_add(at as u64).wrapping_mul(1009).wrapping_add(lives);
        // Actors are put to rest often, and what is only noted once in a while is noted soon: more happens in less time.
        let config = NodeConfig { passivate_after: Duration::from_secs(4), ..NodeConfig::default() };
        let disk = service.disk.plugged();
        *service.plug.borrow_mut() = Some(disk.clone());
        let builder = Node::builder(&service.name, disk)
            .config(config)
            .bridge(self.0.broker.bridge(at))
            .clock(service.clock.clone())
            .seed(seed);
        let builder = build(builder);
        if lives == 1 && self.is_hosted_twice(at, &builder.owned()) {
            service.starting.set(false);
            return;
        }
        let started = tokio::select! {
            biased;
            started = builder.start() => Some(started),
            () = service.dying.notified() => None,
        };
        service.starting.set(false);
        let Some(started) = started else {
            self.0.tally.one(FaultEvent::CrashWhileStarting);
            self.0.trace.add(format_args!("{} is killed while it starts", service.name));
            self.bury(service, at);
            return;
        };
        match started {
            Ok(node) => {
                self.0.trace.add(format_args!("{} starts", service.name));
                service.describe(node.manifest());
                *service.node.borrow_mut() = Some(node);
            }
            // It died while it started, or its description is wrong.
            Err(error) if lives == 1 => self.violated(format!("{} cannot start: {error}", service.name)),
            Err(error) => {
                self.0.trace.add(format_args!("{} cannot start: {error}", service.name));
                *service.refused.borrow_mut() = Some(error.to_string());
            }
        }
    }

    /// Kills the service's node. What it has not committed may be lost.
    ///
    /// The run fails with the rule `fault` if none was running or starting, unless
    /// [`faults_may_miss`](super::Sim::faults_may_miss).
    pub fn kill(&self, service: usize) {
        if !self.kill_if_there(service) && !self.0.sim.misses {
            let name = self.0.services.get(service).map_or("a service that does not exist", |service| &service.name);
            self.violated(format!("fault: no node of {name} was there to be killed"));
        }
    }

    /// Kills the service's node. Returns whether one was running or starting.
    pub(super) fn kill_if_there(&self, service: usize) -> bool {
        let Some(dying) = self.0.services.get(service) else { return false };
        let node = dying.node.borrow_mut().take();
        let Some(node) = node else { return self.kill_if_it_starts(service) };
        self.0.trace.add(format_args!("{} is killed", dying.name));
        self.bury(dying, service);
        drop(node);
        true
    }

    /// Kills a node of the service that is starting. Returns whether one was.
    pub(super) fn kill_if_it_starts(&self, service: usize) -> bool {
        let starting = self.0.services.get(service).filter(|service| service.starting.get());
        if let Some(service) = starting {
            service.dying.notify_waiters();
        }
        starting.is_some()
    }

    /// The service's node is dead: so are its connection and what it was writing.
    fn bury(&self, dead: &Service, service: usize) {
        self.disturb();
        if !self.0.calm.get() {
            self.0.crashes.set(self.0.crashes.get() + 1);
        }
        let zombie = dead.zombie.borrow().as_ref().map(|zombie| zombie.line.number);
        for line in self.0.broker.lines_of(service).into_iter().filter(|line| Some(line.number) != zombie) {
            line.interrupted();
            self.0.broker.leave(&line);
        }
        dead.disk.crash();
        if let Some(plug) = dead.plug.borrow_mut().take() {
            plug.unplug();
        }
    }

    /// Something has disturbed the whole cluster in this moment.
    fn disturb(&self) {
        self.0.seen.end_disturbance(self.0.seen.begin_disturbance());
    }

    /// Lets another node take the service over while the old one is cut off; then the old one is connected again, and dies later.
    /// Returns whether that was possible.
    pub(super) async fn hand_over(&self, at: usize, cut_off: Duration, lingers: Duration) -> bool {
        let Some(service) = self.0.services.get(at) else { return false };
        if service.zombie.borrow().is_some() || service.starting.get() {
            return false;
        }
        let Some(line) = self.0.broker.lines_of(at).pop() else { return false };
        let Some(node) = service.node.borrow_mut().take() else { return false };
        line.isolate(true);
        *service.zombie.borrow_mut() =
            Some(Zombie { node, line: Arc::clone(&line), plug: service.plug.borrow_mut().take() });
        self.start(at).await;
        if service.node.borrow().is_some() {
            self.0.tally.one(FaultEvent::HandedOver);
        }
        tokio::time::sleep(cut_off).await;
        let is_mine = |zombie: &Zombie| zombie.line.number == line.number;
        if service.zombie.borrow().as_ref().is_some_and(is_mine) {
            self.0.trace.add(format_args!("the old node of {} is connected again", service.name));
            line.isolate(false);
        }
        tokio::time::sleep(lingers).await;
        if service.zombie.borrow().as_ref().is_some_and(is_mine) {
            self.end_zombie(service);
        }
        // The node that took over may have died, and no other fault starts it.
        self.start_for_good(at).await;
        true
    }

    /// An old node dies, if there is one.
    pub(super) fn end_zombie(&self, service: &Service) {
        let zombie = service.zombie.borrow_mut().take();
        if let Some(Zombie { node, line, plug }) = zombie {
            self.0.trace.add(format_args!("the old node of {} dies", service.name));
            self.0.broker.leave(&line);
            if let Some(plug) = plug {
                plug.unplug();
            }
            drop(node);
        }
    }

    /// Starts a node of the service again, once no other start is under way: that one may be killed.
    pub(super) async fn start_for_good(&self, service: usize) {
        while self.0.services.get(service).is_some_and(|service| service.starting.get()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.restart(service).await;
    }

    /// Starts a node of the service again, if it has been killed.
    pub async fn restart(&self, service: usize) {
        let dead = self.0.services.get(service).is_some_and(|service| service.node.borrow().is_none());
        if dead {
            self.start(service).await;
        }
    }

    /// Lets virtual time pass.
    pub async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    /// A random number in `0..bound` that follows from the seed.
    pub fn below(&self, bound: u64) -> u64 {
        self.0.ids.borrow().below(bound)
    }

    /// Writes a line of the story.
    pub fn note(&self, what: &str) {
        self.0.trace.add(format_args!("{what}"));
    }

    pub(super) fn wants_no_dead_letters(&self) -> bool {
        !self.0.sim.dead_letters
    }

    pub(super) fn wants_ended_sagas(&self) -> bool {
        !self.0.sim.lasting
    }

    pub(super) fn turns_taken(&self) -> Vec<Taken> {
        self.0.seen.taken()
    }

    /// What the services have hosted, all versions of them.
    fn described(&self) -> Vec<Manifest> {
        self.0.services.iter().flat_map(|service| service.described.borrow().clone()).collect()
    }

    /// What each actor and each worker did, by actor and key.
    pub(super) fn deeds(&self, turns: &[Taken]) -> String {
        let manifests = self.described();
        let texts = Texts::of(manifests.iter());
        deeds(turns, &Attempt::recorded(), self.0.seen.began(), &texts)
    }

    pub(super) fn coverage(&self, turns: &[Taken]) -> Coverage {
        let manifests = self.described();
        let waits = self.0.seen.waits();
        Coverage::of_run(manifests.iter(), turns, self.fault_events(), self.0.crashes.get(), &self.faults(), waits)
    }

    /// Ends the cluster; what happened.
    pub(super) fn close(&self) -> (String, usize) {
        Failpoints::clear();
        Attempt::record(false);
        ReplayChecker::set(false);
        self.0.tasks.borrow_mut().clear();
        for service in &self.0.services {
            self.end_zombie(service);
            let node = service.node.borrow_mut().take();
            drop(node);
        }
        let client = self.0.client.borrow_mut().take();
        drop(client);
        (self.0.trace.text(), self.0.trace.count())
    }
}
