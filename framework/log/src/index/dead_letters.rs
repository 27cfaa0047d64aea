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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u64) -> MessageId {
        MessageId::from_u128(u128::from(number))
    }

    fn stream(number: u64) -> Stream {
        Stream(number, !number)
    }

    /// The reference: the location of each dead letter, and whether it is deferred.
    type Model = BTreeMap<(u64, u64), (Location, bool)>;

    fn listed(model: &Model) -> Vec<(MessageId, Location)> {
        model.iter().map(|((message, _), (location, _))| (id(*message), *location)).collect()
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add { message: u64, stream: u64, deferred: bool },
        Resolve { message: u64, stream: u64 },
        Begin,
        Save(usize),
        Abort,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..12u64, 0..2u64, any::<bool>())
                .prop_map(|(message, stream, deferred)| Step::Add { message, stream, deferred }),
            4 => (0..12u64, 0..2u64).prop_map(|(message, stream)| Step::Resolve { message, stream }),
            1 => Just(Step::Begin),
            3 => (1..4usize).prop_map(Step::Save),
            1 => Just(Step::Abort),
        ]
    }

    /// A save that runs, with the dead letters of its beginning and those it has returned.
    struct Saving {
        expected: Model,
        saved: Vec<(MessageId, Stream, u64)>,
    }

    impl Saving {
        /// Saves the next slice. Returns whether the save has ended.
        fn next(&mut self, letters: &mut DeadLetterIndex, limit: usize) -> bool {
            let slice = letters.save_next(limit);
            assert!(slice.len() <= limit, "{} in a slice of {limit}", slice.len());
            self.saved.extend(slice);
            letters.is_saved()
        }

        /// Checks that the save has returned each dead letter once, as it was at the beginning.
        fn check(mut self) {
            self.saved.sort_unstable();
            let whole = self.expected.iter().map(|((message, of), (location, deferred))| {
                (id(*message), stream(*of), LetterLocation { location: *location, deferred: *deferred }.saved())
            });
            assert_eq!(self.saved, whole.collect::<Vec<_>>());
            let mut restored = DeadLetterIndex::default();
            self.saved.iter().for_each(|(id, stream, place)| restored.restore(*id, *stream, *place));
            assert_eq!(restored.after(None, usize::MAX), listed(&self.expected));
            let dead = self.expected.values().filter(|(_, deferred)| !deferred).count();
            assert_eq!(restored.count(), dead as u64);
        }
    }

    proptest! {
        #[test]
        fn dead_letters_are_saved_as_of_the_beginning(steps in proptest::collection::vec(step(), 0..120)) {
            let (mut letters, mut model, mut location) = (DeadLetterIndex::default(), Model::new(), 0);
            let mut saving: Option<Saving> = None;
            for step in steps {
                match step {
                    Step::Add { message, stream: of, deferred } => {
                        location += 10;
                        letters.add(id(message), stream(of), location, deferred);
                        model.insert((message, of), (location, deferred));
                    }
                    Step::Resolve { message, stream: of } => {
                        letters.resolve(id(message), stream(of));
                        model.remove(&(message, of));
                    }
                    Step::Begin => {
                        prop_assert_eq!(letters.begin_saving(), model.len());
                        saving = Some(Saving { expected: model.clone(), saved: Vec::new() });
                    }
                    Step::Save(limit) => match saving.take() {
                        None => prop_assert_eq!(letters.save_next(limit), vec![]),
                        Some(mut running) => match running.next(&mut letters, limit) {
                            true => running.check(),
                            false => saving = Some(running),
                        },
                    },
                    Step::Abort => {
                        letters.abort_saving();
                        saving = None;
                    }
                }
                prop_assert_eq!(letters.is_saved(), saving.is_none());
                prop_assert_eq!(letters.after(None, usize::MAX), listed(&model));
                prop_assert_eq!(letters.count(), model.values().filter(|(_, deferred)| !deferred).count() as u64);
            }
            if let Some(mut saving) = saving {
                let slices = (0..).take_while(|_| !saving.next(&mut letters, 2)).count();
                prop_assert!(slices <= 24, "{slices} slices");
                saving.check();
            }
        }
    }

    #[test]
    fn deferred_mark_is_apart_from_the_location() {
        for (location, deferred, saved) in [(7, false, 7), (7, true, 1 << 63 | 7), (DEFERRED - 1, true, u64::MAX)] {
            assert_eq!(LetterLocation { location, deferred }.saved(), saved);
            let mut letters = DeadLetterIndex::default();
            letters.restore(id(1), stream(1), saved);
            assert_eq!(letters.after(None, 1), [(id(1), location)]);
            assert_eq!(letters.count(), u64::from(!deferred));
        }
    }

    /// Memory that a save needs is bounded by the changes of entries that it has not visited.
    #[test]
    fn running_save_preserves_only_unvisited_entries() {
        let mut letters = DeadLetterIndex::default();
        (1..=4).for_each(|number| letters.add(id(number), stream(0), number, false));
        letters.begin_saving();
        assert_eq!(letters.save_next(2), [(id(1), stream(0), 1), (id(2), stream(0), 2)]);
        (0..=5).for_each(|number| letters.resolve(id(number), stream(0)));
        letters.add(id(5), stream(0), 50, false);
        let old: Vec<_> = letters.saving.as_ref().unwrap().old.keys().map(|(id, _)| *id).collect();
        assert_eq!(old, [id(3), id(4)]);
        assert_eq!(
            (letters.save_next(1), letters.save_next(1)),
            (vec![(id(4), stream(0), 4)], vec![(id(3), stream(0), 3)])
        );
        assert!(!letters.is_saved());
        assert_eq!((letters.save_next(1), letters.is_saved()), (vec![], true));
    }

    #[test]
    fn dead_letters_of_one_id_are_in_one_page() {
        let mut letters = DeadLetterIndex::default();
        for (message, streams) in [(1, 1), (2, 3), (3, 2)] {
            (0..streams).for_each(|of| letters.add(id(message), stream(of), message * 10 + of, false));
        }
        let page = |after: Option<u64>, limit| -> Vec<Location> {
            letters.after(after.map(id), limit).into_iter().map(|(_, location)| location).collect()
        };
        assert!(page(None, 0).is_empty());
        assert_eq!(page(None, 1), [10]);
        for limit in 2..=4 {
            assert_eq!(page(None, limit), [10, 20, 21, 22], "{limit}");
        }
        assert_eq!(page(None, 5), [10, 20, 21, 22, 30, 31]);
        assert_eq!((page(Some(1), 1), page(Some(2), 9), page(Some(3), 9)), (vec![20, 21, 22], vec![30, 31], vec![]));
    }
}
