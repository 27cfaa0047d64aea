//! A saga flow as a property: commands, weather and faults are drawn, and what fails is made as short as it can be.
//!
//! Called by users' tests. Draws with proptest; a case that fails loses steps, faults and bad weather as long as it still fails
//! in the same way, its values become simpler, and what is left is told as a story, with the line that plays it again.

#![expect(clippy::panic, reason = "a property that does not hold fails by panicking, as every test does")]

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

use super::failure_report::{REPLAY, SEEDS, ending, replay};
use super::plan::{Bounds, Plan, Source};
use super::regressions::Regressions;
use super::repeat::{Lived, compared};
use super::shrink::{Found, Shrinking};
use super::shrink_mask::ShrinkMask;
use super::{Coverage, Fault, RuleViolation, Run, Sim, World, report};
use crate::node::NodeBuilder;

/// A kind of fault that was drawn so often must have struck.
const TRIES: u64 = 20;

/// A rule that knows what was done.
type StepsRule<T> = Rc<dyn Fn(&World, &[T]) -> Result<(), String>>;

/// A flow of several services as a property.
#[must_use = "a flow is described, not checked"]
pub struct Flow<T, F> {
    name: &'static str,
    sim: Rc<dyn Fn(Sim) -> Sim>,
    step: BoxedStrategy<T>,
    perform: Rc<F>,
    always: Vec<StepsRule<T>>,
    eventually: Vec<StepsRule<T>>,
    at_end: Vec<StepsRule<T>>,
    bounds: Bounds,
    misses: bool,
    /// The services that host a worker, and those that host an aggregate or a saga, once they were asked.
    hosts: OnceCell<(Vec<usize>, Vec<usize>)>,
    regressions: Regressions,
}

impl<T, F> Flow<T, F>
where
    T: Clone + fmt::Debug + 'static,
    F: AsyncFn(&World, T) + 'static,
{
    /// A flow: its cluster, what may be done in it, how many times, and how it is done.
    ///
    /// `name` stands in the line that plays a case again, and in the file of regressions, `<test>.regressions` beside the file
    /// that calls this: a case that does not hold is written there, and run first from then on.
    ///
    /// # Panics
    /// If the name is anything but letters, digits, `-` and `_`.
    #[track_caller]
    pub fn new(
        name: &'static str,
        sim: impl Fn(Sim) -> Sim + 'static,
        step: impl Strategy<Value = T> + 'static,
        steps: Range<usize>,
        perform: F,
    ) -> Self {
        let plain = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
        assert!(
            !name.is_empty() && name.chars().all(plain),
            "`{name}` cannot name a flow: it stands in a line for the shell, so it has letters, digits, `-` and `_` only"
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
            bounds: Bounds { versions, ..Bounds::new(services, steps) },
            misses: false,
            hosts: OnceCell::new(),
            regressions: Regressions::beside(Location::caller().file()),
        }
    }

    /// Adds what must hold after every commit, given everything that is done in the case: a plain model of the business.
    pub fn always(mut self, rule: impl Fn(&World, &[T]) -> Result<(), String> + 'static) -> Self {
        self.always.push(Rc::new(rule));
        self
    }

    /// Adds what must come to hold at some moment, after a commit or at the end. It need not hold for long.
    pub fn eventually(mut self, rule: impl Fn(&World, &[T]) -> Result<(), String> + 'static) -> Self {
        self.eventually.push(Rc::new(rule));
        self
    }

    /// Adds what must hold at the end, when nothing is under way any more.
    pub fn at_end(mut self, rule: impl Fn(&World, &[T]) -> Result<(), String> + 'static) -> Self {
        self.at_end.push(Rc::new(rule));
        self
    }

    /// Sets how many faults a case has at most. Default: 6. One start with a wrong clock
    /// may come on top, and in a cluster with workers a third as many faults of jobs.
    pub fn faults(mut self, most: usize) -> Self {
        self.bounds.faults = most;
        self
    }

    /// Kinds of faults that were drawn and never struck do not count as a violation. Default: they do, see [`check`](Self::check).
    pub fn faults_may_miss(mut self) -> Self {
        self.misses = true;
        self
    }

    /// Sets how many things are done in a case. Default: as given to [`new`](Self::new).
    pub fn steps(mut self, steps: Range<usize>) -> Self {
        self.bounds.steps = steps;
        self
    }

    /// Sets how far wall clocks jump at most. Default: 2 h.
    pub fn jumps(mut self, farthest: Duration) -> Self {
        self.bounds.jumps = farthest;
        self
    }

    /// Sets the time that passes before each step: how commands arrive. Default: up to 400 ms, in steps of 20 ms; longer if
    /// there are many faults, shorter if there are many commands.
    ///
    /// Longer ones let timers ring in between; `Just(Duration::ZERO)` lets all commands come at once.
    pub fn arrivals(mut self, gap: impl Strategy<Value = Duration> + 'static) -> Self {
        self.bounds.gap = Some(gap.boxed());
        self
    }

    /// Sets what goes wrong, and when, counted from the begin. Default: any [`Fault`] within 5 s; services are numbered in the
    /// order in which the cluster names them. [`jumps`](Self::jumps) and [`no_panics`](Self::no_panics) do not concern these.
    pub fn faults_from(mut self, fault: impl Strategy<Value = (Duration, Fault)> + 'static) -> Self {
        self.bounds.own = Some(fault.boxed());
        self
    }

    /// Draws no panics in handlers: for nodes that make a message a dead letter before its third delivery.
    pub fn no_panics(mut self) -> Self {
        self.bounds.panics = false;
        self
    }

    /// Sets the file in which cases are kept that did not hold. Default: beside the file that calls [`new`](Self::new).
    pub fn regressions(mut self, file: impl AsRef<Path>) -> Self {
        self.regressions = Regressions::at(file.as_ref());
        self
    }

    /// Keeps no cases that did not hold: for flows that are wrong on purpose.
    pub fn no_regressions(mut self) -> Self {
        self.regressions = Regressions::nowhere();
        self
    }

    /// The cases kept in the file of regressions, and then those of these seeds; each must hold. Returns which paths they took.
    ///
    /// With the variable `WHIZBANG_SIM` set to what an earlier failure printed, only that case. With `WHIZBANG_SIM_SEEDS` set to
    /// some seeds, `1000..2000` or the first `10000`, those and nothing else: kept cases are neither run nor added. With
    /// `WHIZBANG_SIM_REPORT` set to a folder, what was reached and what never is written there, with a picture of each saga, as
    /// `<flow>.md`.
    ///
    /// A fault that hits nothing proves nothing: it fails, too, if faults of one kind were drawn 20 times and none of them has struck.
    /// Of faults from [`faults_from`](Self::faults_from) each kind must strike once.
    ///
    /// # Panics
    /// If a case does not hold: with the shortest one found, what happened in it, and how to play it again. If the report
    /// cannot be written. If a variable says what nobody understands.
    #[track_caller]
    pub fn check(&self, seeds: Range<u64>) -> Coverage {
        let wanted = std::env::var(REPLAY).ok();
        let mine = wanted.as_deref().and_then(|case| case.strip_prefix(self.name)?.strip_prefix('/'));
        let mut coverage = Coverage::default();
        match (mine, &wanted) {
            (Some(case), _) => {
                let (seed, path) = case.split_once('/').unwrap_or((case, ""));
                let seed = seed.parse().unwrap_or_else(|_| panic!("{REPLAY}: `{seed}` is no seed"));
                coverage.merge(&self.played(seed, path).coverage);
            }
            // Another flow's case.
            (None, Some(_)) => {}
            (None, None) => {
                let asked = asked_seeds();
                let nowhere = Regressions::nowhere();
                let regressions = if asked.is_some() { &nowhere } else { &self.regressions };
                let kept = regressions.of(self.name).unwrap_or_else(|error| panic!("{error}"));
                for (seed, path) in kept {
                    coverage.merge(&self.played(seed, &path).coverage);
                }
                for seed in asked.unwrap_or(seeds) {
                    match self.shortest(seed) {
                        Ok(run) => coverage.merge(&run.coverage),
                        Err(found) => {
                            let Found { seed, path, broken, .. } = &*found;
                            let kept = regressions.keep(self.name, *seed, path, &broken.reason);
                            panic!("{}{kept}", self.told(&found));
                        }
                    }
                }
            }
        }
        let own = self.bounds.own.is_some();
        let tries = if own { 1 } else { TRIES };
        let missed = if wanted.is_some() || self.misses { Vec::new() } else { coverage.missed(tries, !own) };
        if !missed.is_empty() {
            panic!(
                "the flow `{}`: faults that hit nothing prove nothing: {}; draw other moments, or allow it with `faults_may_miss`",
                self.name,
                missed.join("; ")
            );
        }
        // Of another flow's case nothing was run.
        if mine.is_some() || wanted.is_none() {
            report::write(self.name, &coverage).unwrap_or_else(|error| panic!("{error}"));
        }
        coverage
    }

    #[track_caller]
    fn played(&self, seed: u64, path: &str) -> Run {
        self.play(seed, path).unwrap_or_else(|story| panic!("{story}"))
    }

    /// The first of these seeds whose case does not hold, with the shortest case found; for tests of wrong flows.
    pub fn first_broken(&self, seeds: Range<u64>) -> Option<Found<T>> {
        seeds.into_iter().find_map(|seed| self.shortest(seed).err()).map(|found| *found)
    }

    /// Runs the case of a seed.
    ///
    /// # Errors
    /// [`RuleViolation`] if it does not hold.
    pub fn run(&self, seed: u64) -> Result<Run, RuleViolation> {
        let source = self.source();
        let frame = source.draw(seed);
        self.live(seed, &source.plan(seed, &frame, &frame.whole()))
    }

    /// Plays a shortened case again: seed and path as the line says that plays it again.
    ///
    /// # Errors
    /// The story, if it does not hold.
    ///
    /// # Panics
    /// If `path` is not what such a line says.
    pub fn play(&self, seed: u64, path: &str) -> Result<Run, String> {
        let source = self.source();
        let frame = source.draw(seed);
        let cut = match path {
            "" => frame.whole(),
            path => path.parse().unwrap_or_else(|_| panic!("{REPLAY}: `{path}` does not say what is kept of a case")),
        };
        let plan = source.plan(seed, &frame, &cut);
        let lived = self.live(seed, &plan);
        let lived = self.differs(seed, &plan, &lived).map_or(lived, Err);
        lived.map_err(|broken| self.told(&Found { seed, path: path.to_owned(), runs: 1, plan, broken }))
    }

    fn source(&self) -> Source<T> {
        let (workers, keyed) = self.hosts.get_or_init(|| {
            let sim = (self.sim)(Sim::new(0));
            (sim.services_that(NodeBuilder::has_worker), sim.services_that(NodeBuilder::has_keys))
        });
        let bounds = Bounds { workers: workers.clone(), keyed: keyed.clone(), ..self.bounds.clone() };
        Source { frame: bounds.frame(), step: self.step.clone() }
    }

    /// The run of a seed's case, or the shortest case found if it does not hold.
    fn shortest(&self, seed: u64) -> Result<Run, Box<Found<T>>> {
        let source = self.source();
        let frame = source.draw(seed);
        let cut: ShrinkMask = frame.whole();
        let plan = source.plan(seed, &frame, &cut);
        let lived = self.live(seed, &plan);
        // What fails is run twice, and so is every sixteenth case that holds.
        if (lived.is_err() || seed % 16 == 15)
            && let Some(broken) = self.differs(seed, &plan, &lived)
        {
            // Nothing can be left out of a case that is another one each time.
            return Err(Box::new(Found { seed, path: cut.to_string(), runs: 2, plan, broken }));
        }
        lived.map_err(|broken| {
            let found = Found { seed, path: cut.to_string(), runs: 2, plan, broken };
            let run = |plan: &Plan<T>| self.live(seed, plan).err();
            let mut found = Box::new(Shrinking::new(&source, &frame, found, cut, run).shortest());
            let lived = Err(found.broken.clone());
            if let Some(broken) = self.differs(seed, &found.plan, &lived) {
                found.broken = broken;
            }
            found
        })
    }

    /// Runs a case once more. The failure, if it is not the same run again.
    fn differs(&self, seed: u64, plan: &Plan<T>, lived: &Result<Run, RuleViolation>) -> Option<RuleViolation> {
        let again = self.live(seed, plan);
        compared(seed, &Lived::of(lived), &Lived::of(&again))
    }

    fn live(&self, seed: u64, plan: &Plan<T>) -> Result<Run, RuleViolation> {
        let mut sim = (self.sim)(Sim::new(seed)).weather(plan.weather).faults_may_miss();
        if plan.reload_actors {
            sim = sim.reload_actors();
        }
        for (at, fault) in &plan.faults {
            sim = sim.fault(*at, fault.clone());
        }
        let done: Rc<Vec<T>> = Rc::new(plan.steps.iter().map(|(_, step)| step.clone()).collect());
        let bound = |rule: &StepsRule<T>| {
            let (rule, done) = (Rc::clone(rule), Rc::clone(&done));
            move |world: &World| rule(world, &done)
        };
        sim = self.always.iter().fold(sim, |sim, rule| sim.always(bound(rule)));
        sim = self.eventually.iter().fold(sim, |sim, rule| sim.eventually(bound(rule)));
        sim = self.at_end.iter().fold(sim, |sim, rule| sim.at_end(bound(rule)));
        let steps = plan.steps.clone();
        let perform = Rc::clone(&self.perform);
        sim.run(async move |world| {
            let performed = steps.into_iter().map(|(at, step)| {
                let perform = Rc::clone(&perform);
                async move {
                    tokio::time::sleep(at).await;
                    perform(world, step).await;
                }
            });
            join_all(performed).await;
        })
    }

    fn told(&self, found: &Found<T>) -> String {
        let Found { seed, path, runs, plan, broken } = found;
        let name = self.name;
        let RuleViolation { reason, trace, deeds, .. } = broken;
        format!(
            "\nthe flow `{name}` does not hold: {reason}\n\nthe shortest case found (in {runs} runs):\n{plan}\nwhat each actor \
             did:\n{deeds}\nwhat happened:\n{}\n\n{reason}\n\nplay it again:\n  {}\n",
            ending(trace),
            replay(name, *seed, path)
        )
    }
}

/// The seeds that the environment asks for, if it does.
fn asked_seeds() -> Option<Range<u64>> {
    let asked = std::env::var(SEEDS).ok()?;
    let (start, end) = asked.split_once("..").unwrap_or(("0", &asked));
    match (start.parse(), end.parse()) {
        (Ok(start), Ok(end)) if start < end => Some(start..end),
        _ => panic!("{SEEDS}: `{asked}` are no seeds; `1000..2000` are, and the first `10000`"),
    }
}
