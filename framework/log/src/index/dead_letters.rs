//! The unresolved dead letters of a shard.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::stream::Stream;
use crate::record::Location;
use whizbang_core::message::MessageId;

/// Keyed by message and stream: two actors of one shard may both fail on the same event.
#[derive(Debug, Default)]
pub(super) struct DeadLetterIndex {
    /// In the order of the ids, in which operators page through them.
    entries: BTreeMap<(MessageId, Stream), LetterLocation>,
    /// The number of dead letters that need an operator.
    dead: u64,
    /// Set while a checkpoint is being saved.
    saving: Option<DeadLetterSave>,
}

/// A save in slices of the dead letters that existed when it began.
#[derive(Debug, Default)]
struct DeadLetterSave {
    /// The last dead letter at the beginning. Later ones are not visited, or saving might never end.
    last: Option<(MessageId, Stream)>,
    /// The last dead letter that was saved.
    after: Option<(MessageId, Stream)>,
    /// The former values of dead letters that changed before they were visited.
    old: BTreeMap<(MessageId, Stream), Option<u64>>,
}

/// The location of a dead letter, and whether it is only deferred and needs no operator.
#[derive(Clone, Copy, Debug)]
struct LetterLocation {
    /// The record of the turn that gave the message up.
    location: Location,
    /// It waits behind a parked message and is handled without an operator.
    deferred: bool,
}

/// Marks a deferred message in a checkpoint. No location is large enough to use this bit.
const DEFERRED: u64 = 1 << 63;

impl LetterLocation {
    /// Returns the location as a checkpoint stores it.
    fn saved(self) -> u64 {
        if self.deferred { self.location | DEFERRED } else { self.location }
    }
}

/// The first and the last stream, for ranges over all streams of one id.
const FIRST: Stream = Stream(0, 0);
/// The highest stream, as the end of a range of dead letters with one id.
const LAST: Stream = Stream(u64::MAX, u64::MAX);

impl DeadLetterIndex {
    /// Adds a dead letter. A message that fails again after a redrive replaces its earlier entry.
    pub(super) fn add(&mut self, id: MessageId, stream: Stream, location: Location, deferred: bool) {
        self.resolve(id, stream);
        self.preserve((id, stream), None);
        self.entries.insert((id, stream), LetterLocation { location, deferred });
        self.dead += u64::from(!deferred);
    }

    /// Removes a dead letter, if it is there.
    pub(super) fn resolve(&mut self, id: MessageId, stream: Stream) {
        if let Some(place) = self.entries.remove(&(id, stream)) {
            self.dead -= u64::from(!place.deferred);
            self.preserve((id, stream), Some(place.saved()));
        }
    }

    /// Preserves the former value of an entry that is about to change and has not been saved.
    fn preserve(&mut self, name: (MessageId, Stream), was: Option<u64>) {
        if let Some(saving) = &mut self.saving
            && saving.after.is_none_or(|after| name > after)
            && saving.last.is_some_and(|last| name <= last)
        {
            saving.old.entry(name).or_insert(was);
        }
    }

    /// Restores a dead letter from its location in a checkpoint.
    pub(super) fn restore(&mut self, id: MessageId, stream: Stream, place: u64) {
        self.add(id, stream, place & !DEFERRED, place & DEFERRED != 0);
    }

    /// Returns the number of dead letters that need an operator.
    pub(super) fn count(&self) -> u64 {
        self.dead
    }

    /// Begins to save the current dead letters. Returns their number.
    pub(super) fn begin_saving(&mut self) -> usize {
        let last = self.entries.last_key_value().map(|(name, _)| *name);
        self.saving = Some(DeadLetterSave { last, ..DeadLetterSave::default() });
        self.entries.len()
    }

    /// Returns up to `limit` further dead letters as a checkpoint stores them.
    pub(super) fn save_next(&mut self, limit: usize) -> Vec<(MessageId, Stream, u64)> {
        let Self { entries: places, saving: slot, .. } = self;
        let Some(saving) = slot else { return Vec::new() };
        let start = saving.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut next = Vec::new();
        let mut visited = 0;
        let until = |name: &(MessageId, Stream)| saving.last.is_some_and(|last| *name <= last);
        let slice: Vec<_> =
            places.range((start, Bound::Unbounded)).take(limit).take_while(|(name, _)| until(name)).collect();
        for (name, place) in slice {
            visited += 1;
            saving.after = Some(*name);
            let was = saving.old.remove(name).unwrap_or(Some(place.saved()));
            next.extend(was.map(|was| (name.0, name.1, was)));
        }
        if visited == 0 {
            while visited < limit
                && let Some((name, was)) = saving.old.pop_last()
            {
                visited += 1;
                next.extend(was.map(|was| (name.0, name.1, was)));
            }
            if visited == 0 {
                *slot = None;
            }
        }
        next
    }

    /// Gives a save up.
    pub(super) fn abort_saving(&mut self) {
        self.saving = None;
    }

    /// Returns whether all dead letters of the beginning were returned.
    pub(super) fn is_saved(&self) -> bool {
        self.saving.is_none()
    }

    /// Returns up to `limit` dead letters with ids above `after`. All dead letters of one id are in the same page, even
    /// if it becomes longer than `limit`: the next page starts after the id and would miss the others.
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
