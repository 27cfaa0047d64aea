//! Which paths through the actors the runs have taken, and which never.
//!
//! Made of what a run has seen; the coverages of many runs add up to one. What could be taken comes from what the derives list.

#![expect(clippy::panic, reason = "a path that should be reached and is not fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::step_log::{Cause, End, Phase, Taken};
use super::{CrashPoint, Fault, FaultEvent, StruckFault, Waits};
use crate::actor::{Stateful, stored_timer};
use crate::message::{Command, Domain, Event, Message};
use crate::router::{ActorCard, Manifest, MessageCard};

/// Which paths through the actors of a cluster one or many runs have taken.
///
/// Printed, it is a table: for each message that an actor can take how often it came while the saga went on, while it undid its
/// steps, and after its end.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    runs: u64,
    troubles: BTreeMap<FaultEvent, u64>,
    crashes: u64,
    faults: BTreeMap<String, FaultCount>,
    waits: Waits,
    pub(super) actors: BTreeMap<(String, String), Covered>,
}

/// How often faults of one kind were asked for, and how often they struck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FaultCount {
    /// How many times one was asked for: drawn, described or struck by the story.
    pub asked: u64,
    /// How many times they struck. A fault that may strike several times, as `Panic`, counts each.
    pub fired: u64,
}

impl FaultCount {
    fn add(&mut self, asked: u64, fired: u64) {
        self.asked += asked;
        self.fired += fired;
    }
}

/// What the runs have seen of one aggregate, saga or worker.
#[derive(Clone, Debug, Default)]
pub struct Covered {
    pub(super) domain: String,
    pub(super) card: ActorCard,
    pub(super) taken: BTreeMap<(Cause, Phase), u64>,
    pub(super) recorded: BTreeMap<String, u64>,
    pub(super) ends: BTreeMap<End, u64>,
    pub(super) edges: BTreeMap<Edge, u64>,
    pub(super) sent: BTreeMap<String, u64>,
}

/// A way from one state to another; a state is named after the last event recorded.
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
    /// What one run has seen.
    pub(super) fn of_run<'a>(
        manifests: impl Iterator<Item = &'a Manifest>,
        turns: &[Taken],
        troubles: BTreeMap<FaultEvent, u64>,
        crashes: u64,
        faults: &[StruckFault],
        waits: Waits,
    ) -> Self {
        let mut coverage = Self { runs: 1, troubles, crashes, waits, ..Self::default() };
        // Without a command there is nothing to strike for what strikes commands.
        let asked = turns.iter().any(|turn| matches!(turn.cause, Cause::Command(_) | Cause::Rejected(..)));
        let sent = turns.iter().any(|turn| !turn.sends.is_empty() || matches!(turn.cause, Cause::Event(_)));
        let could = |fault: &Fault| (asked || !fault.is_of_commands()) && (sent || !fault.is_of_messages());
        for struck in faults.iter().filter(|struck| could(&struck.fault)) {
            coverage.faults.entry(struck.fault.kind()).or_default().add(1, struck.times);
        }
        // What an actor has done before it was renamed counts for it.
        let mut renamed = BTreeMap::new();
        for manifest in manifests {
            for domain in &manifest.domains {
                for card in &domain.actors {
                    let before = card.formerly.iter().map(|name| (domain.name.clone(), (*name).to_owned()));
                    renamed.extend(before.map(|before| (before, card.name.clone())));
                    let covered = Covered { domain: domain.name.clone(), card: card.clone(), ..Covered::default() };
                    coverage.actors.insert((domain.name.clone(), card.name.clone()), covered);
                }
            }
        }
        for turn in turns {
            let place = (turn.domain.clone(), turn.actor.clone());
            let place = renamed.get(&place).map_or(place.clone(), |name| (place.0.clone(), name.clone()));
            if let Some(covered) = coverage.actors.get_mut(&place) {
                covered.add(turn);
            }
        }
        coverage
    }

    /// Adds what other runs have seen.
    pub fn merge(&mut self, other: &Self) {
        self.runs += other.runs;
        self.crashes += other.crashes;
        self.waits.merge(&other.waits);
        for (kind, count) in &other.faults {
            self.faults.entry(kind.clone()).or_default().add(count.asked, count.fired);
        }
        for (trouble, count) in &other.troubles {
            *self.troubles.entry(*trouble).or_default() += count;
        }
        for (name, theirs) in &other.actors {
            self.actors.entry(name.clone()).or_default().merge(theirs);
        }
    }

    /// What the runs have seen of one aggregate or saga.
    ///
    /// # Panics
    /// If no service of the cluster hosts it.
    #[track_caller]
    pub fn of<A: Stateful>(&self) -> &Covered {
        let found = self.actors.get(&(A::Domain::NAME.to_owned(), A::NAME.to_owned()));
        found.unwrap_or_else(|| panic!("no service hosts `{}.{}`", A::Domain::NAME, A::NAME))
    }

    /// How often what has gone wrong, where it hit something.
    pub fn troubles(&self) -> &BTreeMap<FaultEvent, u64> {
        &self.troubles
    }

    /// How often each kind of fault was asked for, and how often it struck, by the name of its variant; `CrashIn` has one for each
    /// [`CrashPoint`](super::CrashPoint).
    pub fn faults(&self) -> &BTreeMap<String, FaultCount> {
        &self.faults
    }

    /// How long messages have waited for their keys, as far as nothing disturbed a run.
    pub fn waits(&self) -> Waits {
        self.waits
    }

    /// The faults that were asked for `tries` times or more and never struck, in words. With `any_work` a crash inside of any work
    /// stands for all that every cluster may have: one without messages between services publishes, delivers and acknowledges nothing.
    pub(super) fn missed(&self, tries: u64, any_work: bool) -> Vec<String> {
        let mut kinds: BTreeMap<&str, FaultCount> = BTreeMap::new();
        let common: Vec<_> = CrashPoint::COMMON.iter().map(|work| format!("CrashIn {work:?}")).collect();
        for (kind, count) in &self.faults {
            let kind = if any_work && common.contains(kind) { "CrashIn" } else { kind };
            kinds.entry(kind).or_default().add(count.asked, count.fired);
        }
        let missed = kinds.into_iter().filter(|(_, count)| count.asked >= tries && count.fired == 0);
        missed.map(|(kind, count)| format!("{kind} was asked for {} times and never struck", count.asked)).collect()
    }

    /// How many nodes were killed, but for those that are killed at the end of every run.
    pub fn crashes(&self) -> u64 {
        self.crashes
    }

    /// What could have gone wrong and never has; in a cluster without workers jobs cannot, and nothing is forged unless a flow asks for
    /// it. A node whose handlers were not to panic, for example, has seen none.
    pub fn untroubled(&self) -> Vec<FaultEvent> {
        let has_workers = self.actors.values().any(|actor| actor.card.role == "worker");
        let could = FaultEvent::ALL.iter().filter(|trouble| has_workers || !trouble.needs_worker());
        let could = could.filter(|trouble| **trouble != FaultEvent::Forged);
        let could = could.filter(|trouble| self.faults.contains_key("Upgrade") || !trouble.needs_version());
        could.filter(|trouble| !self.troubles.contains_key(trouble)).copied().collect()
    }

    /// Everything that could have been taken and never was, one line each.
    pub fn never(&self) -> Vec<String> {
        let actors = self.actors.values();
        actors.flat_map(|actor| actor.never().into_iter().map(|what| format!("{}: {what}", actor.card.name))).collect()
    }
}

impl Covered {
    fn add(&mut self, turn: &Taken) {
        *self.taken.entry((turn.cause.clone(), turn.phase)).or_default() += 1;
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
        add(&mut self.taken, &other.taken);
        add(&mut self.recorded, &other.recorded);
        add(&mut self.ends, &other.ends);
        add(&mut self.edges, &other.edges);
        add(&mut self.sent, &other.sent);
    }

    fn path(&self, what: String, is: impl Fn(&Cause) -> bool + 'static) -> Path<'_> {
        Path { actor: self, what, is: Box::new(is), phase: None }
    }

    /// A command that it handles, whether it is rejected or not.
    pub fn command<C: Command>(&self) -> Path<'_> {
        let name = full_name::<C>();
        let what = name.clone();
        self.path(what, move |cause| matches!(cause, Cause::Command(of) | Cause::Rejected(of, _) if *of == name))
    }

    /// A command that it handles and rejects.
    pub fn rejects<C: Command>(&self) -> Path<'_> {
        let name = full_name::<C>();
        let what = format!("rejecting {name}");
        self.path(what, move |cause| matches!(cause, Cause::Rejected(of, _) if *of == name))
    }

    /// An event that it takes.
    pub fn event<E: Event>(&self) -> Path<'_> {
        let name = full_name::<E>();
        let what = name.clone();
        self.path(what, move |cause| matches!(cause, Cause::Event(of) if *of == name))
    }

    /// The reply to a command that it sends, but for rejections.
    pub fn reply<C: Command>(&self) -> Path<'_> {
        let name = full_name::<C>();
        let what = format!("reply to {name}");
        self.path(what, move |cause| matches!(cause, Cause::Reply(of) if *of == name))
    }

    /// The rejection of a command that it sends.
    pub fn rejection<C: Command>(&self) -> Path<'_> {
        let name = full_name::<C>();
        let what = format!("rejection of {name}");
        self.path(what, move |cause| matches!(cause, Cause::Rejection(of) if *of == name))
    }

    /// A timer of its own.
    pub fn timer<T: Message>(&self) -> Path<'_> {
        let name = stored_timer(&self.domain, T::Domain::NAME, T::NAME).into_owned();
        let what = format!("timer {name}");
        self.path(what, move |cause| matches!(cause, Cause::Timer(of) if *of == name))
    }

    /// How many have ended without undoing anything.
    pub fn completed(&self) -> u64 {
        self.ends.get(&End::Completed).copied().unwrap_or(0)
    }

    /// How many have ended with everything undone.
    pub fn compensated(&self) -> u64 {
        self.ends.get(&End::Compensated).copied().unwrap_or(0)
    }

    fn count(&self, is: impl Fn(&Cause) -> bool, phase: Option<Phase>) -> u64 {
        let taken =
            self.taken.iter().filter(|((cause, in_phase), _)| is(cause) && phase.is_none_or(|of| of == *in_phase));
        taken.map(|(_, count)| count).sum()
    }

    /// What can be taken, as the derive lists it.
    fn listed(&self) -> Vec<Cause> {
        let name = |card: &MessageCard| format!("{}.{}", card.domain, card.name);
        let card = &self.card;
        let mut causes: Vec<_> = card.handles.iter().map(|card| Cause::Command(name(card))).collect();
        causes.extend(card.takes.iter().map(|card| Cause::Event(name(card))));
        causes.extend(card.replies.iter().flat_map(|card| [Cause::Reply(name(card)), Cause::Rejection(name(card))]));
        let timer = |card: &MessageCard| stored_timer(&self.domain, &card.domain, &card.name).into_owned();
        causes.extend(card.timers.iter().map(|card| Cause::Timer(timer(card))));
        causes
    }

    /// What is listed, and what came besides: rejections, and replies that only say that something is done or undone.
    fn possible(&self) -> Vec<Cause> {
        let mut causes = self.listed();
        let more = self.taken.keys().map(|(cause, _)| cause);
        let more: BTreeSet<_> = more.filter(|cause| !causes.contains(cause)).cloned().collect();
        causes.extend(more);
        causes
    }

    fn is_saga(&self) -> bool {
        self.card.role == "saga"
    }

    /// The phases in which something may come: those that were seen.
    fn phases(&self) -> Vec<Phase> {
        let mut phases = vec![Phase::Open];
        if self.is_saga() && self.taken.keys().any(|(_, phase)| *phase == Phase::Undoing) {
            phases.push(Phase::Undoing);
        }
        if self.is_saga() && !self.ends.is_empty() {
            phases.push(Phase::Ended);
        }
        phases
    }

    pub(super) fn never(&self) -> Vec<String> {
        let mut never = Vec::new();
        for cause in self.listed() {
            for phase in self.phases() {
                // A timer whose saga has ended rings for nobody; nobody can miss that.
                let silent = matches!(cause, Cause::Timer(_)) && phase == Phase::Ended;
                // A command that was rejected was reached.
                let is = |of: &Cause| match (of, &cause) {
                    (Cause::Rejected(of, _), Cause::Command(name)) => of == name,
                    (of, cause) => of == cause,
                };
                if !silent && self.count(is, Some(phase)) == 0 {
                    never.push(format!("{}{}", cause.told(&self.domain), phase.while_it()));
                }
            }
        }
        for event in self.card.records.iter().filter(|event| !self.recorded.contains_key(&event.name)) {
            never.push(format!("records {}", event.name));
        }
        never
    }
}

impl Phase {
    fn while_it(self) -> &'static str {
        match self {
            Self::Open => "",
            Self::Undoing => " while it undoes",
            Self::Ended => " after its end",
        }
    }
}

fn full_name<M: Message>() -> String {
    format!("{}.{}", M::Domain::NAME, M::NAME)
}

/// One kind of message on its way into one kind of actor, counted over all runs.
#[must_use = "a path is described, not checked"]
pub struct Path<'a> {
    actor: &'a Covered,
    what: String,
    is: Box<dyn Fn(&Cause) -> bool>,
    phase: Option<Phase>,
}

impl Path<'_> {
    /// Only while the saga goes on.
    pub fn while_open(mut self) -> Self {
        self.phase = Some(Phase::Open);
        self
    }

    /// Only while the saga undoes its steps.
    pub fn while_undoing(mut self) -> Self {
        self.phase = Some(Phase::Undoing);
        self
    }

    /// Only after the saga's end.
    pub fn after_the_end(mut self) -> Self {
        self.phase = Some(Phase::Ended);
        self
    }

    /// How often it was taken.
    pub fn count(&self) -> u64 {
        self.actor.count(&self.is, self.phase)
    }

    /// Demands that it was taken so often.
    ///
    /// # Panics
    /// If it was not: with the table of the actor.
    #[track_caller]
    pub fn at_least(&self, times: u64) {
        let count = self.count();
        if count < times {
            panic!("{self} was reached {count} times, {times} are wanted\n\n{}", self.actor);
        }
    }

    /// Demands that it was never taken.
    ///
    /// # Panics
    /// If it was: with the table of the actor.
    #[track_caller]
    pub fn never_reached(&self) {
        let count = self.count();
        if count > 0 {
            panic!("{self} was reached {count} times\n\n{}", self.actor);
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let phase = self.phase.map_or("", |phase| match phase {
            Phase::Open => " while it is open",
            phase => phase.while_it(),
        });
        write!(f, "{}: {}{phase}", self.actor.card.name, self.what)
    }
}

impl fmt::Display for Covered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {}.{}", self.card.role, self.domain, self.card.name)?;
        let phases = self.phases();
        let causes = self.possible();
        let width = causes.iter().map(|cause| cause.told(&self.domain).len()).max().unwrap_or(0).max(12);
        let head: String = phases.iter().map(|phase| format!("{:>9}", format!("{phase:?}").to_lowercase())).collect();
        writeln!(f, "  {:<width$}{head}", "")?;
        for cause in causes {
            let counts = phases.iter().map(|phase| match self.count(|of| *of == cause, Some(*phase)) {
                0 => format!("{:>9}", "never"),
                count => format!("{count:>9}"),
            });
            writeln!(f, "  {:<width$}{}", cause.told(&self.domain), counts.collect::<String>())?;
        }
        for event in &self.card.records {
            let count = self.recorded.get(&event.name).map_or_else(|| "never".to_owned(), u64::to_string);
            let what = format!("records {}", event.name);
            writeln!(f, "  {what:<width$}{count:>9}")?;
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
