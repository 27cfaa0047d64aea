//! Coverage of one actor type: the messages that it has handled in each phase, and the paths that a test can check.
//!
//! Part of the [coverage](super::coverage) of a run. Possible paths come from the derives.

#![expect(clippy::panic, reason = "a required path that is not reached fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::committed_turn::{Cause, CommittedTurn, End, Phase};
use whizbang_core::message::{Command, Domain, Event, Message};
use whizbang_runtime::actor::stored_timer;
use whizbang_runtime::router::{ActorCard, MessageCard};

/// The coverage of one aggregate, saga or worker.
#[derive(Clone, Debug, Default)]
pub struct ActorCoverage {
    /// The domain of its keys.
    pub(super) domain: String,
    /// The lists of its derive.
    pub(super) card: ActorCard,
    /// The number of times that each message was handled, by the phase of the actor.
    pub(super) handled: BTreeMap<(Cause, Phase), u64>,
    /// The number of records of each event.
    pub(super) recorded: BTreeMap<String, u64>,
    /// The number of ended sagas, by the kind of end.
    pub(super) ends: BTreeMap<End, u64>,
    /// The transitions between states, for diagrams.
    pub(super) edges: BTreeMap<Edge, u64>,
    /// The number of times that each command was sent.
    pub(super) sent: BTreeMap<String, u64>,
}

/// A transition between two states. A state is named after the last recorded event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    /// The state before, named after the last recorded event. `None` before the first.
    pub(super) from: Option<String>,
    /// The state after. `None` if nothing has been recorded yet.
    pub(super) to: Option<String>,
    /// The message or timer that caused the transition.
    pub(super) cause: Cause,
    /// The phase of the saga before the transition.
    pub(super) phase: Phase,
    /// The effects beside events, for the label: sent commands and timers.
    pub(super) effects: String,
    /// The end of the saga, if this transition ends it.
    pub(super) ends: Option<End>,
}

impl ActorCoverage {
    /// Counts a committed turn.
    pub(super) fn add(&mut self, turn: &CommittedTurn) {
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

    /// Adds the counts of another run. The description of the actor is that of the later run.
    pub(super) fn merge(&mut self, other: &Self) {
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

    /// Returns the path of all causes that match.
    fn path(&self, label: String, matches_cause: impl Fn(&Cause) -> bool + 'static) -> CoveragePath<'_> {
        CoveragePath { actor: self, label, matches_cause: Box::new(matches_cause), phase: None }
    }

    /// Returns the path of a command, accepted or rejected.
    ///
    /// Restrict it to one phase of a saga with [`while_open`](CoveragePath::while_open) and its siblings.
    ///
    /// ```
    /// # use bank_fixture::*;
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

    /// Returns the number of turns with a matching cause, in one phase or in all of them.
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

    /// Returns true for a saga, which has phases; other actors are always open.
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

    /// Returns the paths that the derive lists and no run has taken, and the events that none has recorded.
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
    /// Returns the words that follow the message of a path in this phase.
    fn suffix(self) -> &'static str {
        match self {
            Self::Open => "",
            Self::Compensating => " while compensating",
            Self::Ended => " after its end",
        }
    }
}

/// Returns the domain and the name of a message, as the step log has them.
fn full_name<M: Message>() -> String {
    format!("{}.{}", M::Domain::NAME, M::NAME)
}

/// A path: one kind of message to one actor type, counted over all runs.
///
/// ```
/// # use bank_fixture::*;
/// use whizbang::testing::Sim;
///
/// let run = Sim::new(7).service("bank", |node| node.aggregate::<Account>()).run(async |world| {
///     world.send(Deposit { account: "ada".into(), cents: 500 }).await.unwrap();
/// });
/// let coverage = run.unwrap().coverage;
/// let account = coverage.of::<Account>();
/// account.command::<Deposit>().while_open().at_least(1);
/// account.rejects::<Deposit>().never_reached();
/// assert_eq!(account.event::<Deposited>().count(), 0, "it reacts to no event");
/// ```
#[must_use = "a path does nothing until it is counted or checked"]
pub struct CoveragePath<'a> {
    /// The actor whose turns are counted.
    actor: &'a ActorCoverage,
    /// The name of the path for failures, such as `handles bank.Deposit`.
    label: String,
    /// Selects the causes that belong to the path.
    matches_cause: Box<dyn Fn(&Cause) -> bool>,
    /// The phase to which the path is restricted. `None` counts all.
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
