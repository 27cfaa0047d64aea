//! The progress of a save of the index, and the former values of entries that change while it runs.
//!
//! Held by the [index](super::Index) while it is being saved. The methods in `save` encode the slices.

use std::collections::HashMap;

use super::latest_versions::Head;
use super::outbox::SavedDestination;
use crate::record::Location;
use whizbang_core::store::Watermark;

/// A save of the index in slices, with appends in between. It saves the state at its beginning.
///
/// Copying the whole index would block appends for too long. Parts that only grow are read later up to their former
/// length. Small parts, the destinations and sources, are copied. For the others, heads, timers and dead letters, the
/// former value of an entry is preserved when the entry changes before it was saved.
#[derive(Debug)]
pub(super) struct IndexSave {
    /// The part that is being saved.
    pub(super) stage: Stage,
    /// The next entry of the stage.
    pub(super) next: usize,
    /// The number of heads at the beginning.
    pub(super) count: usize,
    /// The values to save for heads that changed since the beginning or were not committed then.
    pub(super) old: HashMap<u32, Option<Head>, foldhash::fast::FixedState>,
    /// The number of anchors at the beginning.
    pub(super) anchors: usize,
    /// The anchor before the next one.
    pub(super) last_anchor: Location,
    /// The destinations as they were at the beginning.
    pub(super) destinations: Vec<SavedDestination>,
    /// The watermarks as they were at the beginning.
    pub(super) watermarks: Vec<Watermark>,
    /// The number of timers at the beginning.
    pub(super) timers: usize,
    /// The number of dead letters at the beginning.
    pub(super) dead_letters: usize,
}

/// The parts of an index, in the order in which they are saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The newest turn of each stream.
    Heads,
    /// The locations of every 256th event.
    Anchors,
    /// The destination with this number, and its anchors.
    Outbox(usize),
    /// Watermarks and destinations are small and saved at once.
    Watermarks,
    /// The timers, in slices.
    Timers,
    /// The dead letters, in slices.
    DeadLetters,
}

impl IndexSave {
    /// Preserves the value of a head that is about to change and has not been saved.
    pub(super) fn preserve(&mut self, number: u32, head: Head) {
        let place = number as usize;
        if self.stage == Stage::Heads && place >= self.next && place < self.count {
            self.old.entry(number).or_insert(Some(head));
        }
    }

    /// Begins with the next part.
    pub(super) fn go_to(&mut self, stage: Stage) {
        (self.stage, self.next, self.last_anchor) = (stage, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn former_heads_are_kept_until_they_are_saved() {
        let mut saving = IndexSave {
            stage: Stage::Heads,
            next: 3,
            count: 5,
            old: HashMap::default(),
            anchors: 0,
            last_anchor: 9,
            destinations: Vec::new(),
            watermarks: Vec::new(),
            timers: 0,
            dead_letters: 0,
        };
        let head = |number: u64| Head { location: number * 10, number };
        for number in 0..7 {
            saving.preserve(number, head(u64::from(number)));
            saving.preserve(number, head(100));
        }
        let mut kept: Vec<_> = saving.old.drain().collect();
        kept.sort_unstable_by_key(|(number, _)| *number);
        assert_eq!(kept, [(3, Some(head(3))), (4, Some(head(4)))], "the first value of heads that are not saved yet");
        saving.go_to(Stage::Anchors);
        assert_eq!((saving.stage, saving.next, saving.last_anchor), (Stage::Anchors, 0, 0));
        saving.preserve(3, head(3));
        assert!(saving.old.is_empty(), "all heads are saved");
    }
}
