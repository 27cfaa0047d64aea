//! Finds what was lost, doubled, put out of order or made up, whatever broke while it ran.
//!
//! A test writes into a [`Ledger`] what its clients were told, what the stores' logs hold and what subscribers have applied;
//! [`Ledger::check`] compares the three. It knows no actor and no user type, trusts no index that it can count itself, and
//! calls nothing but the public traits of the store (in [`ShardLog::read`]).
//! Every rule has a planted violation, in `planted.rs`, that it must find.

mod decisions;
mod log;
#[cfg(test)]
mod planted;
mod row;
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
    /// The most that was told.
    told: Told,
}

/// The answer to a client's command; a later one in this list says more.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    /// Nothing that says how it ended: no answer in time, a connection that broke, a process that was killed.
    #[default]
    Unknown,
    /// It is stored and will be handled.
    Accepted,
    /// It is a dead letter.
    DeadLetter,
    /// It was handled, and this is the encoded reply.
    Reply(Bytes),
}

impl Known {
    /// Returns true if it cannot have been handled: it was refused each time.
    fn is_refused(&self) -> bool {
        self.told == Told::Unknown && self.sent > 0 && self.refused >= self.sent
    }
}

/// The strictness of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Faults may still happen and messages be under way: nothing acknowledged is lost, nothing is doubled or made up.
    Running,
    /// Faults have stopped and nothing is under way: besides, everything has arrived everywhere.
    Quiet,
}

/// The record of a run.
#[derive(Debug, Default)]
pub struct Ledger {
    commands: BTreeMap<MessageId, Known>,
    /// Replies that contradict an earlier one to the same command.
    contradicted: BTreeSet<MessageId>,
    logs: Vec<ShardLog>,
    subscribers: Vec<subscribers::Subscriber>,
}

/// The kind of a broken promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Broken {
    /// Something that should be there is not.
    Lost,
    /// Something is there more than once.
    Doubled,
    /// Something is there at the wrong place.
    Misordered,
    /// Something is there that never happened.
    Phantom,
}

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Its kind.
    pub broken: Broken,
    /// The fault and its place.
    pub what: String,
}

/// The findings of a check, and the amounts that it has looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Every broken promise, in the order of their kinds.
    pub violations: Vec<Violation>,
    /// The number of commands that clients have sent.
    pub commands: usize,
    /// The number of acknowledged commands: answered, accepted or known as a dead letter.
    pub acknowledged: usize,
    /// The number of commands that were refused each time they were sent.
    pub refused: usize,
    /// The number of decisions in the logs, those on events and on other actors' commands included.
    pub decisions: usize,
    /// The number of events in the logs.
    pub events: usize,
    /// The number of unresolved dead letters.
    pub dead_letters: usize,
    /// The number of events that all subscribers have applied.
    pub applied: usize,
}

impl Ledger {
    /// An empty ledger.
    pub fn new() -> Self {
        Self::default()
    }

    /// A client is about to send a command, for the first time or again with the same id. Until it is told more, the command
    /// may or may not be handled.
    pub fn sends(&mut self, id: MessageId) {
        self.commands.entry(id).or_default().sent += 1;
    }

    /// A client was told that the command was not handled this time.
    pub fn refused(&mut self, id: MessageId) {
        self.commands.entry(id).or_default().refused += 1;
    }

    /// A client was told that the command is stored and will be handled.
    pub fn accepted(&mut self, id: MessageId) {
        self.tell(id, Told::Accepted);
    }

    /// A client was told that the command is a dead letter.
    pub fn is_dead_letter(&mut self, id: MessageId) {
        self.tell(id, Told::DeadLetter);
    }

    /// A client got this reply. The same id sent again must get the same reply.
    pub fn replied(&mut self, id: MessageId, reply: Bytes) {
        self.tell(id, Told::Reply(reply));
    }

    fn tell(&mut self, id: MessageId, told: Told) {
        let known = self.commands.entry(id).or_default();
        if matches!((&known.told, &told), (Told::Reply(before), Told::Reply(now)) if before != now) {
            self.contradicted.insert(id);
        }
        known.told = std::mem::take(&mut known.told).max(told);
    }

    /// Adds what the log of one shard holds. Give all shards of a run: what a shard sends is looked for in the others.
    pub fn log(&mut self, log: ShardLog) {
        self.logs.push(log);
    }

    /// Adds what a subscriber has applied, in the order in which it was applied. Take it from the committed view, not from
    /// calls of a handler: what a crash has undone was not applied.
    ///
    /// `takes` says by domain and name which events it should take.
    pub fn subscriber(
        &mut self,
        name: impl Into<String>,
        takes: impl Fn(&str, &str) -> bool + 'static,
        applied: impl IntoIterator<Item = Applied>,
    ) {
        self.subscribers.push(subscribers::Subscriber::new(name.into(), takes, applied));
    }

    /// Compares all that is known.
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
            acknowledged: self.commands.values().filter(|known| known.told != Told::Unknown).count(),
            refused: self.commands.values().filter(|known| known.is_refused()).count(),
            decisions,
            events: self.logs.iter().map(|log| log.events.len()).sum(),
            dead_letters: self.logs.iter().map(|log| log.dead_letters.len()).sum(),
            applied: self.subscribers.iter().map(|subscriber| subscriber.applied.len()).sum(),
        }
    }
}

impl Verdict {
    /// Returns true if no promise was broken.
    pub fn is_clean(&self) -> bool {
        self.violations.is_empty()
    }

    /// The number of broken promises of a kind.
    pub fn count(&self, broken: Broken) -> usize {
        self.violations.iter().filter(|violation| violation.broken == broken).count()
    }

    /// Fails with all that was found, and if nothing was there to be looked at: an empty run proves nothing.
    ///
    /// # Panics
    /// If a promise was broken, or no command was acknowledged, or the logs hold no decision.
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
        for broken in [Broken::Lost, Broken::Doubled, Broken::Misordered, Broken::Phantom] {
            const SHOWN: usize = 20;
            let of_kind = self.violations.iter().filter(|violation| violation.broken == broken);
            writeln!(f, "{broken:?}: {}", of_kind.clone().count())?;
            for violation in of_kind.take(SHOWN) {
                writeln!(f, "  {}", violation.what)?;
            }
        }
        Ok(())
    }
}

/// The encoded reply to a command as its owner stores it: what [`Ledger::replied`] is told.
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
    fn add(&mut self, broken: Broken, what: impl Into<String>) {
        self.0.push(Violation { broken, what: what.into() });
    }
}
