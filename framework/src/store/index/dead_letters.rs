//! The dead letters that wait to be resolved.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::super::record::Location;
use super::stream::Stream;
use crate::message::MessageId;

/// By message and stream: two actors of one shard may both fail on the same event.
#[derive(Debug, Default)]
pub(super) struct DeadLetterIndex {
    entries: BTreeMap<(MessageId, Stream), LetterLocation>,
    /// How many of them wait for an operator.
    dead: u64,
    /// While they are being saved.
    saving: Option<DeadLetterSave>,
}

/// Letters that are being saved in slices: those that there were when it began.
#[derive(Debug, Default)]
struct DeadLetterSave {
    /// The last one that there was then: what comes behind it meanwhile is not looked at, or saving might never end.
    last: Option<(MessageId, Stream)>,
    /// The last one that is saved.
    after: Option<(MessageId, Stream)>,
    /// What stood in places that have changed before their turn came.
    old: BTreeMap<(MessageId, Stream), Option<u64>>,
}

/// Where a letter is, and whether it is only deferred: then it is delivered without an operator.
#[derive(Clone, Copy, Debug)]
struct LetterLocation {
    location: Location,
    deferred: bool,
}

/// Marks a deferred letter in a checkpoint. No log is so large that a location has this bit.
const DEFERRED: u64 = 1 << 63;

impl LetterLocation {
    /// As a checkpoint keeps it.
    fn saved(self) -> u64 {
        if self.deferred { self.location | DEFERRED } else { self.location }
    }
}

const FIRST: Stream = Stream(0, 0);
const LAST: Stream = Stream(u64::MAX, u64::MAX);

impl DeadLetterIndex {
    pub(super) fn add(&mut self, id: MessageId, stream: Stream, location: Location, deferred: bool) {
        self.resolve(id, stream);
        self.preserve((id, stream), None);
        self.entries.insert((id, stream), LetterLocation { location, deferred });
        self.dead += u64::from(!deferred);
    }

    pub(super) fn resolve(&mut self, id: MessageId, stream: Stream) {
        if let Some(place) = self.entries.remove(&(id, stream)) {
            self.dead -= u64::from(!place.deferred);
            self.preserve((id, stream), Some(place.saved()));
        }
    }

    /// The letter of this name changes; so it was before.
    fn preserve(&mut self, name: (MessageId, Stream), was: Option<u64>) {
        if let Some(saving) = &mut self.saving
            && saving.after.is_none_or(|after| name > after)
            && saving.last.is_some_and(|last| name <= last)
        {
            saving.old.entry(name).or_insert(was);
        }
    }

    /// The place of a letter as a checkpoint keeps it.
    pub(super) fn restore(&mut self, id: MessageId, stream: Stream, place: u64) {
        self.add(id, stream, place & !DEFERRED, place & DEFERRED != 0);
    }

    pub(super) fn count(&self) -> u64 {
        self.dead
    }

    /// Begins to save the letters that there are now: their number.
    pub(super) fn begin_saving(&mut self) -> usize {
        let last = self.entries.last_key_value().map(|(name, _)| *name);
        self.saving = Some(DeadLetterSave { last, ..DeadLetterSave::default() });
        self.entries.len()
    }

    /// The next of them as a checkpoint keeps them, up to `limit`.
    pub(super) fn save_next(&mut self, limit: usize) -> Vec<(MessageId, Stream, u64)> {
        let Self { entries: places, saving: slot, .. } = self;
        let Some(saving) = slot else { return Vec::new() };
        let behind = saving.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut next = Vec::new();
        let mut looked = 0;
        let until = |name: &(MessageId, Stream)| saving.last.is_some_and(|last| *name <= last);
        let slice: Vec<_> =
            places.range((behind, Bound::Unbounded)).take(limit).take_while(|(name, _)| until(name)).collect();
        for (name, place) in slice {
            looked += 1;
            saving.after = Some(*name);
            let was = saving.old.remove(name).unwrap_or(Some(place.saved()));
            next.extend(was.map(|was| (name.0, name.1, was)));
        }
        if looked == 0 {
            while looked < limit
                && let Some((name, was)) = saving.old.pop_last()
            {
                looked += 1;
                next.extend(was.map(|was| (name.0, name.1, was)));
            }
            if looked == 0 {
                *slot = None;
            }
        }
        next
    }

    pub(super) fn abort_saving(&mut self) {
        self.saving = None;
    }

    /// Whether all that there were when saving began are given.
    pub(super) fn is_saved(&self) -> bool {
        self.saving.is_none()
    }

    /// All letters of one id come together, even if that makes one page longer than `limit`: the next page starts behind
    /// the id, so what is left of it would never be seen.
    pub(super) fn after(&self, after: Option<MessageId>, limit: usize) -> Vec<(MessageId, Location)> {
        let start = match after {
            Some(id) => Bound::Excluded((id, LAST)),
            None => Bound::Included((MessageId::from_u128(0), FIRST)),
        };
        let mut page: Vec<(MessageId, Location)> = Vec::new();
        if limit == 0 {
            return page;
        }
        for ((id, _), LetterLocation { location, .. }) in self.entries.range((start, Bound::Unbounded)) {
            if page.len() >= limit && page.last().is_some_and(|(last, _)| last != id) {
                break;
            }
            page.push((*id, *location));
        }
        page
    }
}
