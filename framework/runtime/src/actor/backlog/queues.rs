//! The in-memory state of a [backlog](super): a queue for each key, and its progress.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use foldhash::fast::FixedState;
use tokio::time::Instant;

use super::super::stuck_key::StuckKey;
use crate::router::Action;
use whizbang_core::message::{Envelope, MessageId};
use whizbang_core::store::{Source, StreamHint, Ticket};

/// The payload bytes of deferred messages that one actor type caches for a shard. Others are read from the log.
const MAX_CACHED_BYTES: usize = 1 << 20;

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
    pub(super) waiting: usize,
    pub(super) cached_bytes: usize,
    pub(super) unloadable: HashMap<Rc<str>, Unloadable, FixedState>,
    /// The failures of passivated actors.
    pub(super) passivated: HashMap<Rc<str>, StuckKey, FixedState>,
}

/// The deferred messages of one key, oldest first.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) entries: VecDeque<Deferred>,
    /// The last sequence of each source, to detect redelivery.
    pub(super) last_sequences: Vec<(Rc<Source>, u64)>,
    pub(super) head: HeadState,
    /// The number of failed attempts to load the key for the first message.
    pub(super) failures: u32,
    /// The failed reads of the first message.
    pub(super) unread: StuckKey,
}

/// The progress of the first message of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum HeadState {
    /// Not started.
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
        match queue.last_sequences.iter_mut().find(|(source, _)| *source == entry.source) {
            Some((_, last)) => *last = (*last).max(entry.sequence),
            None => queue.last_sequences.push((Rc::clone(&entry.source), entry.sequence)),
        }
        queue.entries.push_back(entry);
        self.waiting += 1;
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
        if queue.entries.is_empty() {
            self.queues.remove(key);
        }
        self.waiting -= 1;
        if let Some(message) = entry.message.take() {
            self.cached_bytes = self.cached_bytes.saturating_sub(message.1.payload.len());
        }
        Some(entry)
    }
}

impl Queue {
    pub(super) fn has_sequence(&self, source: &Rc<Source>, sequence: u64) -> bool {
        self.last_sequences.iter().any(|(known, last)| known == source && sequence <= *last)
    }
}
