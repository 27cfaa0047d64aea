//! Compensating commands to another service name the shape of their type, also if they were planned before a restart.

mod eventually;
mod orders;

use std::sync::Arc;
use std::time::Duration;

use eventually::eventually;
use futures_util::future::BoxFuture;
use orders::*;
use parking_lot::Mutex;
use whizbang::bridge::loopback::{LoopbackBridge, LoopbackHub};
use whizbang::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, Response};
use whizbang::message::Envelope;
use whizbang::prelude::*;

/// The messages that a node has sent: their names, and whether they had a fingerprint.
type Sends = Arc<Mutex<Vec<(String, bool)>>>;

/// A bridge that records what its node sends.
struct RecordingBridge(LoopbackBridge, Sends);

impl Bridge for RecordingBridge {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        self.0.attach(card, inbound)
    }
    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.1.lock().push((envelope.name.to_string(), envelope.shape.is_some()));
        self.0.send(envelope)
    }
    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.publish(event)
    }
    fn request(&self, to: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        self.0.request(to, deadline)
    }
    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.notify(notification)
    }
    fn durability(&self) -> String {
        self.0.durability()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.0.detach()
    }
    fn abandon(&self) {
        self.0.abandon();
    }
}

async fn orders(store: &MemoryStore, hub: &LoopbackHub, sends: &Sends) -> Node {
    let bridge = RecordingBridge(hub.bridge(), Arc::clone(sends));
    Node::builder("orders", store.clone()).threads(0).saga::<Order>().bridge(bridge).start().await.unwrap()
}

#[whizbang::test]
async fn compensation_planned_before_a_restart_names_its_shape() {
    let (hub, store, sends) = (LoopbackHub::new(), MemoryStore::new(), Sends::default());
    let stock = Node::builder("stock", MemoryStore::new()).threads(0).aggregate::<Shelf>().bridge(hub.bridge());
    let stock = stock.start().await.unwrap();
    let node = orders(&store, &hub, &sends).await;
    place(&node, "o", &["a"]).await.unwrap();
    eventually(async || taken(&stock, "a").await == 1).await;
    node.wait_idle().await;
    node.stop().await.unwrap();
    let node = orders(&store, &hub, &sends).await;
    finish(&node, "o", How::Compensate).await.unwrap();
    eventually(async || taken(&stock, "a").await == 0).await;
    eventually(async || has_ended(&node, "o").await).await;
    let sends = sends.lock().clone();
    assert!(sends.contains(&("PutBack".to_owned(), true)), "{sends:?}");
    assert!(sends.iter().filter(|(name, _)| name != "reply").all(|(_, has_shape)| *has_shape), "{sends:?}");
    assert_eq!(stock.metrics().shape_refusals, 0);
}
