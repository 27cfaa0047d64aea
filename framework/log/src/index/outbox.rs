//! The messages sent to each destination: the sequences assigned, the sequences committed there, and the record
//! locations.
//!
//! Sequences of a destination begin with 1 and have no gaps. Each record has a link to the record with the entry before it.
//! So any range of entries can be read backwards from a known record.

use std::collections::{HashMap, VecDeque};

use super::anchors::decode_anchors;
use super::walks::{Walk, Walks};
use crate::record::decode::Decoder;
use crate::record::{Location, Malformed, Names, Sent};
use whizbang_core::message::ShardId;

/// One in this many sequences has its location in the index, forever: a destination restored from an old backup asks
/// again for messages it had already committed. Other sequences are reached from there along the links.
const SEQUENCES_PER_ANCHOR: u64 = 256;
/// The relay and the destination itself read the entries for it.
const OUTBOX_READERS: usize = 2;

/// The destinations of a shard. None is ever removed: its sequence must continue.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// The number of each destination.
    by_id: HashMap<ShardId, usize, foldhash::fast::FixedState>,
    /// The destinations in the order in which they were first sent to.
    destinations: Vec<Destination>,
}

/// The outbox state of one destination.
#[derive(Debug)]
pub struct Destination {
    /// The receiving shard.
    pub(super) id: ShardId,
    /// The last sequence assigned and the location of its record.
    pub(super) assigned: u64,
    /// Records of one destination are linked: each leads to the one before it.
    pub(super) tail: Location,
    /// The sequence up to which the destination has committed.
    pub(super) confirm_through: u64,
    /// The last sequence that is committed here and the location of its record.
    pub(super) last: u64,
    /// The location of the record with the last committed sequence.
    pub(super) last_tail: Location,
    /// The appends after that: their locations and the last sequence assigned in each.
    appended: VecDeque<(Location, u64)>,
    /// The locations of the records with the sequences 1, 1 + 256, 1 + 512 …
    pub(super) anchors: Vec<Location>,
    /// The last traversals of the entries.
    walks: Walks,
}

/// The committed state of a destination when saving began.
#[derive(Debug)]
pub(super) struct SavedDestination {
    /// The destination.
    pub(super) id: ShardId,
    /// The confirmed sequence, the last committed sequence, and the location of its record.
    pub(super) numbers: [u64; 3],
    /// The number of anchors.
    pub(super) anchors: usize,
}

impl Destination {
    /// Returns the last committed sequence.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Returns a record from which the links lead back to the committed sequence `to`.
    pub fn from(&self, to: u64) -> Location {
        let mark = Some(to.div_ceil(SEQUENCES_PER_ANCHOR)).filter(|mark| mark * SEQUENCES_PER_ANCHOR < self.last);
        let anchor = mark.and_then(|mark| self.anchors.get(usize::try_from(mark).ok()?));
        self.walks.from(to, anchor.copied().unwrap_or(self.last_tail))
    }

    /// Assigns the next sequence to an entry in the record at `location`.
    fn next(&mut self, location: Location, committed: bool) -> Sent {
        let before = if self.tail == location { 0 } else { self.tail };
        self.assigned += 1;
        self.add_anchor(location);
        if committed {
            // Nothing is pending now. Clear older appends, so that they cannot reset `last` later.
            self.appended.clear();
            self.last = self.assigned;
            self.last_tail = location;
        } else {
            match self.appended.back_mut() {
                Some((at, last)) if *at == location => *last = self.assigned,
                _ => self.appended.push_back((location, self.assigned)),
            }
        }
        self.tail = location;
        Sent { sequence: self.assigned, before }
    }

    /// Keeps the location of every 256th sequence.
    fn add_anchor(&mut self, location: Location) {
        if self.anchors.len() as u64 * SEQUENCES_PER_ANCHOR < self.assigned {
            self.anchors.push(location);
        }
    }

    /// Moves the committed end forward. Costs the appends since the last call.
    fn commit_through(&mut self, through: Location) {
        while let Some((location, last)) = self.appended.pop_front_if(|(location, _)| *location < through) {
            self.last = last;
            self.last_tail = location;
        }
    }
}

impl Outbox {
    /// Returns the number of a destination in this index; adds the destination if it is new.
    pub(super) fn number(&mut self, to: &ShardId) -> usize {
        if let Some(number) = self.by_id.get(to) {
            return *number;
        }
        let number = self.destinations.len();
        self.by_id.insert(to.clone(), number);
        self.destinations.push(Destination {
            id: to.clone(),
            assigned: 0,
            tail: 0,
            confirm_through: 0,
            last: 0,
            last_tail: 0,
            appended: VecDeque::new(),
            anchors: Vec::new(),
            walks: Walks::new(OUTBOX_READERS),
        });
        number
    }

    /// Assigns the next sequence to an entry for `to` in the record at `location`.
    pub(super) fn next(&mut self, to: &ShardId, location: Location, committed: bool) -> Sent {
        let number = self.number(to);
        self.destinations.get_mut(number).map_or(Sent { sequence: 0, before: 0 }, |to| to.next(location, committed))
    }

    /// Makes the records before `through` visible to readers.
    pub(super) fn commit_through(&mut self, through: Location) {
        for destination in &mut self.destinations {
            destination.commit_through(through);
        }
    }

    /// Records that a destination has committed everything up to `through`.
    pub(super) fn through(&mut self, number: usize, through: u64) {
        if let Some(destination) = self.destinations.get_mut(number) {
            destination.confirm_through = destination.confirm_through.max(through);
            destination.walks.forget(destination.confirm_through);
        }
    }

    /// Keeps a traversal of the entries for a destination.
    pub(super) fn keep_walk(&mut self, to: &ShardId, walk: Walk) {
        if let Some(destination) = self.by_id.get(to).and_then(|number| self.destinations.get_mut(*number)) {
            destination.walks.keep(walk);
        }
    }

    /// Returns a destination, if anything was ever sent to it.
    pub(super) fn destination(&self, to: &ShardId) -> Option<&Destination> {
        self.by_id.get(to).and_then(|number| self.destinations.get(*number))
    }

    /// Returns the committed state of each destination. It is saved with these numbers and its first anchors.
    pub(super) fn committed(&self) -> Vec<SavedDestination> {
        let saved = |to: &Destination| SavedDestination {
            id: to.id.clone(),
            numbers: [to.confirm_through, to.last, to.last_tail],
            anchors: usize::try_from(to.last.div_ceil(SEQUENCES_PER_ANCHOR))
                .unwrap_or(usize::MAX)
                .min(to.anchors.len()),
        };
        self.destinations.iter().map(saved).collect()
    }

    /// Returns the anchors of a destination. Existing anchors never change; new ones are appended.
    pub(super) fn anchors(&self, number: usize) -> &[Location] {
        self.destinations.get(number).map_or(&[], |to| &to.anchors)
    }

    /// Decodes the [saved](super::save) destinations.
    pub(super) fn restore(&mut self, decoder: &mut Decoder<'_>, names: &mut Names) -> Result<(), Malformed> {
        for _ in 0..decoder.count()? {
            let id = ShardId::new(names.get(decoder.text()?)?, decoder.shard()?);
            let number = self.number(&id);
            let (through, last, tail) = (decoder.number()?, decoder.number()?, decoder.number()?);
            let marks = decode_anchors(decoder)?;
            if let Some(to) = self.destinations.get_mut(number) {
                (to.confirm_through, to.last, to.last_tail, to.assigned, to.tail) = (through, last, tail, last, tail);
                to.anchors = marks;
            }
        }
        Ok(())
    }

    /// Returns for each destination the confirmed and the last committed sequence.
    pub(super) fn heads(&self) -> Vec<(ShardId, u64, u64)> {
        let known = self.destinations.iter().filter(|to| to.last > 0 || to.confirm_through > 0);
        known.map(|to| (to.id.clone(), to.confirm_through, to.last)).collect()
    }
}
