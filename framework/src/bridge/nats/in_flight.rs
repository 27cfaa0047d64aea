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

use super::consumers::ConsumerState;
use super::decode;
use super::foreign::Names;
use super::jetstream::Incarnation;
use crate::bridge::{AckOutcome, BridgeError, Response};

/// A message that a node did not take comes again after this time, doubled each time up to [`LATEST`].
const SOONEST: Duration = Duration::from_millis(50);
const LATEST: Duration = Duration::from_secs(5);

/// A message that is with the node or waits for it.
pub(super) struct InHand {
    /// The lane it came by.
    pub(super) lane: usize,
    /// Where its acknowledgement goes.
    pub(super) reply: Subject,
    /// When the server heard of it last.
    pub(super) since: Instant,
    /// How many of its envelopes are not settled. A message that is not read yet counts as one.
    pub(super) open: usize,
    /// One of them shall come again, and so all of them do.
    pub(super) again: bool,
}

/// What is to be written: acknowledgements, answers, requests.
pub(super) struct PendingMessage {
    pub(super) subject: Subject,
    pub(super) reply: Option<Subject>,
    pub(super) headers: HeaderMap,
    pub(super) payload: Bytes,
}

impl PendingMessage {
    pub(super) fn word(subject: Subject, word: impl Into<Bytes>) -> Self {
        Self { subject, reply: None, headers: HeaderMap::new(), payload: word.into() }
    }
}

/// Where an answer goes, and in which form.
pub(super) struct Return {
    pub(super) reply: Subject,
    /// It is a page of messages.
    pub(super) is_page: bool,
    /// The question was in JSON, and so is the answer: the events behind this position that have such names.
    pub(super) json: Option<(u64, Names)>,
}

pub(super) enum Done {
    Settled(u64, AckOutcome),
    /// No handler exists here, and why.
    Unwanted(u64, Box<Message>, String),
    /// A refused message was copied to the refused stream, or was not.
    PutAside(u64, Result<(), BridgeError>),
    /// The answer to a question.
    Answered(Return, Response),
    /// The state of a lane's consumer, and whether it has left messages behind.
    Looked(usize, Result<ConsumerState, BridgeError>, bool),
    /// A lane, or none for the streams that are only written to.
    Checked(Option<usize>, Result<Option<Incarnation>, BridgeError>),
}

/// What is under way.
#[derive(Default)]
pub(super) struct InFlightMessages {
    pub(super) doing: FuturesUnordered<BoxFuture<'static, Done>>,
    pub(super) in_hand: BTreeMap<u64, InHand>,
    pub(super) next: u64,
    /// How many messages are with the node, of all lanes.
    pub(super) busy: usize,
    /// How many questions for a page of messages are being answered.
    pub(super) pages: usize,
    /// How many questions are. Counted apart: however many wait for their answer, messages go on.
    pub(super) asked: usize,
    pub(super) letters: VecDeque<PendingMessage>,
    /// How many streams are still to be looked at before the node hears that the connection is back.
    pub(super) unchecked: usize,
    /// The connection was lost, or a stream or consumer was, and is back: the node must hear of it.
    pub(super) news: bool,
    /// When the streams that are only written to are looked at, because one is missing.
    pub(super) look: Option<Instant>,
    /// When the server must hear of what is in hand.
    pub(super) keep: Option<Instant>,
    /// The lane that was served last.
    pub(super) turn: usize,
}

impl InFlightMessages {
    /// One envelope of a message is settled; with the last of them the message is acknowledged, or asked for again.
    pub(super) fn settled(&mut self, number: u64, again: bool) {
        let Some(in_hand) = self.in_hand.get_mut(&number) else { return };
        in_hand.again |= again;
        in_hand.open -= 1;
        if in_hand.open > 0 {
            return;
        }
        let Some(in_hand) = self.in_hand.remove(&number) else { return };
        let word = if in_hand.again { later(&in_hand.reply) } else { Bytes::from_static(b"+ACK") };
        self.letters.push_back(PendingMessage::word(in_hand.reply, word));
    }
}

/// Asks for a message again after a while; the more often it came, the longer.
fn later(reply: &Subject) -> Bytes {
    let doubled = decode::numbers(reply).0.saturating_sub(1).min(10);
    let delay = SOONEST.saturating_mul(1 << doubled).min(LATEST);
    Bytes::from(format!("-NAK {{\"delay\":{}}}", delay.as_nanos()))
}
