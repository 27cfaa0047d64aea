//! For each destination: what it was sent, how far it has committed, and where in the log the entries are.

use std::collections::{HashMap, VecDeque};

use super::super::record::decode::Decoder;
use super::super::record::{Location, Malformed, Names, Sent};
use super::save::take_marks;
use crate::message::ShardId;

/// One in so many sequences has its place remembered, for ever: a destination that comes back from an old backup asks for
/// what it had already. From there the links lead on.
const SEQUENCES_A_MARK: u64 = 256;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    by_id: HashMap<ShardId, usize, foldhash::fast::FixedState>,
    destinations: Vec<Destination>,
}

/// What is known about one destination.
#[derive(Debug)]
pub(crate) struct Destination {
    pub(super) id: ShardId,
    /// The last sequence given out, and where its record is.
    pub(super) given: u64,
    pub(super) tail: Location,
    /// Up to where the destination has committed.
    pub(super) through: u64,
    /// The last sequence that is committed here, and where its record is.
    pub(super) last: u64,
    pub(super) last_tail: Location,
    /// The appends behind that: where, and the last sequence given out in it.
    appended: VecDeque<(Location, u64)>,
    /// Where the records with the sequences 1, 1 + 256, 1 + 512 … are.
    pub(super) marks: Vec<Location>,
}

/// What was committed for a destination when saving began.
#[derive(Debug)]
pub(super) struct SavedDestination {
    pub(super) id: ShardId,
    pub(super) numbers: [u64; 3],
    /// How many places were remembered.
    pub(super) marks: usize,
}

impl Destination {
    /// The last committed sequence.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The record from which the links lead back to sequence `to`, which is committed.
    pub(crate) fn from(&self, to: u64) -> Location {
        let mark = to.div_ceil(SEQUENCES_A_MARK);
        if mark * SEQUENCES_A_MARK < self.last {
            let mark = usize::try_from(mark).ok().and_then(|mark| self.marks.get(mark));
            return mark.copied().unwrap_or(self.last_tail);
        }
        self.last_tail
    }

    /// The next sequence, for an entry in the record at `location`.
    fn next(&mut self, location: Location, committed: bool) -> Sent {
        let before = if self.tail == location { 0 } else { self.tail };
        self.given += 1;
        self.mark(location);
        if committed {
            // Then nothing is pending; what has not been settled yet must not set the last one back.
            self.appended.clear();
            self.last = self.given;
            self.last_tail = location;
        } else {
            match self.appended.back_mut() {
                Some((at, last)) if *at == location => *last = self.given,
                _ => self.appended.push_back((location, self.given)),
            }
        }
        self.tail = location;
        Sent { sequence: self.given, before }
    }

    fn mark(&mut self, location: Location) {
        if self.marks.len() as u64 * SEQUENCES_A_MARK < self.given {
            self.marks.push(location);
        }
    }

    fn settle(&mut self, through: Location) {
        while let Some((location, last)) = self.appended.pop_front_if(|(location, _)| *location < through) {
            self.last = last;
            self.last_tail = location;
        }
    }
}

impl Outbox {
    /// The number by which a destination is known here; a new one if it is not yet.
    pub(super) fn number(&mut self, to: &ShardId) -> usize {
        if let Some(number) = self.by_id.get(to) {
            return *number;
        }
        let number = self.destinations.len();
        self.by_id.insert(to.clone(), number);
        self.destinations.push(Destination {
            id: to.clone(),
            given: 0,
            tail: 0,
            through: 0,
            last: 0,
            last_tail: 0,
            appended: VecDeque::new(),
            marks: Vec::new(),
        });
        number
    }

    /// Gives an entry for `to` in the record at `location` its sequence.
    pub(super) fn next(&mut self, to: &ShardId, location: Location, committed: bool) -> Sent {
        let number = self.number(to);
        self.destinations.get_mut(number).map_or(Sent { sequence: 0, before: 0 }, |to| to.next(location, committed))
    }

    /// Brings what readers see up to the records before `through`.
    pub(super) fn settle(&mut self, through: Location) {
        for destination in &mut self.destinations {
            destination.settle(through);
        }
    }

    /// Notes that a destination has committed `through`.
    pub(super) fn through(&mut self, number: usize, through: u64) {
        if let Some(destination) = self.destinations.get_mut(number) {
            destination.through = destination.through.max(through);
        }
    }

    pub(super) fn destination(&self, to: &ShardId) -> Option<&Destination> {
        self.by_id.get(to).and_then(|number| self.destinations.get(*number))
    }

    /// What is committed for each destination: it is saved with what stands here, and with the first of its marks.
    pub(super) fn committed(&self) -> Vec<SavedDestination> {
        let saved = |to: &Destination| SavedDestination {
            id: to.id.clone(),
            numbers: [to.through, to.last, to.last_tail],
            marks: usize::try_from(to.last.div_ceil(SEQUENCES_A_MARK)).unwrap_or(usize::MAX).min(to.marks.len()),
        };
        self.destinations.iter().map(saved).collect()
    }

    /// The places that are remembered for a destination. They are never changed, and new ones come behind.
    pub(super) fn marks(&self, number: usize) -> &[Location] {
        self.destinations.get(number).map_or(&[], |to| &to.marks)
    }

    /// Reads what was [saved](super::save).
    pub(super) fn restore(&mut self, take: &mut Decoder<'_>, names: &mut Names) -> Result<(), Malformed> {
        for _ in 0..take.count()? {
            let id = ShardId::new(names.get(take.text()?)?, take.shard()?);
            let number = self.number(&id);
            let (through, last, tail) = (take.number()?, take.number()?, take.number()?);
            let marks = take_marks(take)?;
            if let Some(to) = self.destinations.get_mut(number) {
                (to.through, to.last, to.last_tail, to.given, to.tail) = (through, last, tail, last, tail);
                to.marks = marks;
            }
        }
        Ok(())
    }

    pub(super) fn heads(&self) -> Vec<(ShardId, u64, u64)> {
        let known = self.destinations.iter().filter(|to| to.last > 0 || to.through > 0);
        known.map(|to| (to.id.clone(), to.through, to.last)).collect()
    }
}
