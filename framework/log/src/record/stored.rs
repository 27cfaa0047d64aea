//! Converts records to the types that readers return. Payloads share the record's bytes.
//!
//! Names are validated here, once for each text, because records of a damaged file may contain anything.

use bytes::Bytes;

use super::envelope::{self, Given};
use super::read::{DeadLetterRecord, MarkRecord, NoteRecord, OutboxRecord, SourceRecord, TurnRecord};
use super::{Malformed, Names};
use whizbang_core::message::{Origin, ShardId};
use whizbang_core::store::{DeadLetter, Note, OutboxEntry, Source, SourceKind, StoredEvent, StoredTurn, TimerWrite};

impl SourceRecord<'_> {
    /// Returns the source with validated names.
    pub(crate) fn to_source(self, names: &mut Names) -> Result<Source, Malformed> {
        let shard = ShardId::new(names.get(self.domain)?, self.shard);
        let kind = match self.subscriber {
            "" => SourceKind::Direct,
            subscriber => SourceKind::Events { subscriber: names.get(subscriber)? },
        };
        Ok(Source { shard, kind })
    }
}

impl TurnRecord<'_> {
    /// Returns the turn as its actor reads it.
    pub(crate) fn to_turn(&self, record: &Bytes, names: &mut Names) -> Result<StoredTurn, Malformed> {
        let mut turn = StoredTurn {
            number: self.number,
            version: self.version,
            time: self.time,
            id: self.id,
            correlation: self.correlation,
            from: None,
            digest: None,
            timer: None,
            reply: record.slice_ref(self.reply),
            reply_codec: self.reply_codec,
            events: Vec::with_capacity(self.events_count()),
            timers: Vec::new(),
            sent: Vec::with_capacity(self.outbox_count()),
            notes: Vec::new(),
        };
        match self.mark {
            MarkRecord::None => {}
            MarkRecord::Outside { digest } => turn.digest = Some(digest),
            MarkRecord::From { source, sequence, .. } => turn.from = Some((source.to_source(names)?, sequence)),
            MarkRecord::Timer { name } => turn.timer = Some(name.to_owned()),
        }
        self.push_events(record, names, &mut turn.events)?;
        for timer in self.timers() {
            turn.timers.push(match timer {
                TimerWrite::Set { name, .. } => (name.to_owned(), true),
                TimerWrite::Clear { name } => (name.to_owned(), false),
            });
        }
        for entry in self.outbox() {
            turn.sent.push(envelope::read_sent(entry.envelope, names)?);
        }
        for note in self.notes() {
            turn.notes.push(match note {
                NoteRecord::Attempt { message, attempt } => Note::Attempt { message, attempt },
                NoteRecord::DeadLetter(letter) => {
                    Note::DeadLetter(Box::new(self.to_dead_letter(letter, record, names)?))
                }
                NoteRecord::Resolved { message } => Note::Resolved { message },
                NoteRecord::Ended => Note::Ended,
                NoteRecord::Own(bytes) => Note::Own(record.slice_ref(bytes)),
                NoteRecord::Headers(_) => continue,
            });
        }
        Ok(turn)
    }

    /// Appends the turn's events, in order.
    pub(crate) fn push_events(
        &self,
        record: &Bytes,
        names: &mut Names,
        into: &mut Vec<StoredEvent>,
    ) -> Result<(), Malformed> {
        let actor = names.get(self.actor)?;
        let headers = self.headers();
        for (event, nth) in self.events().zip(1..) {
            into.push(StoredEvent {
                position: self.position + nth,
                actor: actor.clone(),
                key: self.key.to_owned(),
                stream_version: self.version + nth,
                name: names.get(event.name)?,
                version: event.version,
                codec: event.codec,
                payload: record.slice_ref(event.payload),
                time: self.time,
                cause: self.id,
                correlation: self.correlation,
                traceparent: self.traceparent.map(str::to_owned),
                headers: headers.clone(),
            });
        }
        Ok(())
    }

    /// Returns one of the turn's outbox entries, sent by `shard`, with its origin.
    pub(crate) fn to_outbox_entry(
        &self,
        entry: OutboxRecord<'_>,
        shard: &ShardId,
        record: &Bytes,
        names: &mut Names,
    ) -> Result<OutboxEntry, Malformed> {
        let to = ShardId::new(names.get(entry.domain)?, entry.shard);
        let given = Given { to: Some(&to), correlation: self.correlation, key: Some(self.key) };
        let mut envelope = envelope::read(entry.envelope, record, given, names)?;
        let sender = envelope::remove_sender(&mut envelope.headers);
        envelope.origin = Some(Origin {
            shard: shard.clone(),
            actor: names.get(self.actor)?,
            key: sender.unwrap_or_else(|| self.key.to_owned()),
            sequence: entry.sequence,
            version: 0,
            store: None,
        });
        Ok(OutboxEntry { sequence: entry.sequence, envelope })
    }

    /// Returns one of the turn's dead letters.
    pub(crate) fn to_dead_letter(
        &self,
        letter: DeadLetterRecord<'_>,
        record: &Bytes,
        names: &mut Names,
    ) -> Result<DeadLetter, Malformed> {
        let given = Given { to: None, correlation: self.correlation, key: None };
        Ok(DeadLetter {
            actor: names.get(letter.actor)?,
            key: letter.key.to_owned(),
            reason: letter.reason,
            error: letter.error.to_owned(),
            attempts: letter.attempts,
            time: letter.time,
            envelope: envelope::read(letter.envelope, record, given, names)?,
        })
    }
}
