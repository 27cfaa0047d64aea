//! Events that a bridge delivers in one call, because the broker carries them in one message.
#![cfg(feature = "testing")]

mod raw_peer;
mod wallet;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use raw_peer::name;
use wallet::{Filled, Wallet, Wallets, fill};
use whizbang::bridge::loopback::{LoopbackBridge, LoopbackHub};
use whizbang::bridge::{AckOutcome, Bridge, BridgeError, Inbound, NodeCard, Notification, Request, Response};
use whizbang::message::{Envelope, Kind, Name, Origin, ShardId, StoreId};
use whizbang::prelude::*;

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Wallets, reply = u64)]
struct Fillings {}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Filled), answers(Fillings))]
struct Fills {
    fills: u64,
}

impl Project<Filled> for Fills {
    fn project(&mut self, _filled: &Filled, _context: &EventContext) {
        self.fills += 1;
    }
}

impl whizbang::Answer<Fillings> for Fills {
    fn answer(&self, _query: Fillings) -> u64 {
        self.fills
    }
}

/// The inbound of a node without its events and notifications, which the test delivers itself.
struct Muted(Arc<dyn Inbound>);

impl Inbound for Muted {
    fn deliver(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        self.0.deliver(envelope)
    }
    fn event(&self, _envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        ready(AckOutcome::Ack).boxed()
    }
    fn request(&self, request: Request) -> BoxFuture<'static, Response> {
        self.0.request(request)
    }
    fn notify(&self, _notification: Notification) {}
    fn reconnected(&self) {}
    fn capacity(&self) -> usize {
        self.0.capacity()
    }
}

/// A bridge that hands the inbound of its node to the test, and whose requests fail if the owner is away.
struct OpenBridge {
    inner: LoopbackBridge,
    inbound: Arc<OnceLock<Arc<dyn Inbound>>>,
    owner_is_away: bool,
}

impl Bridge for OpenBridge {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        assert!(self.inbound.set(Arc::clone(&inbound)).is_ok(), "attached once");
        self.inner.attach(card, Arc::new(Muted(inbound)))
    }
    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.inner.send(envelope)
    }
    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.inner.publish(event)
    }
    fn request(&self, to: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        if self.owner_is_away {
            return ready(Err(BridgeError::NoOwner { domain: "wallets".to_owned() })).boxed();
        }
        self.inner.request(to, deadline)
    }
    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.inner.notify(notification)
    }
    fn owner<'a>(&'a self, domain: &'a Name) -> BoxFuture<'a, Result<Option<StoreId>, BridgeError>> {
        self.inner.owner(domain)
    }
    fn durability(&self) -> String {
        self.inner.durability()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.inner.detach()
    }
    fn abandon(&self) {
        self.inner.abandon();
    }
}

/// The owner of the wallets with five events, and a subscriber whose events the test delivers.
struct Fixture {
    owner: Node,
    watch: Node,
    inbound: Arc<dyn Inbound>,
    events: Vec<Envelope>,
}

async fn fixture(threads: usize) -> Fixture {
    fixture_with(threads, false).await
}

async fn fixture_with(threads: usize, owner_is_away: bool) -> Fixture {
    let hub = LoopbackHub::new();
    let owner =
        Node::builder("wallets", MemoryStore::new()).aggregate::<Wallet>().bridge(hub.bridge()).start().await.unwrap();
    for _ in 0..5 {
        owner.client().send(fill("a")).await.unwrap();
    }
    let inbound = Arc::new(OnceLock::new());
    let bridge = OpenBridge { inner: hub.bridge(), inbound: Arc::clone(&inbound), owner_is_away };
    let builder = Node::builder("watch", MemoryStore::new()).threads(threads).projection::<Fills>();
    let watch = builder.bridge(bridge).start().await.unwrap();
    let peer = raw_peer::connect_raw_peer(&hub).await;
    let asked = Request::Events { shard: ShardId::new(name("wallets"), 0), after: 0, limit: 9 };
    let Response::Envelopes(page) = peer.request(asked, Duration::from_secs(5)).await.unwrap() else {
        panic!("no page")
    };
    Fixture { owner, watch, inbound: Arc::clone(inbound.get().unwrap()), events: page.envelopes }
}

async fn fills(node: &Node) -> u64 {
    node.client().query(Fillings {}).await.unwrap()
}

#[whizbang::test]
async fn events_of_one_message_are_applied_once_each() {
    for threads in [0, 2] {
        let Fixture { owner: _owner, watch, inbound, events } = fixture(threads).await;
        assert_eq!(events.len(), 5);
        // A second delivery contains an event that the first one lacks.
        assert_eq!(inbound.events(events[..4].to_vec()).await, AckOutcome::Ack);
        assert_eq!(inbound.events(events.clone()).await, AckOutcome::Ack);
        assert_eq!(fills(&watch).await, 5, "{threads} threads");
        assert_eq!(inbound.events(Vec::new()).await, AckOutcome::Ack);
        assert!(watch.metrics().duplicates >= 4, "{:?}", watch.metrics());
    }
}

#[whizbang::test]
async fn event_of_a_foreign_store_stops_no_others_of_its_message() {
    let Fixture { owner: _owner, watch, inbound, mut events } = fixture(0).await;
    let foreign = events[2].origin.take().map(|origin| Origin { store: Some(StoreId::from_u128(0xBAD)), ..origin });
    events[2].origin = foreign;
    // The events behind it wait until the owner's log has supplied the one in its place.
    assert_eq!(inbound.events(events).await, AckOutcome::Ack);
    assert_eq!((fills(&watch).await, watch.metrics().events_dropped), (5, 1));
}

#[whizbang::test]
async fn command_among_events_is_rejected_and_stops_no_others() {
    let Fixture { owner: _owner, watch, inbound, mut events } = fixture(0).await;
    let mut command = events[0].clone();
    command.kind = Kind::Command;
    events.insert(1, command);
    let outcome = inbound.events(events).await;
    assert!(matches!(&outcome, AckOutcome::Reject(reason) if reason.contains("as an event")), "{outcome:?}");
    assert_eq!(fills(&watch).await, 5);
}

/// The owner is away, so nothing fills the gap in front of the events.
#[whizbang::test]
async fn events_behind_a_gap_are_not_acknowledged() {
    let Fixture { owner: _owner, watch, inbound, events } = fixture_with(0, true).await;
    let mut outcome = inbound.events(events[1..].to_vec());
    // The thread answers after it has received the events.
    assert_eq!(fills(&watch).await, 0);
    assert_eq!((&mut outcome).now_or_never(), None);
    assert_eq!(inbound.events(events[..1].to_vec()).await, AckOutcome::Ack);
    assert_eq!((outcome.await, fills(&watch).await), (AckOutcome::Ack, 5));
}

#[whizbang::test]
async fn events_for_a_node_that_has_ended_are_not_acknowledged() {
    let Fixture { owner: _owner, watch, inbound, events } = fixture(1).await;
    watch.stop().await.unwrap();
    assert_eq!(inbound.events(events).await, AckOutcome::Retry);
}
