//! The state of the consumer loop: received messages, running tasks, and messages to write.
//!
//! Used by the consumer loop only. A message may contain several envelopes; it is acknowledged when the last one is completed.
//!
//! A number of a message is never used again, so a result that arrives late finds its message or nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::consumer_setup::{ConsumerState, SourceState};
use super::decode;
use super::json_request::Names;
use super::refused_backlog::{RefusedBacklog, RefusedMessage};
use super::sum::Part;
use whizbang_core::bridge::{AckOutcome, BridgeError, Response};

/// The delay before the first redelivery of a message; it doubles up to [`MAX_REDELIVERY_DELAY`].
const MIN_REDELIVERY_DELAY: Duration = Duration::from_millis(50);
/// The longest delay that a node asks for when it cannot handle a message now.
const MAX_REDELIVERY_DELAY: Duration = Duration::from_secs(5);

/// A received message that is not acknowledged yet.
pub(super) struct ReceivedMessage {
    /// The index of the consumer that received it.
    pub(super) consumer: usize,
    /// The subject of its acknowledgement; `None` for a live event, which is not acknowledged.
    pub(super) ack_subject: Option<Subject>,
    /// The time at which its acknowledgement deadline was last extended.
    pub(super) extended_at: Instant,
    /// The number of envelopes that are not completed. A message that is not decoded yet counts as one.
    pub(super) remaining: usize,
    /// At least one envelope needs a redelivery, and therefore all of them.
    pub(super) redeliver: bool,
    /// The time at which the node began to handle it; `None` before, and while it is copied to the refused stream.
    pub(super) handled_since: Option<Instant>,
    /// It waits in the node for long and no longer counts as being handled. The server redelivers it, unless it is in a log or the
    /// node completes it before.
    pub(super) is_released: bool,
    /// Its sender keeps it in a log until this node has committed it, so the server need not.
    pub(super) is_in_log: bool,
    /// Its bytes, which count for its consumer. `None` for a live event, and once it is released.
    pub(super) bytes: Option<Part>,
}

impl ReceivedMessage {
    /// Creates a message that is not decoded yet.
    pub(super) fn new(consumer: usize, ack_subject: Option<Subject>, bytes: Option<Part>, now: Instant) -> Self {
        Self {
            consumer,
            ack_subject,
            extended_at: now,
            remaining: 1,
            redeliver: false,
            handled_since: None,
            is_released: false,
            is_in_log: false,
            bytes,
        }
    }
}

/// A message to write: an acknowledgement, a response or a pull.
///
/// It is written by the consumer loop itself and not by the publisher: an acknowledgement must not wait for commands.
pub(super) struct OutboundMessage {
    /// The subject to write to.
    pub(super) subject: Subject,
    /// The subject to which the server or another node responds; for a pull, the inbox of the consumer.
    pub(super) reply: Option<Subject>,
    /// The headers, which contain all but the payload.
    pub(super) headers: HeaderMap,
    /// The payload.
    pub(super) payload: Bytes,
}

impl OutboundMessage {
    /// Requests the redelivery of a message after the [shortest delay](MIN_REDELIVERY_DELAY).
    pub(super) fn redelivery(ack_subject: Subject) -> Self {
        let payload = nak_with_delay(&ack_subject, MIN_REDELIVERY_DELAY);
        Self::acknowledgement(ack_subject, payload)
    }

    /// Creates a message on the acknowledgement subject of a received one. The payload selects the meaning, such as `+ACK` or
    /// `-NAK`.
    pub(super) fn acknowledgement(subject: Subject, payload: impl Into<Bytes>) -> Self {
        Self { subject, reply: None, headers: HeaderMap::new(), payload: payload.into() }
    }
}

/// The destination and the form of a response.
pub(super) struct RequestContext {
    /// The inbox of the requester, for one response.
    pub(super) reply: Subject,
    /// The response is a page of messages.
    pub(super) is_page: bool,
    /// For a JSON request: the position and the names that it asked for.
    pub(super) json: Option<(u64, Names)>,
}

/// The result of a task of the consumer loop.
pub(super) enum Completed {
    /// The node has handled envelopes of a message.
    Handled {
        /// The number of the message.
        number: u64,
        /// The number of the envelopes.
        count: usize,
        /// The outcome of all of them.
        outcome: AckOutcome,
    },
    /// No handler exists here; with the message and the reason.
    Unhandled(u64, Box<Message>, String),
    /// A refused message was copied to the refused stream, or the copy failed.
    CopiedToRefused(u64, RefusedMessage, Result<(), BridgeError>),
    /// The response to a request.
    Responded(RequestContext, Response),
    /// The state of a consumer, and whether it has left messages behind.
    Inspected(usize, Result<ConsumerState, BridgeError>, bool),
    /// The state of a consumer that does not pull.
    Measured(usize, Result<ConsumerState, BridgeError>),
    /// The check of a consumer, or, with `None`, of the streams that are only written to.
    Checked(Option<usize>, Result<SourceState, BridgeError>),
}

/// The state of the consumer loop.
#[derive(Default)]
pub(super) struct InFlightMessages {
    /// Futures of the node and of the server whose results the loop applies. Their number is bounded by the counters below.
    pub(super) tasks: FuturesUnordered<BoxFuture<'static, Completed>>,
    /// Received messages that are not acknowledged, by number.
    pub(super) messages: BTreeMap<u64, ReceivedMessage>,
    /// The number of the last received message. It is kept after a panic, so that a number is never used twice.
    pub(super) next_number: u64,
    /// The number of messages that the node handles, over all consumers.
    pub(super) handling: usize,
    /// The number of page requests that are being answered.
    pub(super) pages: usize,
    /// The number of requests that are being answered. Counted separately: waiting requests must not block messages.
    pub(super) requests: usize,
    /// Acknowledgements, responses and pulls to write. Not written while the link is down.
    pub(super) outgoing: VecDeque<OutboundMessage>,
    /// The number of checks to complete before the node is notified of the reconnection.
    pub(super) pending_checks: usize,
    /// The connection, a stream or a consumer was lost and is restored: the node must be notified.
    pub(super) reconnect_pending: bool,
    /// The time to check the write-only streams, because one is missing.
    pub(super) check_write_only_at: Option<Instant>,
    /// The time to extend the acknowledgement deadlines.
    pub(super) extend_at: Option<Instant>,
    /// The index of the consumer that was served last.
    pub(super) last_served: usize,
    /// The consumers with messages that are not delivered yet.
    pub(super) ready: BTreeSet<usize>,
    /// The consumers that may have to pull since their last pull, so that a pass over all is not needed for each message.
    pub(super) touched: BTreeSet<usize>,
    /// The earliest time at which a consumer has to act without a message. All of them are touched then.
    pub(super) touch_all_at: Option<Instant>,
    /// The consumers of shards that a later owner has taken.
    pub(super) superseded: Vec<usize>,
    /// The time at which messages that wait in the node are released, because a window is full.
    pub(super) release_at: Option<Instant>,
    /// The number of successive releases, and the time of the last one.
    pub(super) releases: u32,
    /// The moment of the next check for messages that wait in the node for too long. `None` while no limit is reached.
    pub(super) released_at: Option<Instant>,
    /// The refused messages that cannot be copied and wait in their own stream.
    pub(super) refused: RefusedBacklog,
    /// The time to forget refused messages that were removed from their stream.
    pub(super) forget_refused_at: Option<Instant>,
    /// The time to look for gaps, because the client has dropped messages.
    pub(super) find_gaps_at: Option<Instant>,
    /// The disowned shards whose last acknowledgements are not written yet.
    pub(super) disowned: Vec<(oneshot::Sender<Option<Subject>>, Option<Subject>)>,
}

impl InFlightMessages {
    /// Completes envelopes of a message. With the last one, the message is acknowledged or a redelivery is requested.
    pub(super) fn complete(&mut self, number: u64, count: usize, redeliver: bool) {
        let Some(received) = self.messages.get_mut(&number) else { return };
        received.redeliver |= redeliver;
        received.remaining = received.remaining.saturating_sub(count);
        if received.remaining > 0 {
            return;
        }
        let Some(received) = self.messages.remove(&number) else { return };
        let Some(ack_subject) = received.ack_subject else { return };
        if received.is_released && received.is_in_log {
            // It is acknowledged already. If the node has not handled it, its sender notices.
            return;
        }
        let payload = match received.redeliver {
            // The redelivery is requested already.
            true if received.is_released => return,
            true => nak_with_delay(&ack_subject, MIN_REDELIVERY_DELAY),
            false => Bytes::from_static(b"+ACK"),
        };
        self.outgoing.push_back(OutboundMessage::acknowledgement(ack_subject, payload));
    }
}

/// Returns a negative acknowledgement whose delay begins at `first` and grows with the number of deliveries.
pub(super) fn nak_with_delay(ack_subject: &Subject, first: Duration) -> Bytes {
    let doubled = decode::delivery_numbers(ack_subject).deliveries.saturating_sub(1).min(10);
    let delay = first.saturating_mul(1 << doubled).min(MAX_REDELIVERY_DELAY);
    Bytes::from(format!("-NAK {{\"delay\":{}}}", delay.as_nanos()))
}
