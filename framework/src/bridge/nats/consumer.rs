//! What comes in: pulled in batches as large as the node has room for, handed to its door, acknowledged after the commit.
//!
//! One loop, which the bridge's actor owns. Calls the door; writes acknowledgements and answers.
//! What cannot be read, or says otherwise than its subject, is put aside with its reason and never comes again.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, StatusCode, Subject, Subscriber};
use futures_util::stream::{SelectAll, StreamExt};
use futures_util::{FutureExt, Stream};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Report;
use super::connection::{LinkState, round_trip};
use super::decode::{self, excerpt};
use super::headers;
use super::in_flight::{Completed, InFlightMessages, OutboundMessage, ReceivedMessage, RequestContext};
use super::jetstream::{DesiredConfig, JetStream};
use super::json_request;
use super::publisher::PublisherLoop;
use super::pull_consumer::{ConsumerStatus, DELETION_GRACE, MAX_HANDLING, PullConsumer};
use super::streams::StreamContent;
use crate::bridge::subject::Namespace;
use crate::bridge::wire::Packet;
use crate::bridge::{AckOutcome, BridgeError, Inbound, Request, RequestError, Response};
use crate::clock::monotonic;
use crate::message::Name;

/// The most messages being handled at once, and the most questions, whatever room the node says it has.
const MAX_IN_FLIGHT: usize = 4096;
/// The most pages of messages that are read or written at once, as answers to questions. A page has up to the server's
/// `max_payload` bytes (1 MiB by default) and a question for it has forty, so these are bounded by bytes.
const MAX_PAGES: usize = 8;
/// Written bytes after which the intake waits until the client has handed them to the server.
const MAX_UNFLUSHED_BYTES: usize = 4 * 1024 * 1024;
/// A node without room is asked again after this time, or as soon as it has ended something of ours.
const CAPACITY_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Where a message came in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Channel {
    Stream(usize),
    Requests,
    Notifications,
}

/// A subscription that says where its messages came in.
pub(super) struct ChannelSubscriber {
    channel: Channel,
    subscriber: Subscriber,
}

impl ChannelSubscriber {
    pub(super) fn new(gate: Channel, subscriber: Subscriber) -> Self {
        Self { channel: gate, subscriber }
    }
}

impl Stream for ChannelSubscriber {
    type Item = (Channel, Message);

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let gate = self.channel;
        self.subscriber.poll_next_unpin(context).map(|message| message.map(|message| (gate, message)))
    }
}

pub(super) struct ConsumerLoop {
    pub(super) client: Client,
    pub(super) jetstream: JetStream,
    pub(super) namespace: Namespace,
    pub(super) service: Name,
    /// The domains this node owns, with their number of shards.
    pub(super) owns: Vec<(Name, u16)>,
    pub(super) inbound: Arc<dyn Inbound>,
    pub(super) publisher: Arc<PublisherLoop>,
    pub(super) link: watch::Receiver<LinkState>,
    pub(super) ack_wait: Duration,
    pub(super) consumers: Vec<PullConsumer>,
    /// The streams that this node only writes to.
    pub(super) write_only: Arc<Vec<DesiredConfig>>,
    pub(super) subscribers: SelectAll<ChannelSubscriber>,
    pub(super) closing: oneshot::Receiver<()>,
    pub(super) report: Arc<Report>,
}

impl ConsumerLoop {
    /// Takes in until `closing` fires, then ends what it has begun.
    pub(super) async fn run(mut self) {
        let mut hands = InFlightMessages::default();
        let mut epoch = self.link.borrow().epoch;
        loop {
            let now = monotonic();
            let up = self.link.borrow_and_update().up;
            let mut starved = self.deliver_ready(&mut hands);
            if up {
                starved |= self.pull_messages(&mut hands, now);
                self.extend_ack_deadlines(&mut hands, now);
                if hands.check_write_only_at.is_some_and(|look| look <= now) {
                    self.check_write_only(&mut hands);
                }
                self.write_outgoing(&mut hands).await;
            }
            let wake = self.next_wake(&hands, now, starved, up);
            tokio::select! {
                biased;
                _ = &mut self.closing => break,
                changed = self.link.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                Some(done) = hands.tasks.next() => self.complete(&mut hands, done),
                Some((gate, message)) = self.subscribers.next() => self.receive(&mut hands, gate, message),
                () = self.publisher.stream_missing.notified() => {
                    hands.check_write_only_at.get_or_insert(monotonic() + DELETION_GRACE);
                }
                () = sleep_until(wake) => {}
            }
            // What else is there by now, so that room is asked for, and letters are written, once for all of it.
            while let Some(Some(done)) = hands.tasks.next().now_or_never() {
                self.complete(&mut hands, done);
            }
            for _ in 0..MAX_IN_FLIGHT {
                let Some(Some((gate, message))) = self.subscribers.next().now_or_never() else { break };
                self.receive(&mut hands, gate, message);
            }
            let link = *self.link.borrow();
            if link.up && link.epoch != epoch {
                epoch = link.epoch;
                hands.reconnect_pending = true;
                self.check_all(&mut hands);
            }
        }
        self.shut_down(hands).await;
    }

    fn receive(&mut self, hands: &mut InFlightMessages, gate: Channel, message: Message) {
        match gate {
            Channel::Stream(at) => self.receive_message(hands, at, message),
            Channel::Requests => self.receive_request(hands, &message),
            Channel::Notifications => match decode::notification(&self.namespace, &message) {
                Ok(tidings) => self.inbound.notify(tidings),
                Err(error) => tracing::warn!(subject = excerpt(&message.subject), %error, "tidings were dropped"),
            },
        }
    }

    fn receive_message(&mut self, hands: &mut InFlightMessages, at: usize, message: Message) {
        let Some(lane) = self.consumers.get_mut(at) else { return };
        let now = monotonic();
        if let Some(status) = message.status.filter(|status| *status != StatusCode::OK) {
            lane.end_pull(status.as_u16(), message.description.as_deref().unwrap_or_default(), now);
            return;
        }
        // Only JetStream writes here; what cannot be acknowledged did not come from it.
        let Some(reply) = message.reply.clone().filter(|reply| reply.starts_with("$JS.ACK.")) else {
            tracing::warn!(stream = lane.source.stream, "a message that JetStream did not deliver was dropped");
            return;
        };
        hands.next_number += 1;
        hands.messages.insert(
            hands.next_number,
            ReceivedMessage { consumer: at, ack_subject: reply, extended_at: now, remaining: 1, redeliver: false },
        );
        hands.extend_at.get_or_insert(now + self.ack_wait / 3);
        lane.receive(hands.next_number, message);
    }

    fn receive_request(&mut self, hands: &mut InFlightMessages, message: &Message) {
        // An answer goes only where answers are awaited: with this node's rights nobody shall write where he may not himself.
        let Some(reply) = message.reply.clone().filter(|reply| reply.starts_with("_INBOX")) else {
            tracing::warn!(
                subject = excerpt(&message.subject),
                "a question without an inbox for its answer was dropped"
            );
            return;
        };
        let asked = match json_request::request(&self.namespace, message) {
            Some(question) => question.map(|(asked, names)| (asked, Some(names))),
            None => decode::request(&self.namespace, &self.owns, message).map(|asked| (asked, None)),
        };
        match asked {
            Ok(_) if hands.requests >= MAX_IN_FLIGHT => {
                self.respond(hands, reply, &Response::Refused(RequestError::Busy))
            }
            Ok((Request::Events { .. } | Request::Outbox { .. }, _)) if hands.pages >= MAX_PAGES => {
                self.respond(hands, reply, &Response::Refused(RequestError::Busy));
            }
            Ok((asked, names)) => {
                let is_page = matches!(asked, Request::Events { .. } | Request::Outbox { .. });
                let after = if let Request::Events { after, .. } = &asked { *after } else { 0 };
                let back = RequestContext { reply, is_page, json: names.map(|names| (after, names)) };
                hands.requests += 1;
                hands.pages += usize::from(is_page);
                let answer = self.inbound.request(asked);
                hands.tasks.push(answer.map(move |answer| Completed::Responded(back, answer)).boxed());
            }
            Err(error) => {
                tracing::warn!(subject = excerpt(&message.subject), %error, "refused a question");
                self.respond(hands, reply, &Response::Refused(RequestError::Undecodable(error.to_string())));
            }
        }
    }

    fn respond(&self, hands: &mut InFlightMessages, reply: Subject, answer: &Response) {
        let limit = self.client.max_payload();
        let mut packet = Packet::from_response(answer, limit);
        if packet.size() > limit {
            let reason = format!("the answer has {} bytes, more than the {limit} the broker takes", packet.size());
            packet = Packet::from_response(&Response::Refused(RequestError::Unknown(reason)), limit);
        }
        Self::queue_reply(hands, reply, packet);
    }

    fn queue_reply(hands: &mut InFlightMessages, reply: Subject, packet: Packet) {
        match headers::to_nats(&packet) {
            Ok(headers) => {
                hands.outgoing.push_back(OutboundMessage {
                    subject: reply,
                    reply: None,
                    headers,
                    payload: packet.payload,
                });
            }
            Err(error) => tracing::error!(%error, "an answer cannot be written"),
        }
    }

    /// Hands over as many messages as the node has room for, lane by lane. True if some are left.
    fn deliver_ready(&mut self, hands: &mut InFlightMessages) -> bool {
        if self.consumers.iter().all(PullConsumer::is_empty) {
            return false;
        }
        let mut room = self.inbound.capacity().min(MAX_IN_FLIGHT.saturating_sub(hands.handling));
        let mut empty = 0;
        while room > 0 && empty < self.consumers.len() {
            hands.last_served = (hands.last_served + 1) % self.consumers.len();
            let Some(lane) = self.consumers.get_mut(hands.last_served) else { break };
            if lane.handling >= MAX_HANDLING {
                empty += 1;
                continue;
            }
            if let Some((number, envelope, message)) = lane.decoded.pop_front() {
                empty = 0;
                room -= 1;
                hands.handling += 1;
                lane.handling += 1;
                let settled = match lane.source.content {
                    StreamContent::Direct => self.inbound.deliver(envelope),
                    StreamContent::Events => self.inbound.event(envelope),
                };
                let done = settled.map(move |settled| match (settled, message) {
                    (AckOutcome::Reject(reason), Some(message)) => {
                        Completed::Unhandled(number, Box::new(message), reason)
                    }
                    (settled, _) => Completed::Handled(number, settled),
                });
                hands.tasks.push(done.boxed());
                continue;
            }
            let Some((number, message)) = lane.received.pop_front() else {
                empty += 1;
                continue;
            };
            empty = 0;
            match decode::envelopes(&self.namespace, &lane.source, &message) {
                Ok(envelopes) => {
                    if let Some(in_hand) = hands.messages.get_mut(&number) {
                        in_hand.remaining = envelopes.len();
                    }
                    let mut message = (envelopes.len() == 1).then_some(message);
                    let read = envelopes.into_iter().map(|envelope| (number, envelope, message.take()));
                    lane.decoded.extend(read);
                }
                Err(error) => {
                    room -= 1;
                    self.copy_to_refused(hands, number, &message, &error);
                }
            }
        }
        self.consumers.iter().any(|lane| !lane.is_empty() && lane.handling < MAX_HANDLING)
    }

    fn complete(&mut self, hands: &mut InFlightMessages, done: Completed) {
        match done {
            Completed::Unhandled(number, message, reason) => {
                self.end_handling(hands, number);
                self.copy_to_refused(hands, number, &message, &BridgeError::Unhandled { reason });
            }
            Completed::CopiedToRefused(number, copied) => self.copy_completed(hands, number, copied),
            Completed::Handled(number, settled) => {
                self.end_handling(hands, number);
                hands.complete(number, settled == AckOutcome::Retry);
            }
            Completed::Responded(RequestContext { reply, is_page, json }, answer) => {
                hands.requests -= 1;
                hands.pages -= usize::from(is_page);
                match (json, answer) {
                    (Some((after, names)), Response::Envelopes(page)) => {
                        match json_request::response(
                            after,
                            &page.envelopes,
                            page.last,
                            &names,
                            self.client.max_payload(),
                        ) {
                            Ok(packet) => Self::queue_reply(hands, reply, packet),
                            Err(error) => {
                                self.respond(
                                    hands,
                                    reply,
                                    &Response::Refused(RequestError::Undecodable(error.to_string())),
                                );
                            }
                        }
                    }
                    (_, answer) => self.respond(hands, reply, &answer),
                }
            }
            Completed::Checked(lane, checked) => self.check_completed(hands, lane, checked),
            Completed::Inspected(lane, state, leaves_behind) => {
                self.inspection_completed(hands, lane, state, leaves_behind)
            }
        }
    }

    /// An envelope is with the node.
    pub(super) fn begin_handling(&mut self, hands: &mut InFlightMessages, number: u64) {
        hands.handling += 1;
        let lane = hands.messages.get(&number).and_then(|in_hand| self.consumers.get_mut(in_hand.consumer));
        if let Some(lane) = lane {
            lane.handling += 1;
        }
    }

    /// An envelope is no longer with the node.
    pub(super) fn end_handling(&mut self, hands: &mut InFlightMessages, number: u64) {
        hands.handling -= 1;
        let lane = hands.messages.get(&number).and_then(|in_hand| self.consumers.get_mut(in_hand.consumer));
        if let Some(lane) = lane {
            lane.handling = lane.handling.saturating_sub(1);
        }
    }

    /// Asks for messages as far as the node has room. True if it has none.
    fn pull_messages(&mut self, hands: &mut InFlightMessages, now: Instant) -> bool {
        if self.consumers.is_empty() {
            return false;
        }
        let room = self.inbound.capacity().min(MAX_IN_FLIGHT.saturating_sub(hands.handling));
        for at in 0..self.consumers.len() {
            let Some(lane) = self.consumers.get_mut(at) else { break };
            if matches!(lane.status, ConsumerStatus::Missing(again) if again <= now) {
                self.check_consumer(hands, at);
                continue;
            }
            if lane.is_suspect {
                self.inspect_consumer(hands, at);
            }
            let Some(lane) = self.consumers.get_mut(at) else { break };
            if let Some(count) = lane.pull_size(room, now) {
                hands.outgoing.push_back(OutboundMessage {
                    subject: lane.pull_subject.clone(),
                    reply: Some(lane.inbox.clone()),
                    headers: HeaderMap::new(),
                    payload: lane.start_pull(count, now).into(),
                });
            }
        }
        room == 0
    }

    /// Tells the server what is still in hand, before it delivers it again.
    fn extend_ack_deadlines(&self, hands: &mut InFlightMessages, now: Instant) {
        if hands.extend_at.is_none_or(|keep| keep > now) {
            return;
        }
        let third = self.ack_wait / 3;
        for in_hand in hands.messages.values_mut().filter(|in_hand| in_hand.extended_at + third <= now) {
            in_hand.extended_at = now;
            hands.outgoing.push_back(OutboundMessage::acknowledgement(in_hand.ack_subject.clone(), "+WPI"));
        }
        hands.extend_at = (!hands.messages.is_empty()).then_some(now + third);
    }

    /// Writes the letters. One that is lost with the connection costs a redelivery.
    ///
    /// The client queues by count, so large answers are flushed after [`MAX_UNFLUSHED_BYTES`] bytes: the memory they take is bounded by
    /// bytes, whatever the questions were.
    async fn write_outgoing(&mut self, hands: &mut InFlightMessages) {
        let mut unflushed = 0;
        while let Some(letter) = hands.outgoing.pop_front() {
            let OutboundMessage { subject, reply, headers, payload } = letter;
            let client = &self.client;
            unflushed += payload.len();
            let published = async {
                match reply {
                    Some(reply) => client.publish_with_reply_and_headers(subject, reply, headers, payload).await?,
                    None => client.publish_with_headers(subject, headers, payload).await?,
                }
                if unflushed >= MAX_UNFLUSHED_BYTES {
                    // An error is that of a lost connection, which the loop hears of by itself.
                    let _ = client.flush().await;
                }
                Ok::<_, async_nats::PublishError>(())
            };
            tokio::select! {
                biased;
                published = published => {
                    if unflushed >= MAX_UNFLUSHED_BYTES {
                        unflushed = 0;
                    }
                    if let Err(error) = published {
                        tracing::error!(%error, "failed to write an acknowledgement or answer");
                    }
                }
                // The client takes nothing while it reconnects once its own queue is full.
                _ = self.link.wait_for(|link| !link.up) => return,
            }
        }
    }

    fn next_wake(&self, hands: &InFlightMessages, now: Instant, starved: bool, up: bool) -> Option<Instant> {
        let lanes = self.consumers.iter().filter(|_| up).filter_map(|lane| lane.next_wake(now));
        let due = hands.extend_at.into_iter().chain(hands.check_write_only_at).filter(|_| up);
        lanes.chain(due).chain(starved.then(|| now + CAPACITY_POLL_INTERVAL)).min()
    }

    /// Takes nothing more in, gives back what was not handed over, and waits for what was.
    async fn shut_down(mut self, mut hands: InFlightMessages) {
        for gated in self.subscribers.iter_mut() {
            // The subscription ends with the connection otherwise.
            let _ = gated.subscriber.unsubscribe().await;
        }
        round_trip(&self.client).await;
        while let Some(Some((gate, message))) = self.subscribers.next().now_or_never() {
            match (gate, message.reply.clone()) {
                (Channel::Requests, Some(reply)) if reply.starts_with("_INBOX") => {
                    self.respond(&mut hands, reply, &Response::Refused(RequestError::NotHere));
                }
                (Channel::Stream(at), _) => self.receive_message(&mut hands, at, message),
                _ => {}
            }
        }
        for lane in &mut self.consumers {
            let waiting = lane.received.drain(..).map(|(number, _)| number);
            let read = lane.decoded.drain(..).map(|(number, ..)| number);
            for number in waiting.chain(read) {
                hands.complete(number, true);
            }
        }
        while let Some(done) = hands.tasks.next().await {
            if !matches!(done, Completed::Checked(..) | Completed::Inspected(..)) {
                self.complete(&mut hands, done);
            }
            self.extend_ack_deadlines(&mut hands, monotonic());
            if self.link.borrow().up {
                self.write_outgoing(&mut hands).await;
            }
        }
        if self.link.borrow().up {
            self.write_outgoing(&mut hands).await;
            round_trip(&self.client).await;
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => pending().await,
    }
}
