//! A bridge whose packets a hostile client observes.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use whizbang::bridge::subject::Address;
use whizbang::bridge::wire::Packet;
use whizbang::bridge::{
    Bridge, BridgeError, BridgeHealth, Inbound, LastPublished, NodeCard, Notification, Request, Response,
};
use whizbang::message::{Envelope, Name, ShardId, StoreId};

/// The packets with their addresses, in the order in which they were sent.
type Packets = Vec<(Address, Packet)>;

/// The packets of several bridges, as a client of their broker reads them. `None` once it has stopped observing.
#[derive(Clone, Default)]
pub(crate) struct Observer(Arc<Mutex<Option<Packets>>>);

impl Observer {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Some(Vec::new()))))
    }

    /// Returns a bridge whose packets are observed.
    pub(crate) fn observe<B: Bridge>(&self, bridge: B) -> ObservedBridge<B> {
        ObservedBridge { bridge, observer: self.clone() }
    }

    /// Returns the packets so far and stops observing.
    pub(crate) fn finish(&self) -> Packets {
        self.0.lock().take().unwrap_or_default()
    }

    fn add(&self, address: Option<Address>, packet: Result<Packet, BridgeError>) {
        if let (Some(packets), Some(address), Ok(packet)) = (&mut *self.0.lock(), address, packet) {
            packets.push((address, packet));
        }
    }
}

/// A bridge whose packets are observed.
pub(crate) struct ObservedBridge<B> {
    bridge: B,
    observer: Observer,
}

impl<B: Bridge> Bridge for ObservedBridge<B> {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        self.bridge.attach(card, inbound)
    }

    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.observer.add(Address::for_message(&envelope), Packet::from_envelope(&envelope));
        self.bridge.send(envelope)
    }

    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.observer.add(Address::for_event(&event), Packet::from_envelope(&event));
        self.bridge.publish(event)
    }

    fn request(&self, request: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        self.observer.add(Some(Address::for_request(&request)), Packet::from_request(&request));
        self.bridge.request(request, deadline)
    }

    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        let packet = Packet::from_notification(&notification);
        self.observer.add(Some(Address::for_notification(&notification)), Ok(packet));
        self.bridge.notify(notification)
    }

    fn last_published<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<LastPublished>, BridgeError>> {
        self.bridge.last_published(shard)
    }

    fn keeps_events(&self) -> bool {
        self.bridge.keeps_events()
    }

    fn owner<'a>(&'a self, domain: &'a Name) -> BoxFuture<'a, Result<Option<StoreId>, BridgeError>> {
        self.bridge.owner(domain)
    }

    fn durability(&self) -> String {
        self.bridge.durability()
    }

    fn health(&self) -> BridgeHealth {
        self.bridge.health()
    }

    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.bridge.detach()
    }

    fn abandon(&self) {
        self.bridge.abandon();
    }
}
