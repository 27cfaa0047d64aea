//! What the actors of a simulated cluster have done, turn by turn, in words: what coverage, pictures and stories are made of.
//!
//! Called by the stores when something is appended and committed, and by clients when they ask. Messages are known by their ids;
//! here they get their names back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::delays::{Delays, Waits};
use super::known::{Sender, SentOutcome};
use super::payload::Payload;
use super::turn::{MarkedAs, OwnedTurn};
use crate::actor::{begins_compensation, finishes_compensation, restarts};
use crate::clock::instant;
use crate::message::{Codec, Envelope, Kind, MessageId, Name, ShardId, rejection_in};
use crate::store::{Note, SourceKind};

/// The name of a message with its domain: `payments.Charge`.
pub(super) type FullName = String;

/// What a turn was taken for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Cause {
    /// A command, handled.
    Command(FullName),
    /// A command, rejected with this code.
    Rejected(FullName, String),
    /// An event.
    Event(FullName),
    /// The reply to a command that this actor sent.
    Reply(FullName),
    /// The rejection of a command that this actor sent.
    Rejection(FullName),
    /// A timer.
    Timer(String),
}

impl Cause {
    /// The cause in words, the name without the domain if that is `home`.
    pub(super) fn told(&self, home: &str) -> String {
        let name = |full: &str| short(full, home).to_owned();
        match self {
            Self::Command(of) => name(of),
            Self::Rejected(of, code) => format!("{} rejected as {code}", name(of)),
            Self::Event(of) => name(of),
            Self::Reply(of) => format!("reply to {}", name(of)),
            Self::Rejection(of) => format!("rejection of {}", name(of)),
            Self::Timer(of) => format!("timer {of}"),
        }
    }
}

/// A name without its domain if that is `home`.
pub(super) fn short<'a>(full: &'a str, home: &str) -> &'a str {
    full.strip_prefix(home).and_then(|rest| rest.strip_prefix('.')).unwrap_or(full)
}

/// Where a saga stands when it takes a message. Aggregates are always open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Phase {
    /// It goes on.
    #[default]
    Open,
    /// It undoes its steps.
    Undoing,
    /// It has ended.
    Ended,
}

/// How a saga has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum End {
    Completed,
    Compensated,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "ends",
            Self::Compensated => "ends, all undone",
        })
    }
}

/// One committed turn.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) at: Duration,
    /// The id of the message that it was taken for.
    pub(super) id: MessageId,
    /// The payload of that message; a timer has none.
    pub(super) payload: Option<Payload>,
    pub(super) domain: String,
    pub(super) actor: String,
    pub(super) key: String,
    pub(super) cause: Cause,
    pub(super) phase: Phase,
    /// The last event recorded before it.
    pub(super) from: Option<String>,
    pub(super) records: Vec<Payload>,
    /// The commands sent.
    pub(super) sends: Vec<FullName>,
    pub(super) sets: Vec<String>,
    pub(super) clears: Vec<String>,
    pub(super) undoes: bool,
    pub(super) ends: Option<End>,
}

impl Taken {
    /// What came of it, in words.
    pub(super) fn effects(&self) -> String {
        let mut parts = Vec::new();
        let mut part = |verb: &str, names: &[String]| {
            let mut names: Vec<_> = names.iter().map(|name| short(name, &self.domain)).collect();
            names.dedup();
            if !names.is_empty() {
                parts.push(format!("{verb} {}", names.join(", ")));
            }
        };
        part("sends", &self.sends);
        part("sets", &self.sets);
        part("clears", &self.clears);
        if self.undoes {
            parts.push("begins to undo".to_owned());
        }
        parts.extend(self.ends.map(|end| end.to_string()));
        parts.join(", ")
    }
}

/// What the actors have done. Clones write into the same.
#[derive(Clone)]
pub(super) struct ObservedDeliveries(Arc<Mutex<Book>>);

struct Book {
    began: tokio::time::Instant,
    said: BTreeMap<MessageId, Said>,
    /// The commands that clients and actors have sent: the id, the sender, and when.
    sent: Vec<(MessageId, Option<Sender>, Duration)>,
    events: BTreeMap<(ShardId, u64), (FullName, Payload)>,
    stands: BTreeMap<(ShardId, Name, String), Stand>,
    taken: Vec<Taken>,
    /// What became of the commands that were decided, by the id of the command; those of actors by that of their reply.
    decided: BTreeMap<MessageId, SentOutcome>,
    /// What sagas have sent while they undid.
    undoing: BTreeMap<MessageId, Envelope>,
    /// The commands and replies whose effects are committed: the domain that took them, and where they came from.
    marks: BTreeSet<(Name, ShardId, u64)>,
    /// The ids of commands whose clients were told that nothing was done.
    undone: BTreeSet<MessageId>,
    delays: Delays,
    wrong: Option<String>,
    /// Timers that fired before they were due by their own clock: allowed if a clock has jumped.
    early: Option<String>,
}

/// What is known of a message by its id.
struct Said {
    kind: Kind,
    name: FullName,
    rejected: bool,
    payload: Payload,
}

/// Where an actor stands.
#[derive(Clone, Default)]
struct Stand {
    phase: Phase,
    undone: bool,
    last: Option<String>,
    /// The timers that are set: since when, and how long they take.
    timers: BTreeMap<String, (Instant, Duration)>,
}

impl Stand {
    /// Takes down which timers a turn sets, clears and was taken for. What is wrong, and what is wrong if no clock has jumped.
    fn timers(&mut self, turn: &OwnedTurn) -> (Option<String>, Option<String>) {
        let told = |what: String| format!("timers: {} `{}`: {what} in turn {}", turn.actor, turn.key, turn.number);
        let (mut wrong, mut early) = (None, None);
        if let MarkedAs::Timer(name) = &turn.mark {
            match self.timers.remove(name) {
                None => wrong = Some(told(format!("{name} fires and is not set"))),
                Some((set, after)) if turn.at + SLACK < set + after => {
                    early = Some(told(format!("{name} fires {:?} after it was set for {after:?}", turn.at - set)));
                }
                Some(_) => {}
            }
        }
        for (name, after) in &turn.timers {
            match after {
                Some(after) => drop(self.timers.insert(name.clone(), (turn.at, *after))),
                None => drop(self.timers.remove(name)),
            }
        }
        if turn.notes.contains(&Note::Ended) {
            self.timers.clear();
        }
        (wrong, early)
    }
}

/// So much earlier than due a timer may fire: wall clocks count in milliseconds.
const SLACK: Duration = Duration::from_millis(2);

impl ObservedDeliveries {
    /// Returns whether the effect of a command or reply is committed in a domain.
    pub(super) fn has_taken(&self, domain: &Name, from: &ShardId, sequence: u64) -> bool {
        self.0.lock().marks.contains(&(domain.clone(), from.clone(), sequence))
    }

    /// The first thing that is wrong with what was committed since the last call.
    pub(super) fn take_wrong(&self) -> Option<String> {
        self.0.lock().wrong.take()
    }

    /// Something disturbs the whole cluster from now on. Returns the number to end it with.
    pub(super) fn begin_disturbance(&self) -> usize {
        self.0.lock().delays.begin()
    }

    pub(super) fn end_disturbance(&self, number: usize) {
        self.0.lock().delays.end(number);
    }

    /// What is wrong, if a message waits for too long now.
    pub(super) fn overdue(&self, is_hosted: impl Fn(&Name) -> bool) -> Option<String> {
        self.0.lock().delays.overdue(is_hosted)
    }

    /// What is wrong, if an event waits for too long now for a key that takes it.
    pub(super) fn event_overdue(&self, event: (&ShardId, u64), taker: &(Name, Name, String)) -> Option<String> {
        self.0.lock().delays.event_overdue(event, taker)
    }

    /// How long messages have waited.
    pub(super) fn waits(&self) -> Waits {
        self.0.lock().delays.waits()
    }

    /// A timer that fired before it was due by its own clock.
    pub(super) fn early_timer(&self) -> Option<String> {
        self.0.lock().early.clone()
    }

    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Book {
            began: instant(),
            said: BTreeMap::new(),
            sent: Vec::new(),
            events: BTreeMap::new(),
            stands: BTreeMap::new(),
            taken: Vec::new(),
            decided: BTreeMap::new(),
            undoing: BTreeMap::new(),
            marks: BTreeSet::new(),
            undone: BTreeSet::new(),
            delays: Delays::default(),
            wrong: None,
            early: None,
        })))
    }

    /// A client asks.
    pub(super) fn asked(&self, id: MessageId, domain: &str, payload: Payload) {
        let name = format!("{domain}.{}", payload.name);
        let said = Said { kind: Kind::Command, name, rejected: false, payload };
        let mut book = self.0.lock();
        let at = book.began.elapsed();
        book.sent.push((id, None, at));
        book.delays.asked(id);
        book.said.insert(id, said);
    }

    /// A client asks under another id, because nothing was done under the one before.
    pub(super) fn asked_anew(&self, before: MessageId, id: MessageId) {
        let book = &mut *self.0.lock();
        book.delays.asked(id);
        if let Some(said) = book.said.remove(&before) {
            book.said.insert(id, said);
        }
        book.sent.iter_mut().filter(|(of, ..)| *of == before).for_each(|(of, ..)| *of = id);
    }

    /// A key cannot be read for a while.
    pub(super) fn sticks(&self, shard: &ShardId, actor: &Name, key: &str) {
        self.0.lock().delays.is_stuck(shard, actor, key);
    }

    /// A client tries a command.
    pub(super) fn may_happen(&self, id: MessageId) {
        self.0.lock().undone.remove(&id);
    }

    /// A client was told that nothing was done, of each of its attempts.
    pub(super) fn cannot_happen(&self, id: MessageId) {
        self.0.lock().undone.insert(id);
    }

    /// A turn was appended: what it sends is known by name from now on, whether it gets committed or not.
    pub(super) fn appended(&self, turn: &OwnedTurn) {
        let mut book = self.0.lock();
        for envelope in &turn.outbox {
            let rejected = envelope.kind == Kind::Reply && is_rejection(envelope);
            let name = format!("{}.{}", envelope.domain, envelope.name);
            let said = Said { kind: envelope.kind, name, rejected, payload: Payload::of(envelope) };
            book.said.insert(envelope.id, said);
        }
    }

    /// A turn was committed; `position` is that of its shard's last event then.
    pub(super) fn committed(&self, shard: &ShardId, turn: &OwnedTurn, position: u64) {
        let book = &mut *self.0.lock();
        let records = turn.events.clone();
        for envelope in turn.outbox.iter().filter(|envelope| envelope.kind == Kind::Reply) {
            book.decided.insert(envelope.id, outcome(envelope.codec, &envelope.payload));
        }
        if !turn.reply.is_empty() {
            book.decided.insert(turn.id, outcome(turn.reply_codec, &turn.reply));
        }
        let sender = Sender { domain: shard.domain.to_string(), actor: turn.actor.to_string(), key: turn.key.clone() };
        let at = book.began.elapsed();
        let commands = turn.outbox.iter().filter(|envelope| envelope.kind == Kind::Command);
        book.sent.extend(commands.map(|envelope| (envelope.id, Some(sender.clone()), at)));
        if turn.notes.iter().any(|note| matches!(note, Note::Own(_))) {
            let commands = turn.outbox.iter().filter(|envelope| envelope.kind == Kind::Command);
            book.undoing.extend(commands.map(|envelope| (envelope.id, envelope.clone())));
        }
        if let MarkedAs::From(source, place) = &turn.mark
            && source.kind == SourceKind::Direct
        {
            book.marks.insert((shard.domain.clone(), source.shard.clone(), *place));
        }
        let first = position.saturating_sub(records.len() as u64);
        let late = book.delays.committed(shard, turn, first + 1);
        let is_undone = matches!(turn.mark, MarkedAs::Outside) && book.undone.contains(&turn.id);
        let undone = is_undone.then(|| {
            format!("undone: {} {} was handled after its client was told that nothing was done", turn.actor, turn.id)
        });
        for (event, position) in records.iter().zip(first + 1..) {
            let name = format!("{}.{}", shard.domain, event.name);
            book.events.insert((shard.clone(), position), (name, event.clone()));
        }
        let stand = book.stands.entry((shard.clone(), turn.actor.clone(), turn.key.clone())).or_default();
        let (wrong, early) = stand.timers(turn);
        if book.wrong.is_none() {
            book.wrong = wrong.or(late).or(undone);
        }
        if book.early.is_none() {
            book.early = early;
        }
        let before = stand.clone();
        stand.last = records.last().map(|event| event.name.clone()).or_else(|| before.last.clone());
        if turn.notes.iter().any(restarts) {
            (stand.phase, stand.undone) = (Phase::Open, false);
        }
        let undoes = turn.notes.iter().any(begins_compensation);
        if undoes {
            stand.phase = Phase::Undoing;
        }
        stand.undone |= turn.notes.iter().any(finishes_compensation);
        let ends = turn.notes.contains(&Note::Ended).then(|| {
            stand.phase = Phase::Ended;
            if stand.undone { End::Compensated } else { End::Completed }
        });
        let Some((cause, payload)) = cause(&book.said, &book.events, turn) else { return };
        let mut sends: Vec<_> = turn.outbox.iter().filter(|envelope| envelope.kind == Kind::Command).collect();
        sends.sort_by_key(|envelope| (envelope.domain.clone(), envelope.name.clone()));
        let timers = |set: bool| {
            turn.timers.iter().filter(move |(_, after)| after.is_some() == set).map(|(name, _)| name.clone())
        };
        book.taken.push(Taken {
            at: book.began.elapsed(),
            id: turn.id,
            payload,
            domain: shard.domain.to_string(),
            actor: turn.actor.to_string(),
            key: turn.key.clone(),
            cause,
            phase: before.phase,
            from: before.last,
            records,
            sends: sends.iter().map(|envelope| format!("{}.{}", envelope.domain, envelope.name)).collect(),
            sets: timers(true).collect(),
            clears: timers(false).collect(),
            undoes,
            ends,
        });
    }

    /// Whether the committed reply to a command rejects it; nothing if there is none.
    pub(super) fn is_rejected(&self, command: MessageId) -> Option<bool> {
        let book = self.0.lock();
        let outcome = book.decided.get(&MessageId::of_reply(command))?;
        Some(matches!(outcome, SentOutcome::Rejected(_)))
    }

    /// What has become of each command that is decided, by its id.
    pub(super) fn decided(&self) -> BTreeMap<MessageId, SentOutcome> {
        let book = self.0.lock();
        let sent = book.sent.iter().map(|(id, ..)| *id);
        let found =
            |id: MessageId| book.decided.get(&MessageId::of_reply(id)).or_else(|| book.decided.get(&id)).cloned();
        sent.filter_map(|id| Some((id, found(id)?))).collect()
    }

    /// The commands of a type that were sent, in the order in which they were.
    pub(super) fn sent(&self, domain: &str, name: &str) -> Vec<(MessageId, Option<Sender>, Duration, Payload)> {
        let book = self.0.lock();
        let full = format!("{domain}.{name}");
        let sent = book.sent.iter().filter_map(|(id, from, at)| {
            let said = book.said.get(id).filter(|said| said.name == full && said.kind == Kind::Command)?;
            Some((*id, from.clone(), *at, said.payload.clone()))
        });
        sent.collect()
    }

    /// A command that a saga has sent in a turn in which it took note of its steps.
    pub(super) fn sent_undoing(&self, command: MessageId) -> Option<Envelope> {
        self.0.lock().undoing.get(&command).cloned()
    }

    /// When the cluster began.
    pub(super) fn began(&self) -> Instant {
        self.0.lock().began
    }

    /// Everything committed so far, in the order of the commits.
    pub(super) fn taken(&self) -> Vec<Taken> {
        self.0.lock().taken.clone()
    }
}

fn outcome(codec: Codec, reply: &[u8]) -> SentOutcome {
    match rejection_in(codec, reply).ok().flatten() {
        Some(no) => SentOutcome::Rejected(no.code().to_owned()),
        None => SentOutcome::Accepted,
    }
}

fn is_rejection(reply: &Envelope) -> bool {
    rejection_in(reply.codec, &reply.payload).is_ok_and(|rejection| rejection.is_some())
}

/// What a turn was taken for, and its payload; nothing if it only takes note of something, or finishes nothing.
fn cause(
    said: &BTreeMap<MessageId, Said>,
    events: &BTreeMap<(ShardId, u64), (FullName, Payload)>,
    turn: &OwnedTurn,
) -> Option<(Cause, Option<Payload>)> {
    let aside = |note: &Note| matches!(note, Note::Attempt { .. } | Note::DeadLetter(_));
    if turn.notes.iter().any(aside) {
        return None;
    }
    let named = said.get(&turn.id);
    Some(match &turn.mark {
        MarkedAs::Timer(name) => (Cause::Timer(name.clone()), None),
        MarkedAs::From(source, place) if matches!(source.kind, SourceKind::Events { .. }) => {
            let (name, payload) = events.get(&(source.shard.clone(), *place))?;
            (Cause::Event(name.clone()), Some(payload.clone()))
        }
        MarkedAs::From(..) | MarkedAs::Outside => {
            let named = named?;
            let cause = match named.kind {
                Kind::Reply if named.rejected => Cause::Rejection(named.name.clone()),
                Kind::Reply => Cause::Reply(named.name.clone()),
                _ => match rejection_in(turn.reply_codec, &turn.reply).ok().flatten() {
                    Some(no) => Cause::Rejected(named.name.clone(), no.code().to_owned()),
                    None => Cause::Command(named.name.clone()),
                },
            };
            (cause, Some(named.payload.clone()))
        }
        MarkedAs::Not => return None,
    })
}
