//! Hand-overs while the broker accepts nothing.

use std::future::{pending, ready};

use futures_util::future::BoxFuture;

use super::*;
use whizbang_core::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, Response};
use whizbang_core::message::Envelope;

/// A bridge whose broker accepts connections and answers nothing.
struct HangingBridge;

impl Bridge for HangingBridge {
    fn attach<'a>(&'a self, _card: NodeCard, _inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        Box::pin(ready(Ok(())))
    }
    fn send(&self, _envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(pending())
    }
    fn publish(&self, _event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(pending())
    }
    fn request(&self, _to: Request, _deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        Box::pin(pending())
    }
    fn notify(&self, _notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(pending())
    }
    fn durability(&self) -> String {
        "none".to_owned()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        Box::pin(ready(Ok(())))
    }
}

#[test]
fn hand_over_does_not_wait_for_a_hanging_broker() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let store = MemoryStore::shared(&Clock::system());
        let builder = Node::builder("pots", store.clone()).bridge(HangingBridge).threads(0);
        let peer = Peer::start(builder, &store, 1).await;
        let id = shard(shard_of(&pot(0), SHARDS));
        for nth in 1..=3 {
            assert!(peer.open(&id).await);
            assert_eq!(peer.node.client().send(Add { pot: pot(0), nth }).await.unwrap(), nth);
            let begun = whizbang_core::clock::instant();
            peer.hand_over(&id).await;
            let took = begun.elapsed();
            assert!(took <= PUBLISHING + Duration::from_millis(500), "{took:?}");
        }
    });
}
