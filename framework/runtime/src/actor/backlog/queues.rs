//! The in-memory state of a [backlog](super): a queue for each key, and its progress.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use foldhash::fast::FixedState;
use tokio::time::Instant;

use super::super::stuck_key::StuckKey;
use crate::router::Action;
use whizbang_core::message::{Envelope, MessageId};
use whizbang_core::store::{Appended, Source, StreamHint, Ticket};

/// The most deferred messages of one actor type in a shard that are kept in memory, with about 50 bytes each.
pub(super) const MAX_DEFERRED: usize = if cfg!(test) { 8192 } else { 65_536 };

/// The payload bytes of deferred messages that one actor type caches for a shard. Others are read from the log.
const MAX_CACHED_BYTES: usize = 1 << 20;
/// The fewest messages that are read back from the log at a time, also if the memory is full.
const MIN_RESTORED: usize = 64;

#[derive(Default)]
pub(super) struct BacklogState {
    /// True if it was read from the log.
    pub(super) loaded: bool,
    /// Incremented when commits have failed; tasks of an earlier generation change nothing.
    pub(super) generation: u64,
    pub(super) turns: u64,
    pub(super) stream: StreamHint,
    pub(super) last: Option<Ticket>,
    pub(super) queues: HashMap<Rc<str>, Queue, FixedState>,
    /// Appended by their actors, and not yet committed.
    pub(super) committing: BTreeMap<MessageId, (Rc<str>, Deferred)>,
    /// The number of messages in the queues, in memory or not.
    pub(super) waiting: usize,
    /// The number of those that are only in the log.
    pub(super) spilled: usize,
    pub(super) cached_bytes: usize,
    pub(super) unloadable: HashMap<Rc<str>, Unloadable, FixedState>,
    /// The failures of passivated actors.
    pub(super) passivated: HashMap<Rc<str>, StuckKey, FixedState>,
}

/// The deferred messages of one key, oldest first.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) entries: VecDeque<Deferred>,
    /// The messages behind those.
    pub(super) spilled: Spilled,
    /// The last sequence of each source, to detect redelivery.
    pub(super) last_sequences: Vec<(Rc<Source>, u64)>,
    pub(super) head: HeadState,
    /// The number of failed attempts to load the key for the first message.
    pub(super) failures: u32,
    /// The failed reads of the first message.
    pub(super) unread: StuckKey,
}

/// The messages of a key that are only in the log, in the order of their turns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spilled {
    pub(super) count: usize,
    /// The number of a turn that is not behind the first of them.
    pub(super) from: u64,
    /// The number of messages since then that precede them, and are in memory or handled.
    pub(super) skip: usize,
}

/// The progress of the first message of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HeadState {
    /// The message is not started.
    #[default]
    Idle,
    /// On its way to its actor, or being handled.
    Delivered,
    /// Waiting for a retry.
    BackOff,
    /// Waiting until the key can be loaded; not retried without a cause.
    Parked,
}

pub(super) struct Deferred {
    pub(super) id: MessageId,
    pub(super) source: Rc<Source>,
    pub(super) sequence: u64,
    pub(super) ticket: Option<Ticket>,
    /// True if the log marks it as the message for which the key could not be loaded.
    pub(super) parked: bool,
    pub(super) message: Option<Box<(Action, Envelope)>>,
}

/// A key that cannot be loaded.
pub(super) struct Unloadable {
    pub(super) failures: u32,
    /// Timers do not retry the key before this time.
    pub(super) next_attempt: Instant,
}

impl BacklogState {
    pub(super) fn push(&mut self, key: &Rc<str>, entry: Deferred) {
        let queue = self.queues.entry(Rc::clone(key)).or_default();
        queue.record_sequence(&entry.source, entry.sequence);
        queue.entries.push_back(entry);
        self.waiting += 1;
    }

    /// Returns whether the next message of a key is kept only in the log. The first one of a key never is, and one key leaves half
    /// of the memory to the others.
    pub(super) fn must_spill(&self, key: &str) -> bool {
        let Some(queue) = self.queues.get(key) else { return false };
        let is_full = self.waiting - self.spilled >= MAX_DEFERRED || queue.entries.len() >= MAX_DEFERRED / 2;
        queue.spilled.count > 0 || is_full
    }

    /// Adds a message that is only in the log, in the turn with this number.
    pub(super) fn spill(&mut self, key: &Rc<str>, source: &Rc<Source>, sequence: u64, turn: u64) {
        let queue = self.queues.entry(Rc::clone(key)).or_default();
        queue.record_sequence(source, sequence);
        if queue.spilled.count == 0 {
            queue.spilled = Spilled { count: 0, from: turn, skip: 0 };
        }
        queue.spilled.count += 1;
        self.spilled += 1;
        self.waiting += 1;
    }

    /// Records that the first message of a key that was only in the log is written again, to be kept in memory.
    pub(super) fn restore_first(&mut self, key: &str) {
        let Some(queue) = self.queues.get_mut(key).filter(|queue| queue.spilled.count > 0) else { return };
        queue.spilled.count -= 1;
        queue.spilled.skip += 1;
        self.spilled -= 1;
        self.waiting -= 1;
        self.remove_empty(key);
    }

    /// Returns how many messages of a key are read back at a time: reading them costs as much as all turns since the snapshot, and
    /// they occupy memory.
    pub(super) fn restorable(&self) -> usize {
        (MAX_DEFERRED.saturating_sub(self.waiting - self.spilled) / 2).max(MIN_RESTORED)
    }

    fn remove_empty(&mut self, key: &str) {
        if self.queues.get(key).is_some_and(|queue| queue.entries.is_empty() && queue.spilled.count == 0) {
            self.queues.remove(key);
        }
    }

    /// Caches a message in memory, if it fits.
    pub(super) fn cache(&mut self, key: &str, id: MessageId, message: Option<Box<(Action, Envelope)>>) {
        let Some(message) = message else { return };
        let bytes = message.1.payload.len();
        let entries = self.queues.get_mut(key).map(|queue| &mut queue.entries);
        let entry = entries.into_iter().flatten().rev().find(|entry| entry.id == id);
        if let Some(entry) =
            entry.filter(|entry| self.cached_bytes + bytes <= MAX_CACHED_BYTES && entry.message.is_none())
        {
            entry.message = Some(message);
            self.cached_bytes += bytes;
        }
    }

    pub(super) fn remove(&mut self, key: &str, at: usize) -> Option<Deferred> {
        let queue = self.queues.get_mut(key)?;
        let mut entry = queue.entries.remove(at)?;
        self.remove_empty(key);
        self.waiting -= 1;
        if let Some(message) = entry.message.take() {
            self.cached_bytes = self.cached_bytes.saturating_sub(message.1.payload.len());
        }
        Some(entry)
    }
}

impl Deferred {
    /// Returns a message that was appended just now.
    pub(super) fn new(id: MessageId, source: &Rc<Source>, sequence: u64, appended: &Appended) -> Self {
        let ticket = (!appended.committed).then_some(appended.ticket);
        Self { id, source: Rc::clone(source), sequence, ticket, parked: false, message: None }
    }
}

impl Queue {
    fn record_sequence(&mut self, source: &Rc<Source>, sequence: u64) {
        match self.last_sequences.iter_mut().find(|(known, _)| known == source) {
            Some((_, last)) => *last = (*last).max(sequence),
            None => self.last_sequences.push((Rc::clone(source), sequence)),
        }
    }

    pub(super) fn has_sequence(&self, source: &Rc<Source>, sequence: u64) -> bool {
        self.last_sequences.iter().any(|(known, last)| known == source && sequence <= *last)
    }
}

/// A message that was written.
pub(super) struct Written {
    pub(super) appended: Appended,
    /// The number of its turn, if it is kept only in the log.
    pub(super) spilled: Option<u64>,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::super::tests::{bank, command};
    use super::*;
    use whizbang_core::clock::Timestamp;
    use whizbang_core::store::SourceKind;

    fn source(shard: u16) -> Rc<Source> {
        Rc::new(Source { shard: bank(shard), kind: SourceKind::Direct })
    }

    fn entry(id: u128, shard: u16, sequence: u64) -> Deferred {
        let (id, source) = (MessageId::from_u128(id), source(shard));
        Deferred { id, source, sequence, ticket: None, parked: false, message: None }
    }

    fn message(id: u128, bytes: usize) -> Option<Box<(Action, Envelope)>> {
        let envelope = Envelope { payload: Bytes::from(vec![0; bytes]), ..command(id, Timestamp::default()) };
        Some(Box::new((Action::Handle, envelope)))
    }

    #[test]
    fn queues_keep_order_and_count_what_waits() {
        let (mut state, key, other) = (BacklogState::default(), Rc::<str>::from("a"), Rc::<str>::from("b"));
        for (id, key) in [(1, &key), (2, &other), (3, &key), (4, &key)] {
            state.push(key, entry(id, 1, id as u64));
        }
        let ids = |state: &BacklogState| {
            let queue = state.queues.get("a");
            queue.map(|queue| queue.entries.iter().map(|entry| entry.id.as_u128()).collect::<Vec<_>>())
        };
        assert_eq!((state.waiting, ids(&state)), (4, Some(vec![1, 3, 4])));
        assert_eq!(state.remove("a", 1).map(|entry| entry.id.as_u128()), Some(3));
        assert_eq!((state.waiting, ids(&state)), (3, Some(vec![1, 4])));
        assert!(state.remove("a", 2).is_none() && state.remove("c", 0).is_none());
        assert_eq!(state.waiting, 3);
        for id in [1, 4] {
            assert_eq!(state.remove("a", 0).map(|entry| entry.id.as_u128()), Some(id));
        }
        assert_eq!((state.waiting, ids(&state), state.queues.len()), (1, None, 1));
    }

    #[test]
    fn redelivery_is_detected_by_source_and_sequence() {
        let (mut state, key) = (BacklogState::default(), Rc::<str>::from("a"));
        for (shard, sequence) in [(1, 3), (2, 9), (1, 5), (1, 4)] {
            state.push(&key, entry(u128::from(sequence), shard, sequence));
        }
        let queue = &state.queues["a"];
        let has = |shard, sequence| queue.has_sequence(&source(shard), sequence);
        assert_eq!([3, 5, 6].map(|sequence| has(1, sequence)), [true, true, false]);
        assert_eq!([9, 10].map(|sequence| has(2, sequence)), [true, false]);
        assert!(!has(3, 1) && queue.last_sequences.len() == 2);
    }

    #[test]
    fn cached_payloads_are_bounded_and_counted_once() {
        let (mut state, key) = (BacklogState::default(), Rc::<str>::from("a"));
        (1..=4).for_each(|id| state.push(&key, entry(id, 1, id as u64)));
        let cached = |state: &BacklogState| {
            let entries = &state.queues["a"].entries;
            (state.cached_bytes, entries.iter().map(|entry| entry.message.is_some()).collect::<Vec<_>>())
        };
        let half = MAX_CACHED_BYTES / 2;
        let mut cache = |id: u128, bytes| {
            state.cache("a", MessageId::from_u128(id), message(id, bytes));
            cached(&state)
        };
        assert_eq!(cache(2, half), (half, vec![false, true, false, false]));
        assert_eq!(cache(2, 1), (half, vec![false, true, false, false]), "it is cached already");
        assert_eq!(cache(3, half + 1), (half, vec![false, true, false, false]), "it does not fit");
        assert_eq!(cache(3, half), (MAX_CACHED_BYTES, vec![false, true, true, false]));
        assert_eq!(cache(9, 0), (MAX_CACHED_BYTES, vec![false, true, true, false]), "it does not wait");
        state.cache("a", MessageId::from_u128(1), None);
        state.cache("b", MessageId::from_u128(1), message(1, 0));
        assert_eq!(state.remove("a", 1).and_then(|entry| entry.message).map(|message| message.1.id.as_u128()), None);
        assert_eq!(cached(&state), (half, vec![false, true, false]));
    }
}
