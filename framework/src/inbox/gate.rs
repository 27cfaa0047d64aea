//! What one shard sends to another, admitted in order.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use super::held::Held;
use super::{Standing, Track, Trail};
use crate::message::{Envelope, ShardId};
use crate::router::{ActorDoor, Arrival, Delivery, Floor, Outcome, Settled, Work};
use crate::store::{Lane, Source, Watermark};
use crate::telemetry::{Counts, TARGET, passes};

/// How many are dispatched and not settled, at most.
const IN_FLIGHT: usize = 1024;
/// How many bytes of payload they have at most; one message may have more.
const BYTES: usize = 16 << 20;

/// Called once with what has become of a message.
type Settle = Box<dyn FnOnce(Settled)>;
/// Finds the door for a message, and says what is to be done with it there.
pub(crate) type Doors = Rc<dyn Fn(&mut Envelope) -> (Rc<dyn ActorDoor>, Work)>;
/// Told that something is missing above a sequence.
pub(crate) type Missing = Rc<dyn Fn(&Gate, u64)>;
/// Told up to where everything is committed.
pub(crate) type Committed = Rc<dyn Fn(&Gate)>;

/// What one shard sends to another, admitted in order: contiguous sequences, so that every duplicate and every gap is seen.
pub(crate) struct Gate {
    pub(crate) from: ShardId,
    pub(crate) to: ShardId,
    track: Rc<Track>,
    last: Rc<Cell<u64>>,
    unsettled: RefCell<BTreeSet<u64>>,
    /// The bytes of what is dispatched and not settled.
    bytes: Cell<usize>,
    held: RefCell<Held<Settle>>,
    pub(crate) filling: Cell<bool>,
    doors: Doors,
    missing: Missing,
    committed: Committed,
    counts: Arc<Counts>,
    standing: Arc<Standing>,
    trail: RefCell<Trail>,
    /// What comes is not what it seems to be: nothing is taken any more.
    shut: Cell<bool>,
}

impl Gate {
    pub(crate) fn new(
        (from, to): (ShardId, ShardId),
        floor: u64,
        doors: Doors,
        missing: Missing,
        committed: Committed,
        counts: Arc<Counts>,
        standing: Arc<Standing>,
    ) -> Rc<Self> {
        let source = Rc::new(Source { shard: from.clone(), lane: Lane::Direct });
        let last = Rc::new(Cell::new(floor));
        Rc::new(Self {
            from,
            to,
            track: Track::new(source, Rc::clone(&last), floor),
            last,
            unsettled: RefCell::default(),
            bytes: Cell::new(0),
            held: RefCell::default(),
            filling: Cell::new(false),
            doors,
            missing,
            committed,
            counts,
            standing,
            trail: RefCell::default(),
            shut: Cell::new(false),
        })
    }

    /// All up to and including this sequence is committed.
    pub(crate) fn through(&self) -> u64 {
        match self.unsettled.borrow().first() {
            Some(first) => first.saturating_sub(1),
            None => self.last.get(),
        }
    }

    /// How far everything is appended, if the store does not know it yet. From now on it counts as known.
    pub(crate) fn unstored(&self) -> Option<Watermark> {
        let through = self.track.unstored()?;
        self.track.set_stored(through);
        Some(Watermark { source: Source::clone(&self.track.source), through })
    }

    /// Whether what comes after this sequence is still missing, and something waits for it.
    pub(crate) fn lacks(&self, after: u64) -> bool {
        self.last.get() == after && !self.held.borrow().is_empty()
    }

    /// Whether nothing is under way, and the store knows how far it is.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.only_waits() && !self.shut.get() && self.held.borrow().is_empty() && self.track.unstored().is_none()
    }

    /// Whether nothing is dispatched and not settled.
    pub(crate) fn only_waits(&self) -> bool {
        self.unsettled.borrow().is_empty()
    }

    /// Lets go what is held back behind a gap: it comes again. Whoever stops must not wait for what may never come.
    pub(crate) fn let_go(&self) {
        let held = self.held.borrow_mut().take();
        held.for_each(|(_, settle)| settle(Settled::Later));
    }

    /// A message that came in.
    pub(crate) fn admit(self: &Rc<Self>, envelope: Envelope, settle: Settle) {
        let Some(sequence) = envelope.origin.as_ref().map(|origin| origin.sequence) else {
            return settle(Settled::Done);
        };
        let last = self.last.get();
        if self.shut.get() {
            return settle(Settled::Later);
        }
        if sequence <= last {
            if self.trail.borrow().knows(sequence, envelope.id) == Some(false) {
                self.contradicted(sequence);
                return settle(Settled::Later);
            }
            self.counts.duplicates.one();
            if self.unsettled.borrow().contains(&sequence) {
                return settle(Settled::Later);
            }
            // The sender has not heard that it is committed, or would not have sent it again.
            (self.committed)(self);
            return settle(Settled::Done);
        }
        if self.unsettled.borrow().len() >= IN_FLIGHT || self.bytes.get() >= BYTES {
            return settle(Settled::Later);
        }
        if sequence == last + 1 {
            self.dispatch(sequence, envelope, settle);
            loop {
                // What is held is behind the last one taken, so only the next one is not above it.
                let next = self.held.borrow_mut().first_up_to(self.last.get() + 1);
                let Some((sequence, envelope, settle)) = next else { break };
                self.dispatch(sequence, envelope, settle);
            }
            return;
        }
        let unkept = self.held.borrow_mut().keep(sequence, envelope, settle);
        if let Some(settle) = unkept {
            settle(Settled::Later);
        }
        if !self.filling.replace(true) {
            self.counts.gaps.one();
            tracing::debug!(target: TARGET, from = %self.from, to = %self.to, last, sequence, "a gap: asking the sender");
            (self.missing)(self, last);
        }
    }

    /// Another message comes under a number that was taken: who sends it has put his log back to an older copy. Dropped as a
    /// duplicate it would be lost unseen; so it stays with its sender, and what comes behind it, and that is said.
    fn contradicted(&self, sequence: u64) {
        let (from, to) = (&self.from, &self.to);
        self.shut.set(true);
        let why = format!(
            "what {from} sends to {to} is not taken any more: its number {sequence} was another message before. \
             Is its log an older copy?"
        );
        if self.standing.stands(&format!("{from} to {to}"), why) {
            tracing::error!(
                target: TARGET, %from, %to, sequence,
                "sends another message under a number that was taken: is its log an older copy? Nothing more is taken",
            );
        }
        self.let_go();
    }

    fn dispatch(self: &Rc<Self>, sequence: u64, mut envelope: Envelope, settle: Settle) {
        passes!("inbox", envelope.name, envelope.id, envelope.correlation);
        self.last.set(sequence);
        self.trail.borrow_mut().passed(sequence, envelope.id);
        self.unsettled.borrow_mut().insert(sequence);
        let bytes = envelope.payload.len();
        self.bytes.set(self.bytes.get() + bytes);
        self.track.opened(sequence);
        let arrival = Arrival::From {
            source: Rc::clone(&self.track.source),
            sequence,
            floor: Rc::clone(&self.track) as Rc<dyn Floor>,
        };
        let (door, work) = (self.doors)(&mut envelope);
        let gate = Rc::clone(self);
        let settled = Box::new(move |outcome: Outcome| match outcome {
            Outcome::Done(..) | Outcome::DeadLetter(_) => {
                gate.unsettled.borrow_mut().remove(&sequence);
                gate.bytes.set(gate.bytes.get() - bytes);
                (gate.committed)(&gate);
                settle(Settled::Done);
            }
            // The shard is to be opened again, or the node stops: the sender keeps it and sends it again. Whatever else may be
            // said, nothing of it is committed.
            _ => settle(Settled::Later),
        });
        door.deliver(Delivery::new(work, envelope, arrival, settled));
    }
}
