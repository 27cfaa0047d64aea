//! Faults and forgeries at the hub, for tests of recovery and of bridges.
//!
//! Called by tests only.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::LoopbackHub;
use super::hub::no_owner;
use super::member::{Member, MessageKind, QueuedRequest};
use crate::Packet;
use crate::subject::Address;
use whizbang_core::bridge::BridgeError;
use whizbang_core::message::{Name, ShardId};

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
        let member = self.0.owner(domain, 0).ok_or_else(|| no_owner(domain))?;
        self.0.enqueue(&[member], MessageKind::Direct, packet, domain).await
    }

    /// Sends a packet with any content to the nodes that listen to an address. No-op if there is none.
    pub async fn forge(&self, address: &Address, packet: Packet) {
        let routes = self.0.routes();
        let owner =
            |shard: &ShardId| -> Vec<Arc<Member>> { self.0.owner(&shard.domain, shard.shard).into_iter().collect() };
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
                return self.forge_request(self.0.owner(domain, shard.unwrap_or(0)), packet);
            }
            Address::QueryRequest { domain, name } => {
                return self.forge_request(routes.query_handler(domain, name), packet);
            }
            Address::EventsRequest(shard)
            | Address::OutboxRequest { from: shard, .. }
            | Address::WatermarkRequest { to: shard, .. } => {
                return self.forge_request(self.0.owner(&shard.domain, shard.shard), packet);
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
