//! Records that traversals have passed on their way to older ones.
//!
//! The links of a log lead backward, but pages are read forward, so the traversal for each page begins behind the page: up to 256
//! records behind it. Large messages make small pages, and reading these records again for each page would cost many times the
//! messages themselves. The next traversal begins at a record that an earlier one has passed.

use std::collections::VecDeque;

use crate::record::Location;

/// The most records of a traversal that are kept. From an anchor to a page it is at most this long.
const MAX_PASSED: usize = 256;
/// The records that a traversal has to pass to be kept. A shorter one costs about as much as its page.
const MIN_PASSED: usize = 8;

/// The records that one traversal has passed: the last number in each and its location, from the newest to the oldest.
#[derive(Debug, Default)]
pub struct Walk(VecDeque<(u64, Location)>);

impl Walk {
    /// Adds a record before the ones already passed.
    pub(crate) fn pass(&mut self, last: u64, location: Location) {
        if self.0.len() == MAX_PASSED {
            self.0.pop_front();
        }
        self.0.push_back((last, location));
    }

    /// Returns the oldest record that contains `to` or a later number.
    fn from(&self, to: u64) -> Option<Location> {
        let later = self.0.partition_point(|(last, _)| *last >= to);
        later.checked_sub(1).and_then(|oldest| self.0.get(oldest)).map(|(_, location)| *location)
    }
}

/// The last traversals of one chain of records. The records are committed, so their locations never change.
#[derive(Debug)]
pub(super) struct Walks {
    /// The last traversals, oldest first.
    kept: VecDeque<Walk>,
    /// The number of traversals to keep: as many readers may be at different places.
    limit: usize,
}

impl Walks {
    /// Returns an empty memory of at most `limit` traversals.
    pub(super) fn new(limit: usize) -> Self {
        Self { kept: VecDeque::new(), limit }
    }

    /// Keeps a traversal, if it has passed many records.
    pub(super) fn keep(&mut self, walk: Walk) {
        if walk.0.len() >= MIN_PASSED {
            if self.kept.len() == self.limit {
                self.kept.pop_front();
            }
            self.kept.push_back(walk);
        }
    }

    /// Forgets the traversals of which no record is later than `through`.
    pub(super) fn forget(&mut self, through: u64) {
        self.kept.retain(|walk| walk.0.front().is_some_and(|(last, _)| *last > through));
    }

    /// Returns the oldest known record that contains `to` or a later number, if it is older than `known`; otherwise `known`.
    pub(super) fn from(&self, to: u64, known: Location) -> Location {
        self.kept.iter().filter_map(|walk| walk.from(to)).chain([known]).min().unwrap_or(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(numbers: impl Iterator<Item = u64>) -> Walk {
        let mut walk = Walk::default();
        let mut numbers: Vec<u64> = numbers.collect();
        numbers.reverse();
        numbers.into_iter().for_each(|number| walk.pass(number, number * 100));
        walk
    }

    #[test]
    fn traversal_begins_at_the_nearest_passed_record() {
        let mut walks = Walks::new(2);
        walks.keep(walk((10..=50).step_by(2)));
        assert_eq!([10, 11, 12, 50].map(|to| walks.from(to, 9_000)), [1_000, 1_200, 1_200, 5_000]);
        assert_eq!(walks.from(51, 9_000), 9_000, "beyond the passed records");
        assert_eq!(walks.from(50, 4_000), 4_000, "an anchor may be nearer");
        walks.keep(walk(60..=62));
        assert_eq!(walks.from(60, 9_000), 9_000, "a short traversal is not kept");
        walks.keep(walk(70..=80));
        walks.keep(walk(90..=99));
        assert_eq!([12, 72, 92].map(|to| walks.from(to, 9_990)), [7_000, 7_200, 9_200], "the last two are kept");
        walks.forget(80);
        assert_eq!([72, 92].map(|to| walks.from(to, 9_990)), [9_000, 9_200]);
        walks.keep(walk(1_000..=2_000));
        assert_eq!(walks.kept.back().map(|walk| walk.0.len()), Some(MAX_PASSED));
        assert_eq!(walks.from(1_000, 900_000), 100_000);
    }
}
