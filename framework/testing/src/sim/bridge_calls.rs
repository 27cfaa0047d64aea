//! The calls of a simulated node to its bridge: the trait [`Bridge`] for a [`SimulatedBridge`].
//!
//! [Consumers](super::consumer) call the node in the other direction. [Requests](super::requests) and
//! [leased shards](super::owned_shards) have files of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::bridge::SimulatedBridge;
use super::broker::StoredPacket;
use super::broker_names::{commands, events};
use super::consumer::{self, StreamKind};
use super::link::{LinkState, RECREATE_DELAY, SimLink};
use whizbang_core::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, Response};
use whizbang_core::message::{Envelope, Name, ShardId, StoreId};
use whizbang_core::store::Epoch;
use whizbang_wire::Packet;

impl Bridge for SimulatedBridge {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        Box::pin(async move {
            self.broker.claim(&card)?;
            let link = self.broker.join(|number| {
                Arc::new(SimLink {
                    service: self.service,
                    number,
                    card,
                    inbound,
                    state: watch::channel(LinkState::Attached).0,
                    seat: self.seat,
                    store: self.store.clone(),
                    inbound_cut: AtomicBool::new(false),
                    outbound_cut: AtomicBool::new(false),
                    reserved: AtomicUsize::new(0),
                    publications: AtomicUsize::new(0),
                    in_flight: AtomicUsize::new(0),
                    pending_settlements: AtomicUsize::new(0),
                    decremented: Notify::new(),
                    owned: Mutex::default(),
                })
            });
            *self.link.lock() = Some(Arc::clone(&link));
            self.broker.ensure_streams(&link);
            // The consumers of leased shards begin when the node opens these: see `owned_shards`.
            if link.card.has_leased_shards {
                return Ok(());
            }
            for (domain, _) in &link.card.owns {
                consumer::begin(&self.broker, &link, StreamKind::Direct, commands(domain));
            }
            for (domain, ..) in &link.card.subscribes {
                consumer::begin(&self.broker, &link, StreamKind::Events, events(domain));
            }
            Ok(())
        })
    }

    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            let link = self.link()?;
            let packet = Packet::from_envelope(&envelope)?;
            let domain = envelope.to.as_ref().map_or(&envelope.domain, |to| &to.domain).clone();
            let from = envelope
                .origin
                .as_ref()
                .map_or_else(String::new, |origin| format!("{} {}", origin.shard, origin.sequence));
            self.broker.trace.add(format_args!(
                "{from} sends {} {} {} to {domain}",
                envelope.kind.as_str(),
                envelope.name,
                envelope.id,
            ));
            let stored = StoredPacket { from: self.service, to: envelope.to.clone(), packet };
            self.publish_to(&link, &domain, &commands(&domain), stored, &envelope.id.to_string()).await
        })
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            let link = self.link()?;
            let packet = Packet::from_envelope(&event)?;
            let Some(origin) = &event.origin else { return Ok(()) };
            self.broker
                .trace
                .add(format_args!("{} {} is published: {} {}", origin.shard, origin.sequence, event.name, event.id));
            self.broker.record_published(&origin.shard, origin.sequence, event.id);
            let (domain, stream) = (&event.domain, events(&event.domain));
            self.send_live(&link, &origin.shard, &packet);
            let stored = StoredPacket { from: self.service, to: None, packet };
            let published = self.publish_to(&link, domain, &stream, stored, &event.id.to_string()).await;
            if matches!(published, Err(BridgeError::NoOwner { .. })) && link.is_attached() {
                // The broker has lost a stream that this node owns. It is created again after a delay, as the NATS bridge does.
                let broker = self.broker.clone();
                whizbang_core::spawn::alone("simulated broker", async move {
                    tokio::time::sleep(RECREATE_DELAY).await;
                    if link.is_attached() && broker.can_pull(&link) {
                        broker.ensure_streams(&link);
                    }
                });
            }
            published
        })
    }

    fn own<'a>(&'a self, shard: &'a ShardId, epoch: Epoch) -> BoxFuture<'a, Result<(), BridgeError>> {
        Box::pin(self.receive_shard(shard, epoch))
    }

    fn disown<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, ()> {
        Box::pin(self.release_shard(shard))
    }

    fn owner<'a>(&'a self, domain: &'a Name) -> BoxFuture<'a, Result<Option<StoreId>, BridgeError>> {
        Box::pin(std::future::ready(Ok(self.broker.owner(domain))))
    }

    fn request(&self, to: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        Box::pin(self.ask(to, deadline))
    }

    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(self.send_notification(notification))
    }

    fn durability(&self) -> String {
        "simulated: messages may be lost".to_owned()
    }

    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(async move {
            let link = self.link.lock().clone().filter(|link| link.is_attached()).ok_or(BridgeError::Closed)?;
            link.state.send_replace(LinkState::Detaching);
            for counter in [&link.publications, &link.reserved, &link.in_flight] {
                link.wait_zero(counter).await;
            }
            self.broker.leave(&link);
            Ok(())
        })
    }

    fn abandon(&self) {
        if let Some(link) = self.link.lock().take() {
            self.broker.leave(&link);
        }
    }
}
