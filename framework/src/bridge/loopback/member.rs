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

use super::{Hub, QUEUE};
use crate::bridge::queue::{Pushed, Queue};
use crate::bridge::wire::Packet;
use crate::bridge::{AckOutcome, BridgeError, Inbound, NodeCard, Request, RequestError, Response};
use crate::clock::monotonic;
use crate::message::{MAX_PAYLOAD_BYTES, ShardId, shard_of};

/// The most messages of one node that are being handled at once, whatever room the node says it has.
const WINDOW: usize = 4096;
/// A node that has no room is asked again after this time, or as soon as it has ended something of ours.
const NO_ROOM: Duration = Duration::from_millis(2);
/// A message that a node did not take comes again after this time, doubled each time up to [`LATEST`].
const SOONEST: Duration = Duration::from_millis(10);
const LATEST: Duration = Duration::from_secs(1);
/// What an answer may have in bytes: as much as a NATS server takes by default.
const MAX_ANSWER: usize = 2 * MAX_PAYLOAD_BYTES;

/// What travels one way.
#[derive(Clone)]
pub(super) struct Parcel {
    pub(super) what: What,
    pub(super) packet: Packet,
    pub(super) held_back: Duration,
    pub(super) deliveries: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Direct,
    Event,
    Tidings,
}

/// A question under way.
pub(super) struct Question {
    pub(super) packet: Packet,
    pub(super) held_back: Duration,
    pub(super) answer: oneshot::Sender<Packet>,
}

pub(super) struct Member {
    pub(super) number: u64,
    pub(super) card: NodeCard,
    pub(super) parcels: Queue<Parcel>,
    pub(super) questions: Queue<Question>,
    /// Something was not put into the queue because the node lags behind: it must look after the gaps.
    pub(super) lagging: AtomicBool,
    /// The node is cut off from the hub.
    pub(super) cut: AtomicBool,
    pub(super) leaving: AtomicBool,
    pub(super) left: Notify,
    pub(super) door: Arc<dyn Inbound>,
}

impl Member {
    pub(super) fn new(number: u64, card: NodeCard, door: Arc<dyn Inbound>) -> Self {
        Self {
            number,
            card,
            parcels: Queue::new(QUEUE),
            questions: Queue::new(QUEUE),
            lagging: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            left: Notify::new(),
            door,
        }
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Relaxed)
    }

    /// A caller that does not know the number of shards leaves the destination to the owner.
    fn with_shard(&self, mut asked: Request) -> Request {
        if let Request::Command(envelope) = &mut asked
            && let Some((domain, shards)) = self.card.owns.iter().find(|(domain, _)| *domain == envelope.domain)
        {
            envelope.to.get_or_insert_with(|| ShardId::new(domain.clone(), shard_of(&envelope.key, *shards)));
        }
        asked
    }

    /// Puts an event into the queue. A node that lags does not hold the others back: what it misses it gets from the log.
    pub(super) fn push_event(&self, parcel: Parcel) -> Pushed {
        if self.lagging.load(Ordering::Relaxed) { Pushed::Taken } else { self.parcels.push(parcel) }
    }
}

/// Ends the member however its loop ends, also when a crashing node drops it.
pub(super) struct Membership {
    pub(super) hub: Arc<Hub>,
    pub(super) member: Arc<Member>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.hub.leave(&self.member);
        self.member.parcels.close();
        self.member.questions.close();
        self.member.left.notify_one();
    }
}

enum Done {
    Parcel(Parcel, AckOutcome),
    Question,
}

/// The messages that a node is handling.
type Handling = FuturesUnordered<BoxFuture<'static, Done>>;

/// Hands over what comes in until the member leaves; then waits for what the node is still handling.
pub(super) async fn deliver(membership: Membership) {
    let (hub, member) = (&membership.hub, &membership.member);
    let mut handling = Handling::new();
    let mut held = Held::default();
    loop {
        if member.leaving.load(Ordering::Acquire) {
            break;
        }
        while let Some(question) = if handling.len() < WINDOW { member.questions.pop() } else { None } {
            handling.push(answer(hub, member, question));
        }
        let starved = hand_over(hub, member, &mut handling, &mut held);
        if member.lagging.load(Ordering::Relaxed) && member.parcels.len() <= QUEUE / 2 {
            member.lagging.store(false, Ordering::Relaxed);
            member.door.reconnected();
        }
        let due = held.next_due();
        let wake = if starved { Some(monotonic() + NO_ROOM).into_iter().chain(due).min() } else { due };
        tokio::select! {
            biased;
            Some(done) = handling.next() => settle(hub, member, done, &mut held),
            () = member.parcels.filled() => {}
            () = member.questions.filled() => {}
            () = sleep_until(wake) => {}
        }
        // What else is done by now, so that the node's room is asked for once per batch.
        while let Some(Some(done)) = futures_util::FutureExt::now_or_never(handling.next()) {
            settle(hub, member, done, &mut held);
        }
    }
    // Senders must not find the node any more while it ends what it has begun.
    hub.leave(member);
    while handling.next().await.is_some() {}
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => pending().await,
    }
}

fn settle(hub: &Hub, member: &Member, done: Done, held: &mut Held) {
    match done {
        Done::Parcel(mut parcel, AckOutcome::Retry) => {
            parcel.deliveries += 1;
            let delay = SOONEST.saturating_mul(1 << (parcel.deliveries - 1).min(10)).min(LATEST);
            held.hold(parcel, monotonic() + delay);
        }
        Done::Parcel(parcel, AckOutcome::Reject(reason)) => {
            hub.refuse(member, parcel.packet, BridgeError::Unwanted { reason });
        }
        Done::Parcel(_, AckOutcome::Ack) | Done::Question => {}
    }
}

/// Hands over as many messages as the node has room for. True if it has no more room.
fn hand_over(hub: &Arc<Hub>, member: &Arc<Member>, handling: &mut Handling, held: &mut Held) -> bool {
    let waiting = member.parcels.len() > 0 || held.next_due().is_some();
    if !waiting || handling.len() >= WINDOW {
        return false;
    }
    let mut room = member.door.capacity().min(WINDOW - handling.len());
    while room > 0 {
        let now = monotonic();
        let next = match held.due(now) {
            Some(parcel) => parcel,
            None => match member.parcels.pop() {
                Some(parcel) if parcel.held_back.is_zero() => parcel,
                Some(mut parcel) => {
                    let due = now + std::mem::take(&mut parcel.held_back);
                    held.hold(parcel, due);
                    continue;
                }
                None => return false,
            },
        };
        if let Some(future) = hand(hub, member, next) {
            handling.push(future);
            room -= 1;
        }
    }
    true
}

/// Hands one message over; none if it is news or cannot be read.
fn hand(hub: &Arc<Hub>, member: &Arc<Member>, parcel: Parcel) -> Option<BoxFuture<'static, Done>> {
    if member.is_cut() {
        return None;
    }
    let settled = match parcel.what {
        What::Direct => parcel.packet.envelope().map(|envelope| member.door.deliver(envelope)),
        What::Event => parcel.packet.envelope().map(|envelope| member.door.event(envelope)),
        What::Tidings => match parcel.packet.tidings() {
            Ok(tidings) => {
                member.door.notify(tidings);
                return None;
            }
            Err(error) => Err(error),
        },
    };
    match settled {
        Ok(settled) => Some(Box::pin(async move {
            let settled = settled.await;
            Done::Parcel(parcel, settled)
        })),
        Err(error) => {
            hub.refuse(member, parcel.packet, error);
            None
        }
    }
}

fn answer(hub: &Arc<Hub>, member: &Arc<Member>, question: Question) -> BoxFuture<'static, Done> {
    let asked = question.packet.asked().map(|asked| member.with_shard(asked));
    let (hub, member) = (Arc::clone(hub), Arc::clone(member));
    Box::pin(async move {
        // A sleep takes a tick of the timer even if it is for no time.
        if !question.held_back.is_zero() {
            tokio::time::sleep(question.held_back).await;
        }
        let answer = match asked {
            Ok(asked) => member.door.request(asked).await,
            Err(error) => {
                let reason = match &error {
                    BridgeError::Malformed { reason } => reason.clone(),
                    other => other.to_string(),
                };
                hub.refuse(&member, question.packet, error);
                Response::Refused(RequestError::Undecodable(reason))
            }
        };
        if !member.is_cut() {
            // Nobody may be waiting any more.
            let _ = question.answer.send(Packet::from_answer(&answer, MAX_ANSWER));
        }
        Done::Question
    })
}

/// Messages held back until they are due; equal times keep their order.
#[derive(Default)]
struct Held {
    heap: BinaryHeap<Reverse<Waiting>>,
    count: u64,
}

struct Waiting {
    due: Instant,
    number: u64,
    parcel: Parcel,
}

impl Held {
    fn hold(&mut self, parcel: Parcel, due: Instant) {
        self.count += 1;
        self.heap.push(Reverse(Waiting { due, number: self.count, parcel }));
    }

    fn next_due(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(first)| first.due)
    }

    fn due(&mut self, now: Instant) -> Option<Parcel> {
        if self.next_due()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(first)| first.parcel)
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Waiting {}
impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}
