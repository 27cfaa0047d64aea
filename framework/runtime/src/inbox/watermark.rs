//! Watermark tracking: for one source of one shard, which messages were dispatched and which of them are appended.
//!
//! Created by receive windows, and by subscriptions for each shard of a subscribing actor type. Messages of different
//! keys are appended out of order; the watermark is the sequence below the first open one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use super::{Done, Subscriber};
use crate::router::{Action, ActorEndpoint, DedupKey, Delivery, Outcome, SequenceTracker};
use whizbang_core::message::{Envelope, Key, Name, ShardId, shard_of};
use whizbang_core::store::{Source, SourceKind};
use whizbang_core::telemetry::TARGET;

/// Tracks, for one source of one shard, what was dispatched and what of it is appended.
pub(crate) struct WatermarkTracker {
    pub(crate) source: Rc<Source>,
    /// Last sequence dispatched, to any shard.
    dispatched: Rc<Cell<u64>>,
    /// Sequences dispatched to this shard and not yet appended.
    open: RefCell<BTreeSet<u64>>,
    /// Watermark that the store knows.
    stored: Cell<u64>,
    /// Watermark at the start.
    began: u64,
}

/// Distance above the initial watermark within which a message may have been in flight when the node ended. More than
/// a source ever has in flight.
const NEAR_START: u64 = 4096;

impl WatermarkTracker {
    pub(crate) fn new(source: Rc<Source>, dispatched: Rc<Cell<u64>>, stored: u64) -> Rc<Self> {
        Rc::new(Self { source, dispatched, open: RefCell::default(), stored: Cell::new(stored), began: stored })
    }

    pub(crate) fn mark_dispatched(&self, sequence: u64) {
        self.open.borrow_mut().insert(sequence);
    }

    /// Returns the sequence up to which everything is appended.
    pub(crate) fn watermark(&self) -> u64 {
        match self.open.borrow().first() {
            Some(first) => first.saturating_sub(1),
            None => self.dispatched.get(),
        }
    }

    /// Returns the watermark, if the store does not know it yet.
    pub(crate) fn unstored(&self) -> Option<u64> {
        let watermark = self.watermark();
        (watermark > self.stored.get()).then_some(watermark)
    }

    pub(crate) fn stored(&self) -> u64 {
        self.stored.get()
    }

    pub(crate) fn set_stored(&self, watermark: u64) {
        self.stored.set(self.stored.get().max(watermark));
    }
}

impl SequenceTracker for WatermarkTracker {
    fn watermark_after(&self, sequence: u64) -> u64 {
        match self.open.borrow().iter().find(|open| **open != sequence) {
            Some(first) => first.saturating_sub(1),
            None => self.dispatched.get(),
        }
    }

    fn mark_appended(&self, sequence: u64) {
        self.open.borrow_mut().remove(&sequence);
        self.set_stored(self.watermark());
    }

    fn mark_known(&self, sequence: u64) {
        self.open.borrow_mut().remove(&sequence);
    }

    fn is_near_start(&self, sequence: u64) -> bool {
        sequence <= self.began.saturating_add(NEAR_START)
    }
}

/// Delivers the events of one source shard to the actors of one type on this thread.
pub(crate) struct ActorSubscriber {
    /// Domain of the actors.
    domain: Name,
    pub(crate) endpoint: Rc<dyn ActorEndpoint>,
    pub(crate) events: Vec<Name>,
    /// Trackers by the number of the actors' shard; `None` for shards of other threads.
    pub(crate) trackers: Vec<Option<Rc<WatermarkTracker>>>,
}

impl ActorSubscriber {
    /// Creates a subscriber whose trackers start from the stored watermarks.
    pub(crate) fn new(
        (domain, actor): (&Name, &Name),
        endpoint: Rc<dyn ActorEndpoint>,
        events: Vec<Name>,
        source: &ShardId,
        dispatched: &Rc<Cell<u64>>,
        watermarks: &[Option<u64>],
    ) -> Self {
        let kind = SourceKind::Events { subscriber: actor.clone() };
        let source = Rc::new(Source { shard: source.clone(), kind });
        let trackers = watermarks
            .iter()
            .map(|watermark| {
                watermark.map(|watermark| WatermarkTracker::new(Rc::clone(&source), Rc::clone(dispatched), watermark))
            })
            .collect();
        Self { domain: domain.clone(), endpoint, events, trackers }
    }
}

impl Subscriber for ActorSubscriber {
    fn watermark(&self) -> u64 {
        self.trackers.iter().flatten().map(|tracker| tracker.stored()).min().unwrap_or(u64::MAX)
    }

    fn takes(&self, event: &Name) -> bool {
        self.events.contains(event)
    }

    fn handle(&self, event: &Envelope, done: Done) {
        let Some(origin) = &event.origin else { return done() };
        let (key, work) = match self.endpoint.key_of(event) {
            Ok(Some(key)) if Key::from(&key).is_valid() => (key, Action::React),
            Ok(None) => return done(),
            // The target key is unknown: the actor with the key of the event's stream dead-letters it, where an
            // operator sees it.
            Ok(Some(key)) => (origin.key.clone(), Action::DeadLetter(format!("invalid key of {} bytes", key.len()))),
            Err(error) => (origin.key.clone(), Action::DeadLetter(error)),
        };
        let shards = u16::try_from(self.trackers.len()).unwrap_or(u16::MAX);
        let shard = shard_of(&key, shards);
        let Some(Some(tracker)) = self.trackers.get(usize::from(shard)) else { return done() };
        if origin.sequence <= tracker.stored() {
            return done();
        }
        let sequence = origin.sequence;
        tracker.mark_dispatched(sequence);
        let mut envelope = event.clone();
        envelope.key = key;
        let arrival = DedupKey::Sequence {
            source: Rc::clone(&tracker.source),
            sequence,
            tracker: Rc::clone(tracker) as Rc<dyn SequenceTracker>,
        };
        let settle = Box::new(move |outcome: Outcome| {
            if let Outcome::Stopped | Outcome::Unknown(_) = outcome {
                tracing::debug!(target: TARGET, ?outcome, "event not handled: read again from its log");
            }
            done();
        });
        self.endpoint.deliver(Delivery::new(work, envelope, arrival, settle));
    }

    fn unstored(&self) -> Vec<(ShardId, Source, u64)> {
        let trackers = self.trackers.iter().enumerate();
        trackers
            .filter_map(|(shard, tracker)| {
                let tracker = tracker.as_ref()?;
                let watermark = tracker.unstored()?;
                tracker.set_stored(watermark);
                let shard = ShardId::new(self.domain.clone(), u16::try_from(shard).ok()?);
                Some((shard, Source::clone(&tracker.source), watermark))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
