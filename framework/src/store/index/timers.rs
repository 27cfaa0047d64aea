//! The timers that are set: by actor type, and of one type by when they are due.
//!
//! Kept apart by type, so that timers of a type that nothing takes any more cost nothing but their place.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use foldhash::fast::FixedState;

use super::stream::Stream;
use crate::clock::Timestamp;
use crate::message::Name;
use crate::store::{Timer, TimerPage, TimerPlace};

#[derive(Debug, Default)]
pub(super) struct Timers {
    by_actor: HashMap<Name, BTreeMap<TimerPlace, Timer>, FixedState>,
    by_name: HashMap<(Stream, Box<str>), (Name, TimerPlace), FixedState>,
    settings: u64,
}

impl Timers {
    pub(super) fn set(&mut self, stream: Stream, timer: Timer) {
        self.settings += 1;
        let place = TimerPlace { due: timer.due, number: self.settings };
        if let Some((actor, old)) =
            self.by_name.insert((stream, timer.name.as_str().into()), (timer.actor.clone(), place))
        {
            self.remove(&actor, old);
        }
        match self.by_actor.get_mut(&timer.actor) {
            Some(timers) => drop(timers.insert(place, timer)),
            None => drop(self.by_actor.insert(timer.actor.clone(), BTreeMap::from([(place, timer)]))),
        }
    }

    pub(super) fn clear(&mut self, stream: Stream, name: &str) {
        if let Some((actor, old)) = self.by_name.remove(&(stream, name.into())) {
            self.remove(&actor, old);
        }
    }

    fn remove(&mut self, actor: &Name, place: TimerPlace) {
        let Some(timers) = self.by_actor.get_mut(actor) else { return };
        timers.remove(&place);
        if timers.is_empty() {
            self.by_actor.remove(actor);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// In the order in which they fire, so that setting them again in this order keeps it.
    pub(super) fn all(&self) -> impl Iterator<Item = (Stream, &Timer)> {
        let streams: HashMap<TimerPlace, Stream> =
            self.by_name.iter().map(|((stream, _), (_, place))| (*place, *stream)).collect();
        let mut all: Vec<_> = self.by_actor.values().flatten().collect();
        all.sort_unstable_by_key(|(place, _)| **place);
        all.into_iter().filter_map(move |(place, timer)| Some((*streams.get(place)?, timer)))
    }

    pub(super) fn due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        let end = TimerPlace { due: now, number: u64::MAX };
        let mut due: Vec<_> = self.by_actor.values().flat_map(|timers| timers.range(..=end).take(limit)).collect();
        due.sort_unstable_by_key(|(place, _)| **place);
        due.into_iter().take(limit).map(|(_, timer)| timer.clone()).collect()
    }

    pub(super) fn next(&self) -> Option<Timestamp> {
        self.by_actor.values().filter_map(|timers| timers.first_key_value()).map(|(place, _)| place.due).min()
    }

    pub(super) fn of(&self, actor: &Name, after: TimerPlace, now: Timestamp, limit: usize) -> TimerPage {
        let mut page = TimerPage::default();
        let Some(timers) = self.by_actor.get(actor) else { return page };
        for (place, timer) in timers.range((Bound::Excluded(after), Bound::Unbounded)) {
            if place.due > now || page.due.len() >= limit {
                page.next = Some(place.due);
                break;
            }
            page.due.push((*place, timer.clone()));
        }
        page
    }

    pub(super) fn counts(&self) -> Vec<(Name, usize)> {
        self.by_actor.iter().map(|(actor, timers)| (actor.clone(), timers.len())).collect()
    }
}
