//! A running simulated cluster: its services, nodes, clients and stores.
//!
//! Created by [`Sim::run`](super::Sim::run). Scenarios and rules use it through [`World`].

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use send_wrapper::SendWrapper;
use tokio::sync::Notify;

use super::broker::Broker;
use super::clients::Clients;
use super::failure_report::actor_steps;
use super::fault_counts::{FaultCounts, FaultEvent};
use super::fault_profile::FaultProfile;
use super::link::SimLink;
use super::payload::PayloadRenderer;
use super::run_queries::InjectedFault;
use super::step_log::{CommittedTurn, StepLog};
use super::store::SimStore;
use super::trace::Trace;
use super::violation::Violation;
use super::{Coverage, Sim};
use whizbang_core::clock::{Clock, ClockJumps, Timestamp};
use whizbang_core::message::{IdSource, Name};
use whizbang_core::spawn::Task;
use whizbang_runtime::actor::{Count, Failpoints, ReplayChecker};
use whizbang_runtime::node::{Node, NodeConfig};
use whizbang_runtime::router::{ActorCard, Manifest};
use whizbang_runtime::worker::Attempt;

/// 2026-01-01T00:00:00Z.
const START_TIME: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// A running simulated cluster. Clones refer to the same cluster. [`Sim`](super::Sim) has the complete example.
#[derive(Clone)]
pub struct World(pub(super) Rc<Inner>);

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

pub(super) struct Inner {
    pub(super) sim: Sim,
    pub(super) names: Vec<String>,
    pub(super) trace: Trace,
    pub(super) step_log: StepLog,
    pub(super) broker: Broker,
    pub(super) fault_counts: FaultCounts,
    crashes: Cell<u64>,
    pub(super) services: Vec<Service>,
    pub(super) client: RefCell<Option<Node>>,
    pub(super) ids: RefCell<IdSource>,
    pub(super) clients: Clients,
    pub(super) violation: RefCell<Option<Violation>>,
    pub(super) checking: Cell<bool>,
    /// The `eventually` rules that have not held yet, with the latest reason.
    pub(super) pending_eventually: RefCell<Vec<(usize, String)>>,
    pub(super) faults_stopped: Cell<bool>,
    /// The disturbance caused by the fault profile.
    pub(super) profile_disturbance: Cell<Option<usize>>,
    /// The injected faults, with the number of hits.
    pub(super) injected: RefCell<Vec<(InjectedFault, Count)>>,
    pub(super) tasks: RefCell<Vec<Task>>,
    /// Notified after each commit.
    pub(super) committed: Notify,
}

pub(super) struct Service {
    pub(super) name: String,
    pub(super) store: SimStore,
    pub(super) clock: Clock,
    pub(super) jumps: ClockJumps,
    pub(super) node: RefCell<Option<Node>>,
    starts: Cell<u64>,
    starting: Cell<bool>,
    /// Kills a node during its start.
    kill_signal: Notify,
    /// A node that has lost ownership and does not know it.
    zombie: RefCell<Option<Zombie>>,
    /// The store handle of the running node.
    store_handle: RefCell<Option<SimStore>>,
    /// The reason why the last start failed.
    pub(super) start_error: RefCell<Option<String>>,
    /// The manifest of the version that runs.
    pub(super) manifest: RefCell<Option<Manifest>>,
    /// The manifests of all versions that have run.
    manifests: RefCell<Vec<Manifest>>,
    /// The version of the next node.
    pub(super) version: Cell<usize>,
}

impl Service {
    /// Returns whether the service has an actor type of this name in the domain.
    pub(super) fn hosts_actor(&self, domain: &Name, actor: &Name) -> bool {
        let manifest = self.manifest.borrow();
        let mut domains = manifest.iter().flat_map(|manifest| &manifest.domains);
        let is = |card: &ActorCard| card.names().any(|name| name == actor.as_str());
        domains.any(|of| of.name == domain.as_str() && of.actors.iter().any(is))
    }
}

impl Service {
    /// Records the manifest of a node that has started.
    fn record_manifest(&self, manifest: &Manifest) {
        *self.manifest.borrow_mut() = Some(manifest.clone());
        let mut manifests = self.manifests.borrow_mut();
        if !manifests.contains(manifest) {
            manifests.push(manifest.clone());
        }
    }
}

/// A node whose service was taken over by another node.
struct Zombie {
    node: Node,
    link: Arc<SimLink>,
    store_handle: Option<SimStore>,
}

impl World {
    pub(super) fn new(sim: Sim) -> Self {
        // Thread-local state of an earlier cluster must not leak into this one.
        Failpoints::clear();
        Attempt::record(true);
        ReplayChecker::set(true);
        let trace = Trace::new();
        let step_log = StepLog::new();
        let (client_clock, client_jumps) = Clock::ticking(START_TIME);
        let ids = IdSource::seeded(client_clock.clone(), sim.seed);
        let fault_counts = FaultCounts::default();
        let broker = Broker::new(ids.fork(), trace.clone(), fault_counts.clone());
        let services = sim
            .services
            .iter()
            .enumerate()
            .map(|(at, (name, _))| {
                let (clock, jumps) = Clock::ticking(START_TIME);
                let rng = ids.fork();
                let backend = sim.store.backend(&rng);
                Service {
                    name: name.clone(),
                    store: SimStore::new(
                        name,
                        rng,
                        trace.clone(),
                        step_log.clone(),
                        fault_counts.clone(),
                        broker.crash_points(at),
                        backend,
                    ),
                    clock,
                    jumps,
                    node: RefCell::default(),
                    starts: Cell::new(0),
                    starting: Cell::new(false),
                    kill_signal: Notify::new(),
                    zombie: RefCell::default(),
                    store_handle: RefCell::default(),
                    start_error: RefCell::default(),
                    manifest: RefCell::default(),
                    manifests: RefCell::default(),
                    version: Cell::new(0),
                }
            })
            .collect();
        let names = sim.services.iter().map(|(name, _)| name.clone()).collect();
        trace.add(format_args!("fault profile: {}", sim.fault_profile));
        let world = Self(Rc::new(Inner {
            pending_eventually: RefCell::new(
                (0..sim.eventually.len()).map(|number| (number, "no commit yet".to_owned())).collect(),
            ),
            sim,
            names,
            trace,
            step_log,
            broker,
            fault_counts,
            crashes: Cell::new(0),
            services,
            client: RefCell::default(),
            ids: RefCell::new(ids),
            clients: Clients::new(client_clock, client_jumps),
            violation: RefCell::default(),
            checking: Cell::new(false),
            faults_stopped: Cell::new(false),
            profile_disturbance: Cell::new(None),
            injected: RefCell::default(),
            tasks: RefCell::default(),
            committed: Notify::new(),
        }));
        for service in &world.0.services {
            let inner = SendWrapper::new(Rc::downgrade(&world.0));
            service.store.on_commit(Arc::new(move || {
                if let Some(inner) = inner.upgrade() {
                    let world = Self(inner);
                    world.check_rules();
                    world.0.committed.notify_one();
                }
            }));
        }
        let inner = SendWrapper::new(Rc::downgrade(&world.0));
        world.0.broker.observe_acks(Arc::new(move |service, envelope| {
            if let Some(inner) = inner.upgrade() {
                Self(inner).on_acked(service, envelope);
            }
        }));
        if world.0.sim.reload_actors {
            world.reload_actors();
        }
        world
    }

    pub(super) fn broker(&self) -> &Broker {
        &self.0.broker
    }

    pub(super) fn step_log(&self) -> &StepLog {
        &self.0.step_log
    }

    pub(super) fn services(&self) -> &[Service] {
        &self.0.services
    }

    pub(super) fn set_fault_profile(&self, profile: FaultProfile) {
        self.0.broker.set_fault_profile(profile);
        for service in &self.0.services {
            service.store.set_max_delays(profile.commit_delay, profile.read_delay);
        }
    }

    pub(super) async fn start_all(&self) {
        for service in 0..self.0.services.len() {
            self.start(service).await;
        }
        let clients = self.0.services.len();
        let ids = self.0.ids.borrow().next_u64();
        let started = Node::builder("clients", whizbang_log::memory::MemoryStore::new())
            .bridge(self.0.broker.bridge(clients))
            .clock(self.0.clients.clock.clone())
            .seed(ids)
            .start()
            .await;
        match started {
            Ok(node) => *self.0.client.borrow_mut() = Some(node),
            Err(error) => self.report_violation(format!("the clients' node failed to start: {error}")),
        }
    }

    async fn start(&self, at: usize) {
        let Some(service) = self.0.services.get(at) else { return };
        let Some(build) = self.0.sim.build_of(at, service.version.get()) else { return };
        // Two crashes may overlap, and a service has only one node.
        if service.starting.replace(true) {
            return;
        }
        let starts = service.starts.get() + 1;
        service.starts.set(starts);
        if starts > 1 {
            self.mark_disturbance();
        }
        // Each start has its own seed, which is the same in each run.
        let seed = self.0.sim.seed.wrapping_mul(31).wrapping_add(at as u64).wrapping_mul(1009).wrapping_add(starts);
        // Short intervals make more happen in less virtual time.
        let config = NodeConfig { passivate_after: Duration::from_secs(4), ..NodeConfig::default() };
        let store = service.store.new_handle();
        *service.store_handle.borrow_mut() = Some(store.clone());
        let builder = Node::builder(&service.name, store)
            .config(config)
            .bridge(self.0.broker.bridge(at))
            .clock(service.clock.clone())
            .seed(seed);
        let builder = build(builder);
        if starts == 1 && self.is_hosted_twice(at, &builder.owned()) {
            service.starting.set(false);
            return;
        }
        let started = tokio::select! {
            biased;
            started = builder.start() => Some(started),
            () = service.kill_signal.notified() => None,
        };
        service.starting.set(false);
        let Some(started) = started else {
            self.0.fault_counts.one(FaultEvent::CrashDuringStart);
            self.0.trace.add(format_args!("{} is killed during start", service.name));
            self.clean_up_killed(service, at);
            return;
        };
        match started {
            Ok(node) => {
                self.0.trace.add(format_args!("{} starts", service.name));
                service.record_manifest(node.manifest());
                *service.node.borrow_mut() = Some(node);
            }
            // A later start fails if the node is killed during it; the first one only if the description is wrong.
            Err(error) if starts == 1 => self.report_violation(format!("{} failed to start: {error}", service.name)),
            Err(error) => {
                self.0.trace.add(format_args!("{} failed to start: {error}", service.name));
                *service.start_error.borrow_mut() = Some(error.to_string());
            }
        }
    }

    /// Kills the service's node. Uncommitted data may be lost.
    ///
    /// The run fails with the rule `fault` if no node was running or starting, unless
    /// [`allow_missed_faults`](super::Sim::allow_missed_faults) is set.
    pub fn kill(&self, service: usize) {
        if !self.try_kill(service) && !self.0.sim.allow_missed_faults {
            let name = self.0.services.get(service).map_or("an unknown service", |service| &service.name);
            self.report_violation(format!("fault: no node of {name} was running"));
        }
    }

    /// Kills the service's node. Returns whether one was running or starting.
    pub(super) fn try_kill(&self, service: usize) -> bool {
        let Some(kill_signal) = self.0.services.get(service) else { return false };
        let node = kill_signal.node.borrow_mut().take();
        let Some(node) = node else { return self.try_kill_starting(service) };
        self.0.trace.add(format_args!("{} is killed", kill_signal.name));
        self.clean_up_killed(kill_signal, service);
        drop(node);
        true
    }

    /// Kills a node of the service that is starting. Returns whether there was one.
    pub(super) fn try_kill_starting(&self, service: usize) -> bool {
        let starting = self.0.services.get(service).filter(|service| service.starting.get());
        if let Some(service) = starting {
            service.kill_signal.notify_waiters();
        }
        starting.is_some()
    }

    /// Disconnects a killed node and crashes its store.
    fn clean_up_killed(&self, killed: &Service, service: usize) {
        self.mark_disturbance();
        if !self.0.faults_stopped.get() {
            self.0.crashes.set(self.0.crashes.get() + 1);
        }
        let zombie = killed.zombie.borrow().as_ref().map(|zombie| zombie.link.number);
        for link in self.0.broker.links_of(service).into_iter().filter(|link| Some(link.number) != zombie) {
            link.count_interrupted();
            self.0.broker.leave(&link);
        }
        killed.store.crash();
        if let Some(store_handle) = killed.store_handle.borrow_mut().take() {
            store_handle.revoke();
        }
    }

    /// Marks a disturbance of the whole cluster at this instant.
    fn mark_disturbance(&self) {
        self.0.step_log.end_disturbance(self.0.step_log.begin_disturbance());
    }

    /// Starts another node of the service while the old one is isolated. Then reconnects the old one and kills it later. Returns
    /// whether that was possible.
    pub(super) async fn hand_over(&self, at: usize, cut_off: Duration, lingers: Duration) -> bool {
        let Some(service) = self.0.services.get(at) else { return false };
        if service.zombie.borrow().is_some() || service.starting.get() {
            return false;
        }
        let Some(link) = self.0.broker.links_of(at).pop() else { return false };
        let Some(node) = service.node.borrow_mut().take() else { return false };
        link.isolate(true);
        *service.zombie.borrow_mut() =
            Some(Zombie { node, link: Arc::clone(&link), store_handle: service.store_handle.borrow_mut().take() });
        self.start(at).await;
        if service.node.borrow().is_some() {
            self.0.fault_counts.one(FaultEvent::HandedOver);
        }
        tokio::time::sleep(cut_off).await;
        let is_same = |zombie: &Zombie| zombie.link.number == link.number;
        if service.zombie.borrow().as_ref().is_some_and(is_same) {
            self.0.trace.add(format_args!("the old node of {} is reconnected", service.name));
            link.isolate(false);
        }
        tokio::time::sleep(lingers).await;
        if service.zombie.borrow().as_ref().is_some_and(is_same) {
            self.kill_zombie(service);
        }
        // The new owner may have been killed, and no other fault restarts it.
        self.ensure_started(at).await;
        true
    }

    /// Kills the old node of a service, if there is one.
    pub(super) fn kill_zombie(&self, service: &Service) {
        let zombie = service.zombie.borrow_mut().take();
        if let Some(Zombie { node, link, store_handle }) = zombie {
            self.0.trace.add(format_args!("the old node of {} is killed", service.name));
            self.0.broker.leave(&link);
            if let Some(store_handle) = store_handle {
                store_handle.revoke();
            }
            drop(node);
        }
    }

    /// Restarts the service's node once no other start is in progress, because that one may be killed.
    pub(super) async fn ensure_started(&self, service: usize) {
        while self.0.services.get(service).is_some_and(|service| service.starting.get()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.restart(service).await;
    }

    /// Restarts the service's node, if it was killed.
    pub async fn restart(&self, service: usize) {
        let killed = self.0.services.get(service).is_some_and(|service| service.node.borrow().is_none());
        if killed {
            self.start(service).await;
        }
    }

    /// Lets virtual time pass.
    pub async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    /// Returns a random number in `0..bound` that follows from the seed.
    pub fn below(&self, bound: u64) -> u64 {
        self.0.ids.borrow().below(bound)
    }

    /// Adds a line to the trace.
    pub fn note(&self, text: &str) {
        self.0.trace.add(format_args!("{text}"));
    }

    pub(super) fn forbids_dead_letters(&self) -> bool {
        !self.0.sim.allow_dead_letters
    }

    pub(super) fn requires_ended_sagas(&self) -> bool {
        !self.0.sim.allow_open_sagas
    }

    pub(super) fn committed_turns(&self) -> Vec<CommittedTurn> {
        self.0.step_log.turns()
    }

    /// Returns the manifests of all versions of all services that have run.
    fn manifests(&self) -> Vec<Manifest> {
        self.0.services.iter().flat_map(|service| service.manifests.borrow().clone()).collect()
    }

    /// Describes the steps of each actor and each worker, by actor and key.
    pub(super) fn actor_steps(&self, turns: &[CommittedTurn]) -> String {
        let manifests = self.manifests();
        let texts = PayloadRenderer::of(manifests.iter());
        actor_steps(turns, &Attempt::recorded(), self.0.step_log.started_at(), &texts)
    }

    pub(super) fn coverage(&self, turns: &[CommittedTurn]) -> Coverage {
        let manifests = self.manifests();
        let waits = self.0.step_log.wait_times();
        Coverage::of_run(manifests.iter(), turns, self.fault_events(), self.0.crashes.get(), &self.faults(), waits)
    }

    /// Stops the cluster. Returns the trace and its number of lines.
    pub(super) fn close(&self) -> (String, usize) {
        Failpoints::clear();
        Attempt::record(false);
        ReplayChecker::set(false);
        self.0.tasks.borrow_mut().clear();
        for service in &self.0.services {
            self.kill_zombie(service);
            let node = service.node.borrow_mut().take();
            drop(node);
        }
        let client = self.0.client.borrow_mut().take();
        drop(client);
        (self.0.trace.text(), self.0.trace.count())
    }
}
