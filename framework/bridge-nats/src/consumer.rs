//! The consumer loop: pulls messages in batches as large as the node's capacity, delivers them, acknowledges after the commit.
//!
//! One task, owned by the bridge's actor. Calls the node's [`Inbound`]; writes acknowledgements and responses.
//! Undecodable messages, and messages whose headers contradict their subject, are moved to the refused stream with a reason and
//! are not redelivered.
//!
//! All state of the loop is in [`ConsumerLoop`] and [`InFlightMessages`], which one task changes between awaits: no locks and no
//! order of locks. The futures of the node never touch it; they return a [`Completed`] that the loop applies. A message keeps its
//! number from receipt to acknowledgement, so a result that arrives after a reconnection still finds its message.
//!
//! The owner of many shards has many consumers. Only those that a message or a completion has touched are considered for the
//! next delivery and pull, so the work per message does not grow with their number.
//!
//! # One round of the loop
//! 1. Messages that were received are decoded and delivered, as many as the node has capacity for, in turn from each
//!    consumer.
//! 2. The server is asked for as many messages as there is capacity left.
//! 3. Messages in flight whose ack wait is near its end are extended.
//! 4. Acknowledgements, responses and pull requests are written together.
//! 5. The loop waits for a message, a completion, or a change of the connection or of the owned shards. It also ends its wait at
//!    the next time at which something is due.
//!
//! While the connection is down, rounds do only the first step. Completions are applied, and what they want to write waits
//! for the reconnection.

use std::collections::BTreeMap;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Client, HeaderMap, Message, StatusCode};
use futures_util::FutureExt;
use futures_util::stream::{SelectAll, StreamExt};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::channel::{Channel, ChannelSubscriber};
use super::connection::{Drops, LinkState, round_trip};
use super::decode;
use super::denied_inboxes::is_inbox;
use super::excerpt::excerpt;
use super::in_flight::{Completed, InFlightMessages, OutboundMessage, ReceivedMessage, RequestContext};
use super::jetstream::{DesiredConfig, JetStream};
use super::json_request;
use super::ownership::OwnedShards;
use super::publisher::PublisherLoop;
use super::pull_consumer::{ConsumerStatus, DELETION_GRACE, PullConsumer};
use super::report::Report;
use super::streams::DeliveryMode;
use whizbang_core::bridge::{AckOutcome, BridgeError, Inbound, RequestError, Response};
use whizbang_core::clock::monotonic;
use whizbang_core::message::Name;
use whizbang_core::telemetry::error_chain;
use whizbang_wire::subject::Namespace;

/// The maximum number of messages, and of requests, that are handled at once, whatever capacity the node reports.
pub(super) const MAX_IN_FLIGHT: usize = 4096;
/// The number of written bytes after which the loop waits until the client has sent them to the server.
const MAX_UNFLUSHED_BYTES: usize = 4 * 1024 * 1024;
/// The maximum number of messages that wait to be written while requests are accepted. Further requests are dropped.
const MAX_QUEUED_WRITES: usize = 16_384;
/// The interval at which a node without capacity is polled. A completed message triggers an earlier poll.
const CAPACITY_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The time after a dropped message at which the node looks for gaps. Messages that are dropped in it cause no further look.
const GAPS_AFTER_DROPS: Duration = Duration::from_secs(5);

/// The loop that receives. One task owns it, so nothing in it is locked.
pub(super) struct ConsumerLoop {
    /// Writes acknowledgements and responses.
    pub(super) client: Client,
    /// Creates and inspects streams and consumers.
    pub(super) jetstream: JetStream,
    /// The prefix of all subjects.
    pub(super) namespace: Namespace,
    /// The name of this service, which its stream of refused messages has.
    pub(super) service: Name,
    /// The domains that this node owns, with their number of shards.
    pub(super) owns: Vec<(Name, u16)>,
    /// The node, which handles the messages.
    pub(super) inbound: Arc<dyn Inbound>,
    /// Sends the copies of refused messages, and reports a missing stream.
    pub(super) publisher: Arc<PublisherLoop>,
    /// The state of the connection. A changed epoch means a reconnection.
    pub(super) link: watch::Receiver<LinkState>,
    /// The messages that the client has dropped, which may be live events.
    pub(super) drops: watch::Receiver<Drops>,
    /// The time after which the server delivers again. Messages in flight are extended at a third of it.
    pub(super) ack_wait: Duration,
    /// The consumers by index. An index is never used again.
    pub(super) consumers: BTreeMap<usize, PullConsumer>,
    /// The leased shards whose messages this node receives.
    pub(super) shards: OwnedShards,
    /// The streams that this node only writes to.
    pub(super) write_only: Arc<Vec<DesiredConfig>>,
    /// The subscriptions, polled in turn.
    pub(super) subscribers: SelectAll<ChannelSubscriber>,
    /// Fires when the node stops.
    pub(super) closing: oneshot::Receiver<()>,
    /// `closing` has fired.
    pub(super) is_closing: bool,
    /// The issues of the loop, and its counters.
    pub(super) report: Arc<Report>,
}

impl ConsumerLoop {
    /// Receives messages until `closing` fires, then finishes those in flight.
    ///
    /// Cancellation: dropping the future stops the loop at once, without acknowledging anything; the server delivers the
    /// messages in flight again.
    pub(super) async fn run(&mut self, in_flight: &mut InFlightMessages) {
        let mut epoch = self.link.borrow().epoch;
        while !self.is_closing {
            for index in std::mem::take(&mut in_flight.superseded) {
                self.drop_superseded(in_flight, index).await;
            }
            let now = monotonic();
            let up = self.link.borrow_and_update().up;
            self.release_waiting(in_flight, now);
            self.forget_refused(in_flight, now);
            if in_flight.find_gaps_at.is_some_and(|due| due <= now) {
                in_flight.find_gaps_at = None;
                self.inbound.reconnected();
            }
            let mut at_capacity = self.deliver_ready(in_flight, now);
            if up {
                at_capacity |= self.pull_messages(in_flight, now);
                self.extend_ack_deadlines(in_flight, now);
                if in_flight.check_write_only_at.is_some_and(|due| due <= now) {
                    self.check_write_only(in_flight);
                }
                self.write_outgoing(in_flight).await;
            }
            self.report_disowned(in_flight);
            let summary_at = self.report.log_limits.flush(now);
            let wake = self.next_wake(in_flight, now, at_capacity, up);
            tokio::select! {
                biased;
                _ = &mut self.closing => self.is_closing = true,
                changed = self.link.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                Ok(()) = self.drops.changed() => {
                    in_flight.find_gaps_at.get_or_insert(monotonic() + GAPS_AFTER_DROPS);
                }
                Some(completed) = in_flight.tasks.next() => self.complete(in_flight, completed),
                Some(change) = self.shards.changes.recv() => self.change_ownership(in_flight, change).await,
                Some((channel, message)) = self.subscribers.next() => self.receive(in_flight, channel, message),
                () = self.publisher.stream_missing.notified() => {
                    in_flight.check_write_only_at.get_or_insert(monotonic() + DELETION_GRACE);
                }
                () = sleep_until(wake.into_iter().chain(summary_at).min()) => {}
            }
            // Drain everything that is ready, so that capacity is polled and messages are written once per batch.
            while let Some(Some(completed)) = in_flight.tasks.next().now_or_never() {
                self.complete(in_flight, completed);
            }
            for _ in 0..MAX_IN_FLIGHT {
                let Some(Some((channel, message))) = self.subscribers.next().now_or_never() else { break };
                self.receive(in_flight, channel, message);
            }
            let link = *self.link.borrow();
            if link.up && link.epoch != epoch {
                epoch = link.epoch;
                in_flight.reconnect_pending = true;
                self.check_all(in_flight);
            }
        }
        self.shut_down(in_flight).await;
    }

    /// Handles one message of a subscription. Nothing is awaited here: the futures of the node are added to the tasks.
    fn receive(&mut self, in_flight: &mut InFlightMessages, channel: Channel, message: Message) {
        match channel {
            Channel::Stream(index) => self.receive_message(in_flight, index, message),
            Channel::Live(index) => self.receive_live_event(in_flight, index, message),
            Channel::Requests => self.receive_request(in_flight, &message),
            Channel::Notifications => match decode::notification(&self.namespace, &message) {
                Ok(notification) => self.inbound.notify(notification),
                Err(error) if self.refuse_request(&self.report.log_limits.notifications) => tracing::warn!(
                    subject = excerpt(&message.subject), error = %error_chain(&error),
                    "dropped a notification",
                ),
                Err(_) => {}
            },
        }
    }

    /// Adds a pulled message to those of its consumer, or ends a pull that the server has answered with a status.
    fn receive_message(&mut self, in_flight: &mut InFlightMessages, index: usize, message: Message) {
        // Messages for a shard that was disowned are redelivered to its next owner.
        let Some(consumer) = self.consumers.get_mut(&index) else { return };
        in_flight.touched.insert(index);
        let now = monotonic();
        if let Some(status) = message.status.filter(|status| *status != StatusCode::OK) {
            consumer.end_pull(status.as_u16(), message.description.as_deref().unwrap_or_default(), now);
            return;
        }
        // Only JetStream publishes here. A message that cannot be acknowledged did not come from it.
        let Some(ack_subject) = message.reply.clone().filter(|reply| reply.starts_with("$JS.ACK.")) else {
            let stream = Arc::clone(&consumer.source);
            if self.refuse_request(&self.report.log_limits.forged_deliveries) {
                tracing::warn!(stream = stream.stream, "dropped a message that JetStream did not deliver");
            }
            return;
        };
        in_flight.next_number += 1;
        let bytes = consumer.held.add(message.length as u64);
        let received = ReceivedMessage::new(index, Some(ack_subject), Some(bytes), now);
        in_flight.messages.insert(in_flight.next_number, received);
        in_flight.extend_at.get_or_insert(now + self.ack_wait / 3);
        in_flight.ready.insert(index);
        consumer.receive(in_flight.next_number, message, now);
    }

    /// Applies the result of a finished task: acknowledges, delays or refuses a message, or sends a response.
    fn complete(&mut self, in_flight: &mut InFlightMessages, completed: Completed) {
        match completed {
            Completed::Unhandled(number, message, reason) => {
                self.end_handling(in_flight, number, 1);
                self.copy_to_refused(in_flight, number, &message, &BridgeError::Unhandled { reason });
            }
            Completed::CopiedToRefused(number, refused, copied) => {
                self.copy_completed(in_flight, number, refused, copied);
            }
            Completed::Handled { number, count, outcome } => {
                self.end_handling(in_flight, number, count);
                in_flight.complete(number, count, outcome == AckOutcome::Retry);
            }
            Completed::Responded(RequestContext { reply, is_page, json }, response) => {
                in_flight.requests -= 1;
                in_flight.pages -= usize::from(is_page);
                match (json, response) {
                    (Some((after, names)), Response::Envelopes(page)) => {
                        let limit = self.client.max_payload();
                        match json_request::response(after, &page.envelopes, page.last, &names, limit) {
                            Ok(packet) => self.queue_reply(in_flight, reply, packet),
                            Err(error) => {
                                let refused = Response::Refused(RequestError::Undecodable(error.to_string()));
                                self.respond(in_flight, reply, &refused);
                            }
                        }
                    }
                    (_, response) => self.respond(in_flight, reply, &response),
                }
            }
            Completed::Checked(index, checked) => self.check_completed(in_flight, index, checked),
            Completed::Inspected(index, state, leaves_behind) => {
                self.inspection_completed(in_flight, index, state, leaves_behind);
            }
            Completed::Measured(index, state) => self.measurement_completed(index, state),
        }
    }

    /// Pulls as many messages as the node has capacity for. Returns true if it has none.
    fn pull_messages(&mut self, in_flight: &mut InFlightMessages, now: Instant) -> bool {
        if in_flight.touch_all_at.is_some_and(|due| due <= now) {
            in_flight.touch_all_at = None;
            in_flight.touched.extend(self.consumers.keys());
        }
        if in_flight.touched.is_empty() {
            return false;
        }
        let capacity = self.inbound.capacity().min(MAX_IN_FLIGHT.saturating_sub(in_flight.handling));
        let of_shard = self.shards.pull_limit(MAX_IN_FLIGHT);
        for index in std::mem::take(&mut in_flight.touched) {
            let Some(consumer) = self.consumers.get_mut(&index) else { continue };
            let is_due = matches!(consumer.status, ConsumerStatus::Missing(again) if again <= now);
            let of_shard = of_shard.filter(|_| matches!(consumer.source.delivery, DeliveryMode::Shard(_)));
            if is_due || consumer.is_unanswered && of_shard.is_some() {
                self.check_consumer(in_flight, index);
                continue;
            }
            if consumer.is_suspect {
                self.inspect_consumer(in_flight, index);
            } else if consumer.should_measure(now) {
                self.measure_consumer(in_flight, index);
            }
            let Some(consumer) = self.consumers.get_mut(&index) else { continue };
            if of_shard.is_some() {
                consumer.share_bytes(self.shards.owned.len());
            }
            let pulled = consumer.pull_size(of_shard.unwrap_or(capacity).min(capacity), now);
            if capacity == 0 && consumer.status == ConsumerStatus::Open {
                in_flight.touched.insert(index);
            }
            let wake = consumer.next_wake(now).into_iter().chain(in_flight.touch_all_at).min();
            in_flight.touch_all_at = wake;
            if let Some(count) = pulled {
                in_flight.outgoing.push_back(OutboundMessage {
                    subject: consumer.pull_subject.clone(),
                    reply: Some(consumer.inbox.clone()),
                    headers: HeaderMap::new(),
                    payload: consumer.start_pull(count, now).into(),
                });
                let wake = consumer.next_wake(now).into_iter().chain(in_flight.touch_all_at).min();
                in_flight.touch_all_at = wake;
            }
        }
        capacity == 0 && !in_flight.touched.is_empty()
    }

    /// Writes the outgoing messages. One that is lost with the connection costs a redelivery.
    ///
    /// The client bounds its queue by count, so large responses are flushed after [`MAX_UNFLUSHED_BYTES`]: this bounds the memory by
    /// bytes, whatever was requested. While a write waits, the loop continues to receive: the client would keep what arrives, up to a
    /// large number of messages of any size.
    async fn write_outgoing(&mut self, in_flight: &mut InFlightMessages) {
        if in_flight.outgoing.is_empty() {
            return;
        }
        let client = self.client.clone();
        let mut unflushed = 0;
        while let Some(message) = in_flight.outgoing.pop_front() {
            unflushed += message.payload.len();
            let flushes = unflushed >= MAX_UNFLUSHED_BYTES;
            if flushes {
                unflushed = 0;
            }
            let mut writing = pin!(write(&client, message, flushes));
            let written = loop {
                tokio::select! {
                    biased;
                    written = &mut writing => break written,
                    // While the client reconnects and its queue is full, the write blocks; the lost connection ends it.
                    () = lost(&mut self.link) => return,
                    Some((channel, message)) = self.subscribers.next() => {
                        self.receive_during_write(in_flight, channel, message);
                    }
                }
            };
            if let Err(error) = written
                && self.report.log_limits.unwritten.admits(monotonic())
            {
                tracing::error!(error = %error_chain(&error), "failed to write an acknowledgement or response");
            }
        }
    }

    /// Handles a message that arrives while a write waits. A request is dropped if too many responses wait already.
    fn receive_during_write(&mut self, in_flight: &mut InFlightMessages, channel: Channel, message: Message) {
        if matches!(channel, Channel::Requests) && in_flight.outgoing.len() >= MAX_QUEUED_WRITES {
            if self.refuse_request(&self.report.log_limits.unwritten) {
                tracing::warn!("dropped a request: the connection accepts no responses");
            }
            return;
        }
        self.receive(in_flight, channel, message);
    }

    /// Returns when the loop has to run although nothing happens: the next extension, check, or poll of the capacity. `None`
    /// if nothing is due.
    fn next_wake(&self, in_flight: &InFlightMessages, now: Instant, at_capacity: bool, up: bool) -> Option<Instant> {
        let due = in_flight.extend_at.into_iter().chain(in_flight.check_write_only_at).chain(in_flight.touch_all_at);
        let always = in_flight.release_at.into_iter().chain(in_flight.forget_refused_at).chain(in_flight.find_gaps_at);
        due.filter(|_| up).chain(always).chain(at_capacity.then(|| now + CAPACITY_POLL_INTERVAL)).min()
    }

    /// Stops receiving, returns undelivered messages to the server, and waits for the delivered ones.
    async fn shut_down(&mut self, in_flight: &mut InFlightMessages) {
        for subscriber in self.subscribers.iter_mut() {
            // After a failure the subscription ends with the connection.
            let _ = subscriber.subscriber.unsubscribe().await;
        }
        round_trip(&self.client).await;
        while let Some(Some((channel, message))) = self.subscribers.next().now_or_never() {
            match (channel, message.reply.clone()) {
                (Channel::Requests, Some(reply)) if is_inbox(&reply) => {
                    self.respond(in_flight, reply, &Response::Refused(RequestError::NotHere));
                }
                (Channel::Stream(index), _) => self.receive_message(in_flight, index, message),
                _ => {}
            }
        }
        for consumer in self.consumers.values_mut() {
            let received = consumer.received.drain(..).map(|(number, _)| (number, 1));
            let decoded = consumer.decoded.take().map(|decoded| (decoded.number, decoded.envelopes.len()));
            for (number, count) in received.chain(decoded) {
                in_flight.complete(number, count, true);
            }
        }
        while let Some(completed) = in_flight.tasks.next().await {
            if !matches!(completed, Completed::Checked(..) | Completed::Inspected(..) | Completed::Measured(..)) {
                self.complete(in_flight, completed);
            }
            self.extend_ack_deadlines(in_flight, monotonic());
            if self.link.borrow().up {
                self.write_outgoing(in_flight).await;
            }
        }
        if self.link.borrow().up {
            self.write_outgoing(in_flight).await;
            round_trip(&self.client).await;
        }
    }
}

/// Writes a message, and sends it to the server if it `flushes`. A failure to send means a lost connection, which the loop observes
/// itself.
async fn write(client: &Client, message: OutboundMessage, flushes: bool) -> Result<(), async_nats::PublishError> {
    let OutboundMessage { subject, reply, headers, payload } = message;
    match reply {
        Some(reply) => client.publish_with_reply_and_headers(subject, reply, headers, payload).await?,
        None => client.publish_with_headers(subject, headers, payload).await?,
    }
    if flushes {
        let _ = client.flush().await;
    }
    Ok(())
}

/// Returns when the connection is lost.
async fn lost(link: &mut watch::Receiver<LinkState>) {
    let _ = link.wait_for(|link| !link.up).await;
}

/// Sleeps until a moment, or for ever.
pub(super) async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => pending().await,
    }
}
