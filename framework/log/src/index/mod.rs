//! Data derived from one shard's log to avoid searching it: the newest turn of each stream, record locations by
//! position, outbox, watermarks, timers and dead letters.
//!
//! Called by the stores that keep a log, with the shard's lock held. It is derived from the records alone, so it can
//! always be rebuilt. Writers use the appended state and readers the committed state; the pending appends are the
//! difference. Its size does not grow with the number of events, except for one location per 256 events. The records that the
//! last traversals have passed are kept as well, a limited number.
//!
//! Streams are looked up by a hash, so the memory for a stream does not depend on the length of its key. A stream is never
//! removed, even after its saga has ended: its turn numbers must continue.

mod anchors;
pub mod append;
mod apply;
mod dead_letters;
pub mod ids;
mod index_save;
mod latest_versions;
mod outbox;
mod save;
mod stream;
mod timers;
mod walks;

use std::collections::{HashMap, VecDeque};

use self::anchors::POSITIONS_PER_ANCHOR;
use self::dead_letters::DeadLetterIndex;
use self::ids::Ids;
use self::index_save::IndexSave;
pub use self::latest_versions::Head;
use self::latest_versions::LatestVersions;
pub(crate) use self::outbox::Destination;
use self::outbox::Outbox;
pub use self::stream::{IdHash, Stream, StreamHasher};
use self::timers::Timers;
pub use self::walks::Walk;
use self::walks::Walks;
use crate::record::{Location, Sent};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{MessageId, Name, ShardId};
use whizbang_core::store::{Source, Timer, TimerCursor, TimerPage, Watermark};

/// The number of readers of events at different places, each of which continues where its last page has ended.
///
/// With more readers the oldest traversal is forgotten, and its reader begins at an anchor again.
const EVENT_READERS: usize = 8;

/// A turn whose number does not follow the last turn of its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfTurn {
    /// The expected number.
    pub expected: u64,
}

/// The index of one shard.
///
/// Two states are kept at once: writers use the appended one, readers the committed one. An append that is not committed puts its
/// changes into `Pending`; [`commit`](Self::commit) applies them. So a crash or a failed commit never shows in an answer.
///
/// A stream costs about 40 bytes here, and 256 events cost 8.
#[derive(Debug)]
pub struct Index {
    /// Turns actors and keys into streams.
    hasher: StreamHasher,
    /// The newest turn of each stream, committed or not.
    heads: LatestVersions,
    /// The position of the last appended event and the location of its record.
    position: u64,
    /// The location of the record with the last appended event; 0 before the first one.
    events: Location,
    /// The locations of the records with the positions 1, 1 + 256, 1 + 512 …
    anchors: Vec<Location>,
    /// The last traversals of the events.
    walks: Walks,
    /// Sequences and records by destination.
    outbox: Outbox,
    /// The number of each source in `watermarks`.
    sources: HashMap<Source, usize, foldhash::fast::FixedState>,
    /// The committed watermarks.
    watermarks: Vec<Watermark>,
    /// The timers that committed turns have set.
    timers: Timers,
    /// The dead letters of committed turns that are not resolved.
    dead_letters: DeadLetterIndex,
    /// The ids of messages from outside.
    pub ids: Ids,
    /// The ids of records before this location are stored elsewhere.
    ids_from: Location,
    /// Set while the index is being saved.
    saving: Option<IndexSave>,
    /// The end of what readers see.
    committed: Committed,
    /// The appends behind it, oldest first. Empty in a store that commits at once.
    pending: VecDeque<Pending>,
    /// Reused between appends to avoid an allocation.
    sent: Vec<Sent>,
}

/// The state that readers see.
#[derive(Clone, Copy, Debug, Default)]
struct Committed {
    /// Every record before this location is committed.
    through: Location,
    /// The position of the last committed event.
    position: u64,
    /// The location of its record.
    events: Location,
}

/// The changes of an append that become visible when it is committed, and the head of its stream before it.
#[derive(Debug)]
struct Pending {
    /// The location of the record. It orders the pending appends.
    location: Location,
    /// The stream of a turn; `None` for a watermark or the progress of a destination.
    stream: Option<Stream>,
    /// The head of the stream before this append. Readers see it until the commit.
    before: Option<Head>,
    /// The position of the last event after this append.
    position: u64,
    /// The location of the record with that event.
    events: Location,
    /// The other changes, in the order of the record. Most turns have none.
    changes: Vec<Change>,
}

/// A change that only some turns make.
#[derive(Debug)]
enum Change {
    /// The watermark of a source has risen.
    Watermark { source: usize, through: u64 },
    /// A destination has committed more.
    Through { destination: usize, through: u64 },
    /// A timer was set. It replaces the one with the same stream and name.
    TimerSet(Box<Timer>),
    /// A timer was cleared, or has fired.
    TimerCleared(Box<str>),
    /// A dead letter, and whether it is only deferred.
    DeadLetter(MessageId, bool),
    /// A dead letter was redriven or discarded.
    Resolved(MessageId),
}

impl Index {
    /// Creates the index of an empty log.
    pub fn new(hasher: StreamHasher) -> Self {
        Self {
            hasher,
            heads: LatestVersions::default(),
            position: 0,
            events: 0,
            anchors: Vec::new(),
            walks: Walks::new(EVENT_READERS),
            outbox: Outbox::default(),
            sources: HashMap::default(),
            watermarks: Vec::new(),
            timers: Timers::default(),
            dead_letters: DeadLetterIndex::default(),
            ids: Ids::default(),
            ids_from: 0,
            saving: None,
            committed: Committed::default(),
            pending: VecDeque::new(),
            sent: Vec::new(),
        }
    }

    /// Makes every record that begins before `through` visible to readers.
    pub fn commit(&mut self, through: Location) {
        self.committed.through = self.committed.through.max(through);
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.location < through) {
            self.committed.position = pending.position;
            self.committed.events = pending.events;
            for change in pending.changes {
                self.apply_change(pending.stream, pending.location, change);
            }
        }
    }

    /// Makes one change visible to readers.
    fn apply_change(&mut self, stream: Option<Stream>, location: Location, change: Change) {
        match (change, stream) {
            (Change::Watermark { source, through }, _) => {
                if let Some(watermark) = self.watermarks.get_mut(source) {
                    watermark.through = watermark.through.max(through);
                }
            }
            (Change::Through { destination, through }, _) => self.outbox.through(destination, through),
            (Change::TimerSet(timer), Some(stream)) => self.timers.set(stream, *timer),
            (Change::TimerCleared(name), Some(stream)) => self.timers.clear(stream, &name),
            (Change::DeadLetter(id, deferred), Some(stream)) => self.dead_letters.add(id, stream, location, deferred),
            (Change::Resolved(id), Some(stream)) => self.dead_letters.resolve(id, stream),
            (_, None) => {}
        }
    }

    /// Returns the number of streams.
    pub fn streams(&self) -> usize {
        self.heads.len()
    }

    /// Returns the location before which every record is committed and in this index.
    pub fn committed(&self) -> Location {
        self.committed.through
    }

    /// Returns the position of the last committed event.
    pub fn position(&self) -> u64 {
        self.committed.position
    }

    /// Returns the stream of an actor.
    pub fn stream(&self, actor: &str, key: &str) -> Stream {
        self.hasher.stream(actor, key)
    }

    /// Returns the hash of a message id in a stream.
    pub fn id(&self, stream: Stream, id: MessageId) -> IdHash {
        self.hasher.id(stream, id)
    }

    /// Returns the locations of the committed turns that handled the message with this hash, newest first, as far as
    /// they are in this index.
    pub fn turns_with_id(&self, id: IdHash) -> Vec<Location> {
        self.ids.find(id).filter(|location| *location < self.committed.through).collect()
    }

    /// Ignores the ids of records before `location`, which are stored elsewhere.
    pub fn skip_ids_before(&mut self, location: Location) {
        self.ids_from = location;
    }

    /// Adds the id of a message from outside, unless it is stored elsewhere.
    fn add_id(&mut self, stream: Stream, id: MessageId, location: Location, time: Timestamp) {
        if location >= self.ids_from {
            let id = self.hasher.id(stream, id);
            self.ids.add(id, location, time);
        }
    }

    /// Returns the newest committed turn of a stream.
    pub fn head(&self, stream: Stream) -> Option<Head> {
        let head = self.heads.get(stream)?;
        if head.location < self.committed.through {
            return Some(head);
        }
        // The first pending append of the stream holds the head before it. Rare: a stream is read when its actor is
        // activated, and its last turn is usually committed by then.
        self.pending.iter().find(|pending| pending.stream == Some(stream)).and_then(|pending| pending.before)
    }

    /// Returns the newest appended turn of a stream, committed or not.
    pub fn newest(&self, stream: Stream) -> Option<Head> {
        self.heads.get(stream)
    }

    /// Returns the location of the newest committed turn of each stream.
    pub fn heads(&self) -> Vec<Location> {
        self.heads.iter().filter_map(|(stream, _)| self.head(stream)).map(|head| head.location).collect()
    }

    /// Returns a record from which the links lead back to the committed position `to`: the record of the position
    /// itself or one slightly later.
    pub fn events_from(&self, to: u64) -> Location {
        let mark = to.div_ceil(POSITIONS_PER_ANCHOR);
        let mark = Some(mark).filter(|mark| mark * POSITIONS_PER_ANCHOR < self.committed.position);
        let anchor = mark.and_then(|mark| self.anchors.get(usize::try_from(mark).ok()?));
        self.walks.from(to, anchor.copied().unwrap_or(self.committed.events))
    }

    /// Keeps the records that a traversal of the events has passed.
    pub fn keep_walk(&mut self, walk: Walk) {
        self.walks.keep(walk);
    }

    /// Returns the outbox state of a destination.
    pub fn destination(&mut self, to: &ShardId) -> Option<&Destination> {
        self.outbox.commit_through(self.committed.through);
        self.outbox.destination(to)
    }

    /// Keeps the records that a traversal of the entries for a destination has passed.
    pub fn keep_walk_to(&mut self, to: &ShardId, walk: Walk) {
        self.outbox.keep_walk(to, walk);
    }

    /// Returns for each destination the sequence it has committed and the last sequence assigned.
    pub fn destinations(&mut self) -> Vec<(ShardId, u64, u64)> {
        self.outbox.commit_through(self.committed.through);
        self.outbox.heads()
    }

    /// Returns the watermark of each source.
    pub fn watermarks(&self) -> Vec<Watermark> {
        self.watermarks.iter().filter(|watermark| watermark.through > 0).cloned().collect()
    }

    /// Returns the watermark of one source.
    pub fn watermark(&self, source: &Source) -> u64 {
        self.sources.get(source).and_then(|number| self.watermarks.get(*number)).map_or(0, |mark| mark.through)
    }

    /// Returns up to `limit` timers that are due at `now`, earliest first.
    pub fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.timers.due(now, limit)
    }

    /// Returns up to `limit` timers of an actor type after `after` that are due at `now`.
    pub fn timers_of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage {
        self.timers.of(actor, after, now, limit)
    }

    /// Returns the number of timers by actor type.
    pub fn timer_counts(&self) -> Vec<(Name, usize)> {
        self.timers.counts()
    }

    /// Returns the time at which the next timer is due.
    pub fn next_timer(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// Returns the number of dead letters.
    pub fn dead_letter_count(&self) -> u64 {
        self.dead_letters.count()
    }

    /// Returns the locations of up to `limit` dead letters with ids above `after`. All dead letters of one id are in
    /// the same page.
    pub fn dead_letters(&self, after: Option<MessageId>, limit: usize) -> Vec<(MessageId, Location)> {
        self.dead_letters.after(after, limit)
    }
}

#[cfg(test)]
mod tests;
