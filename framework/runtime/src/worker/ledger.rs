//! Ledger: what one stream of a worker remembers of its messages: sequences, ids, failed deliveries.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::waiting::Waiting;
use crate::inbox::{DedupStateOf, SavedDedupState};
use whizbang_core::message::{CodecError, Coded, MessageId, Name, ShardId};
use whizbang_core::store::{DeadLetterReason, Note, Snapshot, Source, SourceKind, StoredTurn, StreamState, Watermark};

/// Number of ids of callers from outside in memory; older ones are looked up in the log. High, because jobs of all
/// keys are recorded here and end out of order.
const RECENT: usize = 4096;
/// Schema of snapshots.
const SCHEMA: u32 = 2;
/// Previous schema, still readable.
const SCHEMA_WITHOUT_DEFERRED: u32 = 1;

/// Memory of one stream of a worker.
///
/// Jobs end out of order, so for each source the ledger keeps the watermark up to which all are done and, above it,
/// the finished sequences one by one. Their number is bounded by the messages in flight of a receive window or a
/// subscription.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) turns: u64,
    floors: BTreeMap<Source, u64>,
    above: BTreeMap<Source, BTreeSet<u64>>,
    pub(super) seen: DedupStateOf<RECENT>,
    /// Number of failed deliveries of a message.
    pub(super) failing: BTreeMap<MessageId, u32>,
    /// Messages with a deferred job.
    pub(super) waiting: Waiting,
}

/// Snapshot of schema 1; schema 2 appends the ids of deferred messages.
#[derive(Serialize, Deserialize)]
struct SavedLedger {
    above: Vec<(String, u16, Option<String>, Vec<u64>)>,
    seen: SavedDedupState,
    failing: Vec<(MessageId, u32)>,
}

impl Ledger {
    /// Rebuilds the ledger from the stream's turns and the shard's watermarks.
    pub(super) fn rebuild(stored: &StreamState, watermarks: Vec<Watermark>) -> Self {
        let restored = stored.snapshot.as_ref();
        let mut ledger = restored.and_then(Self::restore).unwrap_or_default();
        let known = ledger.turns;
        for turn in stored.turns.iter().filter(|turn| turn.number > known) {
            ledger.turn(turn);
        }
        for Watermark { source, through } in watermarks {
            ledger.floor(&source, through);
        }
        ledger
    }

    /// Returns whether a snapshot can be used; if not, the whole stream must be read.
    pub(super) fn accepts(snapshot: &Snapshot) -> bool {
        Self::restore(snapshot).is_some()
    }

    fn turn(&mut self, turn: &StoredTurn) {
        self.turns = turn.number;
        if let Some((source, sequence)) = &turn.from {
            self.above.entry(source.clone()).or_default().insert(*sequence);
        }
        if let Some(digest) = turn.digest {
            self.seen.id(turn.id, turn.time, digest, &turn.reply, turn.reply_codec);
        }
        if turn.from.is_some() || turn.digest.is_some() {
            self.failing.remove(&turn.id);
        }
        turn.notes.iter().for_each(|note| self.note(note));
    }

    /// Applies a note.
    pub(super) fn note(&mut self, note: &Note) {
        match note {
            Note::Attempt { message, attempt } => drop(self.failing.insert(*message, *attempt)),
            Note::DeadLetter(dead_letter) if dead_letter.reason == DeadLetterReason::Deferred => {
                self.waiting.insert(dead_letter.envelope.id);
            }
            Note::DeadLetter(dead_letter) => {
                self.waiting.remove(&dead_letter.envelope.id);
                self.failing.remove(&dead_letter.envelope.id);
            }
            Note::Resolved { message } => {
                self.waiting.remove(message);
                self.failing.remove(message);
            }
            Note::Ended | Note::Own(_) => {}
        }
    }

    /// Returns whether the message at `sequence` of `source` is done.
    pub(super) fn has(&self, source: &Source, sequence: u64) -> bool {
        self.floors.get(source).is_some_and(|floor| sequence <= *floor)
            || self.above.get(source).is_some_and(|above| above.contains(&sequence))
    }

    /// Records that the message at `sequence` of `source` is done, and everything up to `floor`.
    pub(super) fn place(&mut self, source: &Source, sequence: u64, floor: u64) {
        if sequence > floor {
            self.above.entry(source.clone()).or_default().insert(sequence);
        }
        self.floor(source, floor);
    }

    fn floor(&mut self, source: &Source, floor: u64) {
        match self.floors.get_mut(source) {
            Some(known) => *known = (*known).max(floor),
            None => drop(self.floors.insert(source.clone(), floor)),
        }
        if let Some(above) = self.above.get_mut(source) {
            *above = above.split_off(&floor.saturating_add(1));
        }
    }

    /// Returns the snapshot. Watermarks are not in it: the shard has them.
    pub(super) fn save(&self) -> Result<Snapshot, CodecError> {
        let above = self.above.iter().filter(|(_, above)| !above.is_empty()).map(|(source, above)| {
            let subscriber = match &source.kind {
                SourceKind::Direct => None,
                SourceKind::Events { subscriber } => Some(subscriber.to_string()),
            };
            (source.shard.domain.to_string(), source.shard.shard, subscriber, above.iter().copied().collect())
        });
        let saved = SavedLedger {
            above: above.collect(),
            seen: self.seen.save(),
            failing: self.failing.iter().map(|(id, count)| (*id, *count)).collect(),
        };
        let saved: (SavedLedger, Vec<MessageId>) = (saved, self.waiting.iter().collect());
        Ok(Snapshot { turn: self.turns, version: 0, schema: SCHEMA, bytes: Bytes::from(Coded::save(&saved)?) })
    }

    fn restore(snapshot: &Snapshot) -> Option<Self> {
        let (saved, waiting): (SavedLedger, Vec<MessageId>) = match snapshot.schema {
            SCHEMA => Coded::restore(&snapshot.bytes).ok()?,
            SCHEMA_WITHOUT_DEFERRED => (Coded::restore(&snapshot.bytes).ok()?, Vec::new()),
            _ => return None,
        };
        let above = saved.above.into_iter().map(|(domain, shard, subscriber, above)| {
            let kind = match subscriber {
                None => SourceKind::Direct,
                Some(name) => SourceKind::Events { subscriber: Name::new(&name).ok()? },
            };
            let shard = ShardId::new(Name::new(&domain).ok()?, shard);
            Some((Source { shard, kind }, above.into_iter().collect()))
        });
        Some(Self {
            turns: snapshot.turn,
            floors: BTreeMap::new(),
            above: above.collect::<Option<_>>()?,
            seen: DedupStateOf::restore(saved.seen)?,
            failing: saved.failing.into_iter().collect(),
            waiting: waiting.into_iter().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Admission;
    use whizbang_core::clock::Timestamp;
    use whizbang_core::message::{Codec, Digest};

    fn source() -> Source {
        Source { shard: ShardId::new(Name::from_static("bank").unwrap(), 3), kind: SourceKind::Direct }
    }

    #[test]
    fn jobs_done_out_of_order_are_pruned_by_the_watermark() {
        let mut ledger = Ledger::default();
        ledger.place(&source(), 3, 0);
        ledger.place(&source(), 1, 1);
        assert!(ledger.has(&source(), 1) && !ledger.has(&source(), 2) && ledger.has(&source(), 3));
        ledger.place(&source(), 2, 3);
        assert!(ledger.has(&source(), 3) && !ledger.has(&source(), 4));
        assert!(ledger.above[&source()].is_empty());
    }

    #[test]
    fn snapshot_and_watermark_restore_the_ledger() {
        let (id, time) = (MessageId::from_u128(0x7000 << 64), Timestamp::default());
        let digest = Digest::new(1, "job", 1, Codec::Json, b"");
        let mut ledger = Ledger { turns: 7, ..Ledger::default() };
        ledger.place(&source(), 9, 4);
        ledger.seen.id(id, time, digest.value(), b"yes", Codec::Json);
        ledger.failing.insert(MessageId::from_u128(6), 2);
        // In the order of the records, which is not that of the ids.
        [9, 7, 8, 9].into_iter().for_each(|id| ledger.waiting.insert(MessageId::from_u128(id)));
        let snapshot = ledger.save().unwrap();
        assert!(Ledger::accepts(&snapshot));
        let stored = StreamState { snapshot: Some(snapshot), turns: Vec::new() };
        let again = Ledger::rebuild(&stored, vec![Watermark { source: source(), through: 4 }]);
        assert_eq!(again.turns, 7);
        assert!(again.has(&source(), 4) && !again.has(&source(), 5) && again.has(&source(), 9));
        assert!(matches!(again.seen.admit_id(id, &digest, time), Admission::Duplicate(..)));
        assert_eq!(again.failing.get(&MessageId::from_u128(6)), Some(&2));
        let waiting: Vec<_> = again.waiting.iter().map(MessageId::as_u128).collect();
        assert_eq!(waiting, [9, 7, 8]);
    }
}
