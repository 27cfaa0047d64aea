//! The dead letters that wait to be resolved.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::super::record::Location;
use super::stream::Stream;
use crate::message::MessageId;

/// By message and stream: two actors of one shard may both fail on the same event.
#[derive(Debug, Default)]
pub(super) struct Letters {
    places: BTreeMap<(MessageId, Stream), Place>,
    /// How many of them wait for an operator.
    dead: u64,
}

/// Where a letter is, and whether it is only deferred: then it is delivered without an operator.
#[derive(Clone, Copy, Debug)]
struct Place {
    location: Location,
    deferred: bool,
}

/// Marks a deferred letter in a checkpoint. No log is so large that a location has this bit.
const DEFERRED: u64 = 1 << 63;

const FIRST: Stream = Stream(0, 0);
const LAST: Stream = Stream(u64::MAX, u64::MAX);

impl Letters {
    pub(super) fn add(&mut self, id: MessageId, stream: Stream, location: Location, deferred: bool) {
        self.resolve(id, stream);
        self.places.insert((id, stream), Place { location, deferred });
        self.dead += u64::from(!deferred);
    }

    pub(super) fn resolve(&mut self, id: MessageId, stream: Stream) {
        if let Some(Place { deferred, .. }) = self.places.remove(&(id, stream)) {
            self.dead -= u64::from(!deferred);
        }
    }

    /// The place of a letter as a checkpoint keeps it.
    pub(super) fn restore(&mut self, id: MessageId, stream: Stream, place: u64) {
        self.add(id, stream, place & !DEFERRED, place & DEFERRED != 0);
    }

    pub(super) fn count(&self) -> u64 {
        self.dead
    }

    /// All letters as a checkpoint keeps them.
    pub(super) fn all(&self) -> Vec<(MessageId, Stream, u64)> {
        let saved = |place: &Place| if place.deferred { place.location | DEFERRED } else { place.location };
        self.places.iter().map(|((id, stream), place)| (*id, *stream, saved(place))).collect()
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
        for ((id, _), Place { location, .. }) in self.places.range((start, Bound::Unbounded)) {
            if page.len() >= limit && page.last().is_some_and(|(last, _)| last != id) {
                break;
            }
            page.push((*id, *location));
        }
        page
    }
}
