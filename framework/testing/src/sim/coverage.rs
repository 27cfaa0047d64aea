//! Coverage: the paths through actors that runs have taken, and those that none has taken.
//!
//! Created from the step log of each run; coverages of many runs can be merged. Possible paths come from the derives.

#![expect(clippy::panic, reason = "a required path that is not reached fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::fault_counts::FaultCount;
use super::step_log::{Cause, CommittedTurn, End, Phase};
use super::{CrashPoint, Fault, FaultEvent, InjectedFault, WaitTimes};
use whizbang_core::message::{Command, Domain, Event, Message};
use whizbang_runtime::actor::{Stateful, stored_timer};
use whizbang_runtime::router::{ActorCard, Manifest, MessageCard};

/// The paths through the actors of a cluster that one or many runs have taken.
///
/// `Display` prints a table: for each message of an actor, the number of times it was handled while the saga was open, while it
/// was compensating, and after its end.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    runs: u64,
    fault_events: BTreeMap<FaultEvent, u64>,
    crashes: u64,
    faults: BTreeMap<String, FaultCount>,
    wait_times: WaitTimes,
    pub(super) actors: BTreeMap<(String, String), ActorCoverage>,
}

/// The coverage of one aggregate, saga or worker.
#[derive(Clone, Debug, Default)]
pub struct ActorCoverage {
    pub(super) domain: String,
    pub(super) card: ActorCard,
    pub(super) handled: BTreeMap<(Cause, Phase), u64>,
    pub(super) recorded: BTreeMap<String, u64>,
    pub(super) ends: BTreeMap<End, u64>,
    pub(super) edges: BTreeMap<Edge, u64>,
    pub(super) sent: BTreeMap<String, u64>,
}

/// A transition between two states. A state is named after the last recorded event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) from: Option<String>,
    pub(super) to: Option<String>,
    pub(super) cause: Cause,
    pub(super) phase: Phase,
    pub(super) effects: String,
    pub(super) ends: Option<End>,
}

impl Coverage {
    /// Returns the coverage of one run.
    pub(super) fn of_run<'a>(
        manifests: impl Iterator<Item = &'a Manifest>,
        turns: &[CommittedTurn],
        fault_events: BTreeMap<FaultEvent, u64>,
        crashes: u64,
        faults: &[InjectedFault],
        wait_times: WaitTimes,
    ) -> Self {
        let mut coverage = Self { runs: 1, fault_events, crashes, wait_times, ..Self::default() };
        // Without commands, a fault of commands has no target.
        let requested = turns.iter().any(|turn| matches!(turn.cause, Cause::Command(_) | Cause::Rejected(..)));
        let sent = turns.iter().any(|turn| !turn.sends.is_empty() || matches!(turn.cause, Cause::Event(_)));
        let could = |fault: &Fault| {
            (requested || !fault.targets_client_commands()) && (sent || !fault.targets_actor_messages())
        };
        for struck in faults.iter().filter(|struck| could(&struck.fault)) {
            coverage.faults.entry(struck.fault.kind()).or_default().add(1, struck.times);
        }
        // Turns of an actor before it was renamed count for its new name.
        let mut renamed = BTreeMap::new();
        for manifest in manifests {
            for domain in &manifest.domains {
                for card in &domain.actors {
                    let before = card.formerly.iter().map(|name| (domain.name.clone(), (*name).to_owned()));
                    renamed.extend(before.map(|before| (before, card.name.clone())));
                    let covered =
                        ActorCoverage { domain: domain.name.clone(), card: card.clone(), ..ActorCoverage::default() };
                    coverage.actors.insert((domain.name.clone(), card.name.clone()), covered);
                }
            }
        }
        for turn in turns {
            let key = (turn.domain.clone(), turn.actor.clone());
            let key = renamed.get(&key).map_or(key.clone(), |name| (key.0.clone(), name.clone()));
            if let Some(covered) = coverage.actors.get_mut(&key) {
                covered.add(turn);
            }
        }
        coverage
    }

    /// Adds the coverage of other runs.
    ///
    /// Counts are added. Both may be of different clusters; the result then has the actors of both.
    pub fn merge(&mut self, other: &Self) {
        self.runs += other.runs;
        self.crashes += other.crashes;
        self.wait_times.merge(&other.wait_times);
        for (kind, count) in &other.faults {
            self.faults.entry(kind.clone()).or_default().add(count.requested, count.fired);
        }
        for (event, count) in &other.fault_events {
            *self.fault_events.entry(*event).or_default() += count;
        }
        for (name, other_actor) in &other.actors {
            self.actors.entry(name.clone()).or_default().merge(other_actor);
        }
    }

    /// Returns the coverage of one aggregate or saga.
    ///
    /// # Panics
    /// If no service of the cluster hosts it.
    #[track_caller]
    pub fn of<A: Stateful>(&self) -> &ActorCoverage {
        let found = self.actors.get(&(A::Domain::NAME.to_owned(), A::NAME.to_owned()));
        found.unwrap_or_else(|| panic!("no service hosts `{}.{}`", A::Domain::NAME, A::NAME))
    }

    /// Returns the events caused by faults, with the number of occurrences.
    pub fn fault_events(&self) -> &BTreeMap<FaultEvent, u64> {
        &self.fault_events
    }

    /// Returns the injected faults by the name of their variant. `CrashAt` has one entry per
    /// [`CrashPoint`](super::CrashPoint).
    pub fn faults(&self) -> &BTreeMap<String, FaultCount> {
        &self.faults
    }

    /// Returns the waiting times of messages in undisturbed runs.
    ///
    /// In virtual time. Messages during a fault and in the 60 s after it are not measured, because lost messages are
    /// sent again with growing delays.
    pub fn wait_times(&self) -> WaitTimes {
        self.wait_times
    }

    /// Describes the kinds of faults that were injected at least `tries` times and never hit. With `any_work`, a hit at any common
    /// crash point counts for all: a cluster without messages between services has no publications or deliveries.
    pub(super) fn missed_faults(&self, tries: u64, any_work: bool) -> Vec<String> {
        let mut kinds: BTreeMap<&str, FaultCount> = BTreeMap::new();
        let common: Vec<_> = CrashPoint::COMMON.iter().map(|work| format!("CrashAt {work:?}")).collect();
        for (kind, count) in &self.faults {
            let kind = if any_work && common.contains(kind) { "CrashIn" } else { kind };
            kinds.entry(kind).or_default().add(count.requested, count.fired);
        }
        let missed_faults = kinds.into_iter().filter(|(_, count)| count.requested >= tries && count.fired == 0);
        missed_faults
            .map(|(kind, count)| format!("{kind} was injected {} times and never hit", count.requested))
            .collect()
    }

    /// Returns the number of killed nodes, without the restart at the end of every run.
    pub fn crashes(&self) -> u64 {
        self.crashes
    }

    /// Returns the events that faults could have caused but have not. Excludes events that need workers, versions or several
    /// nodes if there are none, and forged packets.
    pub fn unseen_fault_events(&self) -> Vec<FaultEvent> {
        let has_workers = self.actors.values().any(|actor| actor.card.role == "worker");
        let could = FaultEvent::ALL.iter().filter(|event| has_workers || !event.needs_worker());
        let could = could.filter(|event| **event != FaultEvent::PacketForged);
        let could = could.filter(|event| self.faults.contains_key("Upgrade") || !event.needs_version());
        let has_nodes = self.faults.contains_key("PauseNode") || self.faults.contains_key("StopNode");
        let could = could.filter(|event| has_nodes || !event.needs_several_nodes());
        could.filter(|event| !self.fault_events.contains_key(event)).copied().collect()
    }

    /// Returns all possible paths that no run has taken, one per line.
    ///
    /// A path is one kind of message to one actor type. For a saga, the phases are paths of their own: open,
    /// compensating and ended. Print the list to see which scenarios the steps of a flow do not reach. Not every path
    /// has to be reachable: assert the important ones with [`of`](Self::of).
    pub fn unreached(&self) -> Vec<String> {
        let actors = self.actors.values();
        actors
            .flat_map(|actor| actor.unreached().into_iter().map(|label| format!("{}: {label}", actor.card.name)))
            .collect()
    }
}

impl ActorCoverage {
    fn add(&mut self, turn: &CommittedTurn) {
        *self.handled.entry((turn.cause.clone(), turn.phase)).or_default() += 1;
        for event in &turn.records {
            *self.recorded.entry(event.name.clone()).or_default() += 1;
        }
        for command in &turn.sends {
            *self.sent.entry(command.clone()).or_default() += 1;
        }
        if let Some(end) = turn.ends {
            *self.ends.entry(end).or_default() += 1;
        }
        let edge = Edge {
            from: turn.from.clone(),
            to: turn.records.last().map(|event| &event.name).or(turn.from.as_ref()).cloned(),
            cause: turn.cause.clone(),
            phase: turn.phase,
            effects: turn.effects(),
            ends: turn.ends,
        };
        *self.edges.entry(edge).or_default() += 1;
    }

    fn merge(&mut self, other: &Self) {
        self.domain.clone_from(&other.domain);
        self.card.clone_from(&other.card);
        fn add<K: Ord + Clone>(into: &mut BTreeMap<K, u64>, from: &BTreeMap<K, u64>) {
            for (key, count) in from {
                *into.entry(key.clone()).or_default() += count;
            }
        }
        add(&mut self.handled, &other.handled);
        add(&mut self.recorded, &other.recorded);
        add(&mut self.ends, &other.ends);
        add(&mut self.edges, &other.edges);
        add(&mut self.sent, &other.sent);
    }

    fn path(&self, label: String, matches_cause: impl Fn(&Cause) -> bool + 'static) -> CoveragePath<'_> {
        CoveragePath { actor: self, label, matches_cause: Box::new(matches_cause), phase: None }
    }

    /// Returns the path of a command, accepted or rejected.
    ///
    /// Restrict it to one phase of a saga with [`while_open`](CoveragePath::while_open) and its siblings.
    ///
    /// ```
    /// # use whizbang::doc_fixtures::*;
    /// use whizbang::testing::Sim;
    ///
    /// let run = Sim::new(7).service("bank", |node| node.aggregate::<Account>()).run(async |world| {
    ///     world.send(Deposit { account: "ada".into(), cents: 500 }).await.unwrap();
    /// });
    /// run.unwrap().coverage.of::<Account>().command::<Deposit>().at_least(1);
    /// ```
    pub fn command<C: Command>(&self) -> CoveragePath<'_> {
        let name = full_name::<C>();
        let label = name.clone();
        self.path(label, move |cause| matches!(cause, Cause::Command(of) | Cause::Rejected(of, _) if *of == name))
    }

    /// Returns the path of a command that is rejected.
    pub fn rejects<C: Command>(&self) -> CoveragePath<'_> {
        let name = full_name::<C>();
        let label = format!("rejecting {name}");
        self.path(label, move |cause| matches!(cause, Cause::Rejected(of, _) if *of == name))
    }

    /// Returns the path of an event that the actor handles.
    ///
    /// The event may be recorded by an actor of this service or of another one. A redelivery that is recognized as a
    /// duplicate does not count.
    pub fn event<E: Event>(&self) -> CoveragePath<'_> {
        let name = full_name::<E>();
        let label = name.clone();
        self.path(label, move |cause| matches!(cause, Cause::Event(of) if *of == name))
    }

    /// Returns the path of the reply to a command that the actor sends, without rejections.
    pub fn reply<C: Command>(&self) -> CoveragePath<'_> {
        let name = full_name::<C>();
        let label = format!("reply to {name}");
        self.path(label, move |cause| matches!(cause, Cause::Reply(of) if *of == name))
    }

    /// Returns the path of the rejection of a command that the actor sends.
    ///
    /// For a saga this is the path that begins a compensation, or an alternative. It is easily missed by a scenario in
    /// which everything succeeds.
    pub fn rejection<C: Command>(&self) -> CoveragePath<'_> {
        let name = full_name::<C>();
        let label = format!("rejection of {name}");
        self.path(label, move |cause| matches!(cause, Cause::Rejection(of) if *of == name))
    }

    /// Returns the path of a timer of the actor.
    ///
    /// Named timers of the same type count together. A timer that was cleared, or set again before it fired, does not
    /// count.
    pub fn timer<T: Message>(&self) -> CoveragePath<'_> {
        let name = stored_timer(&self.domain, T::Domain::NAME, T::NAME).into_owned();
        let label = format!("timer {name}");
        self.path(label, move |cause| matches!(cause, Cause::Timer(of) if *of == name))
    }

    /// Returns the number of sagas that completed without compensation.
    pub fn completed(&self) -> u64 {
        self.ends.get(&End::Completed).copied().unwrap_or(0)
    }

    /// Returns the number of sagas that ended after compensation.
    pub fn compensated(&self) -> u64 {
        self.ends.get(&End::Compensated).copied().unwrap_or(0)
    }

    fn count(&self, matches_cause: impl Fn(&Cause) -> bool, phase: Option<Phase>) -> u64 {
        let handled = self
            .handled
            .iter()
            .filter(|((cause, in_phase), _)| matches_cause(cause) && phase.is_none_or(|of| of == *in_phase));
        handled.map(|(_, count)| count).sum()
    }

    /// Returns the causes that the derive lists.
    fn declared(&self) -> Vec<Cause> {
        let name = |card: &MessageCard| format!("{}.{}", card.domain, card.name);
        let card = &self.card;
        let mut causes: Vec<_> = card.handles.iter().map(|card| Cause::Command(name(card))).collect();
        causes.extend(card.takes.iter().map(|card| Cause::Event(name(card))));
        causes.extend(card.replies.iter().flat_map(|card| [Cause::Reply(name(card)), Cause::Rejection(name(card))]));
        let timer = |card: &MessageCard| stored_timer(&self.domain, &card.domain, &card.name).into_owned();
        causes.extend(card.timers.iter().map(|card| Cause::Timer(timer(card))));
        causes
    }

    /// Returns the causes that the derive lists and all others that occurred, such as rejections and replies to compensations.
    fn possible(&self) -> Vec<Cause> {
        let mut causes = self.declared();
        let more = self.handled.keys().map(|(cause, _)| cause);
        let more: BTreeSet<_> = more.filter(|cause| !causes.contains(cause)).cloned().collect();
        causes.extend(more);
        causes
    }

    fn is_saga(&self) -> bool {
        self.card.role == "saga"
    }

    /// Returns the phases that have occurred.
    fn phases(&self) -> Vec<Phase> {
        let mut phases = vec![Phase::Open];
        if self.is_saga() && self.handled.keys().any(|(_, phase)| *phase == Phase::Compensating) {
            phases.push(Phase::Compensating);
        }
        if self.is_saga() && !self.ends.is_empty() {
            phases.push(Phase::Ended);
        }
        phases
    }

    pub(super) fn unreached(&self) -> Vec<String> {
        let mut unreached = Vec::new();
        for cause in self.declared() {
            for phase in self.phases() {
                // Timers of ended sagas are cleared.
                let is_cleared_timer = matches!(cause, Cause::Timer(_)) && phase == Phase::Ended;
                // A rejected command counts as reached.
                let matches_cause = |of: &Cause| match (of, &cause) {
                    (Cause::Rejected(of, _), Cause::Command(name)) => of == name,
                    (of, cause) => of == cause,
                };
                if !is_cleared_timer && self.count(matches_cause, Some(phase)) == 0 {
                    unreached.push(format!("{}{}", cause.describe(&self.domain), phase.suffix()));
                }
            }
        }
        for event in self.card.records.iter().filter(|event| !self.recorded.contains_key(&event.name)) {
            unreached.push(format!("records {}", event.name));
        }
        unreached
    }
}

impl Phase {
    fn suffix(self) -> &'static str {
        match self {
            Self::Open => "",
            Self::Compensating => " while compensating",
            Self::Ended => " after its end",
        }
    }
}

fn full_name<M: Message>() -> String {
    format!("{}.{}", M::Domain::NAME, M::NAME)
}

/// A path: one kind of message to one actor type, counted over all runs.
#[must_use = "a path does nothing until it is counted or checked"]
pub struct CoveragePath<'a> {
    actor: &'a ActorCoverage,
    label: String,
    matches_cause: Box<dyn Fn(&Cause) -> bool>,
    phase: Option<Phase>,
}

impl std::fmt::Debug for CoveragePath<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CoveragePath").field("label", &self.label).finish_non_exhaustive()
    }
}

impl CoveragePath<'_> {
    /// Restricts the path to open sagas.
    ///
    /// Aggregates and workers are always open.
    pub fn while_open(mut self) -> Self {
        self.phase = Some(Phase::Open);
        self
    }

    /// Restricts the path to compensating sagas.
    pub fn while_compensating(mut self) -> Self {
        self.phase = Some(Phase::Compensating);
        self
    }

    /// Restricts the path to ended sagas.
    pub fn after_end(mut self) -> Self {
        self.phase = Some(Phase::Ended);
        self
    }

    /// Returns how often the path was taken.
    ///
    /// Counts committed turns: an attempt that was lost in a crash and repeated counts once.
    pub fn count(&self) -> u64 {
        self.actor.count(&self.matches_cause, self.phase)
    }

    /// Asserts that the path was taken at least `times` times.
    ///
    /// # Panics
    /// If it was not. The text contains the table of the actor.
    #[track_caller]
    pub fn at_least(&self, times: u64) {
        let count = self.count();
        if count < times {
            panic!("{self} was reached {count} times, expected at least {times}\n\n{}", self.actor);
        }
    }

    /// Asserts that the path was never taken.
    ///
    /// # Panics
    /// If it was. The text contains the table of the actor.
    #[track_caller]
    pub fn never_reached(&self) {
        let count = self.count();
        if count > 0 {
            panic!("{self} was reached {count} times\n\n{}", self.actor);
        }
    }
}

impl fmt::Display for CoveragePath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = self.phase.map_or("", |phase| match phase {
            Phase::Open => " while it is open",
            phase => phase.suffix(),
        });
        write!(f, "{}: {}{phase}", self.actor.card.name, self.label)
    }
}

impl fmt::Display for ActorCoverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}.{}", self.card.role, self.domain, self.card.name)?;
        let phases = self.phases();
        let causes = self.possible();
        let width = causes.iter().map(|cause| cause.describe(&self.domain).len()).max().unwrap_or(0).max(12);
        let head: String = phases.iter().map(|phase| format!("{:>9}", format!("{phase:?}").to_lowercase())).collect();
        writeln!(f, "  {:<width$}{head}", "")?;
        for cause in causes {
            let counts = phases.iter().map(|phase| match self.count(|of| *of == cause, Some(*phase)) {
                0 => format!("{:>9}", "never"),
                count => format!("{count:>9}"),
            });
            writeln!(f, "  {:<width$}{}", cause.describe(&self.domain), counts.collect::<String>())?;
        }
        for event in &self.card.records {
            let count = self.recorded.get(&event.name).map_or_else(|| "never".to_owned(), u64::to_string);
            let label = format!("records {}", event.name);
            writeln!(f, "  {label:<width$}{count:>9}")?;
        }
        for (end, count) in &self.ends {
            writeln!(f, "  {:<width$}{count:>9}", end.to_string())?;
        }
        Ok(())
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} runs", self.runs)?;
        for actor in self.actors.values() {
            write!(f, "\n{actor}")?;
        }
        Ok(())
    }
}
