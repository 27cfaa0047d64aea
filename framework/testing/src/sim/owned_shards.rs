//! Leased shards of one simulated node: it starts and ends the receipt of their messages, and sends live events to every node.
//!
//! Called by nodes through their [bridge](super::bridge), as the bridge to NATS does with a server.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::bridge::{PUBLISH_TIMEOUT, SimulatedBridge};
use super::broker_shards::BROKER;
use super::consumer;
use super::fault_counts::FaultEvent;
use super::link::{SimLink, pause};
use super::node_tasks::spawn_outside;
use whizbang_core::bridge::BridgeError;
use whizbang_core::clock::instant;
use whizbang_core::message::ShardId;
use whizbang_core::store::Epoch;
use whizbang_wire::Packet;

impl SimulatedBridge {
    /// Begins to receive the messages of a shard under an epoch, after a round trip to the broker.
    ///
    /// # Errors
    /// [`BridgeError::Unreachable`] while the broker has no leader or the link is cut, and a refusal of an epoch that is not
    /// greater than the last one.
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
        consumer::begin_shard(&self.broker, &link, shard, epoch);
        pause(self.broker.latency()).await;
        Ok(())
    }

    /// Ends the receipt of a shard, and waits until its acknowledgements have arrived.
    pub(super) async fn release_shard(&self, shard: &ShardId) {
        let Ok(link) = self.link() else { return };
        link.disown(shard);
        self.broker.notify_all();
        // The acknowledgements that are on their way count for the next owner.
        pause(self.broker.latency()).await;
        link.wait_zero(&link.pending_settlements).await;
    }

    /// Sends an event to the nodes that receive live events, in addition to its stream. It may be lost, as a notification.
    pub(super) fn send_live(&self, link: &Arc<SimLink>, shard: &ShardId, packet: &Packet) {
        let broker = &self.broker;
        let listens = |link: &Arc<SimLink>| {
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
            let latency = broker.latency() + broker.latency();
            let (broker, packet, link) = (broker.clone(), packet.clone(), Arc::clone(link));
            let transit = broker.start_transit();
            spawn_outside("simulated broker", async move {
                pause(latency).await;
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
