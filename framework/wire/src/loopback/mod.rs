//! The bridge inside one process: nodes of different services meet at a hub and use the wire encoding.
//!
//! Used by programs that run all their services in one process, and by tests. Delivers to the [`Inbound`] of the attached nodes.
//! Nothing is persisted. A node fetches the messages it missed from the logs of the other nodes.

mod claims;
mod delivery_loop;
mod hub;
mod injection;
mod member;
mod route;
mod shard_queue;
mod watches;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use parking_lot::RwLock;
use tokio::sync::oneshot;

use self::delivery_loop::MemberGuard;
pub use self::hub::{DeliveryPolicy, RefusedPacket};
use self::hub::{Hub, no_owner};
use self::member::{Member, MessageKind, QueuedRequest};
use self::shard_queue::BROKER_NAME;
use crate::Packet;
use whizbang_core::bridge::{
    Bridge, BridgeError, Inbound, NodeCard, Notification, Request, RequestError, Response, Watch, Watcher,
};
use whizbang_core::message::{Envelope, Name, ShardId, StoreId};
use whizbang_core::store::Epoch;

/// The meeting point of the nodes of one process. Clones refer to the same hub.
///
/// ```
/// use whizbang::bridge::loopback::LoopbackHub;
///
/// let hub = LoopbackHub::new();
/// let (orders, payments) = (hub.bridge(), hub.bridge());
/// # let _ = (orders, payments);
/// ```
///
/// Each message is encoded and decoded as for a broker, so a program that works here works over a broker too. The hub
/// has no persistence: a command that its destination has not received is sent again from the log of its sender.
///
/// Two services in one process:
/// ```
/// # use bank_fixture::*;
/// use whizbang::bridge::loopback::LoopbackHub;
/// use whizbang::prelude::*;
///
/// # whizbang::derive::block_on(async {
/// let hub = LoopbackHub::new();
/// let bank = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().bridge(hub.bridge()).start().await?;
/// let teller = Client::connect("teller", hub.bridge()).await?;
/// assert_eq!(teller.send(Deposit { account: "ada".into(), cents: 500 }).await?, 500);
/// bank.stop().await?;
/// # Ok::<_, Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, Default)]
pub struct LoopbackHub(Arc<Hub>);

impl std::fmt::Debug for LoopbackHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopbackHub").finish_non_exhaustive()
    }
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

/// Returns the error of a node that a test has cut off.
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
    /// Returns this node, unless it is not attached or was cut off.
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
            self.hub.shards.redeliver(&member);
            member.inbound.reconnected();
            self.hub.watches.interrupt(member.id);
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
        whizbang_core::spawn::alone("loopback", delivery_loop::run(MemberGuard { hub: Arc::clone(&self.hub), member }));
        ready(Ok(())).boxed()
    }

    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        let sent = self.member().and_then(|_| {
            let packet = Packet::from_envelope(&envelope)?;
            let (domain, shard) = match &envelope.to {
                Some(to) => (&to.domain, to.shard),
                None => (&envelope.domain, 0),
            };
            let routes = self.hub.routes();
            if routes.lease_holder(domain).is_some() {
                return Ok(self.hub.enqueue_for_shard(&ShardId::new(domain.clone(), shard), &packet));
            }
            let owner = routes.owner(domain, shard).ok_or_else(|| no_owner(domain))?;
            Ok(self.hub.enqueue(&[owner], MessageKind::Direct, packet, domain))
        });
        sent.unwrap_or_else(|error| ready(Err(error)).boxed())
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        let sent = self.member().and_then(|_| {
            let packet = Packet::from_envelope(&event)?;
            let shard = event.origin.as_ref().map_or(0, |origin| origin.shard.shard);
            let subscribers = self.hub.routes().subscribers(&event.domain, shard);
            if let Some(origin) = &event.origin {
                self.hub.report(&origin.shard, origin.sequence);
            }
            Ok(self.hub.enqueue(&subscribers, MessageKind::Event, packet, &event.domain))
        });
        sent.unwrap_or_else(|error| ready(Err(error)).boxed())
    }

    fn own<'a>(&'a self, shard: &'a ShardId, epoch: Epoch) -> BoxFuture<'a, Result<(), BridgeError>> {
        ready(self.member().and_then(|member| self.hub.shards.own(shard, epoch, &member))).boxed()
    }

    fn disown<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, ()> {
        if let Some(member) = &*self.member.read() {
            self.hub.shards.disown(shard, member);
        }
        ready(()).boxed()
    }

    fn request(&self, request: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        async move {
            self.member()?;
            let packet = Packet::from_request(&request)?;
            let owner = |shard: &ShardId| self.hub.owner(&shard.domain, shard.shard);
            let member = match &request {
                Request::Command(envelope) => self.hub.owner_for_command(envelope),
                Request::Query(envelope) => self.hub.routes().query_handler(&envelope.domain, &envelope.name),
                Request::Events { shard, .. } => owner(shard),
                Request::Outbox { from, .. } | Request::Shape { from, .. } => owner(from),
                Request::Watermark { to, .. } | Request::Sent { to, .. } => owner(to),
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

    fn watch<'a>(
        &'a self,
        domain: &'a Name,
        watcher: Arc<dyn Watcher>,
    ) -> BoxFuture<'a, Result<Option<Watch>, BridgeError>> {
        let watch = self.member().map(|member| {
            self.hub.watches.add(domain, member, &watcher);
            let (hub, domain) = (Arc::clone(&self.hub), domain.clone());
            Some(Watch::new(move || hub.watches.end(&domain, &watcher)))
        });
        ready(watch).boxed()
    }

    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        let sent = self.member().map(|_| {
            let packet = Packet::from_notification(&notification);
            let routes = self.hub.routes();
            let (to, domain) = match &notification {
                Notification::Committed { from, .. } => {
                    (self.hub.owner(&from.domain, from.shard).into_iter().collect(), &from.domain)
                }
                Notification::Head { shard, position } => {
                    self.hub.report(shard, *position);
                    (routes.subscribers(&shard.domain, shard.shard), &shard.domain)
                }
            };
            self.hub.enqueue(&to, MessageKind::Notification, packet, domain)
        });
        sent.unwrap_or_else(|error| ready(Err(error)).boxed())
    }

    fn durability(&self) -> String {
        "loopback: messages exist in this process only; lost messages are sent again from the logs".to_owned()
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
