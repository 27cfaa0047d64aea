//! The bridge inside one process: nodes of different services meet at a hub and use the wire encoding.
//!
//! Used by programs that run all their services in one process, and by tests. Delivers to the [`Inbound`] of the attached nodes.
//! Nothing is persisted. A node fetches the messages it missed from the logs of the other nodes.

mod member;
mod route;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, join_all, ready};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use self::member::{Member, MemberGuard, MessageKind, QueuedMessage, QueuedRequest};
use self::route::Routes;
use crate::Packet;
use crate::queue::PushOutcome;
use crate::subject::Address;
use whizbang_core::bridge::claim;
use whizbang_core::bridge::claim::Claim;
use whizbang_core::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, RequestError, Response};
use whizbang_core::message::ShardId;
use whizbang_core::message::{Envelope, Name, StoreId};

/// The number of messages that may wait for a node before its senders are slowed down.
const QUEUE_CAPACITY: usize = 4096;
/// The time an event may wait for a full queue. After that its subscriber is lagging and fetches the rest from the log.
const SLOW_SUBSCRIBER_TIMEOUT: Duration = Duration::from_millis(200);
/// The maximum number of refused packets that a hub keeps.
const MAX_REFUSED: usize = 1000;
/// The maximum total size of the kept packets in bytes, so that a flood of invalid packets does not fill the memory.
const MAX_REFUSED_BYTES: usize = 4 << 20;
/// The name of the hub in errors.
const BROKER_NAME: &str = "the loopback hub";

/// The meeting point of the nodes of one process. Clones refer to the same hub.
///
/// ```
/// use whizbang::bridge::loopback::LoopbackHub;
///
/// let hub = LoopbackHub::new();
/// let (orders, payments) = (hub.bridge(), hub.bridge());
/// # let _ = (orders, payments);
/// ```
#[derive(Clone, Default)]
pub struct LoopbackHub(Arc<Hub>);

impl std::fmt::Debug for LoopbackHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopbackHub").finish_non_exhaustive()
    }
}

/// Returns the delay of each copy of the next message; an empty list loses it.
pub type DeliveryPolicy = dyn FnMut() -> Vec<Duration> + Send;

#[derive(Default)]
struct Hub {
    routes: RwLock<Arc<Routes>>,
    members: Mutex<(u64, Vec<Arc<Member>>)>,
    /// The packets and their total size in bytes.
    refused: Mutex<(VecDeque<RefusedPacket>, usize)>,
    /// The claims by domain.
    claims: Mutex<BTreeMap<Name, Claim>>,
    /// The policy of deliveries, if a test has set one.
    deliveries: Mutex<Option<Box<DeliveryPolicy>>>,
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

impl LoopbackHub {
    /// Creates a hub without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns a bridge for one more node.
    pub fn bridge(&self) -> LoopbackBridge {
        LoopbackBridge { hub: Arc::clone(&self.0), member: RwLock::new(None) }
    }

    /// Returns the latest refused packets, at most 1,000 and 4 MiB: undecodable ones, and ones that no node handles.
    pub fn refused(&self) -> Vec<RefusedPacket> {
        self.0.refused.lock().0.iter().cloned().collect()
    }
}

/// Faults and forgeries, for tests.
impl LoopbackHub {
    /// Decides about the delivery of all further messages with `policy`, for tests of recovery: it may lose, repeat and delay them.
    ///
    /// ```
    /// use whizbang::bridge::loopback::LoopbackHub;
    ///
    /// let hub = LoopbackHub::new();
    /// hub.deliver_by(|| Vec::new());
    /// // Every message is lost …
    /// hub.deliver_all();
    /// ```
    pub fn deliver_by(&self, policy: impl FnMut() -> Vec<Duration> + Send + 'static) {
        *self.0.deliveries.lock() = Some(Box::new(policy));
    }

    /// Delivers every further message once and in order again.
    pub fn deliver_all(&self) {
        *self.0.deliveries.lock() = None;
    }

    /// Deletes all claims, as a broker that lost its data.
    pub fn forget_claims(&self) {
        self.0.claims.lock().clear();
    }

    /// Sends a packet with any content to the owner of a domain, as if it were a command.
    ///
    /// # Errors
    /// [`BridgeError::NoOwner`] if no node owns the domain.
    pub async fn inject(&self, domain: &Name, packet: Packet) -> Result<(), BridgeError> {
        let member = self.0.routes().owner(domain, 0).ok_or_else(|| no_owner(domain))?;
        self.0.enqueue(&[member], MessageKind::Direct, packet, domain).await
    }

    /// Sends a packet with any content to the nodes that listen to an address. No-op if there is none.
    pub async fn forge(&self, address: &Address, packet: Packet) {
        let routes = self.0.routes();
        let owner =
            |shard: &ShardId| -> Vec<Arc<Member>> { routes.owner(&shard.domain, shard.shard).into_iter().collect() };
        let (members, kind, domain) = match address {
            Address::Direct { to, .. } => (owner(to), MessageKind::Direct, &to.domain),
            Address::Event { shard, .. } | Address::Events(shard) => {
                (routes.subscribers(&shard.domain, shard.shard), MessageKind::Event, &shard.domain)
            }
            Address::Committed { from, .. } => (owner(from), MessageKind::Notification, &from.domain),
            Address::Head(shard) => {
                (routes.subscribers(&shard.domain, shard.shard), MessageKind::Notification, &shard.domain)
            }
            Address::CommandRequest { domain, shard } => {
                return self.forge_request(routes.owner(domain, shard.unwrap_or(0)), packet);
            }
            Address::QueryRequest { domain, name } => {
                return self.forge_request(routes.query_handler(domain, name), packet);
            }
            Address::EventsRequest(shard)
            | Address::OutboxRequest { from: shard, .. }
            | Address::WatermarkRequest { to: shard, .. } => {
                return self.forge_request(routes.owner(&shard.domain, shard.shard), packet);
            }
        };
        // A node that has left is skipped.
        let _ = self.0.enqueue(&members, kind, packet, domain).await;
    }

    fn forge_request(&self, member: Option<Arc<Member>>, packet: Packet) {
        let (response, _receiver) = oneshot::channel();
        if let Some(member) = member {
            // A full queue means that the node is busy; the forger gets no response in either case.
            let _ = member.requests.try_push(QueuedRequest { packet, delay: Duration::ZERO, response });
        }
    }
}

impl Hub {
    fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read())
    }

    fn add(&self, card: NodeCard, inbound: Arc<dyn Inbound>) -> Arc<Member> {
        let mut members = self.members.lock();
        members.0 += 1;
        let member = Arc::new(Member::new(members.0, card, inbound));
        members.1.push(Arc::clone(&member));
        *self.routes.write() = Arc::new(Routes::new(&members.1));
        member
    }

    /// Claims the domains of a node for its store, all or none, and notifies the previous holders.
    fn claim(&self, card: &NodeCard) -> Result<(), BridgeError> {
        let Some(store) = &card.store else { return Ok(()) };
        let mut claims = self.claims.lock();
        for (domain, _) in &card.owns {
            if let Some(found) = claims.get(domain) {
                found.admits(card, store, domain)?;
            }
        }
        let mut lost = Vec::new();
        for (domain, _) in &card.owns {
            let claim = Claim::of(card, store);
            if let Some(before) = claims.insert(domain.clone(), claim.clone()) {
                lost.push((domain, before, claim));
            }
        }
        drop(claims);
        let members = self.members.lock().1.clone();
        for (domain, before, claim) in lost {
            let holders = members.iter().filter(|member| {
                member.card.store.as_ref().is_some_and(|store| before.is_of(store))
                    && member.card.owns.iter().any(|(owned, _)| owned == domain)
            });
            holders.for_each(|member| member.inbound.claim_lost(claim::lost_reason(domain, Some(&claim))));
        }
        Ok(())
    }

    /// Records that a node was stopped in order: a copy of its store may continue its claims.
    fn release_claims(&self, card: &NodeCard) {
        let Some(store) = &card.store else { return };
        for claim in self.claims.lock().values_mut().filter(|claim| claim.is_of(store)) {
            claim.released = true;
        }
    }

    fn remove(&self, leaver: &Member) {
        let mut members = self.members.lock();
        members.1.retain(|member| member.id != leaver.id);
        *self.routes.write() = Arc::new(Routes::new(&members.1));
    }

    fn refuse(&self, member: &Member, packet: Packet, error: BridgeError) {
        tracing::warn!(service = %member.card.service, %error, "refused a packet");
        let (refused, bytes) = &mut *self.refused.lock();
        *bytes += packet.size();
        refused.push_back(RefusedPacket { service: member.card.service.clone(), error, packet });
        // The newest packet is kept, whatever its size.
        while refused.len() > 1 && (refused.len() > MAX_REFUSED || *bytes > MAX_REFUSED_BYTES) {
            *bytes -= refused.pop_front().map_or(0, |oldest| oldest.packet.size());
        }
    }

    /// Returns the delay of each copy of a message that will arrive.
    fn sample_delays(&self) -> Vec<Duration> {
        match &mut *self.deliveries.lock() {
            Some(policy) => policy(),
            None => vec![Duration::ZERO],
        }
    }

    /// Queues a packet for the members `to`, within this call; the future waits until it is within the bounds of their queues.
    fn enqueue(
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
                let message = QueuedMessage { kind, packet: packet.clone(), delay, deliveries: 0 };
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
}

async fn wait_for_space(member: Arc<Member>, accepted: oneshot::Receiver<()>) -> Result<(), BridgeError> {
    // A subscriber that is gone does not slow the publisher down either.
    if tokio::time::timeout(SLOW_SUBSCRIBER_TIMEOUT, accepted).await.is_err() {
        tracing::warn!(service = %member.card.service, "slow subscriber: events dropped, it fetches them from the log");
        member.lagging.store(true, Ordering::Relaxed);
        member.messages.wake();
    }
    Ok(())
}

fn no_owner(domain: &Name) -> BridgeError {
    BridgeError::NoOwner { domain: domain.to_string() }
}

fn disconnected() -> BridgeError {
    BridgeError::Unreachable { broker: BROKER_NAME.to_owned(), reason: "this node is disconnected".to_owned() }
}

/// The connection of one node to a [`LoopbackHub`].
pub struct LoopbackBridge {
    hub: Arc<Hub>,
    member: RwLock<Option<Arc<Member>>>,
}

impl std::fmt::Debug for LoopbackBridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopbackBridge").finish_non_exhaustive()
    }
}

impl LoopbackBridge {
    fn member(&self) -> Result<Arc<Member>, BridgeError> {
        let member = self.member.read().clone().ok_or(BridgeError::Closed)?;
        if member.is_disconnected() { Err(disconnected()) } else { Ok(member) }
    }
}

/// Faults of the connection, for tests.
impl LoopbackBridge {
    /// Disconnects the node: no message reaches it or leaves it until [`reconnect`](Self::reconnect).
    pub fn disconnect(&self) {
        if let Some(member) = &*self.member.read() {
            member.disconnected.store(true, Ordering::Relaxed);
        }
    }

    /// Connects the node again and notifies it.
    pub fn reconnect(&self) {
        let member = self.member.read().clone();
        if let Some(member) = member.filter(|member| member.disconnected.swap(false, Ordering::Relaxed)) {
            member.inbound.reconnected();
        }
    }
}

impl Bridge for LoopbackBridge {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        let mut own = self.member.write();
        if own.is_some() {
            return ready(Err(BridgeError::Closed)).boxed();
        }
        if let Err(error) = self.hub.claim(&card) {
            return ready(Err(error)).boxed();
        }
        let member = self.hub.add(card, inbound);
        *own = Some(Arc::clone(&member));
        drop(own);
        // `detach` awaits the task; a crash of the node drops it with the `LocalSet`.
        whizbang_core::spawn::alone("loopback", member::run(MemberGuard { hub: Arc::clone(&self.hub), member }));
        ready(Ok(())).boxed()
    }

    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        let sent = self.member().and_then(|_| {
            let packet = Packet::from_envelope(&envelope)?;
            let (domain, shard) = match &envelope.to {
                Some(to) => (&to.domain, to.shard),
                None => (&envelope.domain, 0),
            };
            let owner = self.hub.routes().owner(domain, shard).ok_or_else(|| no_owner(domain))?;
            Ok(self.hub.enqueue(&[owner], MessageKind::Direct, packet, domain))
        });
        sent.unwrap_or_else(|error| ready(Err(error)).boxed())
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        let sent = self.member().and_then(|_| {
            let packet = Packet::from_envelope(&event)?;
            let shard = event.origin.as_ref().map_or(0, |origin| origin.shard.shard);
            let subscribers = self.hub.routes().subscribers(&event.domain, shard);
            Ok(self.hub.enqueue(&subscribers, MessageKind::Event, packet, &event.domain))
        });
        sent.unwrap_or_else(|error| ready(Err(error)).boxed())
    }

    fn request(&self, request: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        async move {
            self.member()?;
            let packet = Packet::from_request(&request)?;
            let routes = self.hub.routes();
            let member = match &request {
                Request::Command(envelope) => {
                    routes.owner(request.domain(), envelope.to.as_ref().map_or(0, |shard| shard.shard))
                }
                Request::Query(envelope) => routes.query_handler(&envelope.domain, &envelope.name),
                Request::Events { shard, .. } => routes.owner(&shard.domain, shard.shard),
                Request::Outbox { from, .. } | Request::Shape { from, .. } => routes.owner(&from.domain, from.shard),
                Request::Watermark { to, .. } | Request::Sent { to, .. } => routes.owner(&to.domain, to.shard),
            };
            let member = member.ok_or_else(|| no_owner(request.domain()))?;
            let (response, received) = oneshot::channel();
            // A request is not duplicated: a caller that retries uses the same id.
            let delay = self.hub.sample_delays().first().copied();
            let _lost;
            match delay {
                Some(delay) if !member.is_disconnected() => {
                    if member.requests.try_push(QueuedRequest { packet, delay, response }).is_err() {
                        return Ok(Response::Refused(RequestError::Busy));
                    }
                }
                // Keep the sender until the deadline, so that the caller waits for a response that never arrives.
                _ => _lost = response,
            }
            let no_response = || BridgeError::NoResponse { domain: request.domain().to_string(), deadline };
            match tokio::time::timeout(deadline, received).await {
                Ok(Ok(packet)) => packet.response().map_err(|error| error.in_response(request.domain())),
                Ok(Err(_)) | Err(_) => Err(no_response()),
            }
        }
        .boxed()
    }

    fn owner<'a>(&'a self, domain: &'a Name) -> BoxFuture<'a, Result<Option<StoreId>, BridgeError>> {
        let owner = self.member().map(|_| self.hub.claims.lock().get(domain).map(|claim| claim.store));
        ready(owner).boxed()
    }

    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        let sent = self.member().map(|_| {
            let packet = Packet::from_notification(&notification);
            let routes = self.hub.routes();
            let (to, domain) = match &notification {
                Notification::Committed { from, .. } => {
                    (routes.owner(&from.domain, from.shard).into_iter().collect(), &from.domain)
                }
                Notification::Head { shard, .. } => (routes.subscribers(&shard.domain, shard.shard), &shard.domain),
            };
            self.hub.enqueue(&to, MessageKind::Notification, packet, domain)
        });
        sent.unwrap_or_else(|error| ready(Err(error)).boxed())
    }

    fn durability(&self) -> String {
        "loopback: messages live in this process only; lost messages are sent again from the logs".to_owned()
    }

    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        async move {
            let member = self.member.write().take().ok_or(BridgeError::Closed)?;
            member.detaching.store(true, Ordering::Release);
            member.messages.wake();
            member.stopped.notified().await;
            self.hub.release_claims(&member.card);
            Ok(())
        }
        .boxed()
    }

    fn abandon(&self) {
        let Some(member) = self.member.write().take() else { return };
        member.disconnected.store(true, Ordering::Relaxed);
        member.detaching.store(true, Ordering::Release);
        self.hub.remove(&member);
        member.messages.wake();
    }
}
