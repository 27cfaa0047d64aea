//! The client side of one pull consumer: outstanding pulls, received messages and messages in flight.
//!
//! Used by the consumer loop. A pull requests a number of messages; the server reports the end of a pull that it abandons. The
//! loop does not poll: a pull waits at the server until there are messages.
//!
//! A pull asks for a number of messages and ends at the server after a time, or when the connection is lost. At most one pull
//! of a consumer is open.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, Subject};
use tokio::time::Instant;

use super::consumer_setup::ConsumerState;
use super::decode;
use super::jetstream::Incarnation;
use super::report::OpenIssue;
use super::streams::StreamSource;
use super::sum::{Part, Sum};
use whizbang_core::clock::monotonic;
use whizbang_core::message::Envelope;

/// The time a pull waits at the server. A consumer that delivers nothing for two pulls is inspected.
const PULL_EXPIRY: Duration = Duration::from_secs(15);
/// The time after its expiry at which a pull without a reported end is considered lost.
const PULL_GRACE: Duration = Duration::from_secs(5);
/// The maximum number of messages of one pull.
const MAX_BATCH: usize = 512;
/// The pause after a rejected pull or a missing stream; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
/// The longest pause between two pulls that fail.
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// The delay before a deleted stream is created again. The server (observed with 2.9.10) responds before it has removed the files.
/// A stream that is created earlier loses its folder with the old one and stores nothing until the server restarts.
pub(super) const DELETION_GRACE: Duration = Duration::from_secs(1);

/// The availability of a stream and its consumer.
///
/// A missing stream or consumer leads from `Open` to `Missing`. Each check passes through `Checking`. `Live` never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConsumerStatus {
    /// Both exist, and messages are pulled.
    Open,
    /// The stream and the consumer are being checked.
    Checking,
    /// The stream or the consumer is missing; the next check is due at the given time.
    Missing(Instant),
    /// A live subscription: nothing is pulled.
    Live,
}

/// A decoded message that the node has not received yet, or the rest of it.
pub(super) struct DecodedMessage {
    /// The number of the message.
    pub(super) number: u64,
    /// Its envelopes, in their order.
    pub(super) envelopes: Vec<Envelope>,
    /// The message itself, if it has a single envelope.
    pub(super) message: Option<Message>,
}

/// The state of one consumer: of a stream shared by the nodes of a service, of a leased shard, or of a live subscription.
///
/// Three limits apply: messages at the server for outstanding pulls, received messages that wait for capacity, and messages that
/// the node handles. The first two are bounded by the size of pulls, the third by [`MAX_HANDLING`].
pub(super) struct PullConsumer {
    /// The stream and the consumer at the server.
    pub(super) source: Arc<StreamSource>,
    /// The subject that receives messages.
    pub(super) inbox: Subject,
    /// The subject of pulls.
    pub(super) pull_subject: Subject,
    /// The stream as of the last check.
    incarnation: Incarnation,
    /// The condition of the consumer at the server.
    pub(super) status: ConsumerStatus,
    /// The received messages that are not decoded yet, with their numbers.
    pub(super) received: VecDeque<(u64, Message)>,
    /// The decoded message that is not delivered, or not all of it; it comes before `received`.
    pub(super) decoded: Option<DecodedMessage>,
    /// The pulls at the server, oldest first: the number of messages still to come, and the latest end.
    pulls: VecDeque<(usize, Instant)>,
    /// No pull is made before this time.
    paused_until: Option<Instant>,
    /// The pause after the next rejected pull or failed check. Reset by a message and by a successful check.
    backoff: Duration,
    /// The number of envelopes of this consumer that the node handles. Each consumer has a window of its own, so one with messages
    /// that wait for a slow job or behind a gap leaves capacity to the others.
    pub(super) handling: usize,
    /// The bytes of the messages that are received and not completed.
    pub(super) held: Sum,
    /// The most bytes that it holds. It asks for more while it holds less than half.
    max_held: u64,
    /// The server ended the last pull because the next message has more bytes than were left: the next pull is for this message.
    awaits_large: bool,
    /// A pull expired and no message arrived since the previous one: the consumer should be inspected.
    pub(super) is_suspect: bool,
    /// No message has arrived since the last pull expired.
    is_silent: bool,
    /// The state of the consumer when it was last suspected.
    suspect_state: Option<ConsumerState>,
    /// The report of a stall, until a message is delivered or none is left.
    pub(super) stalled: Option<OpenIssue>,
    /// The report of messages that the consumer has left behind, until an inspection finds none.
    pub(super) left_behind: Option<OpenIssue>,
    /// The stream did not exist at the last check.
    absent: bool,
    /// The subject of an acknowledgement of the consumer.
    pub(super) ack_subject: Option<Subject>,
    /// A pull had no response at all: nats-server 2.9.10 does not respond if the consumer does not exist.
    pub(super) is_unanswered: bool,
    /// The size in bytes of the received messages of a live subscription.
    live_bytes: usize,
    /// A live event was dropped since the queue was full: the node must check for gaps.
    is_lagging: bool,
    /// The messages that wait for it at the server.
    lag: Part,
    /// The time of the last report of the server about them.
    measured_at: Instant,
}

/// The limits of the received events of a live subscription. The node fetches further ones from the logs.
const MAX_LIVE_EVENTS: usize = 4096;
/// The most bytes of live events that wait in memory for one stream. Others are dropped, and read from the owner's log.
const MAX_LIVE_BYTES: usize = 16 << 20;

/// The most bytes of messages that one consumer holds, and the consumers of all leased shards together.
const MAX_HELD_BYTES: u64 = 16 << 20;
/// The least share of a leased shard in [`MAX_HELD_BYTES`]. A larger message is held alone.
const MIN_HELD_BYTES: u64 = 256 << 10;
/// The maximum number of envelopes of one consumer that the node handles at once.
pub(super) const MAX_HANDLING: usize = 1024;

impl PullConsumer {
    /// Creates a consumer of a stream; `None` as incarnation means that the stream is missing.
    pub(super) fn new(source: StreamSource, inbox: Subject, incarnation: Option<Incarnation>, lag: Part) -> Self {
        Self {
            pull_subject: Subject::from(format!("$JS.API.CONSUMER.MSG.NEXT.{}", source.consumer.path)),
            source: Arc::new(source),
            inbox,
            status: if incarnation.is_some() {
                ConsumerStatus::Open
            } else {
                ConsumerStatus::Missing(monotonic() + MIN_BACKOFF)
            },
            incarnation: incarnation.unwrap_or_default(),
            received: VecDeque::new(),
            decoded: None,
            pulls: VecDeque::new(),
            paused_until: None,
            backoff: MIN_BACKOFF,
            handling: 0,
            held: Sum::default(),
            max_held: MAX_HELD_BYTES,
            awaits_large: false,
            is_suspect: false,
            is_silent: false,
            suspect_state: None,
            stalled: None,
            left_behind: None,
            absent: false,
            ack_subject: None,
            is_unanswered: false,
            live_bytes: 0,
            is_lagging: false,
            lag,
            measured_at: monotonic(),
        }
    }

    /// Creates the receiver of a live subscription.
    pub(super) fn live(source: StreamSource) -> Self {
        // Events are pushed to it; none waits at the server.
        let lag = Sum::default().add(0);
        Self { status: ConsumerStatus::Live, ..Self::new(source, Subject::from_static("live"), None, lag) }
    }

    /// Accepts a live event. Returns false if it was dropped since too many are waiting.
    pub(super) fn receive_live(&mut self, number: u64, message: Message) -> bool {
        if self.received.len() >= MAX_LIVE_EVENTS || self.live_bytes + message.length > MAX_LIVE_BYTES {
            if !std::mem::replace(&mut self.is_lagging, true) {
                tracing::warn!(
                    stream = self.source.stream,
                    "slow node: live events dropped, it fetches them from the log"
                );
            }
            return false;
        }
        self.live_bytes += message.length;
        self.received.push_back((number, message));
        true
    }

    /// Removes the next received message, to be decoded.
    pub(super) fn pop_received(&mut self) -> Option<(u64, Message)> {
        let received = self.received.pop_front()?;
        self.live_bytes = self.live_bytes.saturating_sub(received.1.length);
        Some(received)
    }

    /// Removes at most this number of decoded envelopes, in their order.
    pub(super) fn take_decoded(&mut self, most: usize) -> Option<DecodedMessage> {
        let decoded = self.decoded.as_mut()?;
        if decoded.envelopes.len() <= most {
            return self.decoded.take();
        }
        let rest = decoded.envelopes.split_off(most);
        let envelopes = std::mem::replace(&mut decoded.envelopes, rest);
        Some(DecodedMessage { number: decoded.number, envelopes, message: None })
    }

    /// Returns true once after live events were dropped, when there is space again: the node must check for gaps.
    pub(super) fn ends_lag(&mut self) -> bool {
        self.is_lagging && self.received.len() <= MAX_LIVE_EVENTS / 2 && std::mem::take(&mut self.is_lagging)
    }

    /// Drops what was received, after the loop has panicked. The server redelivers it; the node fetches live events from the
    /// logs.
    pub(super) fn restart(&mut self) {
        self.received.clear();
        self.decoded = None;
        self.pulls.clear();
        (self.live_bytes, self.handling) = (0, 0);
        (self.is_suspect, self.is_silent, self.suspect_state) = (false, false, None);
        if self.status == ConsumerStatus::Checking {
            // Its check ended with the loop.
            self.status = ConsumerStatus::Open;
        }
    }

    /// Shares the bytes that a consumer may hold with the consumers of other leased shards.
    pub(super) fn share_bytes(&mut self, shards: usize) {
        let shards = u64::try_from(shards.max(1)).unwrap_or(u64::MAX);
        self.max_held = (MAX_HELD_BYTES / shards).max(MIN_HELD_BYTES);
    }

    /// Returns true if the node handles as much as one consumer may hold.
    pub(super) fn is_full(&self) -> bool {
        self.handling >= MAX_HANDLING || self.held.get() >= self.max_held / 2
    }

    /// Returns true if more than half of the room is taken.
    pub(super) fn is_half_full(&self) -> bool {
        self.handling > MAX_HANDLING / 2 || self.held.get() > self.max_held / 4
    }

    /// Returns true if every received message was delivered.
    pub(super) fn is_empty(&self) -> bool {
        self.received.is_empty() && self.decoded.is_none()
    }

    /// Returns the number of pulled messages that have not arrived.
    pub(super) fn outstanding(&self) -> usize {
        self.pulls.iter().map(|(count, _)| count).sum()
    }

    /// Returns the number of messages to pull now, given the node's capacity; `None` if enough are outstanding.
    pub(super) fn pull_size(&mut self, capacity: usize, now: Instant) -> Option<usize> {
        while self.pulls.front().is_some_and(|(_, end)| *end <= now) {
            self.pulls.pop_front();
            self.is_unanswered = true;
        }
        if self.status != ConsumerStatus::Open || !self.is_empty() || self.paused_until.is_some_and(|until| until > now)
        {
            return None;
        }
        if self.held.get() >= self.max_held / 2 {
            return None;
        }
        if self.awaits_large {
            return (capacity > 0 && self.outstanding() == 0).then_some(1);
        }
        let enough = capacity.min(MAX_BATCH).min(MAX_HANDLING.saturating_sub(self.handling));
        let outstanding = self.outstanding();
        // Pull again at half, so that messages arrive without a pause and not one by one.
        (enough > 0 && outstanding <= enough / 2).then(|| enough - outstanding)
    }

    /// Records a pull and returns its body.
    pub(super) fn start_pull(&mut self, count: usize, now: Instant) -> String {
        self.pulls.push_back((count, now + PULL_EXPIRY + PULL_GRACE));
        let expires = PULL_EXPIRY.as_nanos();
        if self.awaits_large {
            return format!("{{\"batch\":{count},\"expires\":{expires}}}");
        }
        // At most two pulls are open.
        let max_bytes = self.max_held / 4;
        format!("{{\"batch\":{count},\"expires\":{expires},\"max_bytes\":{max_bytes}}}")
    }

    /// Accepts a message, which belongs to the oldest pull.
    pub(super) fn receive(&mut self, number: u64, message: Message, now: Instant) {
        self.backoff = MIN_BACKOFF;
        (self.is_silent, self.is_suspect, self.suspect_state, self.stalled) = (false, false, None, None);
        (self.is_unanswered, self.awaits_large) = (false, false);
        self.ack_subject.clone_from(&message.reply);
        let numbers = decode::delivery_numbers(message.reply.as_deref().unwrap_or_default());
        self.incarnation.last = self.incarnation.last.max(numbers.sequence);
        self.measured(numbers.pending, now);
        if let Some((count, _)) = self.pulls.front_mut() {
            *count -= 1;
            if *count == 0 {
                self.pulls.pop_front();
            }
        }
        self.received.push_back((number, message));
    }

    /// Records the number of messages that wait for the consumer, as the server reports it.
    pub(super) fn measured(&mut self, waiting: u64, now: Instant) {
        self.lag.set(waiting);
        self.measured_at = now;
    }

    /// Returns true if the server should be asked how many messages wait: the node pulls none, so no delivery tells it.
    pub(super) fn should_measure(&mut self, now: Instant) -> bool {
        let is_due = self.measured_at + PULL_EXPIRY <= now && self.is_blocked();
        if is_due {
            self.measured_at = now;
        }
        is_due
    }

    /// The consumer can deliver, and the node asks for nothing, because its own messages or those of others occupy it.
    fn is_blocked(&self) -> bool {
        self.status == ConsumerStatus::Open && self.pulls.is_empty()
    }

    /// Handles the end of a pull as the server reports it.
    pub(super) fn end_pull(&mut self, status: u16, description: &str, now: Instant) {
        match status {
            // An idle heartbeat.
            100 => {}
            // Expired, or no messages.
            404 | 408 => {
                self.pulls.pop_front();
                // A pull waits as long as no messages do.
                self.measured(0, now);
                self.is_suspect = self.is_silent;
                self.is_silent = true;
            }
            // No responders, or the consumer was deleted.
            503 => self.mark_missing(now),
            409 if description.to_ascii_lowercase().contains("deleted") => self.mark_missing(now),
            409 if description.to_ascii_lowercase().contains("maxbytes") => {
                self.pulls.pop_front();
                self.awaits_large = true;
            }
            // The leader changed, too many pulls, or too many unacknowledged messages: retry after a pause.
            _ => {
                tracing::debug!(stream = self.source.stream, status, description, "pull rejected");
                self.pulls.pop_front();
                self.paused_until = Some(now + self.backoff);
                self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
            }
        }
    }

    /// Records that the server has no such stream or consumer. It is checked after [`DELETION_GRACE`], and pulls pause until
    /// then.
    fn mark_missing(&mut self, now: Instant) {
        self.pulls.clear();
        if self.status == ConsumerStatus::Open {
            tracing::warn!(stream = self.source.stream, "stream or consumer missing; checking it");
            self.status = ConsumerStatus::Missing(now + DELETION_GRACE);
        }
    }

    /// Schedules the next check of a missing stream or consumer.
    pub(super) fn retry_later(&mut self) {
        self.status = ConsumerStatus::Missing(monotonic() + self.backoff);
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
    }

    /// Records that the stream does not exist. Returns true if it existed at the last check.
    pub(super) fn mark_absent(&mut self) -> bool {
        !std::mem::replace(&mut self.absent, true)
    }

    /// Records that the stream and the consumer exist.
    pub(super) fn mark_open(&mut self, found: Incarnation) {
        self.absent = false;
        let stream = &self.source.stream;
        // A consumer of a shard begins without having read the state of the stream.
        if !self.incarnation.created.is_empty() && !self.incarnation.continues(&found) {
            tracing::warn!(stream, "the stream was recreated or has lost its end; missing messages come from the logs");
        }
        self.incarnation = found;
        self.is_unanswered = false;
        self.status = ConsumerStatus::Open;
        self.backoff = MIN_BACKOFF;
        self.paused_until = None;
        // Pulls of the previous stream or consumer have ended with it.
        self.pulls.clear();
    }

    /// Compares the state of the consumer with its previous one, after pulls without messages. Returns true if it has stalled: it has
    /// messages, and twice in a row a pull of [`PULL_EXPIRY`] received none of them.
    ///
    /// nats-server 2.9.10 was observed to stall after it was killed under load. It delivered again only after the consumer was
    /// deleted.
    pub(super) fn has_stalled(&mut self, state: ConsumerState) -> bool {
        self.is_suspect = false;
        // Messages in flight on this node are unacknowledged, too.
        let has_outstanding = state.has_outstanding() && self.handling == 0 && self.is_empty();
        // Messages that arrive at a stalled consumer in between only change the number of pending ones.
        let is_same = |before: ConsumerState| ConsumerState { pending: state.pending, ..before } == state;
        let again = self.suspect_state.is_some_and(is_same) && has_outstanding;
        self.suspect_state = has_outstanding.then_some(state);
        again
    }

    /// Returns the time of the next action that does not depend on a message.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        match self.status {
            ConsumerStatus::Open => {
                let end = self.pulls.front().map(|(_, end)| *end);
                let measure = self.is_blocked().then(|| self.measured_at + PULL_EXPIRY);
                end.or(measure).into_iter().chain(self.paused_until.filter(|until| *until > now)).min()
            }
            ConsumerStatus::Checking | ConsumerStatus::Live => None,
            ConsumerStatus::Missing(again) => Some(again),
        }
    }
}

#[cfg(test)]
mod tests;
