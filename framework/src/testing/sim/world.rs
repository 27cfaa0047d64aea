//! A simulated cluster while it runs.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use send_wrapper::SendWrapper;

use super::courier::Courier;
use super::disk::Disk;
use super::trace::Trace;
use super::weather::{Fault, Weather};
use super::{Sim, check};
use crate::client::SendError;
use crate::clock::{Clock, Jumps, Timestamp};
use crate::message::{Coded, Command, Domain, IdSource, MessageId};
use crate::node::{Node, NodeConfig};
use crate::spawn::Task;

/// 2026-01-01T00:00:00Z.
const BEGIN: Timestamp = Timestamp::from_millis(1_767_225_600_000);
/// How long a client waits for a reply before it asks again with the same id.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long nothing may be under way at the latest after the faults have stopped. Courier and relay wait up to minutes.
const SETTLED: Duration = Duration::from_secs(1200);
/// How many timers are waited for at the end.
const TIMERS: usize = 200;

/// A simulated cluster while it runs. Clones are the same.
#[derive(Clone)]
pub struct World(Rc<Inner>);

struct Inner {
    sim: Sim,
    names: Vec<String>,
    trace: Trace,
    courier: Courier,
    services: Vec<Service>,
    client: RefCell<Option<Node>>,
    ids: RefCell<IdSource>,
    client_clock: Clock,
    acks: RefCell<Vec<Ack>>,
    broken: RefCell<Option<String>>,
    watching: Cell<bool>,
    calm: Cell<bool>,
    tasks: RefCell<Vec<Task>>,
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
    /// What it hosts, as it was described when it was started first.
    pub(super) hosts: RefCell<Option<crate::router::Manifest>>,
}

impl World {
    pub(super) fn begin(sim: Sim) -> Self {
        let trace = Trace::new();
        let (client_clock, _) = Clock::ticking(BEGIN);
        let ids = IdSource::seeded(client_clock.clone(), sim.seed);
        let courier = Courier::new(ids.fork(), trace.clone());
        let services = sim
            .services
            .iter()
            .map(|(name, _)| {
                let (clock, jumps) = Clock::ticking(BEGIN);
                Service {
                    name: name.clone(),
                    disk: Disk::new(name, ids.fork(), trace.clone()),
                    clock,
                    jumps,
                    node: RefCell::default(),
                    lives: Cell::new(0),
                    starting: Cell::new(false),
                    hosts: RefCell::default(),
                }
            })
            .collect();
        let names = sim.services.iter().map(|(name, _)| name.clone()).collect();
        trace.add(format_args!("the weather is {}", sim.weather));
        let world = Self(Rc::new(Inner {
            sim,
            names,
            trace,
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
        if !world.0.sim.always.is_empty() {
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

    /// Checks what must always hold.
    fn look(&self) {
        if self.0.broken.borrow().is_some() || self.0.watching.replace(true) {
            return;
        }
        for rule in &self.0.sim.always {
            if let Err(reason) = rule(self) {
                self.violated(format!("always: {reason}"));
                break;
            }
        }
        self.0.watching.set(false);
    }

    fn violated(&self, reason: String) {
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

    fn set_weather(&self, weather: Weather) {
        self.0.courier.set_weather(weather);
        for service in &self.0.services {
            service.disk.set_slowest(weather.disk);
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
            Err(error) => self.0.trace.add(format_args!("{} cannot start: {error}", service.name)),
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

    /// Lets the weather begin, and the faults come when they are due.
    pub(super) fn rain(&self) -> Vec<tokio::sync::oneshot::Receiver<()>> {
        self.set_weather(self.0.sim.weather);
        let mut ended = Vec::new();
        for (at, fault) in self.0.sim.faults.clone() {
            let (end, wait) = tokio::sync::oneshot::channel();
            let world = self.clone();
            let task = crate::spawn::local(async move {
                tokio::time::sleep(at).await;
                if !world.0.calm.get() {
                    world.strike(&fault).await;
                }
                let _ = end.send(());
            });
            self.0.tasks.borrow_mut().push(task);
            ended.push(wait);
        }
        ended
    }

    /// Lets something go wrong now. Ends when it is over.
    pub async fn strike(&self, fault: &Fault) {
        let count = self.0.services.len().max(1);
        let told = fault.told(&self.0.names);
        match fault {
            Fault::Crash { service, steps, down } => {
                for _ in 0..*steps {
                    tokio::task::yield_now().await;
                }
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.kill(service % count);
                tokio::time::sleep(*down).await;
                self.restart(service % count).await;
            }
            Fault::Jump { service, millis, lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                if let Some(service) = self.0.services.get(service % count) {
                    service.jumps.jump(*millis);
                    tokio::time::sleep(*lasts).await;
                    service.jumps.jump(-*millis);
                }
            }
            Fault::Cut { from, to, lasts } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.courier.cut(from % count, to % count);
                tokio::time::sleep(*lasts).await;
                self.0.courier.mend(from % count, to % count);
            }
            Fault::EmptyCourier => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                self.0.courier.empty();
            }
            Fault::FailCommits { service } => {
                self.0.trace.add(format_args!("FAULT: {told}"));
                if let Some(service) =
                    self.0.services.get(service % count).filter(|service| service.node.borrow().is_some())
                {
                    service.disk.fail();
                }
            }
        }
    }

    /// Waits for the faults that have begun; those that have not do not come any more.
    pub(super) async fn settle_faults(&self, faults: Vec<tokio::sync::oneshot::Receiver<()>>) {
        for fault in faults {
            // Faults that lie behind the end of the story come all the same: the cluster has work left.
            drop(fault.await);
        }
        self.0.calm.set(true);
        self.set_weather(Weather::FAIR);
        for service in &self.0.services {
            service.jumps.mend();
        }
        for service in 0..self.0.services.len() {
            self.restart(service).await;
        }
        self.0.trace.add(format_args!("the faults have stopped"));
    }

    /// Waits until nothing is under way any more; lets all timers ring; checks; kills all, starts them again and checks again.
    pub(super) async fn end(&self) -> Result<(), String> {
        self.quiet().await?;
        for _ in 0..TIMERS {
            let next = self.next_timer();
            let Some((service, due)) = next else { break };
            let Some(now) = self.0.services.get(service).map(|service| service.clock.now()) else { break };
            tokio::time::sleep(due.since(now) + Duration::from_millis(1)).await;
            self.quiet().await?;
        }
        check::all(self)?;
        for service in 0..self.0.services.len() {
            self.kill(service);
        }
        tokio::task::yield_now().await;
        for service in 0..self.0.services.len() {
            self.restart(service).await;
        }
        self.quiet().await?;
        check::all(self)?;
        for rule in &self.0.sim.at_end {
            rule(self).map_err(|reason| format!("at the end: {reason}"))?;
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<(usize, Timestamp)> {
        let services = self.0.services.iter().enumerate();
        let next = services.flat_map(|(at, service)| {
            self.shards_of(service).into_iter().filter_map(move |(_, reader)| reader.next_timer().map(|due| (at, due)))
        });
        next.min_by_key(|(at, due)| (*due, *at))
    }

    /// Waits until nothing is under way: no message, no commit, no outbox entry, no event that a subscriber lacks.
    ///
    /// Virtual time passes meanwhile; timers that are not due do not count.
    pub async fn settle(&self) {
        if let Err(reason) = self.quiet().await {
            self.violated(reason);
        }
    }

    async fn quiet(&self) -> Result<(), String> {
        let begun = crate::clock::instant();
        let mut wait = Duration::from_millis(20);
        loop {
            let busy = self.busy();
            match busy {
                None => return Ok(()),
                Some(reason) if begun.elapsed() > SETTLED => {
                    return Err(format!("it never becomes quiet: {reason}"));
                }
                Some(_) => {}
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(10));
        }
    }

    fn busy(&self) -> Option<String> {
        if !self.0.courier.is_idle() {
            return Some("messages are under way".to_owned());
        }
        if let Some(service) = self.0.services.iter().find(|service| !service.disk.is_idle()) {
            return Some(format!("{} has uncommitted appends", service.name));
        }
        check::unsettled(self)
    }

    /// Sends a command and waits for its reply, as a patient client does: asks again with the same id until the outcome is
    /// known.
    ///
    /// # Errors
    /// [`SendError`] if asking again does not help: a rejection, a dead letter, a message that cannot be read.
    pub async fn send<C: Command + Clone>(&self, command: C) -> Result<C::Reply, SendError> {
        let id = self.0.ids.borrow().message_id();
        loop {
            let client = match &*self.0.client.borrow() {
                Some(node) => node.client(),
                None => return Err(SendError::Stopped),
            };
            match client.send(command.clone()).id(id).deadline(PATIENCE).await {
                Err(error) if error.is_transient() || matches!(error, SendError::Late) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                told => {
                    let told = match told {
                        Err(SendError::Rejected(no)) => Ok(Err(no)),
                        Ok(reply) => Ok(Ok(reply)),
                        Err(error) => Err(error),
                    };
                    if let Ok(reply) = &told {
                        self.acknowledged(id, &command, reply);
                    }
                    return told.and_then(|reply| reply.map_err(SendError::Rejected));
                }
            }
        }
    }

    fn acknowledged<C: Command>(
        &self,
        id: MessageId,
        command: &C,
        reply: &Result<C::Reply, crate::message::Rejection>,
    ) {
        let mut bytes = Vec::new();
        if C::Reply::write_reply(reply, C::Domain::CODEC, &mut bytes).is_err() {
            return;
        }
        let verdict = if reply.is_ok() { "a reply" } else { "a rejection" };
        self.0.trace.add(format_args!("a client hears {verdict} to {} {id}", C::NAME));
        self.0.acks.borrow_mut().push(Ack {
            id,
            domain: C::Domain::NAME.to_owned(),
            key: command.key().as_str().to_owned(),
            name: C::NAME,
            reply: bytes,
        });
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

    /// Ends the cluster; what happened.
    pub(super) fn close(&self) -> (String, usize) {
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
