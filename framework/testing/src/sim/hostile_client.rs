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
use whizbang_core::message::{Kind, Name, ShardId};
use whizbang_wire::subject::Address;

/// The index of no service, so that no partition applies.
const NO_SERVICE: usize = usize::MAX;
impl Broker {
    /// Sends `count` forged packets, drawn from a seed, to the domains that nodes own. Returns how many were delivered.
    ///
    /// The names are those of the cards and of the acknowledged messages. Those messages are replayed and changed.
    pub(super) fn attack(&self, seed: u64, count: u16) -> usize {
        let mut hostile = Hostile::new(seed, self.targets());
        let links = self.links();
        let subscribers = |domain: &Name| {
            let is_subscriber = |link: &&Arc<SimLink>| link.card.subscribes.iter().any(|(taken, ..)| taken == domain);
            links.iter().filter(is_subscriber).map(|link| link.service).collect()
        };
        for (address, packet) in self.state().observed.handled(subscribers) {
            hostile.observe(address, packet);
        }
        let forgeries = std::iter::from_fn(|| hostile.forge()).take(usize::from(count));
        forgeries.filter(|forgery| self.forge(forgery)).count()
    }

    /// Returns the domains of all nodes, with real names as far as they are known.
    fn targets(&self) -> Vec<Target> {
        let (links, state) = (self.links(), self.state());
        let cards = || links.iter().map(|link| &link.card);
        let mut targets: Vec<Target> = Vec::new();
        let Ok(forged) = Name::from_static("Forged") else { return targets };
        for (domain, shards) in cards().flat_map(|card| &card.owns) {
            if targets.iter().any(|target| target.domain == *domain) {
                continue;
            }
            let command = state.observed.of(Kind::Command, domain).next().map(|envelope| envelope.name.clone());
            let mut events = cards().flat_map(|card| &card.subscribes).filter(|(of, ..)| of == domain);
            let event = events.find_map(|(.., names)| names.first().cloned());
            let origin = state.observed.of(Kind::Event, domain).find_map(|event| event.origin.as_ref());
            let query = cards().flat_map(|card| &card.answers).next().cloned();
            targets.push(Target {
                domain: domain.clone(),
                shards: *shards,
                command: command.unwrap_or_else(|| forged.clone()),
                event: event.unwrap_or_else(|| forged.clone()),
                actor: origin.map_or_else(|| forged.clone(), |origin| origin.actor.clone()),
                query: query.unwrap_or_else(|| (domain.clone(), forged.clone())),
            });
        }
        targets
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
