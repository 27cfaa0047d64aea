//! One case of a flow, and how it is drawn from a seed.
//!
//! Weather, faults and moments come from one source of randomness, each step from one of its own: so each can be left out, or
//! its values made smaller, while everything else stays as it was drawn.

#![expect(clippy::panic, reason = "a strategy that gives no values is a mistake in the test")]

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::{BoxedStrategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::shrink_mask::{Item, ShrinkMask};
use super::{CrashPoint, Fault, FaultProfile, LinkDirection, OperatorAction};

/// One case: what is done, and what goes wrong meanwhile.
#[derive(Clone, Debug)]
pub struct Plan<T> {
    /// How everything is maltreated all the time.
    pub weather: FaultProfile,
    /// Whether actors are passivated after each turn, as [`Sim::reload_actors`](super::Sim::reload_actors) says.
    pub reload_actors: bool,
    /// What goes wrong, and when.
    pub faults: Vec<(Duration, Fault)>,
    /// What is done, and when.
    pub steps: Vec<(Duration, T)>,
}

impl<T> Plan<T> {
    /// How many things are left in it: commands and faults.
    pub fn size(&self) -> usize {
        self.steps.len() + self.faults.len()
    }
}

impl<T: fmt::Debug> fmt::Display for Plan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  the weather is {}", self.weather)?;
        if self.reload_actors {
            writeln!(f, "  actors are rebuilt from their logs before each turn")?;
        }
        let steps = self.steps.iter().map(|(at, step)| (*at, format!("{step:?}")));
        let mut lines: Vec<_> = steps.collect();
        lines.extend(self.faults.iter().map(|(at, fault)| (*at, format!("FAULT {fault:?}"))));
        lines.sort_by_key(|(at, _)| *at);
        for (at, line) in lines {
            writeln!(f, "  at {:>7.3}s {line}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

/// How far the clocks of clients are ahead at most, in milliseconds. A command that may have happened keeps its id, and that is from
/// the future until it no longer is.
const AHEAD: i64 = 10 * 60 * 1000;

/// Of sixteen seeds the one with this number has fair weather and no faults.
const UNDISTURBED: u64 = 11;

/// What a flow draws its cases from.
pub(super) struct Source<T> {
    pub(super) frame: BoxedStrategy<Frame>,
    pub(super) step: BoxedStrategy<T>,
}

/// A case without its steps: the time before each is in `gaps`.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    weather: FaultProfile,
    faults: Vec<(Duration, Fault)>,
    gaps: Vec<Duration>,
}

impl Frame {
    pub(super) fn whole(&self) -> ShrinkMask {
        ShrinkMask::whole(self.gaps.len(), self.faults.len())
    }
}

/// How large the parts of a case may be.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    pub(super) services: usize,
    pub(super) steps: std::ops::Range<usize>,
    pub(super) faults: usize,
    /// The farthest jump of a clock.
    pub(super) jumps: Duration,
    pub(super) panics: bool,
    /// The services that host a worker.
    pub(super) workers: Vec<usize>,
    /// The services that host an aggregate or a saga.
    pub(super) keyed: Vec<usize>,
    /// The services that have another version.
    pub(super) versions: Vec<usize>,
    /// The time before a step, if users draw their own.
    pub(super) gap: Option<BoxedStrategy<Duration>>,
    /// A fault and its moment, if users draw their own.
    pub(super) own: Option<BoxedStrategy<(Duration, Fault)>>,
}

impl Bounds {
    pub(super) fn new(services: usize, steps: std::ops::Range<usize>) -> Self {
        Self {
            services,
            steps,
            faults: 6,
            jumps: Duration::from_secs(2 * 3600),
            panics: true,
            workers: Vec::new(),
            keyed: Vec::new(),
            versions: Vec::new(),
            gap: None,
            own: None,
        }
    }

    pub(super) fn frame(&self) -> BoxedStrategy<Frame> {
        let weather = prop_oneof![
            1 => Just(FaultProfile::FAIR),
            3 => (levels(300, 50), levels(300, 50), levels(100, 10), levels(30, 5), levels(40, 5))
                .prop_map(|(lose, repeat, delay, disk, load)| FaultProfile { lose, repeat, delay, disk, load }),
        ];
        let fault = self.own.clone().unwrap_or_else(|| self.fault());
        let faults = prop::collection::vec(fault, 0..=self.faults);
        let gap = self.gap.clone().unwrap_or_else(|| {
            let steps = u64::try_from(self.steps.end / 12).unwrap_or(1).max(1);
            spans((400 * self.longer() / steps).max(20), 20).boxed()
        });
        let gaps = prop::collection::vec(gap, self.steps.clone());
        // Drawn last: what is drawn before stays the same for a seed.
        let (jobs, reboots) = (self.job_faults(), self.reboots());
        let (clients, keys, upgrades) = (self.client_faults(), self.key_faults(), self.upgrades());
        (weather, faults, gaps, jobs, reboots, clients, keys, upgrades)
            .prop_map(|(weather, mut faults, gaps, jobs, reboots, clients, keys, upgrades)| {
                for more in [jobs, reboots, clients, keys, upgrades] {
                    faults.extend(more);
                }
                Frame { weather, faults, gaps }
            })
            .boxed()
    }

    /// At most one start with a wrong clock: what was set to time out after hours does so while there is still something under way.
    fn reboots(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.own.is_some() || self.services == 0 {
            return Just(Vec::new()).boxed();
        }
        let far = self.farthest();
        let reboot = (0..self.services, -far..far, spans(10_000, 500))
            .prop_map(|(service, millis, lasts)| Fault::Reboot { service, millis, lasts });
        let moment = spans(5000 * self.longer(), 50);
        prop::collection::vec((moment, reboot), 0..=self.faults.min(1)).boxed()
    }

    /// What clients do wrong.
    fn client_faults(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.own.is_some() {
            return Just(Vec::new()).boxed();
        }
        let far = self.farthest();
        let fault = prop_oneof![
            2 => (1u8..4).prop_map(|times| Fault::RepeatCommands { times }),
            1 => (1u8..3).prop_map(|times| Fault::ReuseIds { times }),
            1 => Just(Fault::OldAndFutureIds { times: 1 }),
            2 => (0u64..8, 1u8..4).prop_map(|(steps, times)| {
                Fault::HurryClients { deadline: Duration::from_millis(5 * steps * steps), times }
            }),
            1 => (-far..far.min(AHEAD), spans(10_000, 500))
                .prop_map(|(millis, lasts)| Fault::SkewClients { millis, lasts }),
        ];
        // Clients are done long before the faults are.
        let moment = spans(1000 * self.longer(), 50);
        prop::collection::vec((moment, fault), 0..=self.faults.div_ceil(3)).boxed()
    }

    /// What sticks or parks one key. Nobody discards what a flow relies on.
    fn key_faults(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.own.is_some() || self.keyed.is_empty() {
            return Just(Vec::new()).boxed();
        }
        let fault = prop_oneof![
            2 * u32::from(self.panics) => (0..self.services, spans(3000, 250))
                .prop_map(|(service, after)| Fault::Poison { service, after, then: OperatorAction::Redrive }),
            1 => (0..self.services).prop_map(|service| Fault::Rival { service }),
            2 => (prop::sample::select(self.keyed.clone()), spans(10_000, 500))
                .prop_map(|(service, lasts)| Fault::StickKey { service, lasts: lasts + Duration::from_millis(500) }),
        ];
        let moment = spans(1000 * self.longer(), 50);
        prop::collection::vec((moment, fault), 0..=self.faults.min(1)).boxed()
    }

    /// Upgrades to the first other version of a service.
    fn upgrades(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.own.is_some() || self.versions.is_empty() {
            return Just(Vec::new()).boxed();
        }
        let upgrade = (prop::sample::select(self.versions.clone()), spans(3000, 250))
            .prop_map(|(service, down)| Fault::Upgrade { service, version: 1, down });
        prop::collection::vec((spans(5000 * self.longer(), 50), upgrade), 0..=self.versions.len().min(3)).boxed()
    }

    /// How far clocks jump at most, in milliseconds.
    fn farthest(&self) -> i64 {
        i64::try_from(self.jumps.as_millis()).unwrap_or(i64::MAX).max(1)
    }

    /// Faults of jobs, in a cluster with workers.
    fn job_faults(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.workers.is_empty() || self.own.is_some() || !self.panics {
            return Just(Vec::new()).boxed();
        }
        let fault = prop_oneof![
            (prop::sample::select(self.workers.clone()), 1u8..3)
                .prop_map(|(service, times)| Fault::FailJobs { service, times }),
            (prop::sample::select(self.workers.clone()), 1u8..3)
                .prop_map(|(service, times)| Fault::HangJobs { service, times }),
            (prop::sample::select(self.workers.clone()), 0u8..12, spans(3000, 250))
                .prop_map(|(service, steps, down)| Fault::CrashIn { service, work: CrashPoint::Job, steps, down }),
        ];
        let moment = spans(5000 * self.longer(), 50);
        prop::collection::vec((moment, fault), 0..=self.faults.div_ceil(3)).boxed()
    }

    /// Many faults take their time, or they would all hit a cluster that is down; and as long there must be something to hit.
    fn longer(&self) -> u64 {
        (self.faults as u64 / 6).max(1)
    }

    /// Any fault, at any moment.
    fn fault(&self) -> BoxedStrategy<(Duration, Fault)> {
        let services = self.services.max(1);
        let far = self.farthest();
        let fault = prop_oneof![
            3 => (0..services, 0u8..60, spans(3000, 250))
                .prop_map(|(service, steps, down)| Fault::Crash { service, steps, down }),
            4 => (0..services, prop::sample::select(&CrashPoint::COMMON), 0u8..12, spans(3000, 250))
                .prop_map(|(service, work, steps, down)| Fault::CrashIn { service, work, steps, down }),
            2 => (0..services, -far..far, spans(10_000, 500))
                .prop_map(|(service, millis, lasts)| Fault::Jump { service, millis, lasts }),
            2 => (0..services, 0..services, spans(10_000, 500)).prop_map(|(from, to, lasts)| Fault::Cut { from, to, lasts }),
            1 => (0..services, prop_oneof![Just(LinkDirection::In), Just(LinkDirection::Out), Just(LinkDirection::Both)], spans(10_000, 500))
                .prop_map(|(service, way, lasts)| Fault::Isolate { service, way, lasts }),
            1 => Just(Fault::EmptyStreams),
            1 => Just(Fault::LoseStreams),
            1 => (0..services).prop_map(|service| Fault::FailCommits { service }),
            1 => spans(5000, 250).prop_map(|lasts| Fault::PauseBroker { lasts }),
            1 => spans(5000, 250).prop_map(|lasts| Fault::ChangeLeader { lasts }),
            1 => (spans(5000, 250), spans(10_000, 500)).prop_map(|(window, lasts)| Fault::DropRepeats { window, lasts }),
            1 => spans(5000, 250).prop_map(|lasts| Fault::FailToStore { lasts }),
            1 => (1u64..=10, spans(5000, 250))
                .prop_map(|(wait, lasts)| Fault::HurryAcks { wait: Duration::from_millis(20 * wait), lasts }),
            1 => (1u16..4, spans(5000, 250)).prop_map(|(most, lasts)| Fault::FewInHand { most, lasts }),
            1 => (0..services, spans(500, 50), spans(3000, 250))
                .prop_map(|(service, each, lasts)| Fault::Slow { service, each, lasts }),
            2 => (0..services, spans(5000, 250), spans(5000, 250))
                .prop_map(|(service, cut_off, lingers)| Fault::HandOver { service, cut_off, lingers }),
            u32::from(self.panics) => (0..services, 1u8..4).prop_map(|(service, times)| Fault::Panic { service, times }),
        ];
        (spans(5000 * self.longer(), 50), fault).boxed()
    }
}

impl<T: Clone + fmt::Debug + 'static> Source<T> {
    /// The frame of a seed.
    pub(super) fn draw(&self, seed: u64) -> Frame {
        let frame = tree(&self.frame, seed, 0).current();
        // Nothing disturbs some seeds: a rule may expect more of them.
        if seed % 16 == UNDISTURBED {
            Frame { weather: FaultProfile::FAIR, faults: Vec::new(), ..frame }
        } else {
            frame
        }
    }

    /// The tree from which the value of one step comes.
    pub(super) fn tree(&self, seed: u64, step: usize) -> Box<dyn ValueTree<Value = T>> {
        tree(&self.step, seed, step as u64 + 1)
    }

    /// What is left of a seed's case.
    pub(super) fn plan(&self, seed: u64, frame: &Frame, cut: &ShrinkMask) -> Plan<T> {
        let mut now = Duration::ZERO;
        let mut moments = Vec::new();
        for gap in &frame.gaps {
            now += *gap;
            moments.push(now);
        }
        let moments = soonest(frame, &moments, cut);
        let moment = |item: Item| moments.get(&item).copied();
        let step = |number: usize| {
            let mut tree = self.tree(seed, number);
            cut.moves(number).walk(tree.as_mut());
            Some((moment(Item::Step(number))?, tree.current()))
        };
        let fault = |number: usize| Some((moment(Item::Fault(number))?, frame.faults.get(number)?.1.clone()));
        Plan {
            weather: cut.weather(frame.weather),
            reload_actors: cut.reload(seed % 4 == 1),
            faults: cut.faults.iter().filter_map(|number| fault(*number)).collect(),
            steps: cut.steps.iter().filter_map(|number| step(*number)).collect(),
        }
    }
}

/// When each step and fault that is kept comes: as drawn, but for the gaps that are left out.
fn soonest(frame: &Frame, drawn: &[Duration], cut: &ShrinkMask) -> BTreeMap<Item, Duration> {
    let steps = cut.steps.iter().filter_map(|step| Some((*drawn.get(*step)?, Item::Step(*step))));
    let faults = cut.faults.iter().filter_map(|fault| Some((frame.faults.get(*fault)?.0, Item::Fault(*fault))));
    let mut items: Vec<_> = steps.chain(faults).collect();
    items.sort();
    let (mut before, mut now) = (Duration::ZERO, Duration::ZERO);
    let mut moments = BTreeMap::new();
    for (at, item) in items {
        if !cut.is_at_once(item) {
            now += at.saturating_sub(before);
        }
        before = at;
        moments.insert(item, now);
    }
    moments
}

fn tree<T: fmt::Debug + 'static>(strategy: &BoxedStrategy<T>, seed: u64, part: u64) -> Box<dyn ValueTree<Value = T>> {
    let mut bytes = [7; 32];
    for (byte, of) in bytes.iter_mut().zip(seed.to_le_bytes().into_iter().chain(part.to_le_bytes())) {
        *byte = of;
    }
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::default() }, rng);
    match strategy.new_tree(&mut runner) {
        Ok(tree) => Box::new(tree),
        Err(reason) => panic!("no case can be drawn: {reason}"),
    }
}

/// Spans of time up to `most` milliseconds. In coarse steps: fewer runs make a case short.
fn spans(most: u64, step: u64) -> impl Strategy<Value = Duration> {
    (0..=most / step).prop_map(move |steps| Duration::from_millis(steps * step))
}

fn levels(most: u16, step: u16) -> impl Strategy<Value = u16> {
    (0..=most / step).prop_map(move |steps| steps * step)
}
