//! Owned copies of appended turns, kept until it is known whether they are committed.
//!
//! Used by the [store](super::store), the [step log](super::step_log) and the [waiting times](super::delays).

use std::time::Duration;

use tokio::time::Instant;

use super::payload::Payload;
use super::trace::Trace;
use whizbang_core::clock::instant;
use whizbang_core::message::{Codec, Envelope, MessageId, Name, ShardId, unkeyed_digest as digest};
use whizbang_core::store::{Mark, Note, Source, TimerWrite, Turn};

/// An owned copy of the relevant parts of a [`Turn`].
pub(super) struct OwnedTurn {
    /// The actor type.
    pub(super) actor: Name,
    /// The key.
    pub(super) key: String,
    /// The number of the turn in its stream, from 1.
    pub(super) number: u64,
    /// The id of the handled message.
    pub(super) id: MessageId,
    /// The mark of that message.
    pub(super) mark: MarkedAs,
    /// The encoded reply; empty without one.
    pub(super) reply: Vec<u8>,
    /// The codec of the reply.
    pub(super) reply_codec: Codec,
    /// The recorded events.
    pub(super) events: Vec<Payload>,
    /// The sent messages.
    pub(super) outbox: Vec<Envelope>,
    /// The names of timers: set with the time until they are due, or cleared with `None`.
    pub(super) timers: Vec<(String, Option<Duration>)>,
    /// The notes, such as dead letters.
    pub(super) notes: Vec<Note>,
    /// The time of the append.
    pub(super) at: Instant,
    /// A digest of all payloads.
    pub(super) digest: u64,
}

/// The mark that a turn sets for its message.
pub(super) enum MarkedAs {
    /// No message is finished by the turn.
    Not,
    /// A message of a caller outside.
    Outside,
    /// A message of a source, with its sequence.
    From(Source, u64),
    /// A timer, by its stored name.
    Timer(String),
}

impl OwnedTurn {
    /// Copies a turn.
    pub(super) fn of(turn: &Turn<'_>) -> Self {
        Self {
            actor: turn.actor.clone(),
            key: turn.key.to_owned(),
            number: turn.number,
            id: turn.id,
            mark: match &turn.mark {
                Mark::None => MarkedAs::Not,
                Mark::Outside { .. } => MarkedAs::Outside,
                Mark::From { source, sequence, .. } => MarkedAs::From((*source).clone(), *sequence),
                Mark::Timer { name } => MarkedAs::Timer((*name).to_owned()),
            },
            reply: turn.reply.to_vec(),
            reply_codec: turn.reply_codec,
            events: turn.events.iter().map(Payload::of_event).collect(),
            outbox: turn.outbox.iter().map(|write| write.envelope.clone()).collect(),
            timers: turn
                .timers
                .iter()
                .map(|timer| match timer {
                    TimerWrite::Set { name, due, .. } => ((*name).to_owned(), Some(due.since(turn.time))),
                    TimerWrite::Clear { name } => ((*name).to_owned(), None),
                })
                .collect(),
            notes: turn.notes.to_vec(),
            at: instant(),
            digest: digest_of(turn),
        }
    }

    /// Writes the turn to the trace.
    pub(super) fn trace(&self, trace: &Trace, service: &str, shard: &ShardId) {
        let sent: Vec<_> = self.outbox.iter().map(|sent| format!("{} {}", sent.kind.as_str(), sent.name)).collect();
        let notes: Vec<_> = self.notes.iter().filter_map(describe_note).collect();
        trace.add(format_args!(
            "{service} commits {shard} {} `{}` turn {}: {} -> [{}] sends [{}] {} #{:08x}",
            self.actor,
            self.key,
            self.number,
            self.id,
            self.events.iter().map(|event| &*event.name).collect::<Vec<_>>().join(", "),
            sent.join(", "),
            notes.join(", "),
            self.digest & 0xffff_ffff,
        ));
    }
}

/// Returns a digest, so that two runs that differ only in payloads have different traces.
fn digest_of(turn: &Turn<'_>) -> u64 {
    let events = turn.events.iter().map(|event| digest(event.name, event.payload));
    let sent = turn.outbox.iter().map(|sent| digest(&sent.envelope.name, &sent.envelope.payload));
    events.chain(sent).fold(digest("reply", turn.reply), |sum, one| sum.rotate_left(5) ^ one)
}

/// Returns a note in words. `None` for notes that a trace need not show.
fn describe_note(note: &Note) -> Option<String> {
    match note {
        Note::Attempt { attempt, .. } => Some(format!("delivery {attempt} failed")),
        Note::DeadLetter(dead_letter) => Some(format!("dead letter: {}", dead_letter.error)),
        Note::Resolved { .. } => Some("a dead letter is resolved".to_owned()),
        Note::Ended => Some("ends".to_owned()),
        _ => None,
    }
}
