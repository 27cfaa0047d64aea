//! Coverage: the paths through actors that runs have taken, and those that none has taken.
//!
//! Created from the step log of each run; coverages of many runs can be merged. Possible paths come from the derives.

#![expect(clippy::panic, reason = "a required path that is not reached fails the test")]

use std::collections::BTreeMap;
use std::fmt;

use super::actor_coverage::ActorCoverage;
use super::committed_turn::{Cause, CommittedTurn};
use super::fault_counts::FaultCount;
use super::{CrashPoint, Fault, FaultEvent, InjectedFault, WaitTimes};
use whizbang_core::message::Domain;
use whizbang_runtime::actor::Stateful;
use whizbang_runtime::router::Manifest;

/// The paths through the actors of a cluster that one or many runs have taken.
///
/// `Display` prints a table: for each message of an actor, the number of times it was handled while the saga was open, while it
/// was compensating, and after its end.
///
/// ```
/// # use bank_fixture::*;
/// use whizbang::testing::{Coverage, Sim};
///
/// let run = Sim::new(7).service("bank", |node| node.aggregate::<Account>()).run(async |world| {
///     world.send(Deposit { account: "ada".into(), cents: 500 }).await.unwrap();
/// });
/// let coverage: Coverage = run.unwrap().coverage;
/// assert!(coverage.to_string().contains("Deposit"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// The number of merged runs.
    runs: u64,
    /// The number of events that faults caused, by their kind.
    fault_events: BTreeMap<FaultEvent, u64>,
    /// The number of crashes of nodes.
    crashes: u64,
    /// The number of faults that were requested and that fired, by their names.
    faults: BTreeMap<String, FaultCount>,
    /// The waiting times of messages.
    wait_times: WaitTimes,
    /// The coverage of each actor, by the names of its domain and its type.
    pub(super) actors: BTreeMap<(String, String), ActorCoverage>,
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

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} runs", self.runs)?;
        for actor in self.actors.values() {
            write!(f, "\n{actor}")?;
        }
        Ok(())
    }
}
