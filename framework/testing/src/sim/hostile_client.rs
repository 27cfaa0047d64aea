//! A hostile client: writes forged packets into the streams of the simulated broker, and sends forged notifications and requests.
//!
//! Called by the [fault scheduler](super::fault_scheduler) and by the bridge suite. The simulated broker rejects nothing, as a real
//! broker would; the nodes must.

use std::sync::Arc;

use super::broker::{Broker, StoredPacket};
use super::broker_names::{commands, events};
use super::fault_counts::FaultEvent;
use super::link::SimLink;
use whizbang_conformance::bridge::hostile::{Forgery, Hostile, Target};
use whizbang_core::bridge::NodeCard;
use whizbang_core::message::{Name, ShardId};
use whizbang_wire::subject::Address;

/// The index of no service, so that no partition applies.
const NO_SERVICE: usize = usize::MAX;

impl Broker {
    /// Sends `count` forged packets, drawn from a seed, to the domains that nodes own. Returns how many were delivered.
    pub(super) fn attack(&self, seed: u64, count: u16) -> usize {
        let mut targets: Vec<Target> = Vec::new();
        let Ok(forged) = Name::from_static("Forged") else { return 0 };
        for link in self.links() {
            for (domain, shards) in &link.card.owns {
                if targets.iter().all(|target| target.domain != *domain) {
                    let (command, event, actor) = (forged.clone(), forged.clone(), forged.clone());
                    // It is not known here whether a subscriber has already accepted a position.
                    let (domain, shards, has_begun) = (domain.clone(), *shards, false);
                    targets.push(Target { domain, shards, command, event, actor, has_begun });
                }
            }
        }
        let mut hostile = Hostile::new(seed, targets);
        let forgeries = std::iter::from_fn(|| hostile.forge()).take(usize::from(count));
        forgeries.filter(|forgery| self.forge(forgery)).count()
    }

    /// Sends one forged packet. Returns whether it was delivered.
    pub(super) fn forge(&self, forgery: &Forgery) -> bool {
        let is_owner = |card: &NodeCard, domain: &Name| card.owns.iter().any(|(owned, _)| owned == domain);
        let is_subscriber = |card: &NodeCard, domain: &Name| card.subscribes.iter().any(|(taken, ..)| taken == domain);
        let is_delivered = match &forgery.address {
            Address::Direct { to, .. } => self.forge_message(&commands(&to.domain), forgery),
            Address::Event { shard, .. } | Address::Events(shard) => {
                self.forge_message(&events(&shard.domain), forgery)
            }
            Address::Committed { from, .. } => self.forge_notification(forgery, |card| is_owner(card, &from.domain)),
            Address::Head(shard) => self.forge_notification(forgery, |card| is_subscriber(card, &shard.domain)),
            Address::EventsRequest(ShardId { domain, .. })
            | Address::OutboxRequest { from: ShardId { domain, .. }, .. }
            | Address::WatermarkRequest { to: ShardId { domain, .. }, .. }
            | Address::CommandRequest { domain, .. } => self.forge_request(forgery, |card| is_owner(card, domain)),
            Address::QueryRequest { domain, name } => {
                self.forge_request(forgery, |card| card.answers.iter().any(|(of, query)| of == domain && query == name))
            }
        };
        if is_delivered {
            self.fault_counts.one(FaultEvent::PacketForged);
            self.trace.add(format_args!("  a hostile client writes {}", forgery.kind));
        }
        is_delivered
    }

    /// Stores a forged packet in a stream. Returns false if the broker does not accept it.
    fn forge_message(&self, stream: &str, forgery: &Forgery) -> bool {
        let message =
            Arc::new(StoredPacket { from: NO_SERVICE, to: forged_shard(forgery), packet: forgery.packet.clone() });
        let stored = self.state().model.publish(stream, None, message, whizbang_core::clock::instant());
        if stored.is_ok() {
            self.notifier(stream).notify_waiters();
        }
        stored.is_ok()
    }

    /// Returns the links of attached nodes that a card selects.
    fn listeners(&self, is_listener: impl Fn(&NodeCard) -> bool) -> Vec<Arc<SimLink>> {
        self.links().into_iter().filter(|link| link.is_attached() && is_listener(&link.card)).collect()
    }

    /// Delivers a forged notification. One that contradicts its subject is dropped, as a bridge would do.
    fn forge_notification(&self, forgery: &Forgery, is_listener: impl Fn(&NodeCard) -> bool) -> bool {
        let listeners = self.listeners(is_listener);
        if let Ok(notification) = forgery.packet.notification()
            && Address::for_notification(&notification) == forgery.address
        {
            listeners.iter().for_each(|link| link.inbound.notify(notification.clone()));
        }
        !listeners.is_empty()
    }

    /// Sends a forged request to the first node that answers such requests. Returns false if there is none.
    fn forge_request(&self, forgery: &Forgery, is_responder: impl Fn(&NodeCard) -> bool) -> bool {
        let responders = self.listeners(is_responder);
        if let (Some(link), Ok(request)) = (responders.first(), forgery.packet.request()) {
            let response = link.inbound.request(request);
            // The response is not needed.
            drop(tokio::task::spawn_local(async move { drop(response.await) }));
        }
        !responders.is_empty()
    }
}

/// Returns the receiving shard in the subject of a forged message.
fn forged_shard(forgery: &Forgery) -> Option<ShardId> {
    match &forgery.address {
        Address::Direct { to, .. } => Some(to.clone()),
        _ => None,
    }
}
