//! One stream's messages on their way to the door: what was asked for, what has come, what is in hand.
//!
//! Used by the intake. Pulls in requests of a size; the server tells which of them it has given up. Nothing is polled: a
//! request waits at the server until there is something.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, Subject};
use tokio::time::Instant;

use super::consumer_setup::ConsumerState;
use super::decode;
use super::jetstream::Incarnation;
use super::streams::StreamSource;
use crate::clock::monotonic;
use crate::message::Envelope;

/// How long a request waits at the server for messages. A consumer that delivers nothing for two of them is looked at.
const PULL_EXPIRY: Duration = Duration::from_secs(15);
/// A request that the server has not ended this long after it expired is forgotten: it was lost on the way.
const PULL_GRACE: Duration = Duration::from_secs(5);
/// The most messages of one request.
const MAX_BATCH: usize = 512;
/// After a request was turned down, and after a stream was not found, the next try waits; doubled each time up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
/// A stream that was deleted is made again after this time. The server (seen in 2.9.10) answers before it has removed the
/// files; made at once, the new stream loses its folder with the old one and stores nothing until the server restarts.
pub(super) const DELETION_GRACE: Duration = Duration::from_secs(1);

/// Whether a lane can be pulled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ConsumerStatus {
    Open,
    /// Stream or consumer are being looked at.
    Checking,
    /// Stream or consumer are missing; they are looked for again then.
    Missing(Instant),
}

pub(super) struct PullConsumer {
    pub(super) source: Arc<StreamSource>,
    /// Where messages come to.
    pub(super) inbox: Subject,
    /// Where requests for them go.
    pub(super) pull_subject: Subject,
    /// The stream as it was when it was looked at last.
    incarnation: Incarnation,
    pub(super) status: ConsumerStatus,
    /// What has come and was not handed over yet: the number in hand, and the message.
    pub(super) received: VecDeque<(u64, Message)>,
    /// What has been read and was not handed over yet, before what waits: the number in hand, the envelope, and the message if
    /// it holds nothing else.
    pub(super) decoded: VecDeque<(u64, Envelope, Option<Message>)>,
    /// Requests at the server, oldest first: messages still to come, and when it ends at the latest.
    pulls: VecDeque<(usize, Instant)>,
    /// No request before then.
    paused_until: Option<Instant>,
    backoff: Duration,
    /// Messages of this lane that are with the node. Each lane has a window of its own, so that one whose messages wait, for a
    /// slow job or behind a gap, leaves the others their room.
    pub(super) handling: usize,
    /// A request expired and nothing came since the one before: the consumer should be looked at.
    pub(super) is_suspect: bool,
    /// Nothing has come since the last request expired.
    is_silent: bool,
    /// What the consumer looked like when it was suspected last.
    suspect_state: Option<ConsumerState>,
    /// The stream did not exist when it was looked for last.
    absent: bool,
}

/// The most messages of one lane that are with the node.
pub(super) const MAX_HANDLING: usize = 1024;

impl PullConsumer {
    /// A lane of a stream that was found, or is still to be.
    pub(super) fn new(source: StreamSource, inbox: Subject, incarnation: Option<Incarnation>) -> Self {
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
            decoded: VecDeque::new(),
            pulls: VecDeque::new(),
            paused_until: None,
            backoff: MIN_BACKOFF,
            handling: 0,
            is_suspect: false,
            is_silent: false,
            suspect_state: None,
            absent: false,
        }
    }

    /// Whether everything that has come was handed over.
    pub(super) fn is_empty(&self) -> bool {
        self.received.is_empty() && self.decoded.is_empty()
    }

    /// How many messages were asked for and have not come.
    pub(super) fn outstanding(&self) -> usize {
        self.pulls.iter().map(|(count, _)| count).sum()
    }

    /// How many messages to ask for now, given the node's room; none if enough are under way.
    pub(super) fn pull_size(&mut self, room: usize, now: Instant) -> Option<usize> {
        while self.pulls.front().is_some_and(|(_, end)| *end <= now) {
            self.pulls.pop_front();
        }
        if self.status != ConsumerStatus::Open || !self.is_empty() || self.paused_until.is_some_and(|until| until > now)
        {
            return None;
        }
        let enough = room.min(MAX_BATCH).min(MAX_HANDLING.saturating_sub(self.handling));
        let asked = self.outstanding();
        // Asked for again at half, so that messages come without a pause and not one by one.
        (enough > 0 && asked <= enough / 2).then(|| enough - asked)
    }

    /// Notes a request, and gives back its body.
    pub(super) fn start_pull(&mut self, count: usize, now: Instant) -> String {
        self.pulls.push_back((count, now + PULL_EXPIRY + PULL_GRACE));
        format!("{{\"batch\":{count},\"expires\":{}}}", PULL_EXPIRY.as_nanos())
    }

    /// A message has come: the oldest request has one less to bring.
    pub(super) fn receive(&mut self, number: u64, message: Message) {
        self.backoff = MIN_BACKOFF;
        (self.is_silent, self.is_suspect, self.suspect_state) = (false, false, None);
        let (_, in_stream) = decode::delivery_numbers(message.reply.as_deref().unwrap_or_default());
        self.incarnation.last = self.incarnation.last.max(in_stream);
        if let Some((count, _)) = self.pulls.front_mut() {
            *count -= 1;
            if *count == 0 {
                self.pulls.pop_front();
            }
        }
        self.received.push_back((number, message));
    }

    /// The server says that a request has ended, for what reason.
    pub(super) fn end_pull(&mut self, status: u16, description: &str, now: Instant) {
        match status {
            // A sign of life.
            100 => {}
            // Expired, or nothing there.
            404 | 408 => {
                self.pulls.pop_front();
                self.is_suspect = self.is_silent;
                self.is_silent = true;
            }
            // Nobody listens, or the server says that the consumer is no more.
            503 => self.mark_missing(now),
            409 if description.to_ascii_lowercase().contains("deleted") => self.mark_missing(now),
            // The leader changed, too many requests, too much in hand: again after a while.
            _ => {
                tracing::debug!(stream = self.source.stream, status, description, "a request was turned down");
                self.pulls.pop_front();
                self.paused_until = Some(now + self.backoff);
                self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
            }
        }
    }

    fn mark_missing(&mut self, now: Instant) {
        self.pulls.clear();
        if self.status == ConsumerStatus::Open {
            tracing::warn!(stream = self.source.stream, "stream or consumer are gone; they are looked for");
            self.status = ConsumerStatus::Missing(now + DELETION_GRACE);
        }
    }

    /// Stream or consumer could not be found: looked for again after a while.
    pub(super) fn retry_later(&mut self) {
        self.status = ConsumerStatus::Missing(monotonic() + self.backoff);
        self.backoff = (self.backoff * 2).min(MAX_BACKOFF);
    }

    /// Notes that the stream does not exist. Returns whether that is news.
    pub(super) fn mark_absent(&mut self) -> bool {
        !std::mem::replace(&mut self.absent, true)
    }

    /// Stream and consumer are there.
    pub(super) fn mark_open(&mut self, found: Incarnation) {
        self.absent = false;
        let stream = &self.source.stream;
        if self.incarnation != Incarnation::default() && !self.incarnation.continues(&found) {
            tracing::warn!(stream, "the stream was made anew or has lost its end; what is missing comes from the logs");
        }
        self.incarnation = found;
        self.status = ConsumerStatus::Open;
        self.backoff = MIN_BACKOFF;
        self.paused_until = None;
        // Requests that were under way ended with what was there before.
        self.pulls.clear();
    }

    /// Compares what the consumer says with what it said before, after requests that brought nothing. Returns whether it has
    /// stalled: it owes messages, and twice in a row a request that waited for [`PULL_EXPIRY`] got none of them.
    ///
    /// nats-server 2.9.10 was seen to do this after it was killed under load; it delivered again only once the consumer was
    /// deleted.
    pub(super) fn has_stalled(&mut self, state: ConsumerState) -> bool {
        self.is_suspect = false;
        // What this node has in hand it has not acknowledged either.
        let owes = state.has_outstanding() && self.handling == 0 && self.is_empty();
        let again = self.suspect_state == Some(state) && owes;
        self.suspect_state = owes.then_some(state);
        again
    }

    /// When something must be done for the lane though nothing has come.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        match self.status {
            ConsumerStatus::Open => {
                let end = self.pulls.front().map(|(_, end)| *end);
                end.into_iter().chain(self.paused_until.filter(|until| *until > now)).min()
            }
            ConsumerStatus::Checking => None,
            ConsumerStatus::Missing(again) => Some(again),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::NatsBuilder;
    use super::super::streams;
    use super::*;
    use crate::bridge::NodeCard;
    use crate::message::Name;

    fn lane() -> PullConsumer {
        let bank = Name::new("bank").unwrap();
        let card = NodeCard {
            service: bank.clone(),
            owns: vec![(bank, 1)],
            subscribes: Vec::new(),
            answers: Vec::new(),
            store: None,
        };
        let source = streams::sources(&NatsBuilder::new("nats://host"), &card).remove(0);
        PullConsumer::new(source, "inbox".into(), Some(Incarnation::default()))
    }

    #[test]
    fn a_consumer_is_suspected_after_two_silent_requests() {
        let (mut lane, now) = (lane(), monotonic());
        lane.end_pull(408, "", now);
        assert!(!lane.is_suspect);
        lane.end_pull(408, "", now);
        assert!(lane.is_suspect);
        let message = Message {
            subject: "x".into(),
            reply: Some("$JS.ACK.s.c.1.2.3.4.5".into()),
            payload: Default::default(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        };
        lane.receive(1, message);
        assert!(!lane.is_suspect);
    }

    #[test]
    fn a_consumer_has_stalled_if_it_owes_the_same_twice() {
        let mut lane = lane();
        let owes = ConsumerState { pending: 3, delivered: 7, ..ConsumerState::default() };
        assert!(!lane.has_stalled(owes));
        // It has delivered since.
        assert!(!lane.has_stalled(ConsumerState { delivered: 8, ..owes }));
        assert!(lane.has_stalled(ConsumerState { delivered: 8, ..owes }));
        let idle = ConsumerState { delivered: 8, ..ConsumerState::default() };
        assert!(!lane.has_stalled(idle));
        assert!(!lane.has_stalled(idle));
        // Messages that are with this node are not owed.
        lane.handling = 1;
        assert!(!lane.has_stalled(owes));
        assert!(!lane.has_stalled(owes));
    }
}
