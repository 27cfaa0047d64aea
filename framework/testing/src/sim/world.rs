//! A running simulated cluster: its services, nodes, clients and stores.
//!
//! Created by [`Sim::run`](super::Sim::run). Scenarios and rules use it through [`World`].
//!
//! A world is a handle: clones are the same cluster. It exists on one thread and for one run.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use send_wrapper::SendWrapper;
use tokio::sync::Notify;

use super::backend::Backend;
use super::broker::Broker;
use super::clients::Clients;
use super::committed_turn::CommittedTurn;
use super::failure_report::actor_steps;
use super::fault_counts::FaultCounts;
use super::fault_profile::{FaultProfile, InjectedFault};
use super::node_tasks::{NodeTasks, set_outside};
use super::payload::PayloadRenderer;
use super::service::Service;
use super::step_log::StepLog;
use super::store::SimStore;
use super::trace::Trace;
use super::violation::Violation;
use super::{Coverage, Sim};
use whizbang_core::clock::{Clock, Timestamp};
use whizbang_core::message::IdSource;
use whizbang_core::spawn::Task;
use whizbang_runtime::actor::{Count, Failpoints, ReplayChecker};
use whizbang_runtime::node::Node;
use whizbang_runtime::router::Manifest;
use whizbang_runtime::worker::Attempt;

/// 2026-01-01T00:00:00Z.
pub(super) const START_TIME: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// A running simulated cluster. Clones refer to the same cluster. [`Sim`](super::Sim) has the complete example.
///
/// ```
/// # use bank_fixture::*;
/// use whizbang::testing::Sim;
///
/// let run = Sim::new(7).service("bank", |node| node.aggregate::<Account>()).run(async |world| {
///     world.send(Deposit { account: "ada".into(), cents: 500 }).await.unwrap();
///     assert_eq!(world.state::<Account>("ada").cents, 500);
/// });
/// run.unwrap();
/// ```
#[derive(Clone)]
pub struct World(pub(super) Rc<Inner>);

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

/// The parts of a cluster. One thread runs all of them, so cells suffice.
pub(super) struct Inner {
    /// The description of the cluster.
    pub(super) sim: Sim,
    /// The names of the services, for traces.
    pub(super) names: Vec<String>,
    /// The steps of the run as text.
    pub(super) trace: Trace,
    /// The committed turns, for checks and reports.
    pub(super) step_log: StepLog,
    /// The simulated broker, with the links of all nodes.
    pub(super) broker: Broker,
    /// The counters of faults that took effect.
    pub(super) fault_counts: FaultCounts,
    /// The number of killed nodes.
    pub(super) crashes: Cell<u64>,
    /// The services, in the order in which they were added.
    pub(super) services: Vec<Service>,
    /// The node of the clients. It hosts nothing.
    pub(super) client: RefCell<Option<Node>>,
    /// The source of ids and of further random sources.
    pub(super) ids: RefCell<IdSource>,
    /// The clients.
    pub(super) clients: Clients,
    /// The first violation. Later ones are consequences.
    pub(super) violation: RefCell<Option<Violation>>,
    /// A rule is running: its reads must not start the rules again.
    pub(super) checking: Cell<bool>,
    /// The `eventually` rules that have not held yet, with the latest reason.
    pub(super) pending_eventually: RefCell<Vec<(usize, String)>>,
    /// No further fault is injected: the run waits until it is idle.
    pub(super) faults_stopped: Cell<bool>,
    /// The disturbance that the fault profile causes, by its number in the step log.
    pub(super) profile_disturbance: Cell<Option<usize>>,
    /// The injected faults, with the number of hits.
    pub(super) injected: RefCell<Vec<(InjectedFault, Count)>>,
    /// Faults and other background tasks, which end with the cluster.
    pub(super) tasks: RefCell<Vec<Task>>,
    /// Notified after each commit.
    pub(super) committed: Notify,
}

impl World {
    /// Creates the cluster. Its nodes are not started.
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
                let clock = Clock::ticking(START_TIME);
                let rng = ids.fork();
                let backend = match sim.nodes {
                    1 => sim.store.backend(&rng),
                    _ => Backend::shared(&clock.0),
                };
                let store = SimStore::new(
                    name,
                    rng,
                    trace.clone(),
                    step_log.clone(),
                    fault_counts.clone(),
                    broker.crash_points(at),
                    backend,
                );
                Service::new(name, store, clock, sim.nodes)
            })
            .collect();
        let names = sim.services.iter().map(|(name, _)| name.clone()).collect();
        trace.add(format_args!("fault profile: {}", sim.fault_profile));
        if sim.nodes > 1 {
            set_outside(Some(NodeTasks::start(None)));
        }
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

    /// Returns the broker.
    pub(super) fn broker(&self) -> &Broker {
        &self.0.broker
    }

    /// Returns the step log.
    pub(super) fn step_log(&self) -> &StepLog {
        &self.0.step_log
    }

    /// Returns the services.
    pub(super) fn services(&self) -> &[Service] {
        &self.0.services
    }

    /// Applies a fault profile to the broker and to all stores.
    pub(super) fn set_fault_profile(&self, profile: FaultProfile) {
        self.0.broker.set_fault_profile(profile);
        for service in &self.0.services {
            service.store.set_max_delays(profile.commit_delay, profile.read_delay);
        }
    }

    /// Lets virtual time pass.
    ///
    /// Other tasks continue in between: faults, timers, retries.
    pub async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    /// Returns a random number in `0..bound` that follows from the seed.
    ///
    /// Each call draws another one. In scenarios, not in rules: a rule that draws changes the run.
    pub fn below(&self, bound: u64) -> u64 {
        self.0.ids.borrow().below(bound)
    }

    /// Adds a line to the trace.
    ///
    /// It is printed between the steps of the run, which helps to read a long trace.
    pub fn note(&self, text: &str) {
        self.0.trace.add(format_args!("{text}"));
    }

    /// Returns true if a dead letter violates the rules of the run.
    pub(super) fn forbids_dead_letters(&self) -> bool {
        !self.0.sim.allow_dead_letters
    }

    /// Returns true if a saga that has not ended violates the rules of the run.
    pub(super) fn requires_ended_sagas(&self) -> bool {
        !self.0.sim.allow_open_sagas
    }

    /// Returns the committed turns so far, in the order of their commits.
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

    /// Returns the coverage of the given turns, with the faults of the run.
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
            for seat in &service.seats {
                let node = seat.node.borrow_mut().take();
                drop(node);
                seat.end_tasks();
            }
        }
        set_outside(None);
        let client = self.0.client.borrow_mut().take();
        drop(client);
        let other = self.0.clients.other.borrow_mut().take();
        drop(other);
        (self.0.trace.text(), self.0.trace.count())
    }
}
