//! The loop of one node at the hub, which delivers the messages in its queues.
//!
//! Started by the bridge's `attach` on the node's own `LocalSet`; calls the node's
//! [`Inbound`](whizbang_core::bridge::Inbound). Delivers no more messages than the node has capacity for, so a slow node slows
//! its senders down.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::hub::Hub;
use super::member::{Member, MessageKind, QUEUE_CAPACITY, QueuedMessage, QueuedRequest};
use crate::Packet;
use whizbang_core::bridge::{AckOutcome, BridgeError, RequestError, Response};
use whizbang_core::clock::monotonic;
use whizbang_core::message::MAX_PAYLOAD_BYTES;

/// The maximum number of messages of one node that are handled at once, whatever capacity the node reports.
const MAX_IN_FLIGHT: usize = 4096;
/// The interval at which a node without capacity is polled. A completed message triggers an earlier poll.
const CAPACITY_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// The delay before the first redelivery of a message; it doubles up to [`MAX_RETRY_DELAY`].
const MIN_RETRY_DELAY: Duration = Duration::from_millis(10);
/// The longest delay between two deliveries of a message.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);
/// The maximum size of a response in bytes: the default limit of a NATS server.
const MAX_RESPONSE_BYTES: usize = 2 * MAX_PAYLOAD_BYTES;

/// Removes the member from the hub when its loop ends, also when a crashing node drops the loop.
pub(super) struct MemberGuard {
    /// The hub that knows the member.
    pub(super) hub: Arc<Hub>,
    /// The member whose loop holds this guard.
    pub(super) member: Arc<Member>,
}

impl Drop for MemberGuard {
    fn drop(&mut self) {
        self.hub.remove(&self.member);
        self.member.messages.close();
        self.member.requests.close();
        self.member.stopped.notify_one();
    }
}

/// The result of a finished task of a member's loop.
enum Completed {
    /// The node has handled a message.
    Message(QueuedMessage, AckOutcome),
    Request,
}

/// The messages that a node handles now.
type InFlight = FuturesUnordered<BoxFuture<'static, Completed>>;

/// Delivers messages until the member detaches, then waits for those in flight.
pub(super) async fn run(guard: MemberGuard) {
    let (hub, member) = (&guard.hub, &guard.member);
    let mut in_flight = InFlight::new();
    let mut delayed = DelayQueue::default();
    loop {
        if member.detaching.load(Ordering::Acquire) {
            break;
        }
        while let Some(request) = if in_flight.len() < MAX_IN_FLIGHT { member.requests.pop() } else { None } {
            in_flight.push(handle_request(hub, member, request));
        }
        let at_capacity = deliver_ready(hub, member, &mut in_flight, &mut delayed);
        if member.lagging.load(Ordering::Relaxed) && member.messages.len() <= QUEUE_CAPACITY / 2 {
            member.lagging.store(false, Ordering::Relaxed);
            member.inbound.reconnected();
        }
        let due = delayed.next_due();
        let wake =
            if at_capacity { Some(monotonic() + CAPACITY_POLL_INTERVAL).into_iter().chain(due).min() } else { due };
        tokio::select! {
            biased;
            Some(completed) = in_flight.next() => complete(hub, member, completed, &mut delayed),
            () = member.messages.filled() => {}
            () = member.requests.filled() => {}
            () = sleep_until(wake) => {}
        }
        // Drain the other completed messages as well, so that the node's capacity is polled once per batch.
        while let Some(Some(completed)) = futures_util::FutureExt::now_or_never(in_flight.next()) {
            complete(hub, member, completed, &mut delayed);
        }
    }
    // Leave the hub first: senders must not find the node while it finishes the messages in flight.
    hub.remove(member);
    while in_flight.next().await.is_some() {}
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => pending().await,
    }
}

/// Applies an outcome: an accepted message is dropped, another one is delivered again after a delay or refused.
fn complete(hub: &Hub, member: &Member, completed: Completed, delayed: &mut DelayQueue) {
    if let Completed::Message(QueuedMessage { ticket: Some(ticket), .. }, outcome) = &completed {
        match outcome {
            AckOutcome::Ack | AckOutcome::Reject(_) => hub.shards.settle(ticket),
            // The next owner receives the message.
            AckOutcome::Retry if !hub.shards.is_current(ticket, member) => return,
            AckOutcome::Retry => {}
        }
    }
    match completed {
        Completed::Message(mut message, AckOutcome::Retry) => {
            message.deliveries += 1;
            let delay = MIN_RETRY_DELAY.saturating_mul(1 << (message.deliveries - 1).min(10)).min(MAX_RETRY_DELAY);
            delayed.insert(message, monotonic() + delay);
        }
        Completed::Message(message, AckOutcome::Reject(reason)) => {
            hub.refuse(member, message.packet, BridgeError::Unhandled { reason });
        }
        Completed::Message(_, AckOutcome::Ack) | Completed::Request => {}
    }
}

/// Delivers as many messages as the node has capacity for. Returns true if it has none left.
fn deliver_ready(hub: &Arc<Hub>, member: &Arc<Member>, in_flight: &mut InFlight, delayed: &mut DelayQueue) -> bool {
    let has_messages = !member.messages.is_empty() || delayed.next_due().is_some();
    if !has_messages || in_flight.len() >= MAX_IN_FLIGHT {
        return false;
    }
    let mut capacity = member.inbound.capacity().min(MAX_IN_FLIGHT - in_flight.len());
    while capacity > 0 {
        let now = monotonic();
        let next = match delayed.pop_due(now) {
            Some(message) => message,
            None => match member.messages.pop() {
                Some(message) if message.delay.is_zero() => message,
                Some(mut message) => {
                    let due = now + std::mem::take(&mut message.delay);
                    delayed.insert(message, due);
                    continue;
                }
                None => return false,
            },
        };
        if let Some(future) = deliver_one(hub, member, next) {
            in_flight.push(future);
            capacity -= 1;
        }
    }
    true
}

/// Delivers one message. Returns `None` for a notification and for an undecodable message.
fn deliver_one(hub: &Arc<Hub>, member: &Arc<Member>, message: QueuedMessage) -> Option<BoxFuture<'static, Completed>> {
    let is_for_another =
        |message: &QueuedMessage| message.ticket.as_ref().is_some_and(|ticket| !hub.shards.is_current(ticket, member));
    if member.is_disconnected() || is_for_another(&message) {
        return None;
    }
    let outcome = match message.kind {
        MessageKind::Direct => message.packet.envelope().map(|envelope| member.inbound.deliver(envelope)),
        MessageKind::Event => message.packet.envelope().map(|envelope| member.inbound.event(envelope)),
        MessageKind::Notification => match message.packet.notification() {
            Ok(notification) => {
                member.inbound.notify(notification);
                return None;
            }
            Err(error) => Err(error),
        },
    };
    match outcome {
        Ok(outcome) => Some(Box::pin(async move {
            let outcome = outcome.await;
            Completed::Message(message, outcome)
        })),
        Err(error) => {
            message.ticket.iter().for_each(|ticket| hub.shards.settle(ticket));
            hub.refuse(member, message.packet, error);
            None
        }
    }
}

/// Returns the future of the response to a request.
fn handle_request(hub: &Arc<Hub>, member: &Arc<Member>, queued: QueuedRequest) -> BoxFuture<'static, Completed> {
    let request = queued.packet.request().map(|request| member.resolve_shard(request));
    let (hub, member) = (Arc::clone(hub), Arc::clone(member));
    Box::pin(async move {
        // A sleep takes a tick of the timer even for a zero duration.
        if !queued.delay.is_zero() {
            tokio::time::sleep(queued.delay).await;
        }
        let response = match request {
            Ok(request) => member.inbound.request(request).await,
            Err(error) => {
                let reason = match &error {
                    BridgeError::Malformed { reason } => reason.clone(),
                    other => other.to_string(),
                };
                hub.refuse(&member, queued.packet, error);
                Response::Refused(RequestError::Undecodable(reason))
            }
        };
        if !member.is_disconnected() {
            // The caller may have given up.
            let _ = queued.response.send(Packet::from_response(&response, MAX_RESPONSE_BYTES));
        }
        Completed::Request
    })
}

/// Messages that wait until they are due; messages due at the same time keep their order.
#[derive(Default)]
struct DelayQueue {
    /// The message that is due first is at the top.
    heap: BinaryHeap<Reverse<DelayedMessage>>,
    /// The number of the last insertion, so that messages due at the same time keep their order.
    count: u64,
}

/// A message that is delivered later.
struct DelayedMessage {
    due: Instant,
    number: u64,
    message: QueuedMessage,
}

impl DelayQueue {
    fn insert(&mut self, message: QueuedMessage, due: Instant) {
        self.count += 1;
        self.heap.push(Reverse(DelayedMessage { due, number: self.count, message }));
    }

    fn next_due(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(first)| first.due)
    }

    fn pop_due(&mut self, now: Instant) -> Option<QueuedMessage> {
        if self.next_due()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(first)| first.message)
    }
}

impl PartialEq for DelayedMessage {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for DelayedMessage {}
impl PartialOrd for DelayedMessage {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for DelayedMessage {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}
