//! What the intake has in its hands: messages that are with the node, what is being done, and what is to be written.
//!
//! Used by the intake alone. A message may hold several envelopes; it is acknowledged when the last of them is settled.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use async_nats::{HeaderMap, Message, Subject};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::consumer_setup::ConsumerState;
use super::decode;
use super::jetstream::Incarnation;
use super::json_request::Names;
use crate::bridge::{AckOutcome, BridgeError, Response};

/// A message that a node did not take comes again after this time, doubled each time up to [`MAX_REDELIVERY_DELAY`].
const MIN_REDELIVERY_DELAY: Duration = Duration::from_millis(50);
const MAX_REDELIVERY_DELAY: Duration = Duration::from_secs(5);

/// A message that is with the node or waits for it.
pub(super) struct ReceivedMessage {
    /// The lane it came by.
    pub(super) consumer: usize,
    /// Where its acknowledgement goes.
    pub(super) ack_subject: Subject,
    /// When the server heard of it last.
    pub(super) extended_at: Instant,
    /// How many of its envelopes are not settled. A message that is not read yet counts as one.
    pub(super) remaining: usize,
    /// One of them shall come again, and so all of them do.
    pub(super) redeliver: bool,
}

/// What is to be written: acknowledgements, answers, requests.
pub(super) struct OutboundMessage {
    pub(super) subject: Subject,
    pub(super) reply: Option<Subject>,
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
}

impl OutboundMessage {
    pub(super) fn acknowledgement(subject: Subject, word: impl Into<Bytes>) -> Self {
        Self { subject, reply: None, headers: HeaderMap::new(), payload: word.into() }
    }
}

/// Where an answer goes, and in which form.
pub(super) struct RequestContext {
    pub(super) reply: Subject,
    /// It is a page of messages.
    pub(super) is_page: bool,
    /// The question was in JSON, and so is the answer: the events behind this position that have such names.
    pub(super) json: Option<(u64, Names)>,
}

pub(super) enum Completed {
    Handled(u64, AckOutcome),
    /// No handler exists here, and why.
    Unhandled(u64, Box<Message>, String),
    /// A refused message was copied to the refused stream, or was not.
    CopiedToRefused(u64, Result<(), BridgeError>),
    /// The answer to a question.
    Responded(RequestContext, Response),
    /// The state of a lane's consumer, and whether it has left messages behind.
    Inspected(usize, Result<ConsumerState, BridgeError>, bool),
    /// A lane, or none for the streams that are only written to.
    Checked(Option<usize>, Result<Option<Incarnation>, BridgeError>),
}

/// What is under way.
#[derive(Default)]
pub(super) struct InFlightMessages {
    pub(super) tasks: FuturesUnordered<BoxFuture<'static, Completed>>,
    pub(super) messages: BTreeMap<u64, ReceivedMessage>,
    pub(super) next_number: u64,
    /// How many messages are with the node, of all lanes.
    pub(super) handling: usize,
    /// How many questions for a page of messages are being answered.
    pub(super) pages: usize,
    /// How many questions are. Counted apart: however many wait for their answer, messages go on.
    pub(super) requests: usize,
    pub(super) outgoing: VecDeque<OutboundMessage>,
    /// How many streams are still to be looked at before the node hears that the connection is back.
    pub(super) pending_checks: usize,
    /// The connection was lost, or a stream or consumer was, and is back: the node must hear of it.
    pub(super) reconnect_pending: bool,
    /// When the streams that are only written to are looked at, because one is missing.
    pub(super) check_write_only_at: Option<Instant>,
    /// When the server must hear of what is in hand.
    pub(super) extend_at: Option<Instant>,
    /// The lane that was served last.
    pub(super) last_served: usize,
}

impl InFlightMessages {
    /// One envelope of a message is settled; with the last of them the message is acknowledged, or asked for again.
    pub(super) fn complete(&mut self, number: u64, again: bool) {
        let Some(in_hand) = self.messages.get_mut(&number) else { return };
        in_hand.redeliver |= again;
        in_hand.remaining -= 1;
        if in_hand.remaining > 0 {
            return;
        }
        let Some(in_hand) = self.messages.remove(&number) else { return };
        let word = if in_hand.redeliver { nak_with_delay(&in_hand.ack_subject) } else { Bytes::from_static(b"+ACK") };
        self.outgoing.push_back(OutboundMessage::acknowledgement(in_hand.ack_subject, word));
    }
}

/// Asks for a message again after a while; the more often it came, the longer.
fn nak_with_delay(reply: &Subject) -> Bytes {
    let doubled = decode::delivery_numbers(reply).0.saturating_sub(1).min(10);
    let delay = MIN_REDELIVERY_DELAY.saturating_mul(1 << doubled).min(MAX_REDELIVERY_DELAY);
    Bytes::from(format!("-NAK {{\"delay\":{}}}", delay.as_nanos()))
}
