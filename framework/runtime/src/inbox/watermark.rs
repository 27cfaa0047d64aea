//! Watermark tracking: for one source of one shard, which messages were dispatched and which of them are appended.
//!
//! Created by receive windows, and by subscriptions for each shard of a subscribing actor type. Messages of different
//! keys are appended out of order; the watermark is the sequence below the first open one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use super::{Done, Subscriber};
use crate::router::{Action, ActorEndpoint, DedupKey, Delivery, Outcome, SequenceTracker};
use whizbang_core::message::{Envelope, Key, Name, Shard, ShardId, shard_of};
use whizbang_core::store::{Source, SourceKind};
use whizbang_core::telemetry::TARGET;

/// Tracks, for one source of one shard, what was dispatched and what of it is appended.
pub(crate) struct WatermarkTracker {
    /// The source, as the store names it.
    pub(crate) source: Rc<Source>,
    /// Last sequence dispatched, to any shard. It goes back when a shard is opened that lacks earlier ones.
    dispatched: Rc<Cell<u64>>,
    /// Sequence up to which everything was dispatched, however far `dispatched` went back.
    reached: Cell<u64>,
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
    /// Creates a tracker that continues behind a stored watermark. `dispatched` is shared by the trackers of all shards of a
    /// subscriber.
    pub(crate) fn new(source: Rc<Source>, dispatched: Rc<Cell<u64>>, stored: u64) -> Rc<Self> {
        let (open, reached) = (RefCell::default(), Cell::new(stored));
        Rc::new(Self { source, dispatched, reached, open, stored: Cell::new(stored), began: stored })
    }

    /// Returns the sequence up to which everything was dispatched.
    fn dispatched(&self) -> u64 {
        self.dispatched.get().max(self.reached.get())
    }

    /// Records that a message was passed to an actor of this shard.
    pub(crate) fn mark_dispatched(&self, sequence: u64) {
        self.open.borrow_mut().insert(sequence);
    }

    /// Returns the sequence up to which everything is appended.
    pub(crate) fn watermark(&self) -> u64 {
        match self.open.borrow().first() {
            Some(first) => first.saturating_sub(1),
            None => self.dispatched(),
        }
    }

    /// Returns the watermark, if the store does not know it yet.
    pub(crate) fn unstored(&self) -> Option<u64> {
        let watermark = self.watermark();
        (watermark > self.stored.get()).then_some(watermark)
    }

    /// Returns the watermark that the store knows.
    pub(crate) fn stored(&self) -> u64 {
        self.stored.get()
    }

    /// Raises the watermark that the store knows.
    pub(crate) fn set_stored(&self, watermark: u64) {
        self.stored.set(self.stored.get().max(watermark));
    }
}

impl SequenceTracker for WatermarkTracker {
    fn watermark_after(&self, sequence: u64) -> u64 {
        match self.open.borrow().iter().find(|open| **open != sequence) {
            Some(first) => first.saturating_sub(1),
            None => self.dispatched(),
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
    /// The dispatcher of the actor type.
    pub(crate) endpoint: Rc<dyn ActorEndpoint>,
    /// The names of the events that the type handles.
    pub(crate) events: Vec<Name>,
    source: Rc<Source>,
    dispatched: Rc<Cell<u64>>,
    /// Trackers by the number of the actors' shard; `None` for shards that are not open on this thread.
    pub(crate) trackers: RefCell<Vec<Option<Rc<WatermarkTracker>>>>,
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
        let (dispatched, trackers) = (Rc::clone(dispatched), RefCell::new(trackers));
        Self { domain: domain.clone(), endpoint, events, source, dispatched, trackers }
    }

    /// Returns the tracker of a shard, if the shard is open on this thread.
    fn tracker(&self, shard: Shard) -> Option<Rc<WatermarkTracker>> {
        self.trackers.borrow().get(usize::from(shard))?.clone()
    }
}

impl Subscriber for ActorSubscriber {
    fn watermark(&self) -> u64 {
        self.trackers.borrow().iter().flatten().map(|tracker| tracker.stored()).min().unwrap_or(u64::MAX)
    }

    fn open_shard(&self, shard: &ShardId, watermark: &dyn Fn(&Source) -> u64) -> Option<u64> {
        let mut trackers = self.trackers.borrow_mut();
        let slot = trackers.get_mut(usize::from(shard.shard)).filter(|_| shard.domain == self.domain)?;
        let stored = watermark(&self.source);
        *slot = Some(WatermarkTracker::new(Rc::clone(&self.source), Rc::clone(&self.dispatched), stored));
        Some(stored)
    }

    fn close_shard(&self, shard: &ShardId) {
        if shard.domain == self.domain
            && let Some(slot) = self.trackers.borrow_mut().get_mut(usize::from(shard.shard))
        {
            *slot = None;
        }
    }

    fn mark_dispatched(&self, position: u64) {
        for tracker in self.trackers.borrow().iter().flatten() {
            tracker.reached.set(tracker.reached.get().max(position));
        }
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
        let shards = Shard::try_from(self.trackers.borrow().len()).unwrap_or(Shard::MAX);
        let Some(tracker) = self.tracker(shard_of(&key, shards)) else { return done() };
        if origin.sequence <= tracker.stored().max(tracker.reached.get()) {
            return done();
        }
        let sequence = origin.sequence;
        tracker.mark_dispatched(sequence);
        let mut envelope = event.clone();
        envelope.key = key;
        let arrival = DedupKey::Sequence {
            source: Rc::clone(&tracker.source),
            sequence,
            tracker: tracker as Rc<dyn SequenceTracker>,
        };
        let settle = Box::new(move |outcome: Outcome| {
            if let Outcome::Stopped | Outcome::Moved | Outcome::Unknown(_) = outcome {
                tracing::debug!(target: TARGET, ?outcome, "event not handled: read again from its log");
            }
            done();
        });
        self.endpoint.deliver(Delivery::new(work, envelope, arrival, settle));
    }

    fn unstored(&self) -> Vec<(ShardId, Source, u64)> {
        let trackers = self.trackers.borrow();
        let numbered = trackers.iter().enumerate();
        numbered
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
