//! The timers that are set, by actor type and, within a type, by due time.
//!
//! Kept apart by type, so that timers of a type without a handler cost only memory.
//!
//! A timer is found by its due time, for the timer loop, and by stream and name, for a turn that sets or clears it.

mod places;

use std::collections::BTreeMap;
use std::ops::Bound;

use self::places::TimerPlaces;
use super::stream::Stream;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::Name;
use whizbang_core::store::{Timer, TimerCursor, TimerPage};

/// Each timer is in both maps: by due time for the node, by stream and name for the turn that replaces or clears it.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// In the order in which they fire. Boxed, so that the nodes of a large map stay small: a turn that sets a timer again touches
    /// two of them.
    by_actor: BTreeMap<Name, BTreeMap<TimerCursor, Box<(Stream, Timer)>>>,
    /// The place of each timer in `by_actor`.
    by_name: TimerPlaces,
    /// The number of timers ever set. It orders timers that are due at the same time.
    settings: u64,
    /// Set while a checkpoint is being saved.
    saving: Option<TimerSave>,
}

/// A save in slices of the timers that were set when it began.
#[derive(Debug)]
struct TimerSave {
    /// The number of the last timer set at the beginning.
    cut: u64,
    /// The last timer in order at the beginning. Later ones are not visited, or saving might never end.
    last: Option<(Name, TimerCursor)>,
    /// The last timer that was saved.
    after: Option<(Name, TimerCursor)>,
    /// Timers of the beginning that were cleared before they were visited.
    cleared: Vec<(Stream, Timer)>,
}

impl Timers {
    /// Sets a timer, in place of one with the same stream and name.
    pub(super) fn set(&mut self, stream: Stream, timer: Timer) {
        self.settings += 1;
        let place = TimerCursor { due: timer.due, number: self.settings };
        let earlier = self.by_name.insert(stream, &timer.name, (timer.actor.clone(), place));
        // A turn that sets its timer again needs no memory.
        let kept = earlier.and_then(|(actor, old)| self.remove(&actor, old));
        let actor = timer.actor.clone();
        let timer = match kept {
            Some(mut kept) => {
                *kept = (stream, timer);
                kept
            }
            None => Box::new((stream, timer)),
        };
        match self.by_actor.get_mut(&actor) {
            Some(timers) => drop(timers.insert(place, timer)),
            None => drop(self.by_actor.insert(actor, BTreeMap::from([(place, timer)]))),
        }
    }

    /// Clears a timer, if it is set.
    pub(super) fn clear(&mut self, stream: Stream, name: &str) {
        if let Some((actor, old)) = self.by_name.remove(stream, name) {
            drop(self.remove(&actor, old));
        }
    }

    /// Removes a timer from its place and returns it. One that a running save has not visited is kept for the save instead.
    fn remove(&mut self, actor: &Name, place: TimerCursor) -> Option<Box<(Stream, Timer)>> {
        let timers = self.by_actor.get_mut(actor)?;
        let removed = timers.remove(&place);
        if timers.is_empty() {
            self.by_actor.remove(actor);
        }
        if let Some(saving) = &mut self.saving
            && place.number <= saving.cut
            && saving.after.as_ref().is_none_or(|(saved, last)| (saved, *last) < (actor, place))
        {
            saving.cleared.extend(removed.map(|timer| *timer));
            return None;
        }
        removed
    }

    /// Returns the number of timers.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Begins to save the current timers.
    pub(super) fn begin_saving(&mut self) {
        let last = self.by_actor.last_key_value();
        let last = last.and_then(|(actor, timers)| Some((actor.clone(), *timers.last_key_value()?.0)));
        self.saving = Some(TimerSave { cut: self.settings, last, after: None, cleared: Vec::new() });
    }

    /// Returns up to `limit` further timers, or none at the end. Timers of one actor type are returned in firing order,
    /// so that setting them again in this order preserves it. Timers cleared since the beginning come last; the log
    /// after the checkpoint clears them again.
    pub(super) fn save_next(&mut self, limit: usize) -> Vec<(Stream, Timer)> {
        let Self { by_actor, saving: slot, .. } = self;
        let Some(saving) = slot else { return Vec::new() };
        let mut next = Vec::new();
        let first = saving.after.as_ref().map_or(Bound::Unbounded, |(actor, _)| Bound::Included(actor.clone()));
        let mut visited = 0;
        'all: for (actor, timers) in by_actor.range((first, Bound::Unbounded)) {
            let start = match &saving.after {
                Some((saved, place)) if saved == actor => Bound::Excluded(*place),
                _ => Bound::Unbounded,
            };
            for (place, timer) in timers.range((start, Bound::Unbounded)) {
                let (stream, timer) = &**timer;
                let is_behind = saving.last.as_ref().is_none_or(|(last, at)| (last, at) < (actor, place));
                if visited >= limit || is_behind {
                    break 'all;
                }
                visited += 1;
                saving.after = Some((actor.clone(), *place));
                if place.number <= saving.cut {
                    next.push((*stream, timer.clone()));
                }
            }
        }
        if visited == 0 {
            let from = saving.cleared.len().saturating_sub(limit);
            next = saving.cleared.split_off(from);
            if next.is_empty() {
                *slot = None;
            }
        }
        next
    }

    /// Gives a save up. The next one begins again.
    pub(super) fn abort_saving(&mut self) {
        self.saving = None;
    }

    /// Returns whether all timers of the beginning were returned.
    pub(super) fn is_saved(&self) -> bool {
        self.saving.is_none()
    }

    /// Returns up to `limit` due timers of all types, earliest first. Costs at most `limit` for each type.
    pub(super) fn due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        let end = TimerCursor { due: now, number: u64::MAX };
        let mut due: Vec<_> = self.by_actor.values().flat_map(|timers| timers.range(..=end).take(limit)).collect();
        due.sort_unstable_by_key(|(place, _)| **place);
        due.into_iter().take(limit).map(|(_, timer)| timer.1.clone()).collect()
    }

    /// Returns the time of the earliest timer. Costs the number of types.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.by_actor.values().filter_map(|timers| timers.first_key_value()).map(|(place, _)| place.due).min()
    }

    /// Returns up to `limit` due timers of one type behind a place, and the time of the next one.
    pub(super) fn of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage {
        let mut page = TimerPage::default();
        let Some(timers) = self.by_actor.get(actor) else { return page };
        for (place, timer) in timers.range((Bound::Excluded(after), Bound::Unbounded)) {
            if place.due > now || page.due.len() >= limit {
                page.next = Some(place.due);
                break;
            }
            page.due.push((*place, timer.1.clone()));
        }
        page
    }

    /// Returns the number of timers of each type.
    pub(super) fn counts(&self) -> Vec<(Name, usize)> {
        self.by_actor.iter().map(|(actor, timers)| (actor.clone(), timers.len())).collect()
    }
}

#[cfg(test)]
mod tests;
