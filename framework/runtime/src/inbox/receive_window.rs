//! Receive window: messages that one shard sends to another, admitted in order.
//!
//! Created by the node's thread for each pair of shards. A message that arrives early is held, and the missing ones
//! are requested from the sender's outbox. A sequence that arrives again with another id may be forged or mean that
//! the sender's log was restored from an older backup: only the sender's log decides, and until it has answered, live
//! messages are refused.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::reorder_buffer::ReorderBuffer;
use super::{HealthIssues, QueuedBytes, RecentIds, WatermarkTracker};
use crate::router::{Action, ActorEndpoint, DedupKey, Delivery, Outcome, SequenceTracker};
use whizbang_core::bridge::AckOutcome;
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, ShardId};
use whizbang_core::store::{Source, SourceKind, Watermark};
use whizbang_core::telemetry::{Counts, TARGET, passes};

/// Most messages dispatched and not settled.
const IN_FLIGHT: usize = 1024;
/// Most payload bytes dispatched and not settled; a single message may exceed them.
const MAX_BYTES: usize = 16 << 20;
/// Shortest interval between requests to a sender about conflicting messages.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which a sender with a diverged log is asked again.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Callback, called once with the outcome of a message.
type Settle = Box<dyn FnOnce(AckOutcome)>;
/// Finds the endpoint of a message, and the action to perform there. `None` if the message waits for another node.
pub(crate) type EndpointLookup = Rc<dyn Fn(&mut Envelope) -> Option<(Rc<dyn ActorEndpoint>, Action)>>;
/// Starts requesting from the sender, until [`missing_range`](ReceiveWindow::missing_range) is `None`.
pub(crate) type RequestMissing = Rc<dyn Fn(&Rc<ReceiveWindow>)>;
/// Called when more messages are committed.
pub(crate) type Committed = Rc<dyn Fn(&ReceiveWindow)>;

/// Parts of the thread that all of its windows share.
#[derive(Clone)]
pub(crate) struct WindowContext {
    /// The counters of the node.
    pub(crate) counts: Arc<Counts>,
    /// The health of the node: a diverged sender is listed there.
    pub(crate) issues: Arc<HealthIssues>,
    /// The memory that waiting messages of the thread occupy.
    pub(crate) queued: Rc<QueuedBytes>,
}

/// Range of the sender's outbox to be requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MissingRange {
    /// Entries above this sequence.
    pub(crate) after: u64,
    /// Sequence with conflicting messages; `None` if missing messages are requested.
    conflicting: Option<u64>,
    /// Buffer mark that separates messages held before the request from later ones.
    mark: u64,
}

/// Messages that one shard sends to another, admitted in order. Sequences are contiguous, so every duplicate and
/// every gap is detected.
///
/// A message is *dispatched* to its actor, then *appended* with a turn, then *settled* when that turn is committed or the message
/// was refused. Three numbers follow from it: `last` (dispatched), the tracker's watermark (appended), [`through`](Self::through)
/// (settled).
pub(crate) struct ReceiveWindow {
    /// The sending shard.
    pub(crate) from: ShardId,
    /// The receiving shard, which is open on this thread.
    pub(crate) to: ShardId,
    /// The messages that are dispatched and not appended.
    tracker: Rc<WatermarkTracker>,
    /// The last sequence dispatched.
    last: Rc<Cell<u64>>,
    /// The sequences that are dispatched and not settled, at most [`IN_FLIGHT`].
    unsettled: RefCell<BTreeSet<u64>>,
    /// Payload bytes dispatched and not settled.
    bytes: Cell<usize>,
    /// Messages that arrived before the ones in front of them.
    held: RefCell<ReorderBuffer<Settle>>,
    /// One task is requesting from the sender.
    is_requesting: Cell<bool>,
    /// Finds the actor type of a message.
    endpoints: EndpointLookup,
    /// Starts the task that asks the sender.
    request_missing: RequestMissing,
    /// Confirms progress to the sender.
    committed: Committed,
    /// Counters, health and memory of the thread.
    context: WindowContext,
    /// The ids at the last sequences, which distinguish a duplicate from another message under the same sequence.
    recent_ids: RefCell<RecentIds>,
    /// Sequence that arrived with two ids. Until the sender has answered which one it sent, only its log is read:
    /// live messages may be of a diverged log.
    suspect: Cell<Option<u64>>,
    /// Messages were refused during the conflict.
    refused_live: Cell<bool>,
    /// The sender reports having sent messages that did not arrive.
    sender_is_ahead: Cell<bool>,
    /// The sender's log has diverged: nothing is admitted until it matches again.
    diverged: Cell<bool>,
    /// The receiving shard was closed or is reopened: nothing is admitted here.
    closed: Cell<bool>,
    /// Earliest time of the next request about a conflict.
    next_check: Cell<Option<Instant>>,
    /// Notified when the sender sends something while its log is diverged.
    activity: Notify,
}

impl ReceiveWindow {
    /// Creates a window that continues behind the stored watermark.
    pub(crate) fn new(
        (from, to): (ShardId, ShardId),
        watermark: u64,
        endpoints: EndpointLookup,
        request_missing: RequestMissing,
        committed: Committed,
        context: WindowContext,
    ) -> Rc<Self> {
        let source = Rc::new(Source { shard: from.clone(), kind: SourceKind::Direct });
        let last = Rc::new(Cell::new(watermark));
        Rc::new(Self {
            from,
            to,
            tracker: WatermarkTracker::new(source, Rc::clone(&last), watermark),
            last,
            unsettled: RefCell::default(),
            bytes: Cell::new(0),
            held: RefCell::default(),
            is_requesting: Cell::new(false),
            endpoints,
            request_missing,
            committed,
            context,
            recent_ids: RefCell::default(),
            suspect: Cell::new(None),
            refused_live: Cell::new(false),
            sender_is_ahead: Cell::new(false),
            diverged: Cell::new(false),
            closed: Cell::new(false),
            next_check: Cell::new(None),
            activity: Notify::new(),
        })
    }

    /// Returns the sequence up to which everything is committed.
    pub(crate) fn through(&self) -> u64 {
        match self.unsettled.borrow().first() {
            Some(first) => first.saturating_sub(1),
            None => self.last.get(),
        }
    }

    /// Returns the watermark up to which everything is appended, if the store does not know it yet. It counts as
    /// stored from now on.
    pub(crate) fn unstored(&self) -> Option<Watermark> {
        let through = self.tracker.unstored()?;
        self.tracker.set_stored(through);
        Some(Watermark { source: Source::clone(&self.tracker.source), through })
    }

    /// Returns whether nothing is in flight, held or missing, and the store knows the watermark.
    pub(crate) fn is_idle(&self) -> bool {
        self.has_none_in_flight()
            && self.missing_range().is_none()
            && self.held.borrow().is_empty()
            && self.tracker.unstored().is_none()
    }

    /// Returns whether no message is dispatched and not settled.
    pub(crate) fn has_none_in_flight(&self) -> bool {
        self.unsettled.borrow().is_empty()
    }

    /// Refuses the held messages, so that they are sent again. Needed on shutdown, which must not wait for messages
    /// that may never arrive.
    pub(crate) fn release_held(&self) {
        let held = self.held.borrow_mut().take();
        held.for_each(|(_, settle)| settle(AckOutcome::Retry));
    }

    /// Closes the window for good: its shard was closed, and an opened one gets a new window.
    pub(crate) fn close(&self) {
        self.closed.set(true);
        if self.diverged.get() {
            // The next window finds out by itself.
            self.context.issues.resolve(&self.issue());
        }
        self.release_held();
    }

    /// Admits a message that arrived.
    pub(crate) fn admit(self: &Rc<Self>, envelope: Envelope, settle: Settle) {
        if self.closed.get() {
            return settle(AckOutcome::Retry);
        }
        let Some(sequence) = envelope.origin.as_ref().map(|origin| origin.sequence) else {
            return settle(AckOutcome::Ack);
        };
        let last = self.last.get();
        if self.diverged.get() {
            self.activity.notify_one();
            return settle(AckOutcome::Retry);
        }
        if sequence <= last {
            if self.recent_ids.borrow().matches(sequence, envelope.id) == Some(false) {
                self.reject_conflicting(sequence);
                // The message that the sender really sent stays in its outbox.
                return settle(AckOutcome::Ack);
            }
            self.context.counts.duplicates.one();
            if self.unsettled.borrow().contains(&sequence) {
                return settle(AckOutcome::Retry);
            }
            // The sender does not know that it is committed, or it would not have sent it again.
            (self.committed)(self);
            return settle(AckOutcome::Ack);
        }
        if self.suspect.get().is_some() {
            self.refused_live.set(true);
            self.start_requesting();
            return settle(AckOutcome::Retry);
        }
        if !self.has_capacity() {
            return settle(AckOutcome::Retry);
        }
        if sequence == last + 1 {
            if self.dispatch(sequence, envelope, settle) {
                self.drain();
            }
            return;
        }
        let unkept = self.held.borrow_mut().keep(sequence, envelope, settle);
        if let Some(settle) = unkept {
            settle(AckOutcome::Retry);
        }
        if !self.is_requesting.get() {
            self.context.counts.gaps.one();
            tracing::debug!(target: TARGET, from = %self.from, to = %self.to, last, sequence, "gap detected: requesting missing messages from the sender");
            self.start_requesting();
        }
    }

    /// Handles the sender's report that it has sent everything up to `through`: missing messages are requested.
    pub(crate) fn note_sent(self: &Rc<Self>, through: u64) {
        let last = self.last.get();
        if through > last && !self.diverged.get() && !self.is_requesting.get() {
            tracing::debug!(target: TARGET, from = %self.from, to = %self.to, last, through, "requesting messages that did not arrive");
            self.sender_is_ahead.set(true);
            self.start_requesting();
        }
    }

    /// Records that the sender did not answer. It repeats its report; held messages are requested regardless.
    pub(crate) fn request_failed(&self) {
        self.sender_is_ahead.set(false);
    }

    /// Returns whether one more message may be dispatched. A refused one stays in its sender's outbox. A window without
    /// messages in flight may always dispatch one, so that others on this thread do not hold it up forever.
    fn has_capacity(&self) -> bool {
        let in_flight = self.unsettled.borrow().len();
        let is_first = in_flight == 0;
        in_flight < IN_FLIGHT && self.bytes.get() < MAX_BYTES && (is_first || self.context.queued.has_capacity())
    }

    /// Dispatches held messages that are next.
    fn drain(self: &Rc<Self>) {
        loop {
            // Held messages are above the last dispatched one, so only the next one qualifies.
            let next = self.held.borrow_mut().pop_through(self.last.get() + 1);
            let Some((sequence, envelope, settle)) = next else { break };
            if !self.dispatch(sequence, envelope, settle) {
                break;
            }
        }
    }

    /// Drops a message whose sequence was dispatched with another id, and has the sender's log checked: the log
    /// decides, not the sender of the message.
    fn reject_conflicting(self: &Rc<Self>, sequence: u64) {
        self.context.counts.commands_dropped.one();
        let (from, to) = (&self.from, &self.to);
        tracing::debug!(target: TARGET, %from, %to, sequence, "message dropped: it differs from the one dispatched under this sequence");
        self.suspect.set(Some(sequence));
        self.start_requesting();
    }

    /// Starts to ask the sender, unless a task does already.
    fn start_requesting(self: &Rc<Self>) {
        if !self.is_requesting.replace(true) {
            (self.request_missing)(self);
        }
    }

    /// Returns what to request from the sender now; `None` ends the requests.
    pub(crate) fn missing_range(&self) -> Option<MissingRange> {
        if self.closed.get() {
            return None;
        }
        let (last, mark) = (self.last.get(), self.held.borrow().mark());
        if let Some(sequence) = self.suspect.get() {
            return Some(MissingRange { after: sequence.saturating_sub(1), conflicting: Some(sequence), mark });
        }
        let lacks = self.refused_live.get() || self.sender_is_ahead.get() || !self.held.borrow().is_empty();
        lacks.then_some(MissingRange { after: last, conflicting: None, mark })
    }

    /// Records that requesting has ended.
    pub(crate) fn end_requests(&self) {
        self.is_requesting.set(false);
    }

    /// Waits until the sender may be asked. Requests about conflicts are sent at a bounded rate.
    pub(crate) async fn wait_to_request(&self, question: &MissingRange) {
        if question.conflicting.is_none() {
            return;
        }
        if self.diverged.get() {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let _ = tokio::time::timeout(RECHECK_INTERVAL, self.activity.notified()).await;
        } else if let Some(at) = self.next_check.get() {
            tokio::time::sleep_until(at).await;
        }
        self.next_check.set(Some(instant() + CHECK_INTERVAL));
    }

    /// Applies the sender's response: entries of its log in order, and the last sequence that it has sent here.
    /// Returns whether to request again at once.
    pub(crate) fn answered(self: &Rc<Self>, question: MissingRange, entries: Vec<Envelope>, head: u64) -> bool {
        if self.closed.get() {
            return false;
        }
        if let Some(sequence) = question.conflicting {
            let there = entries.first().filter(|entry| sequence_of(entry) == sequence);
            let known = there.and_then(|entry| self.recent_ids.borrow().matches(sequence, entry.id));
            if head < sequence || known == Some(false) {
                self.report_divergence(sequence);
            } else {
                self.confirmed(sequence);
            }
            return true;
        }
        let last = self.last.get();
        self.refused_live.set(false);
        let was_ahead = self.sender_is_ahead.replace(false);
        for entry in entries {
            let sequence = sequence_of(&entry);
            let other = self.held.borrow_mut().remove_conflicting(sequence, entry.id);
            self.ack_forged(other);
            let is_next = sequence == self.last.get() + 1 && self.has_capacity();
            if is_next && !self.dispatch(sequence, entry, Box::new(|_| {})) {
                break;
            }
        }
        let above = self.held.borrow_mut().remove_above(head, question.mark);
        self.ack_forged(above);
        self.drain();
        // More than one page may be missing.
        self.sender_is_ahead.set(was_ahead && self.last.get() > last && self.last.get() < head);
        self.last.get() > last || self.suspect.get().is_some()
    }

    /// Acknowledges held messages that the sender's log contradicts, which drops them.
    fn ack_forged(&self, forged: impl IntoIterator<Item = Settle>) {
        for settle in forged {
            self.context.counts.commands_dropped.one();
            settle(AckOutcome::Ack);
        }
    }

    /// Records that the sender's log contains the dispatched message under this sequence.
    fn confirmed(&self, sequence: u64) {
        if self.suspect.get() == Some(sequence) {
            self.suspect.set(None);
            // Messages that arrived during the conflict were refused.
            self.refused_live.set(true);
        }
        if self.diverged.replace(false) {
            self.context.issues.resolve(&self.issue());
            tracing::info!(target: TARGET, from = %self.from, to = %self.to, "sender log matches again: resuming");
        }
    }

    /// Stops admitting: the sender's log contains another message under a dispatched sequence, so it was restored
    /// from an older backup. Dropped as duplicates, its messages would be lost; so they stay in its outbox, health
    /// reports it, and the sender is asked again.
    fn report_divergence(&self, sequence: u64) {
        let (from, to) = (&self.from, &self.to);
        self.diverged.set(true);
        self.suspect.set(Some(sequence));
        let why = format!(
            "messages from {from} to {to} are not handled: sequence {sequence} was a different message before. Is the sender's log an older copy? \
             The sender is asked again every {} s",
            RECHECK_INTERVAL.as_secs()
        );
        if self.context.issues.raise(&self.issue(), why) {
            tracing::error!(
                target: TARGET, %from, %to, sequence,
                "sender log diverged: is it an older copy? Messages are not handled until it matches again",
            );
        }
        self.release_held();
    }

    fn issue(&self) -> String {
        format!("{} to {}", self.from, self.to)
    }

    /// Dispatches the next message. Returns false if it waits for another node: it is refused, and the window stays before it.
    fn dispatch(self: &Rc<Self>, sequence: u64, mut envelope: Envelope, settle: Settle) -> bool {
        let id = envelope.id;
        let Some((endpoint, work)) = (self.endpoints)(&mut envelope) else {
            settle(AckOutcome::Retry);
            return false;
        };
        passes!("inbox", envelope.name, envelope.id, envelope.correlation);
        self.last.set(sequence);
        self.recent_ids.borrow_mut().record(sequence, id);
        self.unsettled.borrow_mut().insert(sequence);
        let bytes = envelope.payload.len();
        self.bytes.set(self.bytes.get() + bytes);
        self.tracker.mark_dispatched(sequence);
        let arrival = DedupKey::Sequence {
            source: Rc::clone(&self.tracker.source),
            sequence,
            tracker: Rc::clone(&self.tracker) as Rc<dyn SequenceTracker>,
        };
        let window = Rc::clone(self);
        let settled = Box::new(move |outcome: Outcome| match outcome {
            Outcome::Done(..) | Outcome::DeadLetter(_) => {
                window.unsettled.borrow_mut().remove(&sequence);
                window.bytes.set(window.bytes.get() - bytes);
                (window.committed)(&window);
                settle(AckOutcome::Ack);
            }
            // The shard is being reopened, or the node is shutting down: the sender keeps the message and sends it
            // again. No other outcome commits it either.
            _ => settle(AckOutcome::Retry),
        });
        endpoint.deliver(Delivery::new(work, envelope, arrival, settled));
        true
    }
}

fn sequence_of(entry: &Envelope) -> u64 {
    entry.origin.as_ref().map_or(0, |origin| origin.sequence)
}

#[cfg(test)]
mod tests;
