//! The state of a hub: its nodes, their routes, and the queues of shards; and the delivery of a packet into a node's queue.
//!
//! Used by the bridges of the nodes, the [loop](super::delivery_loop) of each node, and the [faults](super::injection) of tests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, join_all, ready};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use super::member::{Member, MessageKind, QueuedMessage};
use super::route::Routes;
use super::shard_queue::ShardQueues;
use super::watches::Watches;
use crate::Packet;
use crate::queue::PushOutcome;
use whizbang_core::bridge::claim::Claim;
use whizbang_core::bridge::{BridgeError, Inbound, NodeCard};
use whizbang_core::clock::monotonic;
use whizbang_core::message::{Envelope, Name, Shard, ShardId};
use whizbang_core::telemetry::{LogLimit, error_chain};

/// The time an event may wait for a full queue. After that its subscriber is lagging and fetches the rest from the log.
const SLOW_SUBSCRIBER_TIMEOUT: Duration = Duration::from_millis(200);
/// The maximum number of refused packets that a hub keeps.
const MAX_REFUSED: usize = 1000;
/// The maximum total size of the kept packets in bytes, so that a flood of invalid packets does not fill the memory.
const MAX_REFUSED_BYTES: usize = 4 << 20;

/// Returns the delay of each copy of the next message; an empty list loses it.
pub type DeliveryPolicy = dyn FnMut() -> Vec<Duration> + Send;

/// The limit of the log lines about refused packets, of which a member can send any number.
struct RefusalLines(LogLimit);

impl Default for RefusalLines {
    fn default() -> Self {
        Self(LogLimit::new("refused a packet", 3))
    }
}

/// The state of a hub.
#[derive(Default)]
pub(super) struct Hub {
    /// Replaced as a whole when a node joins or leaves, so a sender holds no lock while it delivers.
    pub(super) routes: RwLock<Arc<Routes>>,
    /// The number of the last node, and the attached ones.
    pub(super) members: Mutex<(u64, Vec<Arc<Member>>)>,
    /// The packets and their total size in bytes.
    pub(super) refused: Mutex<(VecDeque<RefusedPacket>, usize)>,
    /// The limit of the log lines about refused packets.
    refusals: RefusalLines,
    /// The claims by domain.
    pub(super) claims: Mutex<BTreeMap<Name, Claim>>,
    /// The policy of deliveries, if a test has set one.
    pub(super) deliveries: Mutex<Option<Box<DeliveryPolicy>>>,
    /// The messages for leased shards, and their owners.
    pub(super) shards: ShardQueues,
    /// The watches of domains.
    pub(super) watches: Watches,
}

/// A received packet that could not be handled.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RefusedPacket {
    /// The service that refused it.
    pub service: Name,
    /// The reason.
    pub error: BridgeError,
    /// The received packet.
    pub packet: Packet,
}

impl Hub {
    /// Returns the current routes.
    pub(super) fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read())
    }

    /// Returns the node that receives the messages for a shard.
    pub(super) fn owner(&self, domain: &Name, shard: Shard) -> Option<Arc<Member>> {
        let routes = self.routes();
        match routes.lease_holder(domain) {
            Some(_) => self.shards.owner(&ShardId::new(domain.clone(), shard)),
            None => routes.owner(domain, shard),
        }
    }

    /// Returns the node that receives the command of a caller, which may not know the number of shards.
    pub(super) fn owner_for_command(&self, command: &Envelope) -> Option<Arc<Member>> {
        let routes = self.routes();
        let known = command.to.clone();
        let shard = known.or_else(|| routes.lease_holder(&command.domain)?.shard_of_key(&command.domain, &command.key));
        self.owner(&command.domain, shard.map_or(0, |shard| shard.shard))
    }

    /// Attaches a node and routes messages to it.
    pub(super) fn add(&self, card: NodeCard, inbound: Arc<dyn Inbound>) -> Arc<Member> {
        let mut members = self.members.lock();
        members.0 += 1;
        let member = Arc::new(Member::new(members.0, card, inbound));
        members.1.push(Arc::clone(&member));
        *self.routes.write() = Arc::new(Routes::new(&members.1));
        member
    }

    /// Detaches a node. Later messages for it are refused, and their senders keep them.
    pub(super) fn remove(&self, leaver: &Member) {
        self.shards.disown_all(leaver);
        let mut members = self.members.lock();
        members.1.retain(|member| member.id != leaver.id);
        *self.routes.write() = Arc::new(Routes::new(&members.1));
        drop(members);
        self.watches.end_all(leaver.id);
    }

    /// Reports the growth of a log to the watches of its domain.
    pub(super) fn report(&self, shard: &ShardId, position: u64) {
        self.watches.report(shard, position, || self.sample_delays().is_empty());
    }

    /// Keeps a packet that could not be handled, for tests and programs that print it.
    pub(super) fn refuse(&self, member: &Member, packet: Packet, error: BridgeError) {
        if self.refusals.0.admits(monotonic()) {
            tracing::warn!(service = %member.card.service, error = %error_chain(&error), "refused a packet");
        }
        let (refused, bytes) = &mut *self.refused.lock();
        *bytes += packet.size();
        refused.push_back(RefusedPacket { service: member.card.service.clone(), error, packet });
        // The newest packet is kept, whatever its size.
        while refused.len() > 1 && (refused.len() > MAX_REFUSED || *bytes > MAX_REFUSED_BYTES) {
            *bytes -= refused.pop_front().map_or(0, |oldest| oldest.packet.size());
        }
    }

    /// Returns the delay of each copy of a message that will arrive.
    pub(super) fn sample_delays(&self) -> Vec<Duration> {
        match &mut *self.deliveries.lock() {
            Some(policy) => policy(),
            None => vec![Duration::ZERO],
        }
    }

    /// Queues a packet for the members `to`, within this call; the future waits until it is within the bounds of their queues.
    pub(super) fn enqueue(
        &self,
        to: &[Arc<Member>],
        kind: MessageKind,
        packet: Packet,
        domain: &Name,
    ) -> BoxFuture<'static, Result<(), BridgeError>> {
        let mut waits = Vec::new();
        for member in to {
            if member.is_disconnected() {
                continue;
            }
            for delay in self.sample_delays() {
                let message = QueuedMessage { kind, packet: packet.clone(), delay, deliveries: 0, ticket: None };
                match kind {
                    MessageKind::Direct => match member.messages.push(message) {
                        PushOutcome::Accepted => {}
                        PushOutcome::Waiting(accepted) => {
                            let domain = domain.clone();
                            waits.push(async move { accepted.await.map_err(|_| no_owner(&domain)) }.boxed());
                        }
                        PushOutcome::Closed => return ready(Err(no_owner(domain))).boxed(),
                    },
                    MessageKind::Event => {
                        if let PushOutcome::Waiting(accepted) = member.push_event(message) {
                            waits.push(wait_for_space(Arc::clone(member), accepted).boxed());
                        }
                    }
                    // A notification may be lost, so it never slows a sender down.
                    MessageKind::Notification => drop(member.messages.try_push(message)),
                }
            }
        }
        if waits.is_empty() {
            return ready(Ok(())).boxed();
        }
        async move { join_all(waits).await.into_iter().collect() }.boxed()
    }

    /// Queues a packet for a leased shard. The future waits until it is within the bound of the owner's queue.
    pub(super) fn enqueue_for_shard(
        &self,
        shard: &ShardId,
        packet: &Packet,
    ) -> BoxFuture<'static, Result<(), BridgeError>> {
        let mut waits = Vec::new();
        for delay in self.sample_delays() {
            match self.shards.push(shard, packet.clone(), delay) {
                None => return ready(Err(no_owner(&shard.domain))).boxed(),
                // An owner that ends leaves its messages to the next one.
                Some(PushOutcome::Waiting(accepted)) => waits.push(accepted.map(drop)),
                Some(PushOutcome::Accepted | PushOutcome::Closed) => {}
            }
        }
        join_all(waits).map(|_| Ok(())).boxed()
    }
}

/// Waits until a message is within the bound of its receiver.
async fn wait_for_space(member: Arc<Member>, accepted: oneshot::Receiver<()>) -> Result<(), BridgeError> {
    // A subscriber that is gone does not slow the publisher down either.
    if tokio::time::timeout(SLOW_SUBSCRIBER_TIMEOUT, accepted).await.is_err() {
        // Each event that waited reports it.
        if !member.lagging.swap(true, Ordering::Relaxed) {
            tracing::warn!(service = %member.card.service, "slow subscriber: events dropped, it fetches them from the log");
        }
        member.messages.wake();
    }
    Ok(())
}

/// Returns the error for a domain without an attached owner. It is transient: the owner may join.
pub(super) fn no_owner(domain: &Name) -> BridgeError {
    BridgeError::NoOwner { domain: domain.to_string() }
}
