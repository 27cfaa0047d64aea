//! One node at the hub: what waits for it, and the loop that hands it over.
//!
//! Started by the bridge's attach, on the node's own `LocalSet`; calls the node's door. Takes no more than the door has room
//! for, so a slow node holds its senders back.

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

use super::{Hub, QUEUE_CAPACITY};
use crate::bridge::queue::{PushOutcome, Queue};
use crate::bridge::wire::Packet;
use crate::bridge::{AckOutcome, BridgeError, Inbound, NodeCard, Request, RequestError, Response};
use crate::clock::monotonic;
use crate::message::{MAX_PAYLOAD_BYTES, ShardId, shard_of};

/// The most messages of one node that are being handled at once, whatever room the node says it has.
const MAX_IN_FLIGHT: usize = 4096;
/// A node that has no room is asked again after this time, or as soon as it has ended something of ours.
const CAPACITY_POLL_INTERVAL: Duration = Duration::from_millis(2);
/// A message that a node did not take comes again after this time, doubled each time up to [`MAX_RETRY_DELAY`].
const MIN_RETRY_DELAY: Duration = Duration::from_millis(10);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(1);
/// What an answer may have in bytes: as much as a NATS server takes by default.
const MAX_RESPONSE_BYTES: usize = 2 * MAX_PAYLOAD_BYTES;

/// What travels one way.
#[derive(Clone)]
pub(super) struct QueuedMessage {
    pub(super) kind: MessageKind,
    pub(super) packet: Packet,
    pub(super) delay: Duration,
    pub(super) deliveries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MessageKind {
    Direct,
    Event,
    Notification,
}

/// A question under way.
pub(super) struct QueuedRequest {
    pub(super) packet: Packet,
    pub(super) delay: Duration,
    pub(super) response: oneshot::Sender<Packet>,
}

pub(super) struct Member {
    pub(super) id: u64,
    pub(super) card: NodeCard,
    pub(super) messages: Queue<QueuedMessage>,
    pub(super) requests: Queue<QueuedRequest>,
    /// Something was not put into the queue because the node lags behind: it must look after the gaps.
    pub(super) lagging: AtomicBool,
    /// The node is cut off from the hub.
    pub(super) disconnected: AtomicBool,
    pub(super) detaching: AtomicBool,
    pub(super) stopped: Notify,
    pub(super) inbound: Arc<dyn Inbound>,
}

impl Member {
    pub(super) fn new(number: u64, card: NodeCard, door: Arc<dyn Inbound>) -> Self {
        Self {
            id: number,
            card,
            messages: Queue::new(QUEUE_CAPACITY),
            requests: Queue::new(QUEUE_CAPACITY),
            lagging: AtomicBool::new(false),
            disconnected: AtomicBool::new(false),
            detaching: AtomicBool::new(false),
            stopped: Notify::new(),
            inbound: door,
        }
    }

    pub(super) fn is_disconnected(&self) -> bool {
        self.disconnected.load(Ordering::Relaxed)
    }

    /// A caller that does not know the number of shards leaves the destination to the owner.
    fn resolve_shard(&self, mut asked: Request) -> Request {
        if let Request::Command(envelope) = &mut asked
            && let Some((domain, shards)) = self.card.owns.iter().find(|(domain, _)| *domain == envelope.domain)
        {
            envelope.to.get_or_insert_with(|| ShardId::new(domain.clone(), shard_of(&envelope.key, *shards)));
        }
        asked
    }

    /// Puts an event into the queue. A node that lags does not hold the others back: what it misses it gets from the log.
    pub(super) fn push_event(&self, parcel: QueuedMessage) -> PushOutcome {
        if self.lagging.load(Ordering::Relaxed) { PushOutcome::Accepted } else { self.messages.push(parcel) }
    }
}

/// Ends the member however its loop ends, also when a crashing node drops it.
pub(super) struct MemberGuard {
    pub(super) hub: Arc<Hub>,
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

enum Completed {
    Message(QueuedMessage, AckOutcome),
    Request,
}

/// The messages that a node is handling.
type InFlight = FuturesUnordered<BoxFuture<'static, Completed>>;

/// Hands over what comes in until the member leaves; then waits for what the node is still handling.
pub(super) async fn run(membership: MemberGuard) {
    let (hub, member) = (&membership.hub, &membership.member);
    let mut handling = InFlight::new();
    let mut held = DelayQueue::default();
    loop {
        if member.detaching.load(Ordering::Acquire) {
            break;
        }
        while let Some(question) = if handling.len() < MAX_IN_FLIGHT { member.requests.pop() } else { None } {
            handling.push(handle_request(hub, member, question));
        }
        let starved = deliver_ready(hub, member, &mut handling, &mut held);
        if member.lagging.load(Ordering::Relaxed) && member.messages.len() <= QUEUE_CAPACITY / 2 {
            member.lagging.store(false, Ordering::Relaxed);
            member.inbound.reconnected();
        }
        let due = held.next_due();
        let wake = if starved { Some(monotonic() + CAPACITY_POLL_INTERVAL).into_iter().chain(due).min() } else { due };
        tokio::select! {
            biased;
            Some(done) = handling.next() => complete(hub, member, done, &mut held),
            () = member.messages.filled() => {}
            () = member.requests.filled() => {}
            () = sleep_until(wake) => {}
        }
        // What else is done by now, so that the node's room is asked for once per batch.
        while let Some(Some(done)) = futures_util::FutureExt::now_or_never(handling.next()) {
            complete(hub, member, done, &mut held);
        }
    }
    // Senders must not find the node any more while it ends what it has begun.
    hub.remove(member);
    while handling.next().await.is_some() {}
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => pending().await,
    }
}

fn complete(hub: &Hub, member: &Member, done: Completed, held: &mut DelayQueue) {
    match done {
        Completed::Message(mut parcel, AckOutcome::Retry) => {
            parcel.deliveries += 1;
            let delay = MIN_RETRY_DELAY.saturating_mul(1 << (parcel.deliveries - 1).min(10)).min(MAX_RETRY_DELAY);
            held.insert(parcel, monotonic() + delay);
        }
        Completed::Message(parcel, AckOutcome::Reject(reason)) => {
            hub.refuse(member, parcel.packet, BridgeError::Unhandled { reason });
        }
        Completed::Message(_, AckOutcome::Ack) | Completed::Request => {}
    }
}

/// Hands over as many messages as the node has room for. True if it has no more room.
fn deliver_ready(hub: &Arc<Hub>, member: &Arc<Member>, handling: &mut InFlight, held: &mut DelayQueue) -> bool {
    let waiting = member.messages.len() > 0 || held.next_due().is_some();
    if !waiting || handling.len() >= MAX_IN_FLIGHT {
        return false;
    }
    let mut room = member.inbound.capacity().min(MAX_IN_FLIGHT - handling.len());
    while room > 0 {
        let now = monotonic();
        let next = match held.pop_due(now) {
            Some(parcel) => parcel,
            None => match member.messages.pop() {
                Some(parcel) if parcel.delay.is_zero() => parcel,
                Some(mut parcel) => {
                    let due = now + std::mem::take(&mut parcel.delay);
                    held.insert(parcel, due);
                    continue;
                }
                None => return false,
            },
        };
        if let Some(future) = deliver_one(hub, member, next) {
            handling.push(future);
            room -= 1;
        }
    }
    true
}

/// Hands one message over; none if it is news or cannot be read.
fn deliver_one(hub: &Arc<Hub>, member: &Arc<Member>, parcel: QueuedMessage) -> Option<BoxFuture<'static, Completed>> {
    if member.is_disconnected() {
        return None;
    }
    let settled = match parcel.kind {
        MessageKind::Direct => parcel.packet.envelope().map(|envelope| member.inbound.deliver(envelope)),
        MessageKind::Event => parcel.packet.envelope().map(|envelope| member.inbound.event(envelope)),
        MessageKind::Notification => match parcel.packet.notification() {
            Ok(tidings) => {
                member.inbound.notify(tidings);
                return None;
            }
            Err(error) => Err(error),
        },
    };
    match settled {
        Ok(settled) => Some(Box::pin(async move {
            let settled = settled.await;
            Completed::Message(parcel, settled)
        })),
        Err(error) => {
            hub.refuse(member, parcel.packet, error);
            None
        }
    }
}

fn handle_request(hub: &Arc<Hub>, member: &Arc<Member>, question: QueuedRequest) -> BoxFuture<'static, Completed> {
    let asked = question.packet.request().map(|asked| member.resolve_shard(asked));
    let (hub, member) = (Arc::clone(hub), Arc::clone(member));
    Box::pin(async move {
        // A sleep takes a tick of the timer even if it is for no time.
        if !question.delay.is_zero() {
            tokio::time::sleep(question.delay).await;
        }
        let answer = match asked {
            Ok(asked) => member.inbound.request(asked).await,
            Err(error) => {
                let reason = match &error {
                    BridgeError::Malformed { reason } => reason.clone(),
                    other => other.to_string(),
                };
                hub.refuse(&member, question.packet, error);
                Response::Refused(RequestError::Undecodable(reason))
            }
        };
        if !member.is_disconnected() {
            // Nobody may be waiting any more.
            let _ = question.response.send(Packet::from_response(&answer, MAX_RESPONSE_BYTES));
        }
        Completed::Request
    })
}

/// Messages held back until they are due; equal times keep their order.
#[derive(Default)]
struct DelayQueue {
    heap: BinaryHeap<Reverse<DelayedMessage>>,
    count: u64,
}

struct DelayedMessage {
    due: Instant,
    number: u64,
    parcel: QueuedMessage,
}

impl DelayQueue {
    fn insert(&mut self, parcel: QueuedMessage, due: Instant) {
        self.count += 1;
        self.heap.push(Reverse(DelayedMessage { due, number: self.count, parcel }));
    }

    fn next_due(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(first)| first.due)
    }

    fn pop_due(&mut self, now: Instant) -> Option<QueuedMessage> {
        if self.next_due()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(first)| first.parcel)
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
