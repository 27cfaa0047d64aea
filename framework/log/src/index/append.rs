//! Assigns numbers to an append, writes its record and updates the index.
//!
//! Called by the writers of the stores that keep a log, with the shard's lock held.
//!
//! The index decides the numbers of a record: its links, the position of its events, and the sequences of its sent messages.
//! They are written into the record, so a replay of the log needs no other source.

use super::anchors::POSITIONS_PER_ANCHOR;
use super::latest_versions::{Head, LatestVersions};
use super::{Change, Committed, Index, OutOfTurn, Pending};
use crate::record::{Location, RecordContext, write_advance, write_sent, write_turn};
use whizbang_core::message::ShardId;
use whizbang_core::store::{
    DeadLetterReason, Epoch, Mark, Note, Source, StreamHint, Timer, TimerWrite, Turn, Watermark,
};
use whizbang_core::telemetry::passes;

use super::stream::Stream;

/// The position of a record in the log and the identity of its writer.
#[derive(Clone, Copy, Debug)]
pub struct AppendContext {
    /// The shard's number in the log.
    pub tag: u32,
    /// The writer's epoch.
    pub epoch: Epoch,
    /// The location of the record.
    pub location: Location,
    /// `true` if the record is committed as soon as it is appended.
    pub committed: bool,
}

/// The numbers that an append returns to its caller.
#[derive(Clone, Copy, Debug)]
pub struct AppendNumbers {
    /// The position of the shard's last event.
    pub position: u64,
    /// The hint for the stream's next append.
    pub stream: StreamHint,
}

impl Index {
    /// Appends a turn's record to `into`.
    ///
    /// # Errors
    /// If the turn does not follow the last turn of its stream. Nothing has changed then.
    pub fn append_turn(
        &mut self,
        turn: &Turn<'_>,
        at: AppendContext,
        into: &mut Vec<u8>,
    ) -> Result<AppendNumbers, OutOfTurn> {
        passes!("store", turn.actor, turn.id, turn.correlation);
        let (stream, known) = match self.heads.hinted(turn.stream) {
            Some((stream, number)) => (stream, Some(number)),
            None => self.find_head(turn.actor, turn.key),
        };
        let (before, number) = self.set_head(stream, known, turn.number, at.location)?;
        let (position, events) = (self.position, self.events);
        let mut sent = std::mem::take(&mut self.sent);
        sent.clear();
        sent.extend(turn.outbox.iter().map(|entry| self.outbox.next(entry.to, at.location, at.committed)));
        let place = RecordContext {
            tag: at.tag,
            epoch: at.epoch,
            location: at.location,
            stream: before.map_or(0, |head| head.location),
            position,
            events,
            sent: &sent,
        };
        write_turn(into, turn, &place);
        self.sent = sent;
        self.record_events(turn.events.len() as u64, at.location);
        if let Mark::Outside { .. } = turn.mark {
            self.add_id(stream, turn.id, at.location, turn.time);
        }
        if at.committed {
            self.mark_committed(at.location);
            self.for_each_change(turn, |index, change| index.apply_change(Some(stream), at.location, change));
        } else {
            let mut changes = Vec::new();
            self.for_each_change(turn, |_, change| changes.push(change));
            self.push_pending(at.location, Some(stream), before, changes);
        }
        Ok(AppendNumbers { position: self.position, stream: LatestVersions::hint(stream, number) })
    }

    /// Appends a watermark's record to `into`.
    pub fn append_advance(&mut self, watermark: &Watermark, at: AppendContext, into: &mut Vec<u8>) -> AppendNumbers {
        write_advance(into, watermark, at.tag, at.epoch);
        let source = self.source(&watermark.source);
        self.add_change(Change::Watermark { source, through: watermark.through }, at)
    }

    /// Appends the record that `to` has committed everything up to `through`.
    pub fn append_sent(&mut self, to: &ShardId, through: u64, at: AppendContext, into: &mut Vec<u8>) -> AppendNumbers {
        write_sent(into, to, through, at.tag, at.epoch);
        let destination = self.outbox.number(to);
        self.add_change(Change::Through { destination, through }, at)
    }

    /// Makes a change that belongs to no stream, now or with its commit.
    fn add_change(&mut self, change: Change, at: AppendContext) -> AppendNumbers {
        if at.committed {
            self.mark_committed(at.location);
            self.apply_change(None, at.location, change);
        } else {
            self.push_pending(at.location, None, None, vec![change]);
        }
        AppendNumbers { position: self.position, stream: StreamHint::default() }
    }

    /// Returns the stream of an actor and the number of its head, if it has one.
    pub(super) fn find_head(&self, actor: &str, key: &str) -> (Stream, Option<u32>) {
        let stream = self.hasher.stream(actor, key);
        (stream, self.heads.number(stream))
    }

    /// Makes a turn the head of its stream. Returns the head before it and the number of the head.
    pub(super) fn set_head(
        &mut self,
        stream: Stream,
        known: Option<u32>,
        turn: u64,
        location: Location,
    ) -> Result<(Option<Head>, u32), OutOfTurn> {
        let head = Head { location, number: turn };
        let Some((number, (_, before))) = known.and_then(|number| Some((number, self.heads.at(number)?))) else {
            return if turn == 1 { Ok((None, self.heads.add(stream, head))) } else { Err(OutOfTurn { expected: 1 }) };
        };
        if before.number.checked_add(1) != Some(turn) {
            return Err(OutOfTurn { expected: before.number.saturating_add(1) });
        }
        if let Some(saving) = &mut self.saving {
            saving.preserve(number, before);
        }
        self.heads.set(number, head);
        Ok((Some(before), number))
    }

    /// Counts events, and keeps the location of every 256th position.
    pub(super) fn record_events(&mut self, count: u64, location: Location) {
        if count > 0 {
            self.position += count;
            self.events = location;
            while (self.anchors.len() as u64) * POSITIONS_PER_ANCHOR < self.position {
                self.anchors.push(location);
            }
        }
    }

    /// Marks everything up to and including the record at `location` as committed. Nothing may be pending.
    pub(super) fn mark_committed(&mut self, location: Location) {
        self.committed = Committed { through: location + 1, position: self.position, events: self.events };
    }

    /// Notes an append that is not committed.
    fn push_pending(&mut self, location: Location, stream: Option<Stream>, before: Option<Head>, changes: Vec<Change>) {
        let (position, events) = (self.position, self.events);
        self.pending.push_back(Pending { location, stream, before, position, events, changes });
    }

    /// Returns the number of a source, added if it is new.
    pub(super) fn source(&mut self, source: &Source) -> usize {
        if let Some(number) = self.sources.get(source) {
            return *number;
        }
        let number = self.watermarks.len();
        self.sources.insert(source.clone(), number);
        self.watermarks.push(Watermark { source: source.clone(), through: 0 });
        number
    }

    /// Calls `each` with the changes of a turn, in the order in which they apply. Most turns have none.
    fn for_each_change(&mut self, turn: &Turn<'_>, mut each: impl FnMut(&mut Self, Change)) {
        match &turn.mark {
            Mark::None | Mark::Outside { .. } => {}
            Mark::From { source, floor, .. } => {
                let source = self.source(source);
                each(self, Change::Watermark { source, through: *floor });
            }
            // A fired timer is cleared, unless the turn sets it again.
            Mark::Timer { name } => each(self, Change::TimerCleared((*name).into())),
        }
        for timer in turn.timers {
            let change = match timer {
                TimerWrite::Set { name, due, version, codec, payload } => Change::TimerSet(Box::new(Timer {
                    actor: turn.actor.clone(),
                    key: turn.key.to_owned(),
                    name: (*name).to_owned(),
                    turn: turn.number,
                    due: *due,
                    version: *version,
                    codec: *codec,
                    payload: bytes::Bytes::copy_from_slice(payload),
                    correlation: turn.correlation,
                })),
                TimerWrite::Clear { name } => Change::TimerCleared((*name).into()),
            };
            each(self, change);
        }
        for note in turn.notes {
            match note {
                // It takes no memory here, however many wait.
                Note::DeadLetter(letter) if letter.reason == DeadLetterReason::Waiting => {}
                Note::DeadLetter(letter) => {
                    let deferred = letter.reason == DeadLetterReason::Deferred;
                    each(self, Change::DeadLetter(letter.envelope.id, deferred));
                }
                Note::Resolved { message } => each(self, Change::Resolved(*message)),
                Note::Attempt { .. } | Note::Ended | Note::Own(_) => {}
            }
        }
    }
}
