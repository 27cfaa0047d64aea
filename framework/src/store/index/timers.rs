//! The timers that are set, by when they are due.

use std::collections::{BTreeMap, HashMap};

use super::stream::Stream;
use crate::clock::Timestamp;
use crate::store::Timer;

/// When, and the how-manieth setting: of two timers due at once the one set first rings first.
type Place = (Timestamp, u64);

#[derive(Debug, Default)]
pub(super) struct Timers {
    by_due: BTreeMap<Place, Timer>,
    by_name: HashMap<(Stream, Box<str>), Place, foldhash::fast::FixedState>,
    settings: u64,
}

impl Timers {
    pub(super) fn set(&mut self, stream: Stream, timer: Timer) {
        self.settings += 1;
        let place = (timer.due, self.settings);
        if let Some(old) = self.by_name.insert((stream, timer.name.as_str().into()), place) {
            self.by_due.remove(&old);
        }
        self.by_due.insert(place, timer);
    }

    pub(super) fn clear(&mut self, stream: Stream, name: &str) {
        if let Some(old) = self.by_name.remove(&(stream, name.into())) {
            self.by_due.remove(&old);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_due.len()
    }

    /// In the order in which they ring, so that setting them again in this order keeps it.
    pub(super) fn all(&self) -> impl Iterator<Item = (Stream, &Timer)> {
        let streams: HashMap<Place, Stream> =
            self.by_name.iter().map(|((stream, _), place)| (*place, *stream)).collect();
        self.by_due.iter().filter_map(move |(place, timer)| Some((*streams.get(place)?, timer)))
    }

    pub(super) fn due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.by_due.range(..=(now, u64::MAX)).take(limit).map(|(_, timer)| timer.clone()).collect()
    }

    pub(super) fn next(&self) -> Option<Timestamp> {
        self.by_due.first_key_value().map(|((due, _), _)| *due)
    }
}
