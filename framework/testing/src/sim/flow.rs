//! Property tests of flows: commands, fault profiles and faults are drawn, and failing cases are shrunk.
//!
//! Called by users' tests. Draws with proptest. A failing case loses steps, faults and parts of its fault profile as long as it
//! fails in the same way; then its values are simplified. The rest is printed as a failure report with a command that replays it.

#![expect(clippy::panic, reason = "a violated property panics, as every failed test does")]

use std::cell::OnceCell;
use std::fmt;
use std::ops::Range;
use std::panic::Location;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::Strategy;
use proptest::strategy::BoxedStrategy;

use super::determinism::{CaseOutcome, compare};
use super::failure_report::{REPLAY, SEEDS, replay, shorten_trace};
use super::plan::{CaseBounds, CaseGenerator, Plan};
use super::regressions::Regressions;
use super::shrink::{FailingCase, Shrinker};
use super::shrink_mask::ShrinkMask;
use super::{Coverage, Fault, PassedRun, RuleViolation, Sim, World, report};
use whizbang_runtime::node::NodeBuilder;

/// A kind of fault that was drawn this often must have hit something.
const TRIES: u64 = 20;

/// A rule that also receives the steps of the case.
type StepsRule<T> = Rc<dyn Fn(&World, &[T]) -> Result<(), String>>;

/// A property test of a flow that spans several services.
///
/// ```
/// # use bank_fixture::*;
/// use whizbang::testing::{Flow, Sim, World};
///
/// let bank = |sim: Sim| sim.service("bank", |node| node.aggregate::<Account>());
/// let deposit = async |world: &World, cents: u64| {
///     world.send(Deposit { account: "ada".into(), cents }).await.unwrap();
/// };
/// let flow = Flow::new("deposits", bank, 1..100u64, 1..5, deposit).no_regressions().at_end(|world, deposits| {
///     let (held, paid) = (world.state::<Account>("ada").cents, deposits.iter().sum::<u64>());
///     if held == paid { Ok(()) } else { Err(format!("{held} of {paid} cents are held")) }
/// });
/// flow.allow_missed_faults().check(0..4);
/// ```
///
/// # Cost
///
/// A case runs in virtual time, so it takes as long as its turns and not as long as its timers. An ordinary test affords some
/// dozens of seeds. Set `WHIZBANG_SIM_SEEDS=10000` for a long run, for example before a release.
#[must_use = "a `Flow` does nothing until `check` is called"]
pub struct Flow<T, F> {
    /// The name, by which failing cases are stored and replayed.
    name: &'static str,
    /// Describes the cluster, once for each run.
    sim: Rc<dyn Fn(Sim) -> Sim>,
    /// Draws a step.
    step: BoxedStrategy<T>,
    /// Performs one step in a cluster.
    perform: Rc<F>,
    /// The rules that hold after every commit.
    always: Vec<StepsRule<T>>,
    /// The rules that hold at some time, once the faults have ended.
    eventually: Vec<StepsRule<T>>,
    /// The rules that hold when the cluster is idle.
    at_end: Vec<StepsRule<T>>,
    /// Limits of the cases: steps, faults, clock jumps.
    bounds: CaseBounds,
    /// A fault that hits nothing is not a failure.
    allow_missed_faults: bool,
    /// The services that host a worker, and those that host an aggregate or a saga. Computed once.
    hosted: OnceCell<(Vec<usize>, Vec<usize>)>,
    /// The failing cases of earlier times, which run first.
    regressions: Regressions,
}

impl<T, F> std::fmt::Debug for Flow<T, F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flow").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T, F> Flow<T, F>
where
    T: Clone + fmt::Debug + 'static,
    F: AsyncFn(&World, T) + 'static,
{
    /// Creates a flow. `sim` describes the cluster, `step` draws one step, `steps` is the number of steps in a case, and `perform`
    /// executes a step.
    ///
    /// `name` is part of the command that replays a case and of the entries in the regressions file. That file is
    /// `<test>.regressions` beside the file that calls this function. Failing cases are added to it and run first from then on.
    ///
    /// # Panics
    /// If the name contains anything but letters, digits, `-` and `_`.
    #[track_caller]
    pub fn new(
        name: &'static str,
        sim: impl Fn(Sim) -> Sim + 'static,
        step: impl Strategy<Value = T> + 'static,
        steps: Range<usize>,
        perform: F,
    ) -> Self {
        let is_plain = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
        assert!(
            !name.is_empty() && name.chars().all(is_plain),
            "`{name}` is not a valid flow name: use letters, digits, `-` and `_`, because it is part of a shell command"
        );
        let described = sim(Sim::new(0));
        let (services, versions) = (described.services.len(), described.services_with_versions());
        Self {
            name,
            sim: Rc::new(sim),
            step: step.boxed(),
            perform: Rc::new(perform),
            always: Vec::new(),
            eventually: Vec::new(),
            at_end: Vec::new(),
            bounds: CaseBounds { versions, nodes: described.nodes, ..CaseBounds::new(services, steps) },
            allow_missed_faults: false,
            hosted: OnceCell::new(),
            regressions: Regressions::beside(Location::caller().file()),
        }
    }

    /// Adds a rule that must hold after every commit. It receives all steps of the case: a simple model of the business.
    ///
    /// Like [`Sim::always`](super::Sim::always): return the reason of the violation. The rule is called after every
    /// commit and in every attempt of shrinking, so it should read little.
    pub fn always(mut self, rule: impl Fn(&World, &[T]) -> Result<(), String> + 'static) -> Self {
        self.always.push(Rc::new(rule));
        self
    }

    /// Adds a rule that must hold at least once, after a commit or at the end.
    ///
    /// It must hold in every case by itself, not only in one of them. For what only some cases reach, assert the
    /// [`Coverage`] that [`check`](Self::check) returns.
    pub fn eventually(mut self, rule: impl Fn(&World, &[T]) -> Result<(), String> + 'static) -> Self {
        self.eventually.push(Rc::new(rule));
        self
    }

    /// Adds a rule that must hold at the end, when no work is in flight.
    ///
    /// Most rules belong here: all faults have stopped then, all messages have arrived, and every timer has fired.
    /// Compare the replies to clients with the stored data.
    pub fn at_end(mut self, rule: impl Fn(&World, &[T]) -> Result<(), String> + 'static) -> Self {
        self.at_end.push(Rc::new(rule));
        self
    }

    /// Sets the maximum number of faults in a case. Default: 6. A restart with a wrong clock may be added, and in a cluster with
    /// workers a third as many faults of jobs.
    ///
    /// With 0 the cluster runs without single faults. The fault profile is drawn nevertheless.
    pub fn max_faults(mut self, most: usize) -> Self {
        self.bounds.faults = most;
        self
    }

    /// Allows kinds of faults that never hit anything. Default: they fail the flow, see [`check`](Self::check).
    ///
    /// For a flow with few cases, or with steps that seldom reach the target of a fault.
    pub fn allow_missed_faults(mut self) -> Self {
        self.allow_missed_faults = true;
        self
    }

    /// Sets the number of steps in a case. Default: the range given to [`new`](Self::new).
    ///
    /// Longer cases find more and are shrunk more slowly.
    pub fn steps(mut self, steps: Range<usize>) -> Self {
        self.bounds.steps = steps;
        self
    }

    /// Sets the maximum jump of wall clocks. Default: 2 h.
    pub fn max_clock_jump(mut self, max: Duration) -> Self {
        self.bounds.max_clock_jump = max;
        self
    }

    /// Sets the time before each step. Default: up to 400 ms, in multiples of 20 ms; longer if there are many faults, shorter if
    /// there are many steps.
    ///
    /// Longer times let timers fire between steps. `Just(Duration::ZERO)` sends all commands at once.
    pub fn arrivals(mut self, gap: impl Strategy<Value = Duration> + 'static) -> Self {
        self.bounds.custom_gap = Some(gap.boxed());
        self
    }

    /// Sets a strategy for faults and their moments, counted from the start. Default: any [`Fault`] within 5 s. Services are
    /// numbered in the order in which they were added. [`max_clock_jump`](Self::max_clock_jump) and [`no_panics`](Self::no_panics)
    /// do not apply to these faults.
    pub fn faults_from(mut self, fault: impl Strategy<Value = (Duration, Fault)> + 'static) -> Self {
        self.bounds.custom_faults = Some(fault.boxed());
        self
    }

    /// Also draws operators that discard a message that fails. A discarded message has no effect and its sender gets a rejection, so
    /// the rules of the flow must allow for it.
    pub fn discards(mut self) -> Self {
        self.bounds.discards = true;
        self
    }

    /// Draws no panics in handlers. Required for nodes that dead-letter a message before its third delivery.
    ///
    /// All other faults are drawn as before.
    pub fn no_panics(mut self) -> Self {
        self.bounds.panics = false;
        self
    }

    /// Sets the file of regressions. Default: beside the file that calls [`new`](Self::new).
    ///
    /// The folder must exist. The file is created with the first failing case. Commit it, so that the case runs
    /// everywhere.
    pub fn regressions(mut self, file: impl AsRef<Path>) -> Self {
        self.regressions = Regressions::at(file.as_ref());
        self
    }

    /// Disables the regressions file: for flows that contain a bug on purpose.
    ///
    /// A failing case is still shrunk and printed.
    pub fn no_regressions(mut self) -> Self {
        self.regressions = Regressions::disabled();
        self
    }

    /// Runs the cases of the regressions file, then one case per seed. All must hold. Returns the paths that were taken.
    ///
    /// Environment variables change the cases:
    /// - `WHIZBANG_SIM`: replays only the case that an earlier failure printed.
    /// - `WHIZBANG_SIM_SEEDS`: runs other seeds, `1000..2000` or the first `10000`. The regressions file is neither read nor
    ///   written.
    /// - `WHIZBANG_SIM_REPORT`: writes reached and unreached paths, with a diagram of each saga, to `<flow>.md` in that folder.
    ///
    /// A fault that hits nothing proves nothing: the flow also fails if one kind of fault was drawn 20 times and never hit. With
    /// [`faults_from`](Self::faults_from), each kind must hit once.
    ///
    /// # Panics
    /// If a case fails: the text contains the shortest failing case, its trace, and a command that replays it. If the report cannot
    /// be written. If a variable is invalid.
    #[track_caller]
    pub fn check(&self, seeds: Range<u64>) -> Coverage {
        let replay_case = std::env::var(REPLAY).ok();
        let this_case = replay_case.as_deref().and_then(|case| case.strip_prefix(self.name)?.strip_prefix('/'));
        let mut coverage = Coverage::default();
        match (this_case, &replay_case) {
            (Some(case), _) => {
                let (seed, path) = case.split_once('/').unwrap_or((case, ""));
                let seed = seed.parse().unwrap_or_else(|_| panic!("{REPLAY}: invalid seed `{seed}`"));
                coverage.merge(&self.replay_or_panic(seed, path).coverage);
            }
            // The case belongs to another flow.
            (None, Some(_)) => {}
            (None, None) => {
                let requested = requested_seeds();
                let disabled = Regressions::disabled();
                let regressions = if requested.is_some() { &disabled } else { &self.regressions };
                let cases = regressions.cases(self.name).unwrap_or_else(|error| panic!("{error}"));
                for (seed, path) in cases {
                    coverage.merge(&self.replay_or_panic(seed, &path).coverage);
                }
                for seed in requested.unwrap_or(seeds) {
                    match self.run_and_shrink(seed) {
                        Ok(run) => coverage.merge(&run.coverage),
                        Err(found) => {
                            let FailingCase { seed, path, violation, .. } = &*found;
                            let kept = regressions.add(self.name, *seed, path, &violation.reason);
                            panic!("{}{kept}", self.report(&found));
                        }
                    }
                }
            }
        }
        let has_custom_faults = self.bounds.custom_faults.is_some();
        let tries = if has_custom_faults { 1 } else { TRIES };
        let missed_faults = if replay_case.is_some() || self.allow_missed_faults {
            Vec::new()
        } else {
            coverage.missed_faults(tries, !has_custom_faults)
        };
        if !missed_faults.is_empty() {
            panic!(
                "the flow `{}`: faults that hit nothing prove nothing: {}; draw other moments or call `allow_missed_faults`",
                self.name,
                missed_faults.join("; ")
            );
        }
        // Nothing was run if the requested case belongs to another flow.
        if this_case.is_some() || replay_case.is_none() {
            report::write(self.name, &coverage).unwrap_or_else(|error| panic!("{error}"));
        }
        coverage
    }

    /// Replays a case and fails the test if it still fails.
    #[track_caller]
    fn replay_or_panic(&self, seed: u64, path: &str) -> PassedRun {
        self.replay(seed, path).unwrap_or_else(|report_text| panic!("{report_text}"))
    }

    /// Returns the first failing case of these seeds, shrunk. For tests of flows that contain a bug.
    ///
    /// Returns `None` if all cases hold. The environment variables of [`check`](Self::check) and the regressions file
    /// have no effect.
    pub fn first_failure(&self, seeds: Range<u64>) -> Option<FailingCase<T>> {
        seeds.into_iter().find_map(|seed| self.run_and_shrink(seed).err()).map(|found| *found)
    }

    /// Runs the case of one seed.
    ///
    /// # Errors
    /// [`RuleViolation`] if it violates a rule.
    pub fn run(&self, seed: u64) -> Result<PassedRun, RuleViolation> {
        let generator = self.generator();
        let frame = generator.draw(seed);
        self.run_plan(seed, &generator.plan(seed, &frame, &frame.full()))
    }

    /// Replays a shrunk case. `seed` and `path` are the values in the printed command.
    ///
    /// # Errors
    /// The failure report, if the case still fails.
    ///
    /// # Panics
    /// If `path` is invalid.
    pub fn replay(&self, seed: u64, path: &str) -> Result<PassedRun, String> {
        let generator = self.generator();
        let frame = generator.draw(seed);
        let mask = match path {
            "" => frame.full(),
            path => path.parse().unwrap_or_else(|_| panic!("{REPLAY}: invalid path `{path}`")),
        };
        let plan = generator.plan(seed, &frame, &mask);
        let outcome = self.run_plan(seed, &plan);
        let outcome = self.check_determinism(seed, &plan, &outcome).map_or(outcome, Err);
        outcome.map_err(|violation| self.report(&FailingCase { seed, path: path.to_owned(), runs: 1, plan, violation }))
    }

    /// Returns the generator of cases. The same seed gives the same case.
    fn generator(&self) -> CaseGenerator<T> {
        let (workers, keyed) = self.hosted.get_or_init(|| {
            let sim = (self.sim)(Sim::new(0));
            (sim.services_where(NodeBuilder::has_worker), sim.services_where(NodeBuilder::has_keys))
        });
        let bounds = CaseBounds { workers: workers.clone(), keyed: keyed.clone(), ..self.bounds.clone() };
        CaseGenerator { frame: bounds.frame(), step: self.step.clone() }
    }

    /// Returns the run of a seed's case, or the shortest failing case.
    fn run_and_shrink(&self, seed: u64) -> Result<PassedRun, Box<FailingCase<T>>> {
        let generator = self.generator();
        let frame = generator.draw(seed);
        let mask: ShrinkMask = frame.full();
        let plan = generator.plan(seed, &frame, &mask);
        let outcome = self.run_plan(seed, &plan);
        // A failing case is run twice, and so is every sixteenth case that holds.
        if (outcome.is_err() || seed % 16 == 15)
            && let Some(violation) = self.check_determinism(seed, &plan, &outcome)
        {
            // A case that differs from run to run cannot be shrunk.
            return Err(Box::new(FailingCase { seed, path: mask.to_string(), runs: 2, plan, violation }));
        }
        outcome.map_err(|violation| {
            let found = FailingCase { seed, path: mask.to_string(), runs: 2, plan, violation };
            let run = |plan: &Plan<T>| self.run_plan(seed, plan).err();
            let mut found = Box::new(Shrinker::new(&generator, &frame, found, mask, run).shrink());
            let outcome = Err(found.violation.clone());
            if let Some(violation) = self.check_determinism(seed, &found.plan, &outcome) {
                found.violation = violation;
            }
            found
        })
    }

    /// Runs a case again. Returns a violation if the two runs differ.
    fn check_determinism(
        &self,
        seed: u64,
        plan: &Plan<T>,
        outcome: &Result<PassedRun, RuleViolation>,
    ) -> Option<RuleViolation> {
        let again = self.run_plan(seed, plan);
        compare(seed, &CaseOutcome::of(outcome), &CaseOutcome::of(&again))
    }

    /// Runs one case.
    fn run_plan(&self, seed: u64, plan: &Plan<T>) -> Result<PassedRun, RuleViolation> {
        let mut sim = (self.sim)(Sim::new(seed)).fault_profile(plan.fault_profile).allow_missed_faults();
        if plan.reload_actors {
            sim = sim.reload_actors();
        }
        for (at, fault) in &plan.faults {
            sim = sim.fault(*at, fault.clone());
        }
        let steps_done: Rc<Vec<T>> = Rc::new(plan.steps.iter().map(|(_, step)| step.clone()).collect());
        let bind_steps = |rule: &StepsRule<T>| {
            let (rule, steps_done) = (Rc::clone(rule), Rc::clone(&steps_done));
            move |world: &World| rule(world, &steps_done)
        };
        sim = self.always.iter().fold(sim, |sim, rule| sim.always(bind_steps(rule)));
        sim = self.eventually.iter().fold(sim, |sim, rule| sim.eventually(bind_steps(rule)));
        sim = self.at_end.iter().fold(sim, |sim, rule| sim.at_end(bind_steps(rule)));
        let steps = plan.steps.clone();
        let perform = Rc::clone(&self.perform);
        sim.run(async move |world| {
            let performing = steps.into_iter().map(|(at, step)| {
                let perform = Rc::clone(&perform);
                async move {
                    tokio::time::sleep(at).await;
                    perform(world, step).await;
                }
            });
            join_all(performing).await;
        })
    }

    /// Returns the text of a failed test.
    fn report(&self, found: &FailingCase<T>) -> String {
        let FailingCase { seed, path, runs, plan, violation } = found;
        let name = self.name;
        let RuleViolation { reason, trace, actor_steps, .. } = violation;
        format!(
            "\nthe flow `{name}` fails: {reason}\n\nthe shortest failing case (in {runs} runs):\n{plan}\nsteps of each \
             actor:\n{actor_steps}\ntrace:\n{}\n\n{reason}\n\nreplay:\n  {}\n",
            shorten_trace(trace),
            replay(name, *seed, path)
        )
    }
}

/// Returns the seeds that the environment requests.
fn requested_seeds() -> Option<Range<u64>> {
    let requested = std::env::var(SEEDS).ok()?;
    let (start, end) = requested.split_once("..").unwrap_or(("0", &requested));
    match (start.parse(), end.parse()) {
        (Ok(start), Ok(end)) if start < end => Some(start..end),
        _ => {
            panic!("{SEEDS}: invalid seeds `{requested}`; use a range such as `1000..2000` or a count such as `10000`")
        }
    }
}
