//! Simulation of a whole cluster from one seed: services, stores, a broker and clients on one thread, in virtual time.
//!
//! Called by users' tests. Starts real nodes with the user's own builder code. Only the clock, ids, store and bridge are simulated.
//! The same description and seed produce the same run, byte for byte. Every run also checks the invariants of the framework.
//!
//! # Reading order
//! 1. [`Sim`] describes a cluster, and [`World`] is the running one: its services, nodes and faults.
//! 2. `call` and `clients`: the requests of a scenario, and what its clients know.
//! 3. `store`, `bridge`, `broker` and the files around them: the adapters of simulated nodes. They drop, delay and repeat
//!    messages, and kill nodes at crash points.
//! 4. `store_checks`, `reply_checks`, `compensation_checks`, `dead_letters`, `delays`: the invariants. `step_log` records the turns
//!    that they, `coverage` and `failure_report` read.
//! 5. [`Flow`]: draws cases (`plan`), runs them, and reduces a failing one (`shrink`).

#![expect(clippy::expect_used, reason = "these calls do no I/O; a failure ends the test")]

mod error;
mod two_callers;
mod violation;
mod world;

mod fault_profile;
mod fault_scheduler;
mod fault_text;
mod idle;
mod lifecycle;
mod livelock;
mod node_faults;
mod service;

mod call;
mod client_faults;
mod clients;
mod publications;
mod reply_checks;

mod backend;
mod bridge;
mod bridge_calls;
mod broker;
mod broker_faults;
mod broker_names;
mod broker_records;
mod broker_shards;
mod consumer;
mod crash_points;
#[cfg(feature = "embedded")]
mod disk_image;
mod hostile_client;
mod incarnation;
mod link;
mod node_tasks;
mod observed_messages;
mod other_caller;
mod owned_shards;
mod ownership_rules;
mod pending_appends;
mod reader;
mod requests;
mod second_node;
mod shared_store;
mod sim_leases;
mod store;
mod store_calls;
mod store_handle;
mod store_recorder;
mod writer;

mod compensation_checks;
mod dead_letters;
mod delivery_checks;
mod store_checks;

mod committed_turn;
mod delays;
mod fault_counts;
mod full_name;
mod inspect;
mod owned_turn;
mod payload;
mod random;
mod rule_checks;
mod run_queries;
mod sent_command;
mod step_log;
mod trace;

mod actor_coverage;
mod coverage;
mod diagrams;

mod determinism;
mod failure_report;
mod flow;
mod plan;
mod regressions;
mod report;
mod shrink;
mod shrink_mask;

use std::rc::Rc;
use std::time::Duration;

pub use actor_coverage::{ActorCoverage, CoveragePath};
pub use call::{SimCall, SimPost};
pub use coverage::Coverage;
pub use crash_points::CrashPoint;
pub use delays::WaitTimes;
pub use error::SimError;
pub use fault_counts::{FaultCount, FaultEvent};
pub use fault_profile::{Fault, FaultProfile, InjectedFault, LinkDirection, OperatorAction};
pub use flow::Flow;
pub use plan::Plan;
pub use random::Random;
pub use sent_command::{Sender, SentCommand, SentOutcome};
pub use shrink::FailingCase;
pub use violation::RuleViolation;
pub use world::World;

use self::backend::Backend;
use self::violation::Violation;
use whizbang_core::message::IdSource;
use whizbang_core::user_code::{Label, UserCode};
use whizbang_runtime::node::NodeBuilder;

/// Completes the builder of a node: its actor types and its configuration.
pub(super) type Build = Rc<dyn Fn(NodeBuilder) -> NodeBuilder>;
/// A condition on the cluster. Returns the reason if it is violated.
pub(super) type Rule = Rc<dyn Fn(&World) -> Result<(), String>>;

/// Virtual time after which an unfinished scenario counts as stuck.
const SCENARIO_LIMIT: Duration = Duration::from_secs(3600);

/// A description of a simulated cluster.
///
/// ```
/// # use bank_fixture::*;
/// use whizbang::testing::{Sim, FaultProfile};
///
/// let run = Sim::new(7)
///     .service("bank", |node| node.aggregate::<Account>())
///     .fault_profile(FaultProfile { loss: 100, duplication: 100, delay: 20, commit_delay: 5, read_delay: 5 })
///     .at_end(|world| match world.state::<Account>("ada").cents {
///         500 => Ok(()),
///         cents => Err(format!("ada has {cents}")),
///     })
///     .run(async |world| {
///         world.send(Deposit { account: "ada".into(), cents: 500 }).await.unwrap();
///     });
/// assert!(run.is_ok());
/// ```
///
/// # Checks of every run
///
/// Besides the rules of the test, each run checks the framework: one decision for each command, every event applied once by each
/// subscriber, no gap in streams and positions, one owner of each shard, compensation in reverse order, and no key that delays
/// another one. A violation names the promise of docs/guarantees.md, such as `I7`. A state that differs from the fold of its
/// events is `state`, a timer that did not fire is `timers`, and a task of a node that has ended is `task`.
#[must_use = "a `Sim` does nothing until `run` is called"]
#[derive(Clone)]
pub struct Sim {
    /// The seed, from which everything else follows.
    seed: u64,
    /// The services by name, with the code that builds their nodes.
    services: Vec<(String, Build)>,
    /// Other versions of services, with the index of the service.
    versions: Vec<(usize, Build)>,
    /// The number of nodes of each service.
    nodes: usize,
    /// The rates of faults that may happen at any time.
    fault_profile: FaultProfile,
    /// The faults with the times at which they begin.
    faults: Vec<(Duration, Fault)>,
    /// Rules after each commit.
    always: Vec<Rule>,
    /// The rules that hold at some time, once the faults have ended.
    eventually: Vec<Rule>,
    /// The rules that hold when the cluster is idle.
    at_end: Vec<Rule>,
    /// A dead letter is not a violation.
    allow_dead_letters: bool,
    /// A saga that has not ended is not a violation.
    allow_open_sagas: bool,
    /// Actors leave memory after every turn, so that each turn tests loading.
    reload_actors: bool,
    /// A fault that hits nothing is not a violation.
    allow_missed_faults: bool,
    /// The store of the services.
    store: StoreKind,
}

impl std::fmt::Debug for Sim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sim")
            .field("seed", &self.seed)
            .field("fault_profile", &self.fault_profile)
            .finish_non_exhaustive()
    }
}

/// The kind of store that services use.
#[derive(Clone, Copy)]
enum StoreKind {
    /// The committed data survives crashes; nothing is read from disk.
    InMemory,
    /// The embedded store on a simulated disk.
    #[cfg(feature = "embedded")]
    OnDisk,
}

impl StoreKind {
    #[cfg_attr(
        not(feature = "embedded"),
        expect(unused_variables, reason = "only a simulated disk draws random numbers")
    )]
    /// Creates the store of a service.
    fn backend(self, rng: &IdSource) -> Backend {
        match self {
            Self::InMemory => Backend::memory(),
            #[cfg(feature = "embedded")]
            Self::OnDisk => Backend::on_disk(rng),
        }
    }
}

impl Sim {
    /// Creates a cluster without services and without faults. All random choices follow from `seed`.
    ///
    /// The same seed gives the same run as long as the description, the framework and the Rust version are the same.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            services: Vec::new(),
            versions: Vec::new(),
            nodes: 1,
            fault_profile: FaultProfile::NONE,
            faults: Vec::new(),
            always: Vec::new(),
            eventually: Vec::new(),
            at_end: Vec::new(),
            allow_dead_letters: false,
            allow_open_sagas: false,
            reload_actors: false,
            allow_missed_faults: false,
            store: StoreKind::InMemory,
        }
    }

    /// Adds a service. `build` adds its actor types. Store, bridge, clock and seed are already set.
    ///
    /// `build` is called for every start of a node, also after a crash, so state that
    /// outlives a crash, such as the fake of an external service, is created outside and cloned into it.
    pub fn service(mut self, name: &str, build: impl Fn(NodeBuilder) -> NodeBuilder + 'static) -> Self {
        self.services.push((name.to_owned(), Rc::new(build)));
        self
    }

    /// Runs each service as this many nodes, which share its store by leases of 2 s. Default, and the least: 1. The store is in
    /// memory, also with [`on_disk`](Self::on_disk).
    ///
    /// Each node runs as a process that can be killed, stopped and paused. A [`Flow`] draws these faults, and cuts between a node,
    /// its store and the broker, see [`Fault::PauseNode`]. In every run only the owner of a shard may append and commit, a shard
    /// has one owner, and a node whose lease has ended answers nothing.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes.max(1);
        self
    }

    /// Adds another version of a service that was added before. Services are numbered from 0, additional versions from 1.
    /// [`Fault::Upgrade`] replaces the running node by a node of that version: with an upcaster, a new name, a new step, or
    /// without an actor type. A [`Flow`] draws upgrades. All rules apply to the version that runs.
    pub fn version(mut self, service: usize, build: impl Fn(NodeBuilder) -> NodeBuilder + 'static) -> Self {
        self.versions.push((service, Rc::new(build)));
        self
    }

    /// Returns the builder function of a version.
    fn build_of(&self, service: usize, version: usize) -> Option<&Build> {
        match version.checked_sub(1) {
            None => self.services.get(service).map(|(_, build)| build),
            Some(other) => self.versions.iter().filter(|(of, _)| *of == service).nth(other).map(|(_, build)| build),
        }
    }

    /// Returns the services that have another version.
    fn services_with_versions(&self) -> Vec<usize> {
        self.versions.iter().map(|(service, _)| *service).collect()
    }

    /// Stores committed data in the [store on disk](whizbang_store_embedded::EmbeddedStore), on a simulated disk. Default: in
    /// memory, which is faster.
    ///
    /// In two of three crashes the power fails: flushed data survives, and an arbitrary subset of the other sectors. In the third
    /// only the node is killed: its writes survive, and may be lost in a later crash. Files are small, so that segment ends are
    /// reached often; a turn larger than about 15 KiB does not fit.
    #[cfg(feature = "embedded")]
    pub fn on_disk(mut self) -> Self {
        self.store = StoreKind::OnDisk;
        self
    }

    /// Sets the faults that are active all the time. Default: [`FaultProfile::NONE`].
    pub fn fault_profile(mut self, profile: FaultProfile) -> Self {
        self.fault_profile = profile;
        self
    }

    /// Returns a source of random numbers for the fake of an external service. Its numbers follow from the seed and `name`. Call it
    /// in the function that describes the cluster, once per run, and pass it to the worker that calls the fake.
    ///
    /// ```
    /// # use bank_fixture::*;
    /// use whizbang::testing::Sim;
    ///
    /// let (one, same, other) = (Sim::new(7).random("bank"), Sim::new(7).random("bank"), Sim::new(8).random("bank"));
    /// let draws = |random: &whizbang::testing::sim::Random| (0..4).map(|_| random.below(1000)).collect::<Vec<_>>();
    /// let (one, same, other) = (draws(&one), draws(&same), draws(&other));
    /// assert!(one == same && one != other);
    /// ```
    pub fn random(&self, name: &str) -> Random {
        Random::new(self.seed, name)
    }

    /// Injects a fault at a moment of virtual time. The run fails with the rule `fault` if the fault has no target at that moment,
    /// unless [`allow_missed_faults`](Self::allow_missed_faults) is set.
    pub fn fault(mut self, at: Duration, fault: Fault) -> Self {
        self.faults.push((at, fault));
        self
    }

    /// Adds a rule that must hold after every commit.
    ///
    /// It is called often, so it should read little. It sees committed data only. Return the reason of the violation with the
    /// values that help to understand it.
    pub fn always(mut self, rule: impl Fn(&World) -> Result<(), String> + 'static) -> Self {
        self.always.push(Rc::new(rule));
        self
    }

    /// Adds a rule that must hold at least once, after a commit or at the end.
    ///
    /// It is for states that pass: a saga that was seen compensating, a view that contained an order.
    pub fn eventually(mut self, rule: impl Fn(&World) -> Result<(), String> + 'static) -> Self {
        self.eventually.push(Rc::new(rule));
        self
    }

    /// Adds a rule that must hold at the end: faults have stopped, no work is in flight, and all timers have fired.
    ///
    /// The rules run in the order of the calls, after the framework has checked the data. The first violation ends the run.
    pub fn at_end(mut self, rule: impl Fn(&World) -> Result<(), String> + 'static) -> Self {
        self.at_end.push(Rc::new(rule));
        self
    }

    /// Allows dead letters at the end of the run. Default: each one is a violation.
    ///
    /// Allow them only where the flow causes them on purpose, and state in a rule at the end which ones are expected:
    /// see [`World::dead_letters`].
    pub fn allow_dead_letters(mut self) -> Self {
        self.allow_dead_letters = true;
        self
    }

    /// Allows faults without a target. Default: each one is a violation, because a fault that hits nothing proves nothing.
    pub fn allow_missed_faults(mut self) -> Self {
        self.allow_missed_faults = true;
        self
    }

    /// Allows sagas that have not ended. Default: each one is a violation.
    ///
    /// For sagas that wait for a command that the scenario does not send.
    pub fn allow_open_sagas(mut self) -> Self {
        self.allow_open_sagas = true;
        self
    }

    /// Passivates actors after each of their turns, so that nearly every turn starts from a state rebuilt from the log. State kept
    /// outside events is lost at once. Default: actors stay in memory for 4 s. A [`Flow`] does this for a quarter of its seeds.
    pub fn reload_actors(mut self) -> Self {
        self.reload_actors = true;
        self
    }

    /// Returns the indexes of the services whose builder has a property.
    fn services_where(&self, has_property: fn(&whizbang_runtime::node::NodeBuilder) -> bool) -> Vec<usize> {
        let is_match = |(name, build): &(String, Build)| {
            has_property(&build(whizbang_runtime::node::Node::builder(name, whizbang_log::memory::MemoryStore::new())))
        };
        let services = self.services.iter().enumerate();
        services.filter(|(_, service)| is_match(service)).map(|(number, _)| number).collect()
    }

    /// Returns an error if this description cannot be run.
    fn setup_error(&self) -> Option<SimError> {
        self.faults.iter().find_map(|(_, fault)| self.check_fault(fault))
    }

    /// Returns an error if a fault refers to a service or version that does not exist.
    fn check_fault(&self, fault: &Fault) -> Option<SimError> {
        let missing = || match *fault {
            Fault::Upgrade { service, version, .. } if self.build_of(service, version).is_none() => {
                Some(SimError::MissingVersion { fault: format!("{fault:?}"), service, version })
            }
            _ => None,
        };
        fault.check_services(self.services.len()).or_else(missing)
    }

    /// Runs the cluster: starts the nodes, runs `scenario`, stops the faults, waits until no work is in flight, lets all timers
    /// fire, and checks all rules.
    ///
    /// # Errors
    /// [`RuleViolation`] contains the violated rule and the steps that led to it.
    ///
    /// # Panics
    /// If called inside another runtime. Use it in plain `#[test]` functions.
    pub fn run(self, scenario: impl AsyncFnOnce(&World)) -> Result<PassedRun, RuleViolation> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without I/O needs no resources");
        let tasks = tokio::task::LocalSet::new();
        let run = tasks.block_on(&runtime, self.run_inside(scenario));
        // Tasks hold the world and the world holds nodes: drop them here, inside their runtime.
        let _inside = runtime.enter();
        drop(tasks);
        run
    }

    /// Runs the scenario in the time of the simulation, and checks all rules.
    async fn run_inside(self, scenario: impl AsyncFnOnce(&World)) -> Result<PassedRun, RuleViolation> {
        let seed = self.seed;
        let started = whizbang_core::clock::instant();
        let setup_error = self.setup_error();
        let world = World::new(self);
        let outcome = async {
            if let Some(reason) = setup_error {
                return Err(reason.into());
            }
            let outcome = tokio::time::timeout(SCENARIO_LIMIT, async {
                world.start_all().await;
                if world.violation().is_some() {
                    return;
                }
                let faults = world.start_faults();
                scenario(&world).await;
                world.stop_faults(faults).await;
            });
            match outcome.await {
                Ok(()) if world.violation().is_some() => Ok(()),
                Ok(()) => world.finish().await,
                Err(_) => Err(Violation::from(format!("the scenario did not finish within {SCENARIO_LIMIT:?}"))),
            }
        };
        // A panic of the scenario or of a rule is reported like a violation, together with the trace.
        let user_code = UserCode::default();
        let ended = user_code.run(Label::default(), livelock::fail_on_livelock(outcome)).await;
        let ended = ended.unwrap_or_else(|panicked| Err(Violation::panic(panicked.text())));
        // A violated `always` rule is closer to the cause than a rule violated at the end.
        let violation = world.violation().or_else(|| ended.err());
        let turns = world.committed_turns();
        let coverage = world.coverage(&turns);
        let actor_steps = if violation.is_some() { world.actor_steps(&turns) } else { String::new() };
        let (trace, trace_lines) = world.close();
        match violation {
            None => Ok(PassedRun { seed, trace, trace_lines, elapsed: started.elapsed(), coverage }),
            Some(violation) => Err(RuleViolation::new(seed, violation, trace, actor_steps)),
        }
    }
}

/// A run without violations.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PassedRun {
    /// The seed.
    pub seed: u64,
    /// The trace, one line per step. Identical for the same description and seed.
    pub trace: String,
    /// The number of lines in the trace.
    pub trace_lines: usize,
    /// The virtual time that has passed.
    pub elapsed: Duration,
    /// The paths that were taken.
    pub coverage: Coverage,
}
