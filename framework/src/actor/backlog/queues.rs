//! What a [backlog](super) holds in memory: a queue for each key, and what of it is under way.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use foldhash::fast::FixedState;

use super::IN_MEMORY;
use super::unloadable::Unloadable;
use crate::message::{Envelope, MessageId};
use crate::router::Action;
use crate::store::{Source, StreamHint, Ticket};

#[derive(Default)]
pub(super) struct State {
    /// Read from the log.
    pub(super) known: bool,
    /// Rises when commits have failed: what belongs to an earlier life changes nothing.
    pub(super) life: u64,
    pub(super) turns: u64,
    pub(super) stream: StreamHint,
    pub(super) last: Option<Ticket>,
    pub(super) keys: HashMap<Rc<str>, Queue, FixedState>,
    /// Appended by their actors, and not yet committed.
    pub(super) passing: BTreeMap<MessageId, (Rc<str>, Entry)>,
    pub(super) waiting: usize,
    pub(super) bytes: usize,
    pub(super) unloadable: HashMap<Rc<str>, Unloadable, FixedState>,
}

/// What waits for one key, oldest first.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) entries: VecDeque<Entry>,
    /// The last place of each source: what comes again is known by it.
    pub(super) places: Vec<(Rc<Source>, u64)>,
    pub(super) head: Head,
    /// How often the key could not be loaded for the first entry.
    pub(super) failures: u32,
}

/// What is done about the first entry of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Head {
    /// Nothing yet.
    #[default]
    Idle,
    /// It is on its way to its actor, or there.
    Out,
    /// It is tried again after a while.
    Waits,
    /// It waits until the key can be loaded; no attempt is made without a cause.
    Parked,
}

pub(super) struct Entry {
    pub(super) id: MessageId,
    pub(super) source: Rc<Source>,
    pub(super) sequence: u64,
    pub(super) ticket: Option<Ticket>,
    /// It stands in the log as the message for which the key could not be loaded.
    pub(super) parked: bool,
    pub(super) message: Option<Box<(Action, Envelope)>>,
}

impl State {
    pub(super) fn push(&mut self, key: &Rc<str>, entry: Entry) {
        let queue = self.keys.entry(Rc::clone(key)).or_default();
        match queue.places.iter_mut().find(|(source, _)| *source == entry.source) {
            Some((_, last)) => *last = (*last).max(entry.sequence),
            None => queue.places.push((Rc::clone(&entry.source), entry.sequence)),
        }
        queue.entries.push_back(entry);
        self.waiting += 1;
    }

    /// Keeps the bytes of a message in memory, if there is room.
    pub(super) fn put_back(&mut self, key: &str, id: MessageId, message: Option<Box<(Action, Envelope)>>) {
        let Some(message) = message else { return };
        let bytes = message.1.payload.len();
        let entries = self.keys.get_mut(key).map(|queue| &mut queue.entries);
        let entry = entries.into_iter().flatten().rev().find(|entry| entry.id == id);
        if let Some(entry) = entry.filter(|entry| self.bytes + bytes <= IN_MEMORY && entry.message.is_none()) {
            entry.message = Some(message);
            self.bytes += bytes;
        }
    }

    pub(super) fn take_out(&mut self, key: &str, at: usize) -> Option<Entry> {
        let queue = self.keys.get_mut(key)?;
        let mut entry = queue.entries.remove(at)?;
        if queue.entries.is_empty() {
            self.keys.remove(key);
        }
        self.waiting -= 1;
        if let Some(message) = entry.message.take() {
            self.bytes = self.bytes.saturating_sub(message.1.payload.len());
        }
        Some(entry)
    }
}

impl Queue {
    pub(super) fn knows(&self, source: &Rc<Source>, sequence: u64) -> bool {
        self.places.iter().any(|(known, last)| known == source && sequence <= *last)
    }
}
