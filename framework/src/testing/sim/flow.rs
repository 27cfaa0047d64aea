//! A saga flow as a property: commands, weather and faults are drawn, and what fails is made as short as it can be.
//!
//! Called by users' tests. Draws with proptest; a case that fails loses steps, faults and bad weather as long as it still fails
//! in the same way, and what is left is told as a story, with the line that plays it again.

#![expect(clippy::panic, reason = "a property that does not hold fails by panicking, as every test does")]

use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use proptest::prelude::*;
use proptest::strategy::{BoxedStrategy, ValueTree as _};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::cut::Cut;
use super::{Broken, Fault, Run, Sim, Weather, World};

/// The variable that names one case to play again.
const REPLAY: &str = "WHIZBANG_SIM";
/// How many runs a failing case may be made shorter with.
const SHRINKS: usize = 400;
/// How many lines of what happened are shown.
const SHOWN: usize = 150;

/// A rule that knows what was done.
type StepsRule<T> = Rc<dyn Fn(&World, &[T]) -> Result<(), String>>;

/// One case: what is done, and what goes wrong meanwhile.
#[derive(Clone, Debug)]
pub struct Plan<T> {
    /// How everything is maltreated all the time.
    pub weather: Weather,
    /// What goes wrong, and when.
    pub faults: Vec<(Duration, Fault)>,
    /// What is done, and when.
    pub steps: Vec<(Duration, T)>,
}

impl<T: fmt::Debug> fmt::Display for Plan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  the weather is {}", self.weather)?;
        let steps = self.steps.iter().map(|(at, step)| (*at, format!("{step:?}")));
        let mut lines: Vec<_> = steps.collect();
        lines.extend(self.faults.iter().map(|(at, fault)| (*at, format!("FAULT {fault:?}"))));
        lines.sort_by_key(|(at, _)| *at);
        for (at, line) in lines {
            writeln!(f, "  at {at:>8.3?} {line}")?;
        }
        Ok(())
    }
}

impl<T: Clone> Plan<T> {
    fn cut(&self, cut: &Cut) -> Self {
        Self {
            weather: cut.weather(self.weather),
            faults: cut.faults.iter().filter_map(|at| self.faults.get(*at).cloned()).collect(),
            steps: cut.steps.iter().filter_map(|at| self.steps.get(*at).cloned()).collect(),
        }
    }
}

/// A reason without its numbers: two cases fail in the same way if they agree in that.
fn kind(reason: &str) -> String {
    reason.chars().filter(|char| !char.is_ascii_digit()).collect()
}

/// A flow of several services as a property.
#[must_use = "a flow is described, not checked"]
pub struct Flow<T, F> {
    name: &'static str,
    sim: Rc<dyn Fn(Sim) -> Sim>,
    steps: BoxedStrategy<Vec<(Duration, T)>>,
    perform: Rc<F>,
    rules: Vec<StepsRule<T>>,
    faults: usize,
    jumps: Duration,
}

impl<T, F> Flow<T, F>
where
    T: Clone + fmt::Debug + 'static,
    F: AsyncFn(&World, T) + 'static,
{
    /// A flow: its cluster, what may be done in it, how many times, and how it is done.
    ///
    /// `name` stands in the line that plays a case again.
    pub fn new(
        name: &'static str,
        sim: impl Fn(Sim) -> Sim + 'static,
        step: impl Strategy<Value = T> + 'static,
        steps: Range<usize>,
        perform: F,
    ) -> Self {
        let gap = spans(400, 20);
        Self {
            name,
            sim: Rc::new(sim),
            steps: prop::collection::vec((gap, step), steps).boxed(),
            perform: Rc::new(perform),
            rules: Vec::new(),
            faults: 6,
            jumps: Duration::from_secs(2 * 3600),
        }
    }

    /// Adds what must hold at the end, given what was done: a plain model of the business.
    pub fn at_end(mut self, rule: impl Fn(&World, &[T]) -> Result<(), String> + 'static) -> Self {
        self.rules.push(Rc::new(rule));
        self
    }

    /// Sets how many faults a case has at most. Default: 6.
    pub fn faults(mut self, most: usize) -> Self {
        self.faults = most;
        self
    }

    /// Sets how far wall clocks jump at most. Default: 2 h.
    pub fn jumps(mut self, farthest: Duration) -> Self {
        self.jumps = farthest;
        self
    }

    fn plans(&self) -> BoxedStrategy<Plan<T>> {
        let weather = prop_oneof![
            1 => Just(Weather::FAIR),
            3 => (levels(300, 50), levels(300, 50), levels(100, 10), levels(30, 5))
                .prop_map(|(lose, repeat, delay, disk)| Weather { lose, repeat, delay, disk }),
        ];
        let services = (self.sim)(Sim::new(0)).services.len().max(1);
        let far = i64::try_from(self.jumps.as_millis()).unwrap_or(i64::MAX).max(1);
        let fault = prop_oneof![
            5 => (0..services, 0u8..60, spans(3000, 250))
                .prop_map(|(service, steps, down)| Fault::Crash { service, steps, down }),
            2 => (0..services, -far..far, spans(10_000, 500))
                .prop_map(|(service, millis, lasts)| Fault::Jump { service, millis, lasts }),
            2 => (0..services, 0..services, spans(10_000, 500)).prop_map(|(from, to, lasts)| Fault::Cut { from, to, lasts }),
            1 => Just(Fault::EmptyCourier),
            1 => (0..services).prop_map(|service| Fault::FailCommits { service }),
        ];
        let faults = prop::collection::vec((spans(5000, 50), fault), 0..self.faults + 1);
        (weather, faults, self.steps.clone())
            .prop_map(|(weather, faults, steps)| {
                let mut now = Duration::ZERO;
                let timed = steps.into_iter().map(|(gap, step)| {
                    now += gap;
                    (now, step)
                });
                Plan { weather, faults, steps: timed.collect() }
            })
            .boxed()
    }

    /// The cases of these seeds; each must hold.
    ///
    /// With the variable `WHIZBANG_SIM` set to what an earlier failure printed, only that case.
    ///
    /// # Panics
    /// If a case does not hold: with the shortest one found, what happened in it, and how to play it again.
    #[track_caller]
    pub fn check(&self, seeds: Range<u64>) {
        let replay = std::env::var(REPLAY).ok();
        let mine = replay.as_deref().and_then(|replay| replay.strip_prefix(self.name)?.strip_prefix('/'));
        match (mine, &replay) {
            (Some(case), _) => {
                let (seed, path) = case.split_once('/').unwrap_or((case, ""));
                let seed = seed.parse().unwrap_or_else(|_| panic!("{REPLAY}: `{seed}` is no seed"));
                match self.play(seed, path) {
                    Ok(run) => panic!("{REPLAY}: the case holds now\n{}", run.trace),
                    Err(text) => panic!("{text}"),
                }
            }
            // Another flow's case.
            (None, Some(_)) => {}
            (None, None) => {
                if let Some(text) = seeds.into_iter().find_map(|seed| self.find(seed)) {
                    panic!("{text}");
                }
            }
        }
    }

    /// The first of these seeds whose case does not hold, with the shortest case found; for tests of wrong flows.
    pub fn first_broken(&self, seeds: Range<u64>) -> Option<Found<T>> {
        seeds.into_iter().find_map(|seed| self.shortest(seed))
    }

    /// Runs the case of a seed.
    ///
    /// # Errors
    /// [`Broken`] if it does not hold.
    pub fn run(&self, seed: u64) -> Result<Run, Broken> {
        self.live(seed, &self.draw(seed))
    }

    /// The case of a seed.
    fn draw(&self, seed: u64) -> Plan<T> {
        let mut bytes = [7; 32];
        for (byte, of) in bytes.iter_mut().zip(seed.to_le_bytes()) {
            *byte = of;
        }
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let mut runner = TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::default() }, rng);
        match self.plans().new_tree(&mut runner) {
            Ok(tree) => tree.current(),
            Err(reason) => panic!("no case can be drawn: {reason}"),
        }
    }

    fn live(&self, seed: u64, plan: &Plan<T>) -> Result<Run, Broken> {
        let mut sim = (self.sim)(Sim::new(seed)).weather(plan.weather);
        for (at, fault) in &plan.faults {
            sim = sim.fault(*at, fault.clone());
        }
        let done: Rc<Vec<T>> = Rc::new(plan.steps.iter().map(|(_, step)| step.clone()).collect());
        for rule in &self.rules {
            let (rule, done) = (Rc::clone(rule), Rc::clone(&done));
            sim = sim.at_end(move |world| rule(world, &done));
        }
        let steps = plan.steps.clone();
        let perform = Rc::clone(&self.perform);
        let lived = catch_unwind(AssertUnwindSafe(|| {
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
        }));
        lived.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(Broken { seed, reason: format!("a panic: {}", text.unwrap_or_default()), trace: String::new() })
        })
    }

    /// Plays a shortened case again: seed and path as the line says that plays it again.
    ///
    /// # Errors
    /// The story, if it does not hold.
    pub fn play(&self, seed: u64, path: &str) -> Result<Run, String> {
        let drawn = self.draw(seed);
        let cut = path.parse().unwrap_or_else(|_| Cut::whole(drawn.steps.len(), drawn.faults.len()));
        let plan = drawn.cut(&cut);
        self.live(seed, &plan)
            .map_err(|broken| self.told(&Found { seed, path: path.to_owned(), runs: 1, plan, broken }))
    }

    fn find(&self, seed: u64) -> Option<String> {
        self.shortest(seed).map(|found| self.told(&found))
    }

    /// The shortest case found from this seed on, if its case does not hold.
    fn shortest(&self, seed: u64) -> Option<Found<T>> {
        let drawn = self.draw(seed);
        let broken = self.live(seed, &drawn).err()?;
        let mut cut = Cut::whole(drawn.steps.len(), drawn.faults.len());
        let mut found = Found { seed, path: cut.to_string(), runs: 1, plan: drawn.clone(), broken };
        let alike = kind(&found.broken.reason);
        'shorter: loop {
            for shorter in cut.shorter() {
                if found.runs >= SHRINKS {
                    break 'shorter;
                }
                found.runs += 1;
                let plan = drawn.cut(&shorter);
                if let Err(broken) = self.live(seed, &plan)
                    && alike == kind(&broken.reason)
                {
                    (found.path, found.plan, found.broken) = (shorter.to_string(), plan, broken);
                    cut = shorter;
                    continue 'shorter;
                }
            }
            break;
        }
        Some(found)
    }

    fn told(&self, found: &Found<T>) -> String {
        let Found { seed, path, runs, plan, broken } = found;
        let lines: Vec<_> = broken.trace.lines().collect();
        let left_out = lines.len().saturating_sub(SHOWN);
        let shown = lines.get(left_out..).unwrap_or_default().join("\n");
        let name = self.name;
        format!(
            "\nthe flow `{name}` does not hold: {}\n\nthe shortest case found (in {runs} runs):\n{plan}\nwhat happened \
             ({left_out} lines left out):\n{shown}\n\nplay it again:\n  {REPLAY}={name}/{seed}/{path} cargo test\n",
            broken.reason
        )
    }
}

/// Spans of time up to `most` milliseconds. In coarse steps: fewer runs make a case short.
fn spans(most: u64, step: u64) -> impl Strategy<Value = Duration> {
    (0..=most / step).prop_map(move |steps| Duration::from_millis(steps * step))
}

fn levels(most: u16, step: u16) -> impl Strategy<Value = u16> {
    (0..=most / step).prop_map(move |steps| steps * step)
}

/// A case that does not hold.
#[derive(Clone, Debug)]
pub struct Found<T> {
    /// The seed it was drawn from.
    pub seed: u64,
    /// What is kept of it; part of the line that plays it again.
    pub path: String,
    /// How many runs that took.
    pub runs: usize,
    /// What is left.
    pub plan: Plan<T>,
    /// What does not hold.
    pub broken: Broken,
}
