//! Delivery of one stream to a simulated node: pulls up to the node's capacity, calls the node, and settles after the commit.
//!
//! Started when a node attaches. Calls the node's [`Inbound`](whizbang_core::bridge::Inbound) and settles each message at the
//! [broker](super::broker). Undecodable messages are rejected and not redelivered.
//!
//! # The path of a message
//! A pulled message may be lost, delivered twice or delayed, by the rates of the fault profile. It reaches the node after the
//! latency of the broker, if the link is not cut at that moment. The node answers when its turn is committed; until then the
//! consumer reports progress, so that the broker does not redeliver. A lost delivery is redelivered after the ack wait.
//!
//! A message without latency is handed over without a task, so that messages keep their order.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::broker::{Broker, StoredPacket};
use super::broker_names::{commands, shard_consumer};
use super::crash_points::CrashPoint;
use super::fault_counts::FaultEvent;
use super::link::{LinkState, RECREATE_DELAY, SimLink, pause};
use whizbang_conformance::broker::Acknowledgement;
use whizbang_conformance::broker::model::{Delivery, Next};
use whizbang_core::bridge::{AckOutcome, BridgeError};
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, ShardId};
use whizbang_core::store::Epoch;

/// Time between polls of a node without capacity.
const CAPACITY_POLL: Duration = Duration::from_millis(5);
/// Interval of progress notifications for a message in flight.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(1600);
/// Delay of the first redelivery. It doubles with each delivery up to [`MAX_REDELIVERY`].
const FIRST_REDELIVERY: Duration = Duration::from_millis(50);
/// The longest wait before a rejected message is delivered again.
const MAX_REDELIVERY: Duration = Duration::from_secs(5);
/// Maximum time between polls of a missing stream.
const MISSING_POLL: Duration = Duration::from_secs(5);

/// The content of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum StreamKind {
    /// Commands and replies of one shard or service.
    Direct,
    /// The events of one domain.
    Events,
}

/// The receiving side of one stream at one node. Invariant: a message that was handed to the node is settled once, or never
/// if the node is gone.
struct SimConsumer {
    /// The broker from which it pulls.
    broker: Broker,
    /// The link of the node.
    link: Arc<SimLink>,
    /// The kind of messages of the stream.
    kind: StreamKind,
    /// The name of the stream, which is that of the consumer as well.
    stream: String,
    /// The name of the consumer at the broker.
    name: String,
    /// The leased shard that it delivers, and the epoch of its owner.
    shard: Option<(ShardId, Epoch)>,
}

/// Starts to consume a stream until the node detaches.
pub(super) fn begin(broker: &Broker, link: &Arc<SimLink>, kind: StreamKind, stream: String) {
    let name = link.card.service.to_string();
    let (broker, link) = (broker.clone(), Arc::clone(link));
    let consumer = Arc::new(SimConsumer { broker, link, kind, stream, name, shard: None });
    whizbang_core::spawn::alone("simulated broker", consumer.run());
}

/// Starts to consume the messages of a leased shard until the node disowns it or detaches.
pub(super) fn begin_shard(broker: &Broker, link: &Arc<SimLink>, shard: &ShardId, epoch: Epoch) {
    let consumer = Arc::new(SimConsumer {
        broker: broker.clone(),
        link: Arc::clone(link),
        kind: StreamKind::Direct,
        stream: commands(&shard.domain),
        name: shard_consumer(&link.card.service, shard, epoch),
        shard: Some((shard.clone(), epoch)),
    });
    whizbang_core::spawn::alone("simulated broker", consumer.run());
}

impl SimConsumer {
    /// Pulls and delivers until the node detaches or is killed, or loses the shard.
    async fn run(self: Arc<Self>) {
        let link = &self.link;
        let notifier = self.broker.notifier(&self.stream);
        let mut state = link.state.subscribe();
        while link.is_attached() && self.is_owned() {
            // Registers before the check: a message stored between the check and the wait must wake this consumer. `biased` below
            // keeps the order of the branches, and with it the trace, the same in every run.
            let notified = notifier.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            let wait = match self.next() {
                Ok(delivery) => {
                    self.deliver(delivery);
                    continue;
                }
                Err(Wait::Until(wait)) => wait,
                Err(Wait::Missing) => {
                    if self.recreate().await {
                        continue;
                    }
                    Some(instant() + MISSING_POLL)
                }
            };
            tokio::select! {
                biased;
                _ = state.changed() => {}
                () = notified => {}
                () = sleep_until(wait) => {}
            }
        }
    }

    /// Returns false once the node has disowned the shard, or owns it in a later epoch.
    fn is_owned(&self) -> bool {
        self.shard.as_ref().is_none_or(|(shard, epoch)| self.link.epoch_of(shard) == Some(*epoch))
    }

    /// Returns the next message that the node can take, or the time until which there is none.
    fn next(&self) -> Result<Delivery<Arc<StoredPacket>>, Wait> {
        let link = &self.link;
        if !self.broker.can_pull(link) {
            // Reconnecting the node notifies this consumer.
            return Err(Wait::Until(None));
        }
        if link.inbound.capacity() <= link.reserved.load(Ordering::Relaxed) {
            return Err(Wait::Until(Some(instant() + CAPACITY_POLL)));
        }
        match self.broker.next(&self.stream, &self.name) {
            Next::Message(delivery) => Ok(delivery),
            Next::Empty(due) | Next::AtLimit(due) => Err(Wait::Until(due)),
            Next::Missing => Err(Wait::Missing),
        }
    }

    /// Waits and recreates a deleted stream or consumer. Returns whether it exists.
    async fn recreate(&self) -> bool {
        let link = &self.link;
        tokio::time::sleep(RECREATE_DELAY).await;
        if !link.is_attached() || !self.broker.can_pull(link) {
            return false;
        }
        self.broker.ensure_streams(link);
        if let Some((shard, epoch)) = &self.shard
            && self.is_owned()
            && self.broker.take_shard(link, shard, *epoch).is_err()
        {
            // A later owner has taken the shard.
            link.disown(shard);
            return false;
        }
        let found = self.broker.state().model.has_consumer(&self.stream, &self.name);
        if found {
            self.broker.trace.add(format_args!("{} is recreated for {}", self.stream, link.card.service));
            link.inbound.reconnected();
        }
        found
    }

    /// Sends a message to the node.
    fn deliver(self: &Arc<Self>, delivery: Delivery<Arc<StoredPacket>>) {
        let link = &self.link;
        let broker = &self.broker;
        if delivery.deliveries > 1 {
            let (stream, service) = (&self.stream, &link.card.service);
            broker
                .trace
                .add(format_args!("delivery {} of {stream} {} to {service}", delivery.deliveries, delivery.sequence));
        }
        if broker.draws_loss() && broker.draw(2) == 0 {
            broker.fault_counts.one(FaultEvent::DeliveryLost);
            broker.trace.add(format_args!(
                "  {} {} is lost on its way to {}",
                self.stream, delivery.sequence, link.card.service
            ));
            return;
        }
        let copies = if broker.draws_duplicate() { 2 } else { 1 };
        for copy in 0..copies {
            if copy > 0 {
                broker.fault_counts.one(FaultEvent::DeliveredTwice);
                broker.trace.add(format_args!("  {} {} is delivered twice", self.stream, delivery.sequence));
            }
            link.reserved.fetch_add(1, Ordering::Relaxed);
            link.in_flight.fetch_add(1, Ordering::Relaxed);
            let latency = broker.latency() + broker.handler_delay(link.service);
            if latency.is_zero() {
                // Without a task, so that messages without latency keep their order.
                self.hand_to_node(&delivery);
                continue;
            }
            let transit = broker.start_transit();
            let (consumer, delivery) = (Arc::clone(self), delivery.clone());
            whizbang_core::spawn::alone("simulated broker", async move {
                tokio::time::sleep(latency).await;
                if transit.arrives() {
                    consumer.hand_to_node(&delivery);
                } else {
                    consumer.drop_delivery();
                }
            });
        }
    }

    /// Drops a delivery that does not reach the node.
    fn drop_delivery(&self) {
        self.link.decrement(&self.link.reserved);
        self.link.decrement(&self.link.in_flight);
    }

    /// Calls the node with a message, unless the link is cut at this moment. The task that settles it ends with the node.
    fn hand_to_node(self: &Arc<Self>, delivery: &Delivery<Arc<StoredPacket>>) {
        let link = &self.link;
        let broker = &self.broker;
        if link.is_gone()
            || !self.is_owned()
            || !broker.is_inbound_open(link)
            || broker.is_partitioned(delivery.payload.from, link.service)
        {
            return self.drop_delivery();
        }
        let (sequence, deliveries) = (delivery.sequence, delivery.deliveries);
        let stored = &delivery.payload;
        let envelope = match stored.packet.envelope().and_then(|envelope| addressed(envelope, stored.to.as_ref())) {
            Ok(envelope) => envelope,
            Err(error) => {
                link.decrement(&link.reserved);
                return self.reject(sequence, &error.to_string());
            }
        };
        broker.reach_crash_point(link.service, CrashPoint::Delivery);
        let message = envelope.clone();
        let outcome = match self.kind {
            StreamKind::Direct => link.inbound.deliver(envelope),
            StreamKind::Events => link.inbound.event(envelope),
        };
        link.decrement(&link.reserved);
        let consumer = Arc::clone(self);
        whizbang_core::spawn::alone("simulated broker", async move {
            let mut state = consumer.link.state.subscribe();
            tokio::pin!(outcome);
            let outcome = loop {
                tokio::select! {
                    biased;
                    outcome = &mut outcome => break outcome,
                    _ = state.wait_for(|state| *state == LinkState::Gone) => {
                        return consumer.link.decrement(&consumer.link.in_flight);
                    }
                    () = tokio::time::sleep(PROGRESS_INTERVAL) => consumer.send_settlement(sequence, Acknowledgement::InProgress),
                }
            };
            match outcome {
                AckOutcome::Ack => {
                    consumer.broker.acked(consumer.link.service, &message);
                    consumer.send_settlement(sequence, Acknowledgement::Ack);
                }
                AckOutcome::Retry => {
                    let delay =
                        FIRST_REDELIVERY.saturating_mul(1 << deliveries.saturating_sub(1).min(10)).min(MAX_REDELIVERY);
                    consumer.send_settlement(sequence, Acknowledgement::Nak(delay));
                }
                AckOutcome::Reject(reason) => {
                    consumer.broker.record_rejected(&message);
                    consumer.reject(sequence, &reason);
                }
            }
        });
    }

    /// Ends a message that cannot be decoded: it is counted, shown in the trace, and never delivered again.
    fn reject(self: &Arc<Self>, sequence: u64, reason: &str) {
        let broker = &self.broker;
        broker.trace.add(format_args!("{} rejects {} {sequence}: {reason}", self.link.card.service, self.stream));
        broker.state().rejected += 1;
        self.send_settlement(sequence, Acknowledgement::Term);
    }

    /// Sends a settlement or a progress notification. A settlement ends the delivery for the node.
    fn send_settlement(self: &Arc<Self>, sequence: u64, acknowledgement: Acknowledgement) {
        let link = &self.link;
        let is_last = acknowledgement != Acknowledgement::InProgress;
        let broker = &self.broker;
        if is_last {
            link.pending_settlements.fetch_add(1, Ordering::Relaxed);
            broker.reach_crash_point(link.service, CrashPoint::Acknowledgement);
        }
        let is_lost = broker.draws_loss() && broker.draw(2) == 0;
        let (consumer, latency) = (Arc::clone(self), broker.latency());
        whizbang_core::spawn::alone("simulated broker", async move {
            pause(latency).await;
            let (broker, link) = (&consumer.broker, &consumer.link);
            if is_lost {
                broker.fault_counts.one(FaultEvent::SettlementLost);
            } else if !link.is_gone() && broker.is_outbound_open(link) {
                broker.settle(&consumer.stream, &consumer.name, sequence, acknowledgement);
            }
            if is_last {
                link.decrement(&link.pending_settlements);
                link.decrement(&link.in_flight);
            }
        });
    }
}

/// The condition for the next attempt.
enum Wait {
    /// The moment, or a notification if it comes first.
    Until(Option<Instant>),
    /// The stream does not exist. It may be created again.
    Missing,
}

/// Waits until a time, or for ever without one.
async fn sleep_until(wait: Option<Instant>) {
    match wait {
        Some(wait) => tokio::time::sleep_until(wait).await,
        None => std::future::pending().await,
    }
}

/// Sets the destination of a message from its address, as a bridge does.
fn addressed(envelope: Envelope, to: Option<&ShardId>) -> Result<Envelope, BridgeError> {
    match (to, &envelope.to) {
        (Some(to), Some(claimed)) if claimed != to => {
            Err(BridgeError::Malformed { reason: "the destination contradicts the address".to_owned() })
        }
        (Some(to), _) => Ok(Envelope { to: Some(to.clone()), ..envelope }),
        (None, _) => Ok(envelope),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::{BoxFuture, FutureExt, ready};

    use super::super::bridge::SimulatedBridge;
    use super::super::broker::{Broker, StoreOutcome};
    use super::super::broker_names::commands;
    use super::super::fault_counts::FaultCounts;
    use super::super::trace::Trace;
    use super::StoredPacket;
    use std::sync::Arc;
    use whizbang_conformance::bridge::Fixture;
    use whizbang_conformance::bridge::hostile::Forgery;
    use whizbang_core::bridge::Bridge;
    use whizbang_core::clock::{Clock, Timestamp};
    use whizbang_core::message::{IdSource, ShardId};
    use whizbang_wire::Packet;

    struct Simulated(Broker);

    impl Simulated {
        fn new() -> Self {
            let rng = IdSource::seeded(Clock::manual(Timestamp::from_millis(0)).0, 1);
            Self(Broker::new(rng, Trace::new(), FaultCounts::default()))
        }
    }

    impl Fixture for Simulated {
        fn bridge(&self) -> BoxFuture<'_, Arc<dyn Bridge>> {
            ready(Arc::new(SimulatedBridge::new(self.0.clone(), 0, 0, None)) as Arc<dyn Bridge>).boxed()
        }

        fn interrupt(&self) -> BoxFuture<'_, ()> {
            self.0.isolate(0, true, true);
            self.0.connect(0);
            ready(()).boxed()
        }

        fn inject(&self, to: ShardId, packet: Packet) -> BoxFuture<'_, ()> {
            let stored = self.0.store(
                &commands(&to.domain),
                "injected",
                &Arc::new(StoredPacket { from: 0, to: Some(to.clone()), packet }),
            );
            assert!(matches!(stored, StoreOutcome::Stored));
            ready(()).boxed()
        }

        fn forge(&self, forgery: Forgery) -> BoxFuture<'_, ()> {
            self.0.forge(&forgery);
            ready(()).boxed()
        }

        fn refused(&self) -> BoxFuture<'_, usize> {
            ready(self.0.state().rejected).boxed()
        }
    }

    whizbang_conformance::bridge_suite!(Simulated::new());
    whizbang_conformance::bridge_lease_suite!(Simulated::new());
}
