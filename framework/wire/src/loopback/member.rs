//! One node at the hub: its queues, and the loop that delivers them.
//!
//! Started by the bridge's `attach` on the node's own `LocalSet`; calls the node's [`Inbound`]. Delivers no more messages than the
//! node has capacity for, so a slow node slows its senders down.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::shard_queue::ShardTicket;
use super::watches::Attached;
use super::{Hub, QUEUE_CAPACITY};
use crate::Packet;
use crate::queue::{PushOutcome, Queue};
use whizbang_core::bridge::{AckOutcome, BridgeError, Inbound, NodeCard, Request, RequestError, Response};
use whizbang_core::clock::monotonic;
use whizbang_core::message::{MAX_PAYLOAD_BYTES, Name, ShardId, shard_of};

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

/// A one-way message in the queue of a node.
#[derive(Clone)]
pub(super) struct QueuedMessage {
    /// The method of the node that receives it.
    pub(super) kind: MessageKind,
    /// The encoded message.
    pub(super) packet: Packet,
    /// The delay that a test has set; zero otherwise.
    pub(super) delay: Duration,
    /// The number of deliveries so far, for the delay of the next one.
    pub(super) deliveries: u32,
    /// The place of a message for a leased shard in the queue of the shard.
    pub(super) ticket: Option<ShardTicket>,
}

/// The kinds of one-way messages, which differ in what happens to one that the node does not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageKind {
    /// A command or reply: delivered again until the node accepts it.
    Direct,
    /// An event: the node may reject it, and reads the log instead.
    Event,
    /// A note that may be lost.
    Notification,
}

/// A request in the queue of a node.
pub(super) struct QueuedRequest {
    pub(super) packet: Packet,
    pub(super) delay: Duration,
    /// Completes the request. Dropped without a response, it fails the request.
    pub(super) response: oneshot::Sender<Packet>,
}

/// An attached node. Its loop handles messages and requests until it is detached or dropped.
pub(super) struct Member {
    /// The number of the node in its hub, in the order of the attachments.
    pub(super) id: u64,
    /// The description by which messages are routed.
    pub(super) card: NodeCard,
    /// Messages and events, in the order of their senders' calls.
    pub(super) messages: Queue<QueuedMessage>,
    /// Requests, which do not wait for messages.
    pub(super) requests: Queue<QueuedRequest>,
    /// An event was not queued because the node lags behind: it must check for gaps.
    pub(super) lagging: AtomicBool,
    /// The node is disconnected from the hub.
    pub(super) disconnected: AtomicBool,
    /// The node finishes what it has begun and receives nothing else.
    pub(super) detaching: AtomicBool,
    /// Notified when the loop has ended.
    pub(super) stopped: Notify,
    /// The receiver in the node.
    pub(super) inbound: Arc<dyn Inbound>,
}

impl Member {
    /// Returns a node whose loop has not started.
    pub(super) fn new(number: u64, card: NodeCard, inbound: Arc<dyn Inbound>) -> Self {
        Self {
            id: number,
            card,
            messages: Queue::new(QUEUE_CAPACITY),
            requests: Queue::new(QUEUE_CAPACITY),
            lagging: AtomicBool::new(false),
            disconnected: AtomicBool::new(false),
            detaching: AtomicBool::new(false),
            stopped: Notify::new(),
            inbound,
        }
    }

    /// Returns true while messages to and from the node are lost.
    pub(super) fn is_disconnected(&self) -> bool {
        self.disconnected.load(Ordering::Relaxed)
    }

    /// Adds the shard of the key to a command whose caller does not know the number of shards.
    fn resolve_shard(&self, mut request: Request) -> Request {
        if let Request::Command(envelope) = &mut request
            && envelope.to.is_none()
        {
            envelope.to = self.shard_of_key(&envelope.domain, &envelope.key);
        }
        request
    }

    /// Returns the shard of a key, if the node owns the domain.
    pub(super) fn shard_of_key(&self, domain: &Name, key: &str) -> Option<ShardId> {
        let (domain, shards) = self.card.owns.iter().find(|(owned, _)| owned == domain)?;
        Some(ShardId::new(domain.clone(), shard_of(key, *shards)))
    }

    /// Queues an event. A node that lags does not slow the others down: it fetches the missed events from the log.
    pub(super) fn push_event(&self, message: QueuedMessage) -> PushOutcome {
        if self.lagging.load(Ordering::Relaxed) { PushOutcome::Accepted } else { self.messages.push(message) }
    }
}

impl Attached for Member {
    fn number(&self) -> u64 {
        self.id
    }

    fn is_reached(&self) -> bool {
        !self.is_disconnected()
    }
}

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
