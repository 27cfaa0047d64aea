//! A turn as people read it: what a node has appended to its store, kept until it is known whether it is committed.

use super::trace::Trace;
use crate::message::{Codec, Envelope, MessageId, Name, ShardId};
use crate::store::{Mark, Note, Source, TimerWrite, Turn};

/// What is told of a [`Turn`], borrowing nothing.
pub(super) struct OwnedTurn {
    pub(super) actor: Name,
    pub(super) key: String,
    pub(super) number: u64,
    pub(super) id: MessageId,
    pub(super) mark: MarkedAs,
    pub(super) reply: Vec<u8>,
    pub(super) reply_codec: Codec,
    /// The names of the events recorded.
    pub(super) events: Vec<String>,
    pub(super) outbox: Vec<Envelope>,
    /// The names of the timers set (`true`) or cleared (`false`).
    pub(super) timers: Vec<(String, bool)>,
    pub(super) notes: Vec<Note>,
}

/// How a turn's message is marked as handled.
pub(super) enum MarkedAs {
    Not,
    Outside,
    From(Source, u64),
    Timer(String),
}

impl OwnedTurn {
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
            events: turn.events.iter().map(|event| event.name.to_owned()).collect(),
            outbox: turn.outbox.iter().map(|write| write.envelope.clone()).collect(),
            timers: turn
                .timers
                .iter()
                .map(|timer| match timer {
                    TimerWrite::Set { name, .. } => ((*name).to_owned(), true),
                    TimerWrite::Clear { name } => ((*name).to_owned(), false),
                })
                .collect(),
            notes: turn.notes.to_vec(),
        }
    }

    /// Writes the turn into the trace.
    pub(super) fn trace(&self, trace: &Trace, service: &str, shard: &ShardId) {
        let sent: Vec<_> = self.outbox.iter().map(|sent| format!("{} {}", sent.kind.as_str(), sent.name)).collect();
        let notes: Vec<_> = self.notes.iter().filter_map(told).collect();
        trace.add(format_args!(
            "{service} commits {shard} {} `{}` turn {}: {} -> [{}] sends [{}] {}",
            self.actor,
            self.key,
            self.number,
            self.id,
            self.events.join(", "),
            sent.join(", "),
            notes.join(", "),
        ));
    }
}

fn told(note: &Note) -> Option<String> {
    match note {
        Note::Attempt { attempt, .. } => Some(format!("delivery {attempt} failed")),
        Note::DeadLetter(letter) => Some(format!("dead letter: {}", letter.error)),
        Note::Resolved { .. } => Some("a dead letter is resolved".to_owned()),
        Note::Ended => Some("ends".to_owned()),
        _ => None,
    }
}
