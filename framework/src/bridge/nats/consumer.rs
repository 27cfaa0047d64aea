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
use super::decode::{self, shown};
use super::foreign;
use super::headers;
use super::in_flight::{Done, InFlightMessages, InHand, PendingMessage, Return};
use super::jetstream::{JetStream, Wanted};
use super::publisher::PublisherLoop;
use super::pull_consumer::{DELETION, LANE_WINDOW, PullConsumer, State};
use super::streams::Cargo;
use crate::bridge::subject::Namespace;
use crate::bridge::wire::Packet;
use crate::bridge::{AckOutcome, BridgeError, Inbound, Request, RequestError, Response};
use crate::clock::monotonic;
use crate::message::Name;

/// The most messages being handled at once, and the most questions, whatever room the node says it has.
const WINDOW: usize = 4096;
/// The most pages of messages that are read or written at once, as answers to questions. A page has up to the server's
/// `max_payload` bytes (1 MiB by default) and a question for it has forty, so these are bounded by bytes.
const PAGES: usize = 8;
/// Written bytes after which the intake waits until the client has handed them to the server.
const UNFLUSHED: usize = 4 * 1024 * 1024;
/// A node without room is asked again after this time, or as soon as it has ended something of ours.
const NO_ROOM: Duration = Duration::from_millis(5);
/// Where a message came in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gate {
    Lane(usize),
    Questions,
    Tidings,
}

/// A subscription that says where its messages came in.
pub(super) struct Gated {
    gate: Gate,
    subscriber: Subscriber,
}

impl Gated {
    pub(super) fn new(gate: Gate, subscriber: Subscriber) -> Self {
        Self { gate, subscriber }
    }
}

impl Stream for Gated {
    type Item = (Gate, Message);

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let gate = self.gate;
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
    pub(super) door: Arc<dyn Inbound>,
    pub(super) outgoing: Arc<PublisherLoop>,
    pub(super) link: watch::Receiver<LinkState>,
    pub(super) ack_wait: Duration,
    pub(super) lanes: Vec<PullConsumer>,
    /// The streams that this node only writes to.
    pub(super) written: Arc<Vec<Wanted>>,
    pub(super) gates: SelectAll<Gated>,
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
            let mut starved = self.hand_over(&mut hands);
            if up {
                starved |= self.pull(&mut hands, now);
                self.keep(&mut hands, now);
                if hands.look.is_some_and(|look| look <= now) {
                    self.look_after_written(&mut hands);
                }
                self.write(&mut hands).await;
            }
            let wake = self.wakes(&hands, now, starved, up);
            tokio::select! {
                biased;
                _ = &mut self.closing => break,
                changed = self.link.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                Some(done) = hands.doing.next() => self.settle(&mut hands, done),
                Some((gate, message)) = self.gates.next() => self.receive(&mut hands, gate, message),
                () = self.outgoing.missing.notified() => {
                    hands.look.get_or_insert(monotonic() + DELETION);
                }
                () = sleep_until(wake) => {}
            }
            // What else is there by now, so that room is asked for, and letters are written, once for all of it.
            while let Some(Some(done)) = hands.doing.next().now_or_never() {
                self.settle(&mut hands, done);
            }
            for _ in 0..WINDOW {
                let Some(Some((gate, message))) = self.gates.next().now_or_never() else { break };
                self.receive(&mut hands, gate, message);
            }
            let link = *self.link.borrow();
            if link.up && link.epoch != epoch {
                epoch = link.epoch;
                hands.news = true;
                self.look_after_all(&mut hands);
            }
        }
        self.end(hands).await;
    }

    fn receive(&mut self, hands: &mut InFlightMessages, gate: Gate, message: Message) {
        match gate {
            Gate::Lane(at) => self.receive_in_lane(hands, at, message),
            Gate::Questions => self.receive_question(hands, &message),
            Gate::Tidings => match decode::tidings(&self.namespace, &message) {
                Ok(tidings) => self.door.notify(tidings),
                Err(error) => tracing::warn!(subject = shown(&message.subject), %error, "tidings were dropped"),
            },
        }
    }

    fn receive_in_lane(&mut self, hands: &mut InFlightMessages, at: usize, message: Message) {
        let Some(lane) = self.lanes.get_mut(at) else { return };
        let now = monotonic();
        if let Some(status) = message.status.filter(|status| *status != StatusCode::OK) {
            lane.ended(status.as_u16(), message.description.as_deref().unwrap_or_default(), now);
            return;
        }
        // Only JetStream writes here; what cannot be acknowledged did not come from it.
        let Some(reply) = message.reply.clone().filter(|reply| reply.starts_with("$JS.ACK.")) else {
            tracing::warn!(stream = lane.source.stream, "a message that JetStream did not deliver was dropped");
            return;
        };
        hands.next += 1;
        hands.in_hand.insert(hands.next, InHand { lane: at, reply, since: now, open: 1, again: false });
        hands.keep.get_or_insert(now + self.ack_wait / 3);
        lane.take(hands.next, message);
    }

    fn receive_question(&mut self, hands: &mut InFlightMessages, message: &Message) {
        // An answer goes only where answers are awaited: with this node's rights nobody shall write where he may not himself.
        let Some(reply) = message.reply.clone().filter(|reply| reply.starts_with("_INBOX")) else {
            tracing::warn!(subject = shown(&message.subject), "a question without an inbox for its answer was dropped");
            return;
        };
        let asked = match foreign::question(&self.namespace, message) {
            Some(question) => question.map(|(asked, names)| (asked, Some(names))),
            None => decode::question(&self.namespace, &self.owns, message).map(|asked| (asked, None)),
        };
        match asked {
            Ok(_) if hands.asked >= WINDOW => self.answer(hands, reply, &Response::Refused(RequestError::Busy)),
            Ok((Request::Events { .. } | Request::Outbox { .. }, _)) if hands.pages >= PAGES => {
                self.answer(hands, reply, &Response::Refused(RequestError::Busy));
            }
            Ok((asked, names)) => {
                let is_page = matches!(asked, Request::Events { .. } | Request::Outbox { .. });
                let after = if let Request::Events { after, .. } = &asked { *after } else { 0 };
                let back = Return { reply, is_page, json: names.map(|names| (after, names)) };
                hands.asked += 1;
                hands.pages += usize::from(is_page);
                let answer = self.door.request(asked);
                hands.doing.push(answer.map(move |answer| Done::Answered(back, answer)).boxed());
            }
            Err(error) => {
                tracing::warn!(subject = shown(&message.subject), %error, "refused a question");
                self.answer(hands, reply, &Response::Refused(RequestError::Undecodable(error.to_string())));
            }
        }
    }

    fn answer(&self, hands: &mut InFlightMessages, reply: Subject, answer: &Response) {
        let limit = self.client.max_payload();
        let mut packet = Packet::from_answer(answer, limit);
        if packet.size() > limit {
            let reason = format!("the answer has {} bytes, more than the {limit} the broker takes", packet.size());
            packet = Packet::from_answer(&Response::Refused(RequestError::Unknown(reason)), limit);
        }
        Self::reply(hands, reply, packet);
    }

    fn reply(hands: &mut InFlightMessages, reply: Subject, packet: Packet) {
        match headers::to_nats(&packet) {
            Ok(headers) => {
                hands.letters.push_back(PendingMessage {
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
    fn hand_over(&mut self, hands: &mut InFlightMessages) -> bool {
        if self.lanes.iter().all(PullConsumer::is_empty) {
            return false;
        }
        let mut room = self.door.capacity().min(WINDOW.saturating_sub(hands.busy));
        let mut empty = 0;
        while room > 0 && empty < self.lanes.len() {
            hands.turn = (hands.turn + 1) % self.lanes.len();
            let Some(lane) = self.lanes.get_mut(hands.turn) else { break };
            if lane.busy >= LANE_WINDOW {
                empty += 1;
                continue;
            }
            if let Some((number, envelope, message)) = lane.read.pop_front() {
                empty = 0;
                room -= 1;
                hands.busy += 1;
                lane.busy += 1;
                let settled = match lane.source.cargo {
                    Cargo::Direct => self.door.deliver(envelope),
                    Cargo::Events => self.door.event(envelope),
                };
                let done = settled.map(move |settled| match (settled, message) {
                    (AckOutcome::Reject(reason), Some(message)) => Done::Unwanted(number, Box::new(message), reason),
                    (settled, _) => Done::Settled(number, settled),
                });
                hands.doing.push(done.boxed());
                continue;
            }
            let Some((number, message)) = lane.waiting.pop_front() else {
                empty += 1;
                continue;
            };
            empty = 0;
            match decode::envelopes(&self.namespace, &lane.source, &message) {
                Ok(envelopes) => {
                    if let Some(in_hand) = hands.in_hand.get_mut(&number) {
                        in_hand.open = envelopes.len();
                    }
                    let mut message = (envelopes.len() == 1).then_some(message);
                    let read = envelopes.into_iter().map(|envelope| (number, envelope, message.take()));
                    lane.read.extend(read);
                }
                Err(error) => {
                    room -= 1;
                    self.put_aside(hands, number, &message, &error);
                }
            }
        }
        self.lanes.iter().any(|lane| !lane.is_empty() && lane.busy < LANE_WINDOW)
    }

    fn settle(&mut self, hands: &mut InFlightMessages, done: Done) {
        match done {
            Done::Unwanted(number, message, reason) => {
                self.leave(hands, number);
                self.put_aside(hands, number, &message, &BridgeError::Unwanted { reason });
            }
            Done::PutAside(number, copied) => self.copied(hands, number, copied),
            Done::Settled(number, settled) => {
                self.leave(hands, number);
                hands.settled(number, settled == AckOutcome::Retry);
            }
            Done::Answered(Return { reply, is_page, json }, answer) => {
                hands.asked -= 1;
                hands.pages -= usize::from(is_page);
                match (json, answer) {
                    (Some((after, names)), Response::Envelopes(page)) => {
                        match foreign::page(after, &page.envelopes, page.last, &names, self.client.max_payload()) {
                            Ok(packet) => Self::reply(hands, reply, packet),
                            Err(error) => {
                                self.answer(
                                    hands,
                                    reply,
                                    &Response::Refused(RequestError::Undecodable(error.to_string())),
                                );
                            }
                        }
                    }
                    (_, answer) => self.answer(hands, reply, &answer),
                }
            }
            Done::Checked(lane, checked) => self.checked(hands, lane, checked),
            Done::Looked(lane, state, leaves_behind) => self.looked(hands, lane, state, leaves_behind),
        }
    }

    /// An envelope is with the node.
    pub(super) fn enter(&mut self, hands: &mut InFlightMessages, number: u64) {
        hands.busy += 1;
        let lane = hands.in_hand.get(&number).and_then(|in_hand| self.lanes.get_mut(in_hand.lane));
        if let Some(lane) = lane {
            lane.busy += 1;
        }
    }

    /// An envelope is no longer with the node.
    pub(super) fn leave(&mut self, hands: &mut InFlightMessages, number: u64) {
        hands.busy -= 1;
        let lane = hands.in_hand.get(&number).and_then(|in_hand| self.lanes.get_mut(in_hand.lane));
        if let Some(lane) = lane {
            lane.busy = lane.busy.saturating_sub(1);
        }
    }

    /// Asks for messages as far as the node has room. True if it has none.
    fn pull(&mut self, hands: &mut InFlightMessages, now: Instant) -> bool {
        if self.lanes.is_empty() {
            return false;
        }
        let room = self.door.capacity().min(WINDOW.saturating_sub(hands.busy));
        for at in 0..self.lanes.len() {
            let Some(lane) = self.lanes.get_mut(at) else { break };
            if matches!(lane.state, State::Missing(again) if again <= now) {
                self.look_after(hands, at);
                continue;
            }
            if lane.is_suspect {
                self.look_at(hands, at);
            }
            let Some(lane) = self.lanes.get_mut(at) else { break };
            if let Some(count) = lane.wants(room, now) {
                hands.letters.push_back(PendingMessage {
                    subject: lane.next.clone(),
                    reply: Some(lane.inbox.clone()),
                    headers: HeaderMap::new(),
                    payload: lane.ask(count, now).into(),
                });
            }
        }
        room == 0
    }

    /// Tells the server what is still in hand, before it delivers it again.
    fn keep(&self, hands: &mut InFlightMessages, now: Instant) {
        if hands.keep.is_none_or(|keep| keep > now) {
            return;
        }
        let third = self.ack_wait / 3;
        for in_hand in hands.in_hand.values_mut().filter(|in_hand| in_hand.since + third <= now) {
            in_hand.since = now;
            hands.letters.push_back(PendingMessage::word(in_hand.reply.clone(), "+WPI"));
        }
        hands.keep = (!hands.in_hand.is_empty()).then_some(now + third);
    }

    /// Writes the letters. One that is lost with the connection costs a redelivery.
    ///
    /// The client queues by count, so large answers are flushed after [`UNFLUSHED`] bytes: the memory they take is bounded by
    /// bytes, whatever the questions were.
    async fn write(&mut self, hands: &mut InFlightMessages) {
        let mut unflushed = 0;
        while let Some(letter) = hands.letters.pop_front() {
            let PendingMessage { subject, reply, headers, payload } = letter;
            let client = &self.client;
            unflushed += payload.len();
            let published = async {
                match reply {
                    Some(reply) => client.publish_with_reply_and_headers(subject, reply, headers, payload).await?,
                    None => client.publish_with_headers(subject, headers, payload).await?,
                }
                if unflushed >= UNFLUSHED {
                    // An error is that of a lost connection, which the loop hears of by itself.
                    let _ = client.flush().await;
                }
                Ok::<_, async_nats::PublishError>(())
            };
            tokio::select! {
                biased;
                published = published => {
                    if unflushed >= UNFLUSHED {
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

    fn wakes(&self, hands: &InFlightMessages, now: Instant, starved: bool, up: bool) -> Option<Instant> {
        let lanes = self.lanes.iter().filter(|_| up).filter_map(|lane| lane.wakes(now));
        let due = hands.keep.into_iter().chain(hands.look).filter(|_| up);
        lanes.chain(due).chain(starved.then(|| now + NO_ROOM)).min()
    }

    /// Takes nothing more in, gives back what was not handed over, and waits for what was.
    async fn end(mut self, mut hands: InFlightMessages) {
        for gated in self.gates.iter_mut() {
            // The subscription ends with the connection otherwise.
            let _ = gated.subscriber.unsubscribe().await;
        }
        round_trip(&self.client).await;
        while let Some(Some((gate, message))) = self.gates.next().now_or_never() {
            match (gate, message.reply.clone()) {
                (Gate::Questions, Some(reply)) if reply.starts_with("_INBOX") => {
                    self.answer(&mut hands, reply, &Response::Refused(RequestError::NotHere));
                }
                (Gate::Lane(at), _) => self.receive_in_lane(&mut hands, at, message),
                _ => {}
            }
        }
        for lane in &mut self.lanes {
            let waiting = lane.waiting.drain(..).map(|(number, _)| number);
            let read = lane.read.drain(..).map(|(number, ..)| number);
            for number in waiting.chain(read) {
                hands.settled(number, true);
            }
        }
        while let Some(done) = hands.doing.next().await {
            if !matches!(done, Done::Checked(..) | Done::Looked(..)) {
                self.settle(&mut hands, done);
            }
            self.keep(&mut hands, monotonic());
            if self.link.borrow().up {
                self.write(&mut hands).await;
            }
        }
        if self.link.borrow().up {
            self.write(&mut hands).await;
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
