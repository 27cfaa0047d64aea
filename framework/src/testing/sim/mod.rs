//! A whole cluster in one seed: services, their stores, a broker and clients on one thread, in virtual time.
//!
//! Called by users' tests. Builds real nodes with the user's own builder code; only clock, ids, store and bridge are simulated.
//! From the same description and seed follows the same run, byte for byte. The framework's own invariants are always checked.

#![expect(clippy::expect_used, reason = "what cannot fail without input and output ends the test if it does")]

mod error;
mod world;
mod wrong;

mod fault_profile;
mod fault_scheduler;
mod idle;
mod livelock;

mod answers;
mod call;
mod clients;
mod misbehave;

mod backend;
mod broker;
mod broker_faults;
mod consumer;
mod crash_points;
mod disk;
#[cfg(feature = "embedded")]
mod disk_image;
mod forging;
mod journal;
mod link;
mod reader;
mod rival;

mod check;
mod delivery_checks;
mod letters;
mod undoing;

mod delays;
mod fault_counts;
mod inspect;
mod known;
mod payload;
mod random;
mod step_log;
mod trace;
mod turn;
mod watch;

mod coverage;
mod diagrams;

mod failure_report;
mod flow;
mod plan;
mod regressions;
mod repeat;
mod report;
mod shrink;
mod shrink_mask;

use std::rc::Rc;
use std::time::Duration;

pub use call::{Call, Post};
pub use coverage::{Coverage, Covered, FaultCount, Path};
pub use crash_points::CrashPoint;
pub use delays::Waits;
pub use error::SimError;
pub use fault_counts::FaultEvent;
pub use fault_profile::{Fault, FaultProfile, LinkDirection};
pub use flow::Flow;
pub use known::{Sender, SentCommand, SentOutcome, StruckFault};
pub use letters::OperatorAction;
pub use plan::Plan;
pub use random::Random;
pub use shrink::Found;
pub use world::World;

use self::backend::Backend;
use self::wrong::Wrong;
use crate::message::IdSource;
use crate::node::NodeBuilder;
use crate::user_code::{Label, UserCode};

/// Completes the description of a node: what it hosts, how it is configured.
pub(super) type Build = Rc<dyn Fn(NodeBuilder) -> NodeBuilder>;
/// Something that must hold, with what is wrong if it does not.
pub(super) type Rule = Rc<dyn Fn(&World) -> Result<(), String>>;

/// How long the story may last in virtual time before it counts as stuck.
const LONGEST: Duration = Duration::from_secs(3600);

/// A simulated cluster, described.
///
/// ```
/// # use whizbang::doc_fixtures::*;
/// use whizbang::testing::{Sim, Weather};
///
/// let run = Sim::new(7)
///     .service("bank", |node| node.aggregate::<Account>())
///     .weather(Weather { lose: 100, repeat: 100, delay: 20, disk: 5, load: 5 })
///     .at_end(|world| match world.state::<Account>("ada").cents {
///         500 => Ok(()),
///         cents => Err(format!("ada has {cents}")),
///     })
///     .run(async |world| {
///         world.send(Deposit { account: "ada".into(), cents: 500 }).await.unwrap();
///     });
/// assert!(run.is_ok());
/// ```
#[must_use = "a cluster is described, not run"]
#[derive(Clone)]
pub struct Sim {
    seed: u64,
    services: Vec<(String, Build)>,
    /// Other versions of services, by the number of the service.
    versions: Vec<(usize, Build)>,
    fault_profile: FaultProfile,
    faults: Vec<(Duration, Fault)>,
    always: Vec<Rule>,
    eventually: Vec<Rule>,
    at_end: Vec<Rule>,
    dead_letters: bool,
    lasting: bool,
    reload: bool,
    misses: bool,
    keeps: Keeps,
}

/// Where services keep what is committed.
#[derive(Clone, Copy)]
enum Keeps {
    InMemory,
    #[cfg(feature = "embedded")]
    OnDisk,
}

impl Keeps {
    #[cfg_attr(not(feature = "embedded"), expect(unused_variables, reason = "only a disk draws its faults"))]
    fn ground(self, dice: &IdSource) -> Backend {
        match self {
            Self::InMemory => Backend::memory(),
            #[cfg(feature = "embedded")]
            Self::OnDisk => Backend::on_disk(dice),
        }
    }
}

impl Sim {
    /// A cluster without services, in fair weather, whose every draw follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            services: Vec::new(),
            versions: Vec::new(),
            fault_profile: FaultProfile::FAIR,
            faults: Vec::new(),
            always: Vec::new(),
            eventually: Vec::new(),
            at_end: Vec::new(),
            dead_letters: false,
            lasting: false,
            reload: false,
            misses: false,
            keeps: Keeps::InMemory,
        }
    }

    /// Adds a service of one node. `build` says what it hosts; store, bridge, clock and seed are set already.
    pub fn service(mut self, name: &str, build: impl Fn(NodeBuilder) -> NodeBuilder + 'static) -> Self {
        self.services.push((name.to_owned(), Rc::new(build)));
        self
    }

    /// Adds another version of a service, which is described already; services are numbered from 0, and its versions from 1. A
    /// [`Fault::Upgrade`] lets its next node be of that version: one with an upcaster, a new name, a new step, or without an actor
    /// type. A [`Flow`] draws upgrades. All rules go by what the present version hosts.
    pub fn version(mut self, service: usize, build: impl Fn(NodeBuilder) -> NodeBuilder + 'static) -> Self {
        self.versions.push((service, Rc::new(build)));
        self
    }

    /// What describes a version of a service.
    fn build_of(&self, service: usize, version: usize) -> Option<&Build> {
        match version.checked_sub(1) {
            None => self.services.get(service).map(|(_, build)| build),
            Some(other) => self.versions.iter().filter(|(of, _)| *of == service).nth(other).map(|(_, build)| build),
        }
    }

    /// The services that have another version.
    fn services_with_versions(&self) -> Vec<usize> {
        self.versions.iter().map(|(service, _)| *service).collect()
    }

    /// Lets services keep what is committed in the [store on disk](crate::store::embedded::EmbeddedStore), on a disk that is
    /// simulated. In two crashes of three the power fails: what was flushed survives, and of the rest any sectors. In the third
    /// the node alone is killed: what it wrote is there, and may be lost in a later crash. Its files are small, so that their
    /// ends are met often; a turn of more than some 15 KiB does not fit. Default: in memory, which is faster.
    #[cfg(feature = "embedded")]
    pub fn on_disk(mut self) -> Self {
        self.keeps = Keeps::OnDisk;
        self
    }

    /// Sets how the cluster is maltreated all the time. Default: [`FaultProfile::FAIR`].
    pub fn weather(mut self, weather: FaultProfile) -> Self {
        self.fault_profile = weather;
        self
    }

    /// A source of random numbers for the fake of an external service, by the service's name. What it gives follows from the seed:
    /// ask for it where the cluster is described, once in each run, and hand it to the worker that calls the fake.
    ///
    /// ```
    /// # use whizbang::doc_fixtures::*;
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

    /// Adds something that goes wrong at a moment of virtual time. The run fails with the rule `fault` if there was nothing for it
    /// to strike then, unless [`faults_may_miss`](Self::faults_may_miss).
    pub fn fault(mut self, at: Duration, fault: Fault) -> Self {
        self.faults.push((at, fault));
        self
    }

    /// Adds what must hold after every commit.
    pub fn always(mut self, rule: impl Fn(&World) -> Result<(), String> + 'static) -> Self {
        self.always.push(Rc::new(rule));
        self
    }

    /// Adds what must come to hold at some moment, after a commit or at the end. It need not hold for long.
    pub fn eventually(mut self, rule: impl Fn(&World) -> Result<(), String> + 'static) -> Self {
        self.eventually.push(Rc::new(rule));
        self
    }

    /// Adds what must hold once faults have stopped and nothing is under way any more, all timers included.
    pub fn at_end(mut self, rule: impl Fn(&World) -> Result<(), String> + 'static) -> Self {
        self.at_end.push(Rc::new(rule));
        self
    }

    /// Dead letters do not count as a violation: the flow is meant to have some.
    pub fn dead_letters_may_stay(mut self) -> Self {
        self.dead_letters = true;
        self
    }

    /// Faults that strike nothing do not count as a violation. Default: they do, because a fault that hits nothing proves nothing.
    pub fn faults_may_miss(mut self) -> Self {
        self.misses = true;
        self
    }

    /// Sagas that have not ended do not count as a violation.
    pub fn sagas_may_go_on(mut self) -> Self {
        self.lasting = true;
        self
    }

    /// Passivates actors after each of their turns, so that nearly every turn is decided on a state rebuilt from the log: state
    /// kept outside of events is lost at once. Default: actors stay live for 4 s. A [`Flow`] does this for a quarter of its
    /// seeds.
    pub fn reload_actors(mut self) -> Self {
        self.reload = true;
        self
    }

    /// The services, by their numbers, whose description has a property.
    fn services_that(&self, is_it: fn(&crate::node::NodeBuilder) -> bool) -> Vec<usize> {
        let is_such = |(name, build): &(String, Build)| {
            is_it(&build(crate::node::Node::builder(name, crate::store::memory::MemoryStore::new())))
        };
        let services = self.services.iter().enumerate();
        services.filter(|(_, service)| is_such(service)).map(|(number, _)| number).collect()
    }

    /// Why this description cannot be run, if it cannot.
    fn impossible(&self) -> Option<SimError> {
        self.faults.iter().find_map(|(_, fault)| self.impossible_fault(fault))
    }

    /// Why a fault cannot strike this cluster, if it cannot.
    fn impossible_fault(&self, fault: &Fault) -> Option<SimError> {
        let missing = || match *fault {
            Fault::Upgrade { service, version, .. } if self.build_of(service, version).is_none() => {
                Some(SimError::MissingVersion { fault: format!("{fault:?}"), service, version })
            }
            _ => None,
        };
        fault.impossible(self.services.len()).or_else(missing)
    }

    /// Runs the cluster: starts the nodes, tells the story, stops the faults, waits until nothing is under way, lets all timers
    /// ring, and checks.
    ///
    /// # Errors
    /// [`RuleViolation`] says what does not hold, and how it came to it.
    ///
    /// # Panics
    /// Inside another runtime. Use it in plain `#[test]` functions.
    pub fn run(self, story: impl AsyncFnOnce(&World)) -> Result<Run, RuleViolation> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without input and output needs nothing");
        let tasks = tokio::task::LocalSet::new();
        let run = tasks.block_on(&runtime, self.live(story));
        // Tasks hold the world and the world holds nodes: they end here, inside their runtime.
        let _inside = runtime.enter();
        drop(tasks);
        run
    }

    async fn live(self, story: impl AsyncFnOnce(&World)) -> Result<Run, RuleViolation> {
        let seed = self.seed;
        let began = crate::clock::instant();
        let impossible = self.impossible();
        let world = World::begin(self);
        let told = async {
            if let Some(reason) = impossible {
                return Err(reason.into());
            }
            let told = tokio::time::timeout(LONGEST, async {
                world.start_all().await;
                if world.broken().is_some() {
                    return;
                }
                let faults = world.rain();
                story(&world).await;
                world.settle_faults(faults).await;
            });
            match told.await {
                Ok(()) if world.broken().is_some() => Ok(()),
                Ok(()) => world.end().await,
                Err(_) => Err(Wrong::from(format!("the story does not end within {LONGEST:?}"))),
            }
        };
        // A panic of the story or of a rule is one more thing that is wrong, and what led to it is wanted, too.
        let code = UserCode::default();
        let ended = code.run(Label::default(), livelock::unless_time_stands_still(told)).await;
        let ended = ended.unwrap_or_else(|panicked| Err(Wrong::panic(panicked.text())));
        // What always holds and did not is nearer to the cause than what is wrong at the end.
        let broken = world.broken().or_else(|| ended.err());
        let turns = world.turns_taken();
        let coverage = world.coverage(&turns);
        let deeds = if broken.is_some() { world.deeds(&turns) } else { String::new() };
        let (trace, steps) = world.close();
        match broken {
            None => Ok(Run { seed, trace, steps, lasted: began.elapsed(), coverage }),
            Some(wrong) => Err(RuleViolation::new(seed, wrong, trace, deeds)),
        }
    }
}

/// A run in which everything held.
#[derive(Clone, Debug)]
pub struct Run {
    /// The seed.
    pub seed: u64,
    /// What happened, line by line. The same for the same description and seed.
    pub trace: String,
    /// How many lines that are.
    pub steps: usize,
    /// How much virtual time has passed.
    pub lasted: Duration,
    /// Which paths it took.
    pub coverage: Coverage,
}

/// A run in which something did not hold.
#[derive(Clone, Debug, thiserror::Error)]
#[error("seed {seed}: {reason}")]
pub struct RuleViolation {
    /// The seed.
    pub seed: u64,
    /// Which rule does not hold: `at the end 2` is the second one that was added with [`Sim::at_end`]; the framework's own have
    /// names such as `I7`, `timers` or `state`.
    pub rule: String,
    /// What does not hold.
    pub reason: String,
    /// What happened, line by line.
    pub trace: String,
    /// What each actor and each worker did, by actor and key.
    pub deeds: String,
    /// Why the cluster cannot be run as it is described; nothing else was checked then.
    pub description: Option<Box<SimError>>,
}

impl RuleViolation {
    fn new(seed: u64, wrong: Wrong, trace: String, deeds: String) -> Self {
        let Wrong { rule, reason, description } = wrong;
        Self { seed, rule, reason, trace, deeds, description }
    }
}
