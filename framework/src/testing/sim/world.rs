//! A simulated cluster while it runs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use send_wrapper::SendWrapper;

use super::courier::Courier;
use super::disk::Disk;
use super::seen::{Seen, Taken};
use super::trace::Trace;
use super::weather::Weather;
use super::{Coverage, Sim};
use crate::actor::Trips;
use crate::clock::{Clock, Jumps, Timestamp};
use crate::message::{IdSource, MessageId};
use crate::node::{Node, NodeConfig};
use crate::spawn::Task;

/// 2026-01-01T00:00:00Z.
const BEGIN: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// A simulated cluster while it runs. Clones are the same.
#[derive(Clone)]
pub struct World(pub(super) Rc<Inner>);

pub(super) struct Inner {
    pub(super) sim: Sim,
    pub(super) names: Vec<String>,
    pub(super) trace: Trace,
    pub(super) seen: Seen,
    pub(super) courier: Courier,
    pub(super) services: Vec<Service>,
    pub(super) client: RefCell<Option<Node>>,
    pub(super) ids: RefCell<IdSource>,
    client_clock: Clock,
    pub(super) acks: RefCell<Vec<Ack>>,
    broken: RefCell<Option<String>>,
    watching: Cell<bool>,
    /// What must come to hold and has not: the rule's number, and why not.
    awaited: RefCell<Vec<(usize, String)>>,
    pub(super) calm: Cell<bool>,
    pub(super) tasks: RefCell<Vec<Task>>,
}

/// What a client was told.
pub(super) struct Ack {
    pub(super) id: MessageId,
    pub(super) domain: String,
    pub(super) key: String,
    pub(super) name: &'static str,
    pub(super) reply: Vec<u8>,
}

pub(super) struct Service {
    pub(super) name: String,
    pub(super) disk: Disk,
    pub(super) clock: Clock,
    pub(super) jumps: Jumps,
    pub(super) node: RefCell<Option<Node>>,
    lives: Cell<u64>,
    starting: Cell<bool>,
    /// Why it could not be started, the last time that it could not.
    pub(super) refused: RefCell<Option<String>>,
    /// What it hosts, as it was described when it was started first.
    pub(super) hosts: RefCell<Option<crate::router::Manifest>>,
}

impl World {
    pub(super) fn begin(sim: Sim) -> Self {
        // What an earlier cluster on this thread has left behind is none of this one's.
        Trips::clear();
        let trace = Trace::new();
        let seen = Seen::new();
        let (client_clock, _) = Clock::ticking(BEGIN);
        let ids = IdSource::seeded(client_clock.clone(), sim.seed);
        let courier = Courier::new(ids.fork(), trace.clone());
        let services = sim
            .services
            .iter()
            .map(|(name, _)| {
                let (clock, jumps) = Clock::ticking(BEGIN);
                let dice = ids.fork();
                let ground = sim.keeps.ground(&dice);
                Service {
                    name: name.clone(),
                    disk: Disk::new(name, dice, trace.clone(), seen.clone(), ground),
                    clock,
                    jumps,
                    node: RefCell::default(),
                    lives: Cell::new(0),
                    starting: Cell::new(false),
                    refused: RefCell::default(),
                    hosts: RefCell::default(),
                }
            })
            .collect();
        let names = sim.services.iter().map(|(name, _)| name.clone()).collect();
        trace.add(format_args!("the weather is {}", sim.weather));
        let world = Self(Rc::new(Inner {
            awaited: RefCell::new(
                (0..sim.eventually.len()).map(|rule| (rule, "nothing happened".to_owned())).collect(),
            ),
            sim,
            names,
            trace,
            seen,
            courier,
            services,
            client: RefCell::default(),
            ids: RefCell::new(ids),
            client_clock,
            acks: RefCell::default(),
            broken: RefCell::default(),
            watching: Cell::new(false),
            calm: Cell::new(false),
            tasks: RefCell::default(),
        }));
        if !world.0.sim.always.is_empty() || !world.0.sim.eventually.is_empty() {
            for service in &world.0.services {
                let inner = SendWrapper::new(Rc::downgrade(&world.0));
                service.disk.watch(Arc::new(move || {
                    if let Some(inner) = inner.upgrade() {
                        Self(inner).look();
                    }
                }));
            }
        }
        world
    }

    /// Checks what must always hold, and whether what must come to hold does.
    pub(super) fn look(&self) {
        if self.0.broken.borrow().is_some() || self.0.watching.replace(true) {
            return;
        }
        for rule in &self.0.sim.always {
            if let Err(reason) = rule(self) {
                self.violated(format!("always: {reason}"));
                break;
            }
        }
        self.0.awaited.borrow_mut().retain_mut(|(number, reason)| match self.0.sim.eventually.get(*number) {
            Some(rule) => match rule(self) {
                Ok(()) => false,
                Err(why) => {
                    *reason = why;
                    true
                }
            },
            None => false,
        });
        self.0.watching.set(false);
    }

    /// What should have come to hold and never did.
    pub(super) fn awaited(&self) -> Option<String> {
        self.0.awaited.borrow().first().map(|(_, reason)| reason.clone())
    }

    pub(super) fn violated(&self, reason: String) {
        self.0.trace.add(format_args!("VIOLATED: {reason}"));
        self.0.broken.borrow_mut().get_or_insert(reason);
    }

    pub(super) fn broken(&self) -> Option<String> {
        self.0.broken.borrow().clone()
    }

    pub(super) fn courier(&self) -> &Courier {
        &self.0.courier
    }

    pub(super) fn services(&self) -> &[Service] {
        &self.0.services
    }

    pub(super) fn acks(&self) -> std::cell::Ref<'_, Vec<Ack>> {
        self.0.acks.borrow()
    }

    pub(super) fn set_weather(&self, weather: Weather) {
        self.0.courier.set_weather(weather);
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
            .bridge(self.0.courier.bridge(clients))
            .clock(self.0.client_clock.clone())
            .seed(ids)
            .start()
            .await;
        match started {
            Ok(node) => *self.0.client.borrow_mut() = Some(node),
            Err(error) => self.violated(format!("the clients' node cannot start: {error}")),
        }
    }

    async fn start(&self, at: usize) {
        let (Some(service), Some((_, build))) = (self.0.services.get(at), self.0.sim.services.get(at)) else { return };
        // Two crashes may overlap; there is one node of a service all the same.
        if service.starting.replace(true) {
            return;
        }
        let lives = service.lives.get() + 1;
        service.lives.set(lives);
        // Each life has its own randomness, and the same in each run.
        let seed = self.0.sim.seed.wrapping_mul(31).wrapping_add(at as u64).wrapping_mul(1009).wrapping_add(lives);
        // Actors are put to rest often, and what is only noted once in a while is noted soon: more happens in less time.
        let config = NodeConfig { passivate_after: Duration::from_secs(4), ..NodeConfig::default() };
        let builder = Node::builder(&service.name, service.disk.clone())
            .config(config)
            .bridge(self.0.courier.bridge(at))
            .clock(service.clock.clone())
            .seed(seed);
        let started = build(builder).start().await;
        service.starting.set(false);
        match started {
            Ok(node) => {
                self.0.trace.add(format_args!("{} starts", service.name));
                service.hosts.borrow_mut().get_or_insert_with(|| node.manifest().clone());
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
    pub fn kill(&self, service: usize) {
        let Some(dying) = self.0.services.get(service) else { return };
        let node = dying.node.borrow_mut().take();
        if let Some(node) = node {
            self.0.trace.add(format_args!("{} is killed", dying.name));
            self.0.courier.leave(service);
            dying.disk.crash();
            drop(node);
        }
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

    pub(super) fn coverage(&self, turns: &[Taken]) -> Coverage {
        let manifests: Vec<_> = self.0.services.iter().filter_map(|service| service.hosts.borrow().clone()).collect();
        Coverage::of_run(manifests.iter(), turns)
    }

    /// Ends the cluster; what happened.
    pub(super) fn close(&self) -> (String, usize) {
        Trips::clear();
        self.0.tasks.borrow_mut().clear();
        for service in &self.0.services {
            let node = service.node.borrow_mut().take();
            drop(node);
        }
        let client = self.0.client.borrow_mut().take();
        drop(client);
        (self.0.trace.text(), self.0.trace.count())
    }
}
