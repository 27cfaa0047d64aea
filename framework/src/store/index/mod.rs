//! What is derived from one shard's log, so that nothing is searched for: the newest turn of each stream, places in the
//! log by position, outbox, watermarks, timers, dead letters.
//!
//! Called by the stores that keep a log, with the shard's lock held. It follows from the records alone, so it can always be
//! built again. Writers go by what is appended, readers see what is committed; between the two stand the pending appends.
//! It never grows with the number of events, but for one place in 256.

pub(crate) mod append;
mod apply;
mod dead_letters;
pub(crate) mod ids;
mod latest_versions;
mod outbox;
mod save;
mod stream;
mod timers;

use std::collections::{HashMap, VecDeque};

use self::dead_letters::DeadLetterIndex;
use self::ids::{IdHash, Ids};
use self::latest_versions::LatestVersions;
pub(crate) use self::outbox::Destination;
use self::outbox::Outbox;
pub(crate) use self::stream::{Stream, StreamHasher};
use self::timers::Timers;
use super::record::{Location, Sent};
use crate::clock::Timestamp;
use crate::message::{MessageId, Name, ShardId};
use crate::store::{Source, Timer, TimerCursor, TimerPage, Watermark};

/// One in so many positions has its place remembered; from there the links lead on.
const POSITIONS_PER_ANCHOR: u64 = 256;

/// The newest turn of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Where it is.
    pub(crate) location: Location,
    /// Its number.
    pub(crate) number: u64,
}

/// A turn whose number does not follow its stream's last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfTurn {
    /// The number it should have.
    pub(crate) expected: u64,
}

/// What is derived from one shard's log.
#[derive(Debug)]
pub(crate) struct Index {
    hasher: StreamHasher,
    heads: LatestVersions,
    /// The position of the last appended event, and where its record is.
    position: u64,
    events: Location,
    /// Where the records with the positions 1, 1 + 256, 1 + 512 … are.
    anchors: Vec<Location>,
    outbox: Outbox,
    sources: HashMap<Source, usize, foldhash::fast::FixedState>,
    watermarks: Vec<Watermark>,
    timers: Timers,
    dead_letters: DeadLetterIndex,
    /// The ids of messages from outside.
    pub(crate) ids: Ids,
    /// Records before this one have their ids elsewhere.
    ids_from: Location,
    /// While the index is being saved.
    saving: Option<save::IndexSave>,
    committed: Committed,
    pending: VecDeque<Pending>,
    /// Kept between appends so that it need not be allocated again.
    sent: Vec<Sent>,
}

/// Where readers are.
#[derive(Clone, Copy, Debug, Default)]
struct Committed {
    /// Every record before this is committed.
    through: Location,
    position: u64,
    events: Location,
}

/// What an append changes for readers once it is committed, and what the stream was before it.
#[derive(Debug)]
struct Pending {
    location: Location,
    stream: Option<Stream>,
    before: Option<Head>,
    position: u64,
    events: Location,
    changes: Vec<Change>,
}

/// A change that is not on every turn's way.
#[derive(Debug)]
enum Change {
    Watermark {
        source: usize,
        through: u64,
    },
    Through {
        destination: usize,
        through: u64,
    },
    TimerSet(Box<Timer>),
    TimerCleared(Box<str>),
    /// A dead letter; whether it is only deferred.
    DeadLetter(MessageId, bool),
    Resolved(MessageId),
}

impl Index {
    /// The index of an empty log.
    pub(crate) fn new(hasher: StreamHasher) -> Self {
        Self {
            hasher,
            heads: LatestVersions::default(),
            position: 0,
            events: 0,
            anchors: Vec::new(),
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

    /// Lets readers see every record that begins before `through`.
    pub(crate) fn commit(&mut self, through: Location) {
        if through <= self.committed.through {
            return;
        }
        self.committed.through = through;
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.location < through) {
            self.committed.position = pending.position;
            self.committed.events = pending.events;
            for change in pending.changes {
                self.apply_change(pending.stream, pending.location, change);
            }
        }
    }

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

    /// Every record before this is committed and known here.
    pub(crate) fn committed(&self) -> Location {
        self.committed.through
    }

    /// The position of the last committed event.
    pub(crate) fn position(&self) -> u64 {
        self.committed.position
    }

    /// The stream of an actor.
    pub(crate) fn stream(&self, actor: &str, key: &str) -> Stream {
        self.hasher.stream(actor, key)
    }

    /// The hash of a message id in a stream.
    pub(crate) fn id(&self, stream: Stream, id: MessageId) -> IdHash {
        self.hasher.id(stream, id)
    }

    /// Where the committed turns are that handled the message with this hash, as far as they are known here, newest first.
    pub(crate) fn turns_with_id(&self, id: IdHash) -> Vec<Location> {
        self.ids.find(id).filter(|location| *location < self.committed.through).collect()
    }

    /// Takes in no ids of records before `location`: they are kept elsewhere.
    pub(crate) fn skip_ids_before(&mut self, location: Location) {
        self.ids_from = location;
    }

    fn add_id(&mut self, stream: Stream, id: MessageId, location: Location, time: Timestamp) {
        if location >= self.ids_from {
            let id = self.hasher.id(stream, id);
            self.ids.add(id, location, time);
        }
    }

    /// The newest committed turn of a stream.
    pub(crate) fn head(&self, stream: Stream) -> Option<Head> {
        let head = self.heads.get(stream)?;
        if head.location < self.committed.through {
            return Some(head);
        }
        // The first pending append of the stream knows what was there before. Rare: a stream is read when its actor is
        // activated, and then its last turn is long committed.
        self.pending.iter().find(|pending| pending.stream == Some(stream)).and_then(|pending| pending.before)
    }

    /// The newest appended turn of a stream, committed or not.
    pub(crate) fn newest(&self, stream: Stream) -> Option<Head> {
        self.heads.get(stream)
    }

    /// Where the newest committed turn of each stream is.
    pub(crate) fn heads(&self) -> Vec<Location> {
        self.heads.iter().filter_map(|(stream, _)| self.head(stream)).map(|head| head.location).collect()
    }

    /// The record from which the links lead back to position `to`, which is committed: that of the position itself or one
    /// little behind it.
    pub(crate) fn events_from(&self, to: u64) -> Location {
        let mark = to.div_ceil(POSITIONS_PER_ANCHOR);
        if mark * POSITIONS_PER_ANCHOR < self.committed.position {
            let mark = usize::try_from(mark).ok().and_then(|mark| self.anchors.get(mark));
            return mark.copied().unwrap_or(self.committed.events);
        }
        self.committed.events
    }

    /// What is known about a destination.
    pub(crate) fn destination(&mut self, to: &ShardId) -> Option<&Destination> {
        self.outbox.commit_through(self.committed.through);
        self.outbox.destination(to)
    }

    /// For each destination: up to where it has committed, and the last sequence given out.
    pub(crate) fn destinations(&mut self) -> Vec<(ShardId, u64, u64)> {
        self.outbox.commit_through(self.committed.through);
        self.outbox.heads()
    }

    /// How far the shard has taken from each source.
    pub(crate) fn watermarks(&self) -> Vec<Watermark> {
        self.watermarks.iter().filter(|watermark| watermark.through > 0).cloned().collect()
    }

    /// How far the shard has taken from one source.
    pub(crate) fn watermark(&self, source: &Source) -> u64 {
        self.sources.get(source).and_then(|number| self.watermarks.get(*number)).map_or(0, |mark| mark.through)
    }

    /// Up to `limit` timers that are due at `now`, earliest first.
    pub(crate) fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.timers.due(now, limit)
    }

    /// Up to `limit` timers of an actor type that are due at `now`, behind `after`.
    pub(crate) fn timers_of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage {
        self.timers.of(actor, after, now, limit)
    }

    /// How many timers are set, by actor type.
    pub(crate) fn timer_counts(&self) -> Vec<(Name, usize)> {
        self.timers.counts()
    }

    /// When the next timer is due.
    pub(crate) fn next_timer(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// The number of dead letters.
    pub(crate) fn dead_letter_count(&self) -> u64 {
        self.dead_letters.count()
    }

    /// Where up to `limit` dead letters with ids above `after` are. All of one id come together.
    pub(crate) fn dead_letters(&self, after: Option<MessageId>, limit: usize) -> Vec<(MessageId, Location)> {
        self.dead_letters.after(after, limit)
    }
}

#[cfg(test)]
mod tests;
