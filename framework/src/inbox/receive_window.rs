//! What one shard sends to another, admitted in order.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::reorder_buffer::ReorderBuffer;
use super::{HealthIssues, RecentIds, WatermarkTracker};
use crate::clock::instant;
use crate::message::{Envelope, ShardId};
use crate::router::{AckOutcome, Action, ActorEndpoint, DedupKey, Delivery, Outcome, SequenceTracker};
use crate::store::{Source, SourceKind, Watermark};
use crate::telemetry::{Counts, TARGET, passes};

/// How many are dispatched and not settled, at most.
const IN_FLIGHT: usize = 1024;
/// How many bytes of payload they have at most; one message may have more.
const BYTES: usize = 16 << 20;
/// How often a sender is asked at most about what contradicts what was taken from it.
const DOUBT: Duration = Duration::from_secs(1);
/// How often a sender is asked whose log was another one.
const AGAIN: Duration = Duration::from_secs(30);

/// Called once with what has become of a message.
type Settle = Box<dyn FnOnce(AckOutcome)>;
/// Finds the door for a message, and says what is to be done with it there.
pub(crate) type EndpointLookup = Rc<dyn Fn(&mut Envelope) -> (Rc<dyn ActorEndpoint>, Action)>;
/// Told that the sender is to be asked, until there is no [question](ReceiveWindow::missing_range).
pub(crate) type RequestMissing = Rc<dyn Fn(&Rc<ReceiveWindow>)>;
/// Told up to where everything is committed.
pub(crate) type Committed = Rc<dyn Fn(&ReceiveWindow)>;

/// What the sender of a gate is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MissingRange {
    /// Its entries above this sequence.
    pub(crate) after: u64,
    /// What is asked about: an entry that was contradicted, or else what is missing.
    contradicted: Option<u64>,
    /// A mark between what was held before the question and later.
    mark: u64,
}

/// What one shard sends to another, admitted in order: contiguous sequences, so that every duplicate and every gap is seen.
pub(crate) struct ReceiveWindow {
    pub(crate) from: ShardId,
    pub(crate) to: ShardId,
    track: Rc<WatermarkTracker>,
    last: Rc<Cell<u64>>,
    unsettled: RefCell<BTreeSet<u64>>,
    /// The bytes of what is dispatched and not settled.
    bytes: Cell<usize>,
    held: RefCell<ReorderBuffer<Settle>>,
    /// The sender is being asked: by one task at a time.
    asking: Cell<bool>,
    doors: EndpointLookup,
    asks: RequestMissing,
    committed: Committed,
    counts: Arc<Counts>,
    standing: Arc<HealthIssues>,
    trail: RefCell<RecentIds>,
    /// A sequence under which another message came than was taken. Until the sender has said what it sent there, only its log is
    /// taken from: what comes by itself may be of the other log.
    suspect: Cell<Option<u64>>,
    /// Something was turned away because of that.
    turned_away: Cell<bool>,
    /// The sender says that it has sent what did not come.
    told: Cell<bool>,
    /// The sender's log is another one than was taken from: nothing is taken until the sender says otherwise.
    shut: Cell<bool>,
    /// When the sender may next be asked about contradictions.
    not_before: Cell<Option<Instant>>,
    /// Something came from the sender while nothing is taken from it.
    news: Notify,
}

impl ReceiveWindow {
    pub(crate) fn new(
        (from, to): (ShardId, ShardId),
        floor: u64,
        doors: EndpointLookup,
        asks: RequestMissing,
        committed: Committed,
        counts: Arc<Counts>,
        standing: Arc<HealthIssues>,
    ) -> Rc<Self> {
        let source = Rc::new(Source { shard: from.clone(), kind: SourceKind::Direct });
        let last = Rc::new(Cell::new(floor));
        Rc::new(Self {
            from,
            to,
            track: WatermarkTracker::new(source, Rc::clone(&last), floor),
            last,
            unsettled: RefCell::default(),
            bytes: Cell::new(0),
            held: RefCell::default(),
            asking: Cell::new(false),
            doors,
            asks,
            committed,
            counts,
            standing,
            trail: RefCell::default(),
            suspect: Cell::new(None),
            turned_away: Cell::new(false),
            told: Cell::new(false),
            shut: Cell::new(false),
            not_before: Cell::new(None),
            news: Notify::new(),
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

    /// Whether nothing is under way, and the store knows how far it is.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.only_waits()
            && self.missing_range().is_none()
            && self.held.borrow().is_empty()
            && self.track.unstored().is_none()
    }

    /// Whether nothing is dispatched and not settled.
    pub(crate) fn only_waits(&self) -> bool {
        self.unsettled.borrow().is_empty()
    }

    /// Lets go what is held back behind a gap: it comes again. Whoever stops must not wait for what may never come.
    pub(crate) fn let_go(&self) {
        let held = self.held.borrow_mut().take();
        held.for_each(|(_, settle)| settle(AckOutcome::Retry));
    }

    /// A message that came in.
    pub(crate) fn admit(self: &Rc<Self>, envelope: Envelope, settle: Settle) {
        let Some(sequence) = envelope.origin.as_ref().map(|origin| origin.sequence) else {
            return settle(AckOutcome::Ack);
        };
        let last = self.last.get();
        if self.shut.get() {
            self.news.notify_one();
            return settle(AckOutcome::Retry);
        }
        if sequence <= last {
            if self.trail.borrow().knows(sequence, envelope.id) == Some(false) {
                self.suspects(sequence);
                // What the sender did send stays in its outbox.
                return settle(AckOutcome::Ack);
            }
            self.counts.duplicates.one();
            if self.unsettled.borrow().contains(&sequence) {
                return settle(AckOutcome::Retry);
            }
            // The sender has not heard that it is committed, or would not have sent it again.
            (self.committed)(self);
            return settle(AckOutcome::Ack);
        }
        if self.suspect.get().is_some() {
            self.turned_away.set(true);
            self.ask();
            return settle(AckOutcome::Retry);
        }
        if !self.has_room() {
            return settle(AckOutcome::Retry);
        }
        if sequence == last + 1 {
            self.dispatch(sequence, envelope, settle);
            return self.drain();
        }
        let unkept = self.held.borrow_mut().keep(sequence, envelope, settle);
        if let Some(settle) = unkept {
            settle(AckOutcome::Retry);
        }
        if !self.asking.get() {
            self.counts.gaps.one();
            tracing::debug!(target: TARGET, from = %self.from, to = %self.to, last, sequence, "a gap: asking the sender");
            self.ask();
        }
    }

    /// The sender has sent everything up to `through` and hears of no progress. What of that did not come is asked for.
    pub(crate) fn is_told(self: &Rc<Self>, through: u64) {
        let last = self.last.get();
        if through > last && !self.shut.get() && !self.asking.get() {
            tracing::debug!(target: TARGET, from = %self.from, to = %self.to, last, through, "asking for what did not come");
            self.told.set(true);
            self.ask();
        }
    }

    /// The sender does not answer. It tells again how far it has sent; what is held is asked for nevertheless.
    pub(crate) fn is_not_answered(&self) {
        self.told.set(false);
    }

    fn has_room(&self) -> bool {
        self.unsettled.borrow().len() < IN_FLIGHT && self.bytes.get() < BYTES
    }

    /// Dispatches what was held back and is next now.
    fn drain(self: &Rc<Self>) {
        loop {
            // What is held is behind the last one taken, so only the next one is not above it.
            let next = self.held.borrow_mut().first_up_to(self.last.get() + 1);
            let Some((sequence, envelope, settle)) = next else { break };
            self.dispatch(sequence, envelope, settle);
        }
    }

    /// Another message came under a number that was taken. It is dropped: the sender's log decides, not who sends what.
    fn suspects(self: &Rc<Self>, sequence: u64) {
        self.counts.commands_dropped.one();
        let (from, to) = (&self.from, &self.to);
        tracing::debug!(target: TARGET, %from, %to, sequence, "dropped a message that is not what was taken");
        self.suspect.set(Some(sequence));
        self.ask();
    }

    fn ask(self: &Rc<Self>) {
        if !self.asking.replace(true) {
            (self.asks)(self);
        }
    }

    /// What the sender is to be asked now; `None` ends the asking.
    pub(crate) fn missing_range(&self) -> Option<MissingRange> {
        let (last, mark) = (self.last.get(), self.held.borrow().mark());
        if let Some(sequence) = self.suspect.get() {
            return Some(MissingRange { after: sequence.saturating_sub(1), contradicted: Some(sequence), mark });
        }
        let lacks = self.turned_away.get() || self.told.get() || !self.held.borrow().is_empty();
        lacks.then_some(MissingRange { after: last, contradicted: None, mark })
    }

    /// Nobody asks the sender any longer.
    pub(crate) fn asked(&self) {
        self.asking.set(false);
    }

    /// Waits until the sender may be asked: about what contradicts what was taken, at a bounded rate.
    pub(crate) async fn may_ask(&self, question: &MissingRange) {
        if question.contradicted.is_none() {
            return;
        }
        if self.shut.get() {
            tokio::time::sleep(DOUBT).await;
            let _ = tokio::time::timeout(AGAIN, self.news.notified()).await;
        } else if let Some(at) = self.not_before.get() {
            tokio::time::sleep_until(at).await;
        }
        self.not_before.set(Some(instant() + DOUBT));
    }

    /// What the sender has answered: entries of its log in order, and the last sequence that it has sent here. Returns whether to
    /// ask on at once.
    pub(crate) fn answered(self: &Rc<Self>, question: MissingRange, entries: Vec<Envelope>, head: u64) -> bool {
        if let Some(sequence) = question.contradicted {
            let there = entries.first().filter(|entry| sequence_of(entry) == sequence);
            let known = there.and_then(|entry| self.trail.borrow().knows(sequence, entry.id));
            if head < sequence || known == Some(false) {
                self.contradicted(sequence);
            } else {
                self.confirmed(sequence);
            }
            return true;
        }
        let last = self.last.get();
        self.turned_away.set(false);
        let told = self.told.replace(false);
        for entry in entries {
            let sequence = sequence_of(&entry);
            let other = self.held.borrow_mut().other_than(sequence, entry.id);
            self.drop_forged(other);
            if sequence == self.last.get() + 1 && self.has_room() {
                self.dispatch(sequence, entry, Box::new(|_| {}));
            }
        }
        let above = self.held.borrow_mut().above(head, question.mark);
        self.drop_forged(above);
        self.drain();
        // There may be more than one page of what did not come.
        self.told.set(told && self.last.get() > last && self.last.get() < head);
        self.last.get() > last || self.suspect.get().is_some()
    }

    /// Drops what was held under numbers of which the sender says otherwise.
    fn drop_forged(&self, forged: impl IntoIterator<Item = Settle>) {
        for settle in forged {
            self.counts.commands_dropped.one();
            settle(AckOutcome::Ack);
        }
    }

    /// The sender has sent under this number what was taken.
    fn confirmed(&self, sequence: u64) {
        if self.suspect.get() == Some(sequence) {
            self.suspect.set(None);
            // Those that came meanwhile were turned away.
            self.turned_away.set(true);
        }
        if self.shut.replace(false) {
            self.standing.resolve(&self.trouble());
            tracing::info!(target: TARGET, from = %self.from, to = %self.to, "its log is the one again that was taken from");
        }
    }

    /// The sender itself says that it sent another message under a number that was taken: its log was put back to an older copy.
    /// Dropped as duplicates its messages would be lost unseen; so they stay with it, health reports it, and it is asked again.
    fn contradicted(&self, sequence: u64) {
        let (from, to) = (&self.from, &self.to);
        self.shut.set(true);
        self.suspect.set(Some(sequence));
        let why = format!(
            "what {from} sends to {to} is not taken: its number {sequence} was another message before. Is its log an older copy? \
             The sender is asked again every {} s",
            AGAIN.as_secs()
        );
        if self.standing.raise(&self.trouble(), why) {
            tracing::error!(
                target: TARGET, %from, %to, sequence,
                "sends another message under a number that was taken: is its log an older copy? Nothing is taken until it is not",
            );
        }
        self.let_go();
    }

    fn trouble(&self) -> String {
        format!("{} to {}", self.from, self.to)
    }

    fn dispatch(self: &Rc<Self>, sequence: u64, mut envelope: Envelope, settle: Settle) {
        passes!("inbox", envelope.name, envelope.id, envelope.correlation);
        self.last.set(sequence);
        self.trail.borrow_mut().passed(sequence, envelope.id);
        self.unsettled.borrow_mut().insert(sequence);
        let bytes = envelope.payload.len();
        self.bytes.set(self.bytes.get() + bytes);
        self.track.opened(sequence);
        let arrival = DedupKey::Sequence {
            source: Rc::clone(&self.track.source),
            sequence,
            tracker: Rc::clone(&self.track) as Rc<dyn SequenceTracker>,
        };
        let (door, work) = (self.doors)(&mut envelope);
        let gate = Rc::clone(self);
        let settled = Box::new(move |outcome: Outcome| match outcome {
            Outcome::Done(..) | Outcome::DeadLetter(_) => {
                gate.unsettled.borrow_mut().remove(&sequence);
                gate.bytes.set(gate.bytes.get() - bytes);
                (gate.committed)(&gate);
                settle(AckOutcome::Ack);
            }
            // The shard is to be opened again, or the node stops: the sender keeps it and sends it again. Whatever else may be
            // said, nothing of it is committed.
            _ => settle(AckOutcome::Retry),
        });
        door.deliver(Delivery::new(work, envelope, arrival, settled));
    }
}

fn sequence_of(entry: &Envelope) -> u64 {
    entry.origin.as_ref().map_or(0, |origin| origin.sequence)
}

#[cfg(test)]
mod tests;
