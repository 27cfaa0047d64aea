//! Rebuilds the index from the records of the log.
//!
//! Called by recovery. Each record must lead back to the state that was built from the records before it.
//!
//! Applying a record has the same result as its append had, so an index that was rebuilt is the one that was lost.

use super::{Change, Index};
use crate::record::{Location, Malformed, MarkRecord, Names, NoteRecord, Record, TurnRecord};
use whizbang_core::message::ShardId;
use whizbang_core::store::{DeadLetterReason, Timer, TimerWrite};

impl Index {
    /// Applies the committed record at `location`. Records must be applied in order, each once.
    ///
    /// # Errors
    /// If the record does not follow the one before it: the log is damaged.
    pub fn apply(&mut self, record: &Record<'_>, location: Location, names: &mut Names) -> Result<(), Malformed> {
        match record {
            Record::Turn(turn) => self.apply_turn(turn, location, names)?,
            Record::Advance { source, through } => {
                let source = self.source(&source.to_source(names)?);
                self.apply_change(None, location, Change::Watermark { source, through: *through });
            }
            Record::Sent { domain, shard, through } => {
                let destination = self.outbox.number(&ShardId::new(names.get(domain)?, *shard));
                self.apply_change(None, location, Change::Through { destination, through: *through });
            }
            Record::Opened { .. } => {}
        }
        self.mark_committed(location);
        Ok(())
    }

    /// Applies the record of a turn, as when it was appended and committed. Numbers that do not follow are damage.
    fn apply_turn(&mut self, turn: &TurnRecord<'_>, location: Location, names: &mut Names) -> Result<(), Malformed> {
        let (stream, known) = self.find_head(turn.actor, turn.key);
        if turn.position != self.position {
            return Err(Malformed("its position does not follow the last position"));
        }
        if turn.events_count() > 0 && turn.events_before != self.events {
            return Err(Malformed("its link does not lead to the last event"));
        }
        let (before, _) = self
            .set_head(stream, known, turn.number, location)
            .map_err(|_| Malformed("its number does not follow its stream's last one"))?;
        if turn.stream != before.map_or(0, |head| head.location) {
            return Err(Malformed("its link does not lead to its stream's last turn"));
        }
        for entry in turn.outbox() {
            let to = ShardId::new(names.get(entry.domain)?, entry.shard);
            let sent = self.outbox.next(&to, location, true);
            if (sent.sequence, sent.before) != (entry.sequence, entry.before) {
                return Err(Malformed("an outbox entry does not follow the last one for its destination"));
            }
        }
        self.record_events(turn.events_count() as u64, location);
        match turn.mark {
            MarkRecord::None => {}
            MarkRecord::Outside { .. } => self.add_id(stream, turn.id, location, turn.time),
            MarkRecord::From { source, floor, .. } => {
                let source = self.source(&source.to_source(names)?);
                self.apply_change(Some(stream), location, Change::Watermark { source, through: floor });
            }
            MarkRecord::Timer { name } => self.timers.clear(stream, name),
        }
        for timer in turn.timers() {
            match timer {
                TimerWrite::Set { name, due, version, codec, payload } => {
                    let timer = Timer {
                        actor: names.get(turn.actor)?,
                        key: turn.key.to_owned(),
                        name: name.to_owned(),
                        turn: turn.number,
                        due,
                        version,
                        codec,
                        payload: bytes::Bytes::copy_from_slice(payload),
                        correlation: turn.correlation,
                    };
                    self.timers.set(stream, timer);
                }
                TimerWrite::Clear { name } => self.timers.clear(stream, name),
            }
        }
        for note in turn.notes() {
            match note {
                NoteRecord::DeadLetter(letter) if letter.reason == DeadLetterReason::Waiting => {}
                NoteRecord::DeadLetter(letter) => {
                    let deferred = letter.reason == DeadLetterReason::Deferred;
                    self.dead_letters.add(letter.id, stream, location, deferred);
                }
                NoteRecord::Resolved { message } => self.dead_letters.resolve(message, stream),
                NoteRecord::Attempt { .. } | NoteRecord::Ended | NoteRecord::Own(_) | NoteRecord::Headers(_) => {}
            }
        }
        Ok(())
    }
}
