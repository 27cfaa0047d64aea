//! What a node has appended to its store, kept until it is committed.

use super::trace::Trace;
use crate::clock::Timestamp;
use crate::message::{Codec, Envelope, MessageId, Name, ShardId};
use crate::store::{
    Appended, EventWrite, Mark, Note, OutboxWrite, ShardWriter, Snapshot, Source, StoreError, TimerWrite, Turn,
    Watermark,
};

/// One append.
pub(super) enum Op {
    Turn(Box<OwnedTurn>),
    Advance(Watermark),
    Sent(ShardId, u64),
    Snapshot(Name, String, Snapshot),
}

impl Op {
    pub(super) fn events(&self) -> u64 {
        match self {
            Self::Turn(turn) => turn.events.len() as u64,
            _ => 0,
        }
    }

    /// Appends it; what the store says, if it is one that it says something about.
    pub(super) fn apply(&self, writer: &mut dyn ShardWriter) -> Result<Option<Appended>, StoreError> {
        match self {
            Self::Turn(turn) => turn.with(|turn| writer.append(turn)).map(Some),
            Self::Advance(watermark) => writer.advance(watermark).map(Some),
            Self::Sent(to, through) => writer.sent(to, *through).map(Some),
            Self::Snapshot(actor, key, snapshot) => {
                writer.save_snapshot(actor, key, snapshot.clone());
                Ok(None)
            }
        }
    }

    /// Turns are told; what only saves work later is not.
    pub(super) fn trace(&self, trace: &Trace, service: &str, shard: &ShardId) {
        let Self::Turn(turn) = self else { return };
        let events: Vec<_> = turn.events.iter().map(|(name, ..)| name.as_str()).collect();
        let sent: Vec<_> =
            turn.outbox.iter().map(|(_, sent)| format!("{} {}", sent.kind.as_str(), sent.name)).collect();
        let notes: Vec<_> = turn.notes.iter().filter_map(told).collect();
        trace.add(format_args!(
            "{service} commits {shard} {} `{}` turn {}: {} -> [{}] sends [{}] {}",
            turn.actor,
            turn.key,
            turn.number,
            turn.id,
            events.join(", "),
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

/// How a turn's message is marked as handled, owned.
pub(super) enum MarkedAs {
    None,
    Outside(u64),
    From(Source, u64, u64),
    Timer(String),
}

/// A timer set or cleared, owned.
pub(super) enum OwnedTimer {
    Set(String, Timestamp, u32, Codec, Vec<u8>),
    Clear(String),
}

/// A [`Turn`] that borrows nothing.
pub(super) struct OwnedTurn {
    pub(super) actor: Name,
    pub(super) key: String,
    pub(super) number: u64,
    version: u64,
    time: Timestamp,
    pub(super) id: MessageId,
    correlation: MessageId,
    traceparent: Option<String>,
    pub(super) mark: MarkedAs,
    pub(super) reply: Vec<u8>,
    pub(super) reply_codec: Codec,
    pub(super) events: Vec<(String, u32, Codec, Vec<u8>)>,
    pub(super) outbox: Vec<(ShardId, Envelope)>,
    pub(super) timers: Vec<OwnedTimer>,
    pub(super) notes: Vec<Note>,
}

impl OwnedTurn {
    pub(super) fn of(turn: &Turn<'_>) -> Self {
        Self {
            actor: turn.actor.clone(),
            key: turn.key.to_owned(),
            number: turn.number,
            version: turn.version,
            time: turn.time,
            id: turn.id,
            correlation: turn.correlation,
            traceparent: turn.traceparent.map(str::to_owned),
            mark: match &turn.mark {
                Mark::None => MarkedAs::None,
                Mark::Outside { digest } => MarkedAs::Outside(*digest),
                Mark::From { source, sequence, floor } => MarkedAs::From((*source).clone(), *sequence, *floor),
                Mark::Timer { name } => MarkedAs::Timer((*name).to_owned()),
            },
            reply: turn.reply.to_vec(),
            reply_codec: turn.reply_codec,
            events: turn
                .events
                .iter()
                .map(|event| (event.name.to_owned(), event.version, event.codec, event.payload.to_vec()))
                .collect(),
            outbox: turn.outbox.iter().map(|write| (write.to.clone(), write.envelope.clone())).collect(),
            timers: turn
                .timers
                .iter()
                .map(|timer| match timer {
                    TimerWrite::Set { name, due, version, codec, payload } => {
                        OwnedTimer::Set((*name).to_owned(), *due, *version, *codec, payload.to_vec())
                    }
                    TimerWrite::Clear { name } => OwnedTimer::Clear((*name).to_owned()),
                })
                .collect(),
            notes: turn.notes.to_vec(),
        }
    }

    fn with<R>(&self, then: impl FnOnce(&Turn<'_>) -> R) -> R {
        let events: Vec<_> = self
            .events
            .iter()
            .map(|(name, version, codec, payload)| EventWrite { name, version: *version, codec: *codec, payload })
            .collect();
        let outbox: Vec<_> = self.outbox.iter().map(|(to, envelope)| OutboxWrite { to, envelope }).collect();
        let timers: Vec<_> = self
            .timers
            .iter()
            .map(|timer| match timer {
                OwnedTimer::Set(name, due, version, codec, payload) => {
                    TimerWrite::Set { name, due: *due, version: *version, codec: *codec, payload }
                }
                OwnedTimer::Clear(name) => TimerWrite::Clear { name },
            })
            .collect();
        then(&Turn {
            actor: &self.actor,
            key: &self.key,
            number: self.number,
            version: self.version,
            time: self.time,
            id: self.id,
            correlation: self.correlation,
            traceparent: self.traceparent.as_deref(),
            mark: match &self.mark {
                MarkedAs::None => Mark::None,
                MarkedAs::Outside(digest) => Mark::Outside { digest: *digest },
                MarkedAs::From(source, sequence, floor) => Mark::From { source, sequence: *sequence, floor: *floor },
                MarkedAs::Timer(name) => Mark::Timer { name },
            },
            reply: &self.reply,
            reply_codec: self.reply_codec,
            events: &events,
            outbox: &outbox,
            timers: &timers,
            notes: &self.notes,
        })
    }
}
