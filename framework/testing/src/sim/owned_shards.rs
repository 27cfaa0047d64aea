//! Leased shards at the simulated broker: a consumer per shard and owner, and live events for every node.
//!
//! Called by the [bridges](super::link) of simulated nodes, as the bridge to NATS does with a server. The next owner deletes the
//! consumers of earlier epochs, so their unacknowledged messages are redelivered at once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::broker::{Broker, StoredPacket, commands};
use super::consumer;
use super::fault_counts::FaultEvent;
use super::link::{PUBLISH_TIMEOUT, SimLink, SimulatedBridge, pause};
use super::node_tasks::spawn_outside;
use whizbang_core::bridge::{BridgeError, Claim, NodeCard, Request};
use whizbang_core::clock::instant;
use whizbang_core::message::{Name, ShardId, shard_of};
use whizbang_core::store::Epoch;
use whizbang_wire::Packet;

const BROKER: &str = "the simulated broker";

/// Returns the name of the consumer of a shard for its owner in an epoch.
pub(super) fn shard_consumer(service: &Name, shard: &ShardId, epoch: Epoch) -> String {
    format!("{}{epoch}", consumer_prefix(service, shard))
}

fn consumer_prefix(service: &Name, shard: &ShardId) -> String {
    format!("{service}-{}-{}-e", shard.domain, shard.shard)
}

impl Broker {
    /// Claims all domains of a node for its store, or none, as the bridge to a real broker does.
    pub(super) fn claim(&self, card: &NodeCard) -> Result<(), BridgeError> {
        let Some(store) = &card.store else { return Ok(()) };
        let claims = &mut self.state().claims;
        for (domain, _) in &card.owns {
            if let Some(found) = claims.get(domain) {
                found.admits(card, store, domain)?;
            }
        }
        for (domain, _) in &card.owns {
            if !claims.get(domain).is_some_and(|found| found.is_shared_with(card, store)) {
                claims.insert(domain.clone(), Claim::of(card, store));
            }
        }
        Ok(())
    }

    /// Deletes the consumers of earlier owners of a shard and creates the consumer of this one.
    pub(super) fn take_shard(&self, link: &SimLink, shard: &ShardId, epoch: Epoch) -> Result<(), BridgeError> {
        let (stream, prefix) = (commands(&shard.domain), consumer_prefix(&link.card.service, shard));
        {
            let mut state = self.state();
            let names = state.model.consumer_names(&stream);
            let epochs = names.iter().filter_map(|name| name.strip_prefix(&prefix)?.parse::<Epoch>().ok());
            let epochs: Vec<Epoch> = epochs.collect();
            if let Some(later) = epochs.iter().find(|other| **other > epoch) {
                let reason = format!("shard {shard} is received by a later owner, with epoch {later}");
                return Err(BridgeError::Refused { broker: BROKER.to_owned(), reason });
            }
            for earlier in epochs.into_iter().filter(|other| *other < epoch) {
                state.model.delete_consumer(&stream, &format!("{prefix}{earlier}"));
            }
            let (settings, of) = (state.consumers, shard.clone());
            let filter = Box::new(move |stored: &Arc<StoredPacket>| stored.to.as_ref() == Some(&of));
            state.model.create_filtered_consumer(&stream, &format!("{prefix}{epoch}"), settings, filter);
        }
        self.trace.add(format_args!("{} receives {shard} in epoch {epoch}", link.card.service));
        self.notify_all();
        Ok(())
    }
}

impl SimulatedBridge {
    pub(super) async fn receive_shard(&self, shard: &ShardId, epoch: Epoch) -> Result<(), BridgeError> {
        let link = self.link()?;
        pause(self.broker.latency()).await;
        self.broker.wait_unpaused().await;
        let has_no_leader = self.broker.state().no_leader_until.is_some_and(|until| until > instant());
        if has_no_leader || !self.broker.can_pull(&link) || !self.broker.is_inbound_open(&link) {
            tokio::time::sleep(PUBLISH_TIMEOUT).await;
            return Err(BridgeError::Unreachable { broker: BROKER.to_owned(), reason: "no response".to_owned() });
        }
        if link.epoch_of(shard).is_some_and(|owned| owned >= epoch) {
            return Ok(());
        }
        self.broker.ensure_streams(&link);
        self.broker.take_shard(&link, shard, epoch)?;
        link.owned.lock().insert(shard.clone(), epoch);
        consumer::begin_shard(&link, shard, epoch);
        pause(self.broker.latency()).await;
        Ok(())
    }

    pub(super) async fn release_shard(&self, shard: &ShardId) {
        let Ok(link) = self.link() else { return };
        link.disown(shard);
        self.broker.notify_all();
        // The acknowledgements that are on their way count for the next owner.
        pause(self.broker.latency()).await;
        link.wait_zero(&link.pending_settlements).await;
    }
}

impl SimLink {
    /// Returns the epoch in which the node owns a leased shard.
    pub(super) fn epoch_of(&self, shard: &ShardId) -> Option<Epoch> {
        self.owned.lock().get(shard).copied()
    }

    pub(super) fn disown(&self, shard: &ShardId) {
        self.owned.lock().remove(shard);
    }

    /// Returns whether the node receives the messages for a shard.
    pub(super) fn receives_shard(&self, shard: &ShardId) -> bool {
        if self.card.has_leased_shards {
            return self.epoch_of(shard).is_some();
        }
        self.card.owns.iter().any(|(domain, _)| *domain == shard.domain)
    }

    /// Returns whether the node receives a request to the owner of a shard.
    pub(super) fn responds_to(&self, request: &Request) -> bool {
        let Some((_, shards)) = self.card.owns.iter().find(|(domain, _)| domain == request.domain()) else {
            return false;
        };
        match request {
            Request::Command(command) => {
                let shard = || ShardId::new(command.domain.clone(), shard_of(&command.key, *shards));
                self.receives_shard(&command.to.clone().unwrap_or_else(shard))
            }
            Request::Events { shard, .. } => self.receives_shard(shard),
            Request::Outbox { from, .. } | Request::Shape { from, .. } => self.receives_shard(from),
            Request::Watermark { to, .. } | Request::Sent { to, .. } => self.receives_shard(to),
            Request::Query(_) => false,
        }
    }

    /// Returns whether a consumer, named without its epoch, is that of a shard of this node's service.
    pub(super) fn is_consumer_of_its_shard(&self, stream: &str, consumer: &str) -> bool {
        let mut owned =
            self.card.owns.iter().filter(|(domain, _)| self.card.has_leased_shards && commands(domain) == stream);
        owned.any(|(domain, _)| consumer.starts_with(&format!("{}-{domain}-", self.card.service)))
    }

    /// Sends an event to the nodes that receive live events, in addition to its stream. It may be lost, as a notification.
    pub(super) fn send_live(self: &Arc<Self>, shard: &ShardId, packet: &Packet) {
        let broker = &self.broker;
        let listens = |link: &Arc<Self>| {
            link.card.has_leased_shards
                && link.is_attached()
                && link.epoch_of(shard).is_none()
                && link.card.subscribes.iter().any(|(domain, ..)| *domain == shard.domain)
        };
        for other in broker.links().into_iter().filter(listens) {
            if broker.draws_loss() {
                broker.fault_counts.one(FaultEvent::DeliveryLost);
                continue;
            }
            let (latency, packet, link) = (broker.latency() + broker.latency(), packet.clone(), Arc::clone(self));
            let transit = broker.start_transit();
            spawn_outside("simulated broker", async move {
                pause(latency).await;
                let broker = &link.broker;
                if let Ok(event) = packet.envelope()
                    && transit.arrives()
                    && !other.is_gone()
                    && broker.is_outbound_open(&link)
                    && broker.is_inbound_open(&other)
                    && !broker.is_partitioned(link.service, other.service)
                {
                    other.in_flight.fetch_add(1, Ordering::Relaxed);
                    // An event that is not accepted is fetched from the log.
                    other.inbound.event(event).await;
                    other.decrement(&other.in_flight);
                }
            });
        }
    }
}
