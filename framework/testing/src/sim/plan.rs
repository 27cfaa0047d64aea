//! One case of a flow, and its derivation from a seed.
//!
//! The fault profile, faults and moments come from one random source, each step from a source of its own. Shrinking can therefore
//! remove a step or simplify its values while everything else stays as it was drawn.

#![expect(clippy::panic, reason = "a strategy without values is a bug in the test")]

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::{BoxedStrategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::shrink_mask::{Item, ShrinkMask};
use super::{CrashPoint, Fault, FaultProfile, LinkDirection, OperatorAction};

/// One case: its steps and its faults.
#[derive(Clone, Debug)]
pub struct Plan<T> {
    /// The faults that are active all the time.
    pub fault_profile: FaultProfile,
    /// True if actors are passivated after each turn, see [`Sim::reload_actors`](super::Sim::reload_actors).
    pub reload_actors: bool,
    /// Single faults with their moments.
    pub faults: Vec<(Duration, Fault)>,
    /// Steps with their moments.
    pub steps: Vec<(Duration, T)>,
}

impl<T> Plan<T> {
    /// Returns the number of steps and faults.
    pub fn size(&self) -> usize {
        self.steps.len() + self.faults.len()
    }
}

impl<T: fmt::Debug> fmt::Display for Plan<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "  fault profile: {}", self.fault_profile)?;
        if self.reload_actors {
            writeln!(f, "  actors are reloaded before each turn")?;
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

/// Maximum lead of client clocks, in milliseconds. A command that may have happened keeps its id, which stays in the future until
/// that time.
const MAX_CLIENT_CLOCK_AHEAD: i64 = 10 * 60 * 1000;

/// The seed, modulo 16, whose case has no faults.
const FAULT_FREE_SEED: u64 = 11;

/// The strategies from which cases are drawn.
pub(super) struct CaseGenerator<T> {
    /// Draws everything but the steps.
    pub(super) frame: BoxedStrategy<Frame>,
    /// Draws one step.
    pub(super) step: BoxedStrategy<T>,
}

/// A case without its steps. `gaps` holds the time before each of them.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    /// The rates of faults.
    profile: FaultProfile,
    /// The faults with their times.
    faults: Vec<(Duration, Fault)>,
    /// The virtual time before each step. Their number is that of the steps.
    gaps: Vec<Duration>,
}

impl Frame {
    /// Returns the mask that keeps everything.
    pub(super) fn full(&self) -> ShrinkMask {
        ShrinkMask::full(self.gaps.len(), self.faults.len())
    }
}

/// Limits for the parts of a case.
#[derive(Clone, Debug)]
pub(super) struct CaseBounds {
    /// The number of services, among which faults choose.
    pub(super) services: usize,
    /// The range of the number of steps.
    pub(super) steps: std::ops::Range<usize>,
    /// The maximal number of faults.
    pub(super) faults: usize,
    /// The maximum jump of a clock.
    pub(super) max_clock_jump: Duration,
    /// Faults may let user code panic.
    pub(super) panics: bool,
    /// The services that host a worker.
    pub(super) workers: Vec<usize>,
    /// The services that host an aggregate or a saga.
    pub(super) keyed: Vec<usize>,
    /// Operators may discard a message that failed.
    pub(super) discards: bool,
    /// The services that have another version.
    pub(super) versions: Vec<usize>,
    /// The number of nodes of each service.
    pub(super) nodes: usize,
    /// The time before a step, if the user draws it.
    pub(super) custom_gap: Option<BoxedStrategy<Duration>>,
    /// A fault and its moment, if the user draws them.
    pub(super) custom_faults: Option<BoxedStrategy<(Duration, Fault)>>,
}

impl CaseBounds {
    /// Creates a generator with the defaults of a flow.
    pub(super) fn new(services: usize, steps: std::ops::Range<usize>) -> Self {
        Self {
            services,
            steps,
            faults: 6,
            max_clock_jump: Duration::from_secs(2 * 3600),
            panics: true,
            workers: Vec::new(),
            keyed: Vec::new(),
            discards: false,
            versions: Vec::new(),
            nodes: 1,
            custom_gap: None,
            custom_faults: None,
        }
    }

    /// Returns the strategy that draws everything except the steps.
    pub(super) fn frame(&self) -> BoxedStrategy<Frame> {
        let profile = prop_oneof![
            1 => Just(FaultProfile::NONE),
            3 => (rates(300, 50), rates(300, 50), rates(100, 10), rates(30, 5), rates(40, 5))
                .prop_map(|(loss, duplication, delay, commit_delay, read_delay)| {
                    FaultProfile { loss, duplication, delay, commit_delay, read_delay }
                }),
        ];
        let fault = self.custom_faults.clone().unwrap_or_else(|| self.fault());
        let faults = prop::collection::vec(fault, 0..=self.faults);
        let gap = self.custom_gap.clone().unwrap_or_else(|| {
            let steps = u64::try_from(self.steps.end / 12).unwrap_or(1).max(1);
            durations((400 * self.time_scale() / steps).max(20), 20).boxed()
        });
        let gaps = prop::collection::vec(gap, self.steps.clone());
        // Drawn last, so that older draws stay the same for a seed.
        let (jobs, reboot_faults) = (self.job_faults(), self.reboot_faults());
        let (clients, keys, upgrade_faults) = (self.client_faults(), self.key_faults(), self.upgrade_faults());
        let (node_faults, late_faults) = (self.node_faults(), (self.caller_faults(), self.discard_faults()));
        let single_faults = (jobs, reboot_faults, clients, keys, upgrade_faults, node_faults, late_faults);
        (profile, faults, gaps, single_faults)
            .prop_map(|(profile, mut faults, gaps, single_faults)| {
                let (jobs, reboot_faults, clients, keys, upgrade_faults, node_faults, (callers, discards)) =
                    single_faults;
                for more in [jobs, reboot_faults, clients, keys, upgrade_faults, node_faults, callers, discards] {
                    faults.extend(more);
                }
                Frame { profile, faults, gaps }
            })
            .boxed()
    }

    /// Draws at most one restart with a wrong clock, so that time limits of hours expire while work is in flight.
    fn reboot_faults(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.custom_faults.is_some() || self.services == 0 {
            return Just(Vec::new()).boxed();
        }
        let max_jump = self.max_jump_millis();
        let reboot = (0..self.services, -max_jump..max_jump, durations(10_000, 500))
            .prop_map(|(service, millis, duration)| Fault::Reboot { service, millis, duration });
        let moment = durations(5000 * self.time_scale(), 50);
        prop::collection::vec((moment, reboot), 0..=self.faults.min(1)).boxed()
    }

    /// Draws faults of clients.
    fn client_faults(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.custom_faults.is_some() {
            return Just(Vec::new()).boxed();
        }
        let max_jump = self.max_jump_millis();
        let fault = prop_oneof![
            2 => (1u8..4).prop_map(|times| Fault::DuplicateCommands { times }),
            1 => (1u8..3).prop_map(|times| Fault::ReuseIds { times }),
            1 => Just(Fault::OldAndFutureIds { times: 1 }),
            2 => (0u64..8, 1u8..4).prop_map(|(steps, times)| {
                Fault::ShortenDeadlines { deadline: Duration::from_millis(5 * steps * steps), times }
            }),
            1 => (-max_jump..max_jump.min(MAX_CLIENT_CLOCK_AHEAD), durations(10_000, 500))
                .prop_map(|(millis, duration)| Fault::SkewClientClocks { millis, duration }),
        ];
        // Clients finish long before the faults do.
        let moment = durations(1000 * self.time_scale(), 50);
        prop::collection::vec((moment, fault), 0..=self.faults.div_ceil(3)).boxed()
    }

    /// Draws at most one caller whose clock differs from that of the others.
    fn caller_faults(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.custom_faults.is_some() {
            return Just(Vec::new()).boxed();
        }
        let max_jump = self.max_jump_millis();
        let fault = (-max_jump..max_jump.min(MAX_CLIENT_CLOCK_AHEAD), durations(10_000, 500))
            .prop_map(|(millis, duration)| Fault::SkewOneClient { millis, duration });
        prop::collection::vec((durations(1000 * self.time_scale(), 50), fault), 0..=self.faults.min(1)).boxed()
    }

    /// Draws at most one discard of a message by an operator, if the rules of the flow allow for it.
    fn discard_faults(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.custom_faults.is_some() || !self.discards || !self.panics || self.keyed.is_empty() {
            return Just(Vec::new()).boxed();
        }
        let fault = (0..self.services, durations(3000, 250)).prop_map(|(service, after)| Fault::Poison {
            service,
            after,
            action: OperatorAction::Discard,
        });
        prop::collection::vec((durations(1000 * self.time_scale(), 50), fault), 0..=self.faults.min(1)).boxed()
    }

    /// Draws faults of one key. Discarding is drawn apart, because a flow may rely on the message.
    fn key_faults(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.custom_faults.is_some() || self.keyed.is_empty() {
            return Just(Vec::new()).boxed();
        }
        let fault = prop_oneof![
            2 * u32::from(self.panics) => (0..self.services, durations(3000, 250))
                .prop_map(|(service, after)| Fault::Poison { service, after, action: OperatorAction::Redrive }),
            1 => (0..self.services).prop_map(|service| Fault::SecondNode { service }),
            2 => (prop::sample::select(self.keyed.clone()), durations(10_000, 500))
                .prop_map(|(service, duration)| Fault::BlockKey { service, duration: duration + Duration::from_millis(500) }),
        ];
        let moment = durations(1000 * self.time_scale(), 50);
        prop::collection::vec((moment, fault), 0..=self.faults.min(1)).boxed()
    }

    /// Draws upgrades to version 1.
    fn upgrade_faults(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.custom_faults.is_some() || self.versions.is_empty() {
            return Just(Vec::new()).boxed();
        }
        let upgrade = (prop::sample::select(self.versions.clone()), durations(3000, 250))
            .prop_map(|(service, down)| Fault::Upgrade { service, version: 1, down });
        prop::collection::vec((durations(5000 * self.time_scale(), 50), upgrade), 0..=self.versions.len().min(3))
            .boxed()
    }

    /// Draws faults of one of several nodes.
    fn node_faults(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.custom_faults.is_some() || self.nodes < 2 || self.services == 0 {
            return Just(Vec::new()).boxed();
        }
        let directions =
            || prop_oneof![Just(LinkDirection::Inbound), Just(LinkDirection::Outbound), Just(LinkDirection::Both)];
        // Half of the durations exceed the lease.
        let duration = || durations(4000, 250);
        let fault = prop_oneof![
            3 => (0..self.services, duration()).prop_map(|(service, duration)| Fault::PauseNode { service, duration }),
            2 => (0..self.services, duration()).prop_map(|(service, down)| Fault::StopNode { service, down }),
            2 => (0..self.services, directions(), duration())
                .prop_map(|(service, direction, duration)| Fault::CutStore { service, direction, duration }),
            1 => (0..self.services, directions(), duration())
                .prop_map(|(service, direction, duration)| Fault::CutBroker { service, direction, duration }),
        ];
        prop::collection::vec((durations(5000 * self.time_scale(), 50), fault), 0..=self.faults).boxed()
    }

    /// Returns the maximum clock jump in milliseconds.
    fn max_jump_millis(&self) -> i64 {
        i64::try_from(self.max_clock_jump.as_millis()).unwrap_or(i64::MAX).max(1)
    }

    /// Draws faults of jobs, in a cluster with workers.
    fn job_faults(&self) -> BoxedStrategy<Vec<(Duration, Fault)>> {
        if self.workers.is_empty() || self.custom_faults.is_some() || !self.panics {
            return Just(Vec::new()).boxed();
        }
        let fault = prop_oneof![
            (prop::sample::select(self.workers.clone()), 1u8..3)
                .prop_map(|(service, times)| Fault::FailJobs { service, times }),
            (prop::sample::select(self.workers.clone()), 1u8..3)
                .prop_map(|(service, times)| Fault::HangJobs { service, times }),
            (prop::sample::select(self.workers.clone()), 0u8..12, durations(3000, 250))
                .prop_map(|(service, steps, down)| Fault::CrashAt { service, point: CrashPoint::Job, steps, down }),
        ];
        let moment = durations(5000 * self.time_scale(), 50);
        prop::collection::vec((moment, fault), 0..=self.faults.div_ceil(3)).boxed()
    }

    /// Returns a factor for times. Many faults need more time, or they all hit a cluster that is down; steps must last equally
    /// long.
    fn time_scale(&self) -> u64 {
        (self.faults as u64 / 6).max(1)
    }

    /// Draws any fault at any moment.
    fn fault(&self) -> BoxedStrategy<(Duration, Fault)> {
        let services = self.services.max(1);
        let max_jump = self.max_jump_millis();
        let directions =
            prop_oneof![Just(LinkDirection::Inbound), Just(LinkDirection::Outbound), Just(LinkDirection::Both)];
        let fault = prop_oneof![
            3 => (0..services, 0u8..60, durations(3000, 250))
                .prop_map(|(service, steps, down)| Fault::Crash { service, steps, down }),
            4 => (0..services, prop::sample::select(&CrashPoint::COMMON), 0u8..12, durations(3000, 250))
                .prop_map(|(service, point, steps, down)| Fault::CrashAt { service, point, steps, down }),
            2 => (0..services, -max_jump..max_jump, durations(10_000, 500))
                .prop_map(|(service, millis, duration)| Fault::ClockJump { service, millis, duration }),
            2 => (0..services, 0..services, durations(10_000, 500))
                .prop_map(|(from, to, duration)| Fault::Partition { from, to, duration }),
            1 => (0..services, directions, durations(10_000, 500))
                .prop_map(|(service, direction, duration)| Fault::Isolate { service, direction, duration }),
            1 => Just(Fault::PurgeStreams),
            1 => Just(Fault::LoseStreams),
            1 => (0..services).prop_map(|service| Fault::FailCommits { service }),
            1 => durations(5000, 250).prop_map(|duration| Fault::PauseBroker { duration }),
            1 => durations(5000, 250).prop_map(|duration| Fault::ChangeLeader { duration }),
            1 => (durations(5000, 250), durations(10_000, 500))
                .prop_map(|(window, duration)| Fault::DropDuplicates { window, duration }),
            1 => durations(5000, 250).prop_map(|duration| Fault::FailToStore { duration }),
            1 => (1u64..=10, durations(5000, 250))
                .prop_map(|(wait, duration)| Fault::ShortenAckWait { wait: Duration::from_millis(20 * wait), duration }),
            1 => (1u16..4, durations(5000, 250)).prop_map(|(limit, duration)| Fault::LimitInFlight { limit, duration }),
            1 => (0..services, durations(500, 50), durations(3000, 250))
                .prop_map(|(service, per_message, duration)| Fault::SlowHandlers { service, per_message, duration }),
            2 => (0..services, durations(5000, 250), durations(5000, 250))
                .prop_map(|(service, cut_off, lingers)| Fault::HandOver { service, cut_off, lingers }),
            u32::from(self.panics) => (0..services, 1u8..4).prop_map(|(service, times)| Fault::Panic { service, times }),
        ];
        (durations(5000 * self.time_scale(), 50), fault).boxed()
    }
}

impl<T: Clone + fmt::Debug + 'static> CaseGenerator<T> {
    /// Draws the frame of a seed.
    pub(super) fn draw(&self, seed: u64) -> Frame {
        let frame = tree(&self.frame, seed, 0).current();
        // Some seeds have no faults, so that rules may expect more of them.
        if seed % 16 == FAULT_FREE_SEED {
            Frame { profile: FaultProfile::NONE, faults: Vec::new(), ..frame }
        } else {
            frame
        }
    }

    /// Returns the value tree of one step.
    pub(super) fn tree(&self, seed: u64, step: usize) -> Box<dyn ValueTree<Value = T>> {
        tree(&self.step, seed, step as u64 + 1)
    }

    /// Returns the part of a seed's case that the mask keeps.
    pub(super) fn plan(&self, seed: u64, frame: &Frame, mask: &ShrinkMask) -> Plan<T> {
        let mut now = Duration::ZERO;
        let mut moments = Vec::new();
        for gap in &frame.gaps {
            now += *gap;
            moments.push(now);
        }
        let moments = schedule(frame, &moments, mask);
        let moment = |item: Item| moments.get(&item).copied();
        let step = |number: usize| {
            let mut tree = self.tree(seed, number);
            mask.moves(number).walk(tree.as_mut());
            Some((moment(Item::Step(number))?, tree.current()))
        };
        let fault = |number: usize| Some((moment(Item::Fault(number))?, frame.faults.get(number)?.1.clone()));
        Plan {
            fault_profile: mask.fault_profile(frame.profile),
            reload_actors: mask.reload(seed % 4 == 1),
            faults: mask.faults.iter().filter_map(|number| fault(*number)).collect(),
            steps: mask.steps.iter().filter_map(|number| step(*number)).collect(),
        }
    }
}

/// Returns the moments of the kept steps and faults: as drawn, without the removed gaps.
fn schedule(frame: &Frame, drawn: &[Duration], mask: &ShrinkMask) -> BTreeMap<Item, Duration> {
    let steps = mask.steps.iter().filter_map(|step| Some((*drawn.get(*step)?, Item::Step(*step))));
    let faults = mask.faults.iter().filter_map(|fault| Some((frame.faults.get(*fault)?.0, Item::Fault(*fault))));
    let mut items: Vec<_> = steps.chain(faults).collect();
    items.sort();
    let (mut before, mut now) = (Duration::ZERO, Duration::ZERO);
    let mut moments = BTreeMap::new();
    for (at, item) in items {
        if !mask.is_at_once(item) {
            now += at.saturating_sub(before);
        }
        before = at;
        moments.insert(item, now);
    }
    moments
}

/// Draws a value from a seed. `part` separates the draws of one seed, so that each has its own random numbers.
fn tree<T: fmt::Debug + 'static>(strategy: &BoxedStrategy<T>, seed: u64, part: u64) -> Box<dyn ValueTree<Value = T>> {
    let mut bytes = [7; 32];
    for (byte, of) in bytes.iter_mut().zip(seed.to_le_bytes().into_iter().chain(part.to_le_bytes())) {
        *byte = of;
    }
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::default() }, rng);
    match strategy.new_tree(&mut runner) {
        Ok(tree) => Box::new(tree),
        Err(reason) => panic!("failed to draw a case: {reason}"),
    }
}

/// Draws durations up to `limit` milliseconds. Coarse steps shrink in fewer runs.
fn durations(limit: u64, step: u64) -> impl Strategy<Value = Duration> {
    (0..=limit / step).prop_map(move |steps| Duration::from_millis(steps * step))
}

/// Returns the strategy of a rate from 0 to `limit`, in steps: round numbers make reports easier to read.
fn rates(limit: u16, step: u16) -> impl Strategy<Value = u16> {
    (0..=limit / step).prop_map(move |steps| steps * step)
}
