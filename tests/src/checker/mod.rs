//! Finds lost, duplicated, misordered and phantom messages, whatever failed during a run.
//!
//! A test records in a [`Ledger`] the results that its clients received, the content of the stores' logs, and the events that
//! subscribers applied; [`Ledger::check`] compares them. The checker knows no actor and no user type, trusts no index that it can
//! recompute, and calls nothing but the public traits of the store (in [`ShardLog::read`]).
//! For every rule, `corruptions` has a corrupted run that the checker must report.

#[cfg(test)]
mod corruptions;
mod decisions;
mod log;
mod sequence;
mod sources;
mod streams;
mod subscribers;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use whizbang::message::{Coded, MessageId, Rejection};
use whizbang::{Command, Domain, Message};

pub use log::{ShardLog, StreamLog};
pub use subscribers::Applied;

/// The clients' knowledge of a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Known {
    /// The number of times it was sent.
    sent: u32,
    /// The number of times it was refused.
    refused: u32,
    /// The most informative result.
    status: Status,
}

/// The result of a client's command; a later variant is more informative.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Status {
    /// Unknown: no reply in time, a broken connection, or a killed process.
    #[default]
    Unknown,
    /// The command is stored and will be handled.
    Accepted,
    /// The command is a dead letter.
    DeadLetter,
    /// The command was handled; with the encoded reply.
    Reply(Bytes),
}

impl Known {
    /// Returns true if it cannot have been handled, because it was refused each time.
    fn is_refused(&self) -> bool {
        self.status == Status::Unknown && self.sent > 0 && self.refused >= self.sent
    }
}

/// The strictness of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Faults and messages in flight are possible: nothing acknowledged is lost, nothing is duplicated or invented.
    Running,
    /// Faults have stopped and nothing is in flight: in addition, everything has arrived everywhere.
    Idle,
}

/// The record of a run.
#[derive(Debug, Default)]
pub struct Ledger {
    commands: BTreeMap<MessageId, Known>,
    /// The commands with replies that contradict an earlier reply.
    contradicted: BTreeSet<MessageId>,
    logs: Vec<ShardLog>,
    subscribers: Vec<subscribers::Subscriber>,
}

/// The kind of a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ViolationKind {
    /// Something is missing.
    Lost,
    /// Something exists more than once.
    Duplicated,
    /// Something is at the wrong position.
    Misordered,
    /// Something exists that never happened.
    Phantom,
}

/// A violation of a guarantee.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// The kind.
    pub kind: ViolationKind,
    /// The description, with the place.
    pub what: String,
}

/// The result of a check: the violations, and the numbers of checked items.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The violations, ordered by kind.
    pub violations: Vec<Violation>,
    /// The number of commands that clients have sent.
    pub commands: usize,
    /// The number of acknowledged commands: replied to, accepted or reported as a dead letter.
    pub acknowledged: usize,
    /// The number of commands that were refused each time they were sent.
    pub refused: usize,
    /// The number of decisions in the logs, including those on events and on commands of other actors.
    pub decisions: usize,
    /// The number of events in the logs.
    pub events: usize,
    /// The number of unresolved dead letters.
    pub dead_letters: usize,
    /// The number of events that all subscribers have applied.
    pub applied: usize,
}

impl Ledger {
    /// Returns an empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// Records that a client is about to send a command, for the first time or again with the same id. Without a further record, the
    /// command may or may not be handled.
    pub fn sends(&mut self, id: MessageId) {
        self.commands.entry(id).or_default().sent += 1;
    }

    /// Records that a client learned that the command was not handled this time.
    pub fn refused(&mut self, id: MessageId) {
        self.commands.entry(id).or_default().refused += 1;
    }

    /// Records that a client learned that the command is stored and will be handled.
    pub fn accepted(&mut self, id: MessageId) {
        self.update(id, Status::Accepted);
    }

    /// Records that a client learned that the command is a dead letter.
    pub fn is_dead_letter(&mut self, id: MessageId) {
        self.update(id, Status::DeadLetter);
    }

    /// Records the reply that a client received. The same id sent again must get the same reply.
    pub fn replied(&mut self, id: MessageId, reply: Bytes) {
        self.update(id, Status::Reply(reply));
    }

    fn update(&mut self, id: MessageId, status: Status) {
        let known = self.commands.entry(id).or_default();
        if matches!((&known.status, &status), (Status::Reply(before), Status::Reply(now)) if before != now) {
            self.contradicted.insert(id);
        }
        known.status = std::mem::take(&mut known.status).max(status);
    }

    /// Adds the log of one shard. Add all shards of a run: the messages of a shard are looked up in the other logs.
    pub fn log(&mut self, log: ShardLog) {
        self.logs.push(log);
    }

    /// Adds the events that a subscriber has applied, in the order of application. Read them from the committed view and not from
    /// handler calls: events whose effects a crash has undone were not applied.
    ///
    /// `takes` returns true for the events that the subscriber handles, by domain and name.
    pub fn subscriber(
        &mut self,
        name: impl Into<String>,
        takes: impl Fn(&str, &str) -> bool + Send + 'static,
        applied: impl IntoIterator<Item = Applied>,
    ) {
        self.subscribers.push(subscribers::Subscriber::new(name.into(), takes, applied));
    }

    /// Compares all records.
    pub fn check(&self, stage: Stage) -> Verdict {
        let mut found = Found::default();
        for log in &self.logs {
            streams::check(log, &mut found);
        }
        let decisions = decisions::check(self, stage, &mut found);
        sources::check(&self.logs, stage, &mut found);
        for subscriber in &self.subscribers {
            subscribers::check(subscriber, &self.logs, stage, &mut found);
        }
        found.0.sort();
        found.0.dedup();
        Verdict {
            violations: found.0,
            commands: self.commands.len(),
            acknowledged: self.commands.values().filter(|known| known.status != Status::Unknown).count(),
            refused: self.commands.values().filter(|known| known.is_refused()).count(),
            decisions,
            events: self.logs.iter().map(|log| log.events.len()).sum(),
            dead_letters: self.logs.iter().map(|log| log.dead_letters.len()).sum(),
            applied: self.subscribers.iter().map(|subscriber| subscriber.applied.len()).sum(),
        }
    }
}

impl Verdict {
    /// Returns true if there is no violation.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// Returns the number of violations of a kind.
    pub fn count(&self, kind: ViolationKind) -> usize {
        self.violations.iter().filter(|violation| violation.kind == kind).count()
    }

    /// Fails with all violations, and if nothing was checked: an empty run proves nothing.
    ///
    /// # Panics
    /// If there is a violation, or no command was acknowledged, or the logs contain no decision.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
        assert!(self.acknowledged > 0 && self.decisions > 0, "nothing was checked: {self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { commands, acknowledged, refused, decisions, events, dead_letters, applied, .. } = self;
        writeln!(
            f,
            "{commands} commands sent, {acknowledged} acknowledged, {refused} refused; {decisions} decisions, {events} events, \
             {dead_letters} dead letters in the logs; {applied} events applied by subscribers"
        )?;
        for kind in [ViolationKind::Lost, ViolationKind::Duplicated, ViolationKind::Misordered, ViolationKind::Phantom]
        {
            const SHOWN: usize = 20;
            let of_kind = self.violations.iter().filter(|violation| violation.kind == kind);
            writeln!(f, "{kind:?}: {}", of_kind.clone().count())?;
            for violation in of_kind.take(SHOWN) {
                writeln!(f, "  {}", violation.what)?;
            }
        }
        Ok(())
    }
}

/// Returns the encoded reply to a command as its owner stores it, for [`Ledger::replied`].
///
/// # Panics
/// If the reply cannot be encoded.
pub fn reply_bytes<C: Command>(reply: &Result<C::Reply, Rejection>) -> Bytes {
    let mut bytes = Vec::new();
    let codec = <<C as Message>::Domain as Domain>::CODEC;
    C::Reply::write_reply(reply, codec, &mut bytes).expect("a reply that was received can be sent");
    Bytes::from(bytes)
}

/// Collects violations.
#[derive(Debug, Default)]
struct Found(Vec<Violation>);

impl Found {
    fn add(&mut self, kind: ViolationKind, what: impl Into<String>) {
        self.0.push(Violation { kind, what: what.into() });
    }
}
