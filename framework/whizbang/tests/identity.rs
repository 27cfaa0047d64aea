//! The identity of a store is part of every message of its node. Messages of a store that does not own their domain are
//! dropped, and a node whose store has committed less than its peers know repeats nothing.
#![cfg(all(feature = "testing", feature = "embedded"))]

mod bank;
mod eventually;
mod payments;
mod raw_peer;
mod wallet;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bank::{Account, Transfer, deposit, outcome, transfer};
use eventually::eventually;
use futures_util::future::{BoxFuture, FutureExt, ready};
use payments::{Charger, Order, World, place, state};
use raw_peer::{connect_raw_peer, forged, name};
use wallet::{Filled, Wallet, Wallets, fill};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::bridge::{
    AckOutcome, Bridge, BridgeError, Inbound, NodeCard, Notification, Request, RequestError, Response,
};
use whizbang::message::{Envelope, Origin, ReplacedStore, ShardId, StoreId, shard_of};
use whizbang::prelude::*;
use whizbang::store::Store;
use whizbang::{Error, NodeBuilder, NodeEnd, StartError};

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

const OTHER_STORE: StoreId = StoreId::from_u128(0xBAD);

/// Returns the same message with another store.
fn of(store: StoreId, envelope: Envelope) -> Envelope {
    let origin = envelope.origin.map(|origin| Origin { store: Some(store), ..origin });
    Envelope { origin, ..envelope }
}

async fn identity(store: &MemoryStore) -> StoreId {
    store.identity().await.unwrap().unwrap().store
}

fn owner(store: &MemoryStore, hub: &LoopbackHub) -> NodeBuilder {
    Node::builder("wallets", store.clone()).aggregate::<Wallet>().bridge(hub.bridge())
}

async fn watcher(hub: &LoopbackHub) -> Node {
    Node::builder("watch", MemoryStore::new()).projection::<Fills>().bridge(hub.bridge()).start().await.unwrap()
}

async fn fills(node: &Node) -> u64 {
    node.client().query(Fillings {}).await.unwrap()
}

async fn fill_times(node: &Node, times: usize) {
    for _ in 0..times {
        node.client().send(fill("a")).await.unwrap();
    }
}

#[whizbang::test]
async fn events_of_a_store_without_the_claim_are_dropped() {
    let (hub, store) = (LoopbackHub::new(), MemoryStore::new());
    let node = owner(&store, &hub).start().await.unwrap();
    let watch = watcher(&hub).await;
    fill_times(&node, 2).await;
    eventually(async || fills(&watch).await == 2).await;
    let forger = connect_raw_peer(&hub).await;
    let shard = ShardId::new(name("wallets"), 0);
    // The next positions: only the identity distinguishes them from true ones.
    for position in 3..=5 {
        forger.publish(of(OTHER_STORE, forged(u128::from(position), "Filled", &shard, position, None))).await.unwrap();
    }
    eventually(async || watch.metrics().events_dropped == 3).await;
    assert_eq!(fills(&watch).await, 2);
    let health = watch.health();
    assert!(health.ready, "{health:?}");
    let named = |reason: &&String| reason.contains("`wallets`") && reason.contains(&OTHER_STORE.to_string());
    assert_eq!(health.reasons.iter().filter(named).count(), 1, "{health:?}");
    fill_times(&node, 4).await;
    eventually(async || fills(&watch).await == 6).await;
    assert!(watch.health().ready, "{:?}", watch.health());
}

#[whizbang::test]
async fn commands_of_a_store_without_the_claim_are_dropped() {
    let hub = LoopbackHub::new();
    let start = async |node: NodeBuilder| node.bridge(hub.bridge()).start().await.unwrap();
    let bank = start(Node::builder("accounts", MemoryStore::new()).aggregate::<Account>()).await;
    let sagas = start(Node::builder("transfers", MemoryStore::new()).saga::<Transfer>()).await;
    bank.client().send(deposit("ada", 100)).await.unwrap();
    let forger = connect_raw_peer(&hub).await;
    let (from, to) = (ShardId::new(name("transfers"), 0), ShardId::new(name("bank"), shard_of("ada", 16)));
    for number in 1..=3 {
        forger
            .send(of(OTHER_STORE, forged(u128::from(number), "Withdraw", &from, number, Some(to.clone()))))
            .await
            .unwrap();
    }
    eventually(async || bank.metrics().commands_dropped == 3).await;
    assert!(bank.health().reasons.iter().any(|reason| reason.contains("`transfers`")), "{:?}", bank.health());
    let all = (0..).map(|n| format!("t{n}")).filter(|name| shard_of(name, 16) == 0);
    for name in all.take(5) {
        sagas.client().send(transfer(&name, "ada", "bob", 1)).await.unwrap();
        eventually(async || sagas.client().send(outcome(&name)).await.unwrap() == "done").await;
    }
    assert_eq!(bank.client().send(deposit("ada", 0)).await.unwrap(), 95);
    assert_eq!((bank.metrics().dead_letters, bank.health().ready), (0, true));
}

#[whizbang::test]
async fn declared_replacement_is_accepted() {
    let (hub, before, after) = (LoopbackHub::new(), MemoryStore::new(), MemoryStore::new());
    let old = owner(&before, &hub).start().await.unwrap();
    let watch = watcher(&hub).await;
    let forger = connect_raw_peer(&hub).await;
    let shard = ShardId::new(name("wallets"), 0);
    // The subscriber knows the owner of the domain, and has received nothing yet.
    forger.publish(of(OTHER_STORE, forged(1, "Filled", &shard, 1, None))).await.unwrap();
    eventually(async || watch.metrics().events_dropped == 1).await;
    old.stop().await.unwrap();
    let new = owner(&after, &hub).replaces_store(ReplacedStore::Store(identity(&before).await)).start().await.unwrap();
    fill_times(&new, 3).await;
    eventually(async || fills(&watch).await == 3).await;
    let dropped = watch.metrics().events_dropped;
    forger.publish(of(identity(&before).await, forged(4, "Filled", &shard, 4, None))).await.unwrap();
    eventually(async || watch.metrics().events_dropped > dropped).await;
    fill_times(&new, 2).await;
    eventually(async || fills(&watch).await == 5).await;
    assert!(watch.health().ready, "{:?}", watch.health());
}

/// Orders that are charged by another service.
struct Shop {
    hub: LoopbackHub,
    world: Arc<World>,
    store: MemoryStore,
    orders: Node,
}

const ORDERS: usize = 140;

impl Shop {
    async fn open() -> Self {
        let (hub, world, store) = (LoopbackHub::new(), Arc::new(World::default()), MemoryStore::new());
        let orders = Node::builder("orders", store.clone()).saga::<Order>().bridge(hub.bridge());
        Self { orders: orders.start().await.unwrap(), hub, world, store }
    }

    /// Restarts the sender: at its stop the owner of the payments has confirmed everything committed.
    async fn confirmed(self) -> Self {
        let Self { hub, world, store, orders } = self;
        orders.stop().await.unwrap();
        let orders = Node::builder("orders", store.clone()).saga::<Order>().bridge(hub.bridge());
        Self { orders: orders.start().await.unwrap(), hub, world, store }
    }

    fn payments(&self, store: impl Store) -> NodeBuilder {
        Node::builder("payments", store).worker(Charger(Arc::clone(&self.world))).bridge(self.hub.bridge())
    }

    async fn place(&self, from: usize, count: usize) {
        for n in from..from + count {
            self.orders.client().send(place(&format!("o{n}"), 5)).await.unwrap();
        }
    }

    async fn paid(&self, from: usize, count: usize) {
        for n in from..from + count {
            let order = format!("o{n}");
            eventually(async || self.orders.client().send(state(&order)).await.unwrap() == "paid").await;
        }
        // The sender has received the confirmation, too.
        self.orders.wait_idle().await;
    }

    /// Returns the orders that were charged more than once.
    async fn charged_again(&self) -> Vec<String> {
        let calls = self.world.calls.lock().await;
        let again = calls.iter().filter(|(_, calls)| calls.len() > 1);
        again.map(|(order, _)| order.clone()).collect()
    }
}

/// Waits until the node has ended because its store is older than its peers know.
async fn is_older(node: &Node) {
    eventually(async || node.ended().is_some()).await;
    let Some(NodeEnd::OlderStore { committed, here, .. }) = node.ended() else { panic!("{:?}", node.ended()) };
    assert!(committed > here, "{committed} {here}");
    let health = node.health();
    assert!(!health.live && health.reasons[0].contains("replaces_store"), "{health:?}");
}

#[whizbang::test]
async fn empty_second_node_repeats_no_charge() {
    let shop = Shop::open().await;
    let _payments = shop.payments(MemoryStore::new()).start().await.unwrap();
    shop.place(0, ORDERS).await;
    shop.paid(0, ORDERS).await;
    let shop = shop.confirmed().await;
    let second = shop.payments(MemoryStore::new()).start().await.map(drop);
    assert!(matches!(second, Err(StartError::Bridge(BridgeError::Claimed(_)))), "{second:?}");
    // The same while the broker has lost the claims: the node starts, and ends before it repeats anything.
    shop.hub.forget_claims();
    let second = shop.payments(MemoryStore::new()).start().await.unwrap();
    shop.place(ORDERS, 32).await;
    eventually(async || second.ended().is_some() || shop.world.calls.lock().await.len() == ORDERS + 32).await;
    assert_eq!(shop.charged_again().await, [""; 0]);
}

#[whizbang::test]
async fn node_on_an_empty_store_repeats_no_charge() {
    let shop = Shop::open().await;
    let payments = shop.payments(MemoryStore::new()).start().await.unwrap();
    shop.place(0, ORDERS).await;
    shop.paid(0, ORDERS).await;
    let shop = shop.confirmed().await;
    drop(payments);
    shop.hub.forget_claims();
    let payments = shop.payments(MemoryStore::new()).start().await.unwrap();
    shop.place(ORDERS, 32).await;
    is_older(&payments).await;
    assert_eq!(shop.charged_again().await, [""; 0]);
    let run =
        tokio::time::timeout(Duration::from_secs(15), payments.run()).await.expect("the node ends without a stop");
    assert!(matches!(run, Err(Error::Ended(NodeEnd::OlderStore { .. }))), "{run:?}");
}

#[whizbang::test]
async fn node_on_a_restored_backup_repeats_no_charge() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let shop = Shop::open().await;
    let open = |shop: &Shop, folder: &Path| shop.payments(EmbeddedStore::open(folder).unwrap());
    let payments = open(&shop, folder.path()).start().await.unwrap();
    shop.place(0, 32).await;
    shop.paid(0, 32).await;
    payments.stop().await.unwrap();
    for entry in std::fs::read_dir(folder.path()).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let payments = open(&shop, folder.path()).start().await.unwrap();
    shop.place(32, ORDERS).await;
    shop.paid(32, ORDERS).await;
    let shop = shop.confirmed().await;
    payments.stop().await.unwrap();
    let payments = open(&shop, copy.path()).start().await.unwrap();
    shop.place(32 + ORDERS, 32).await;
    is_older(&payments).await;
    assert_eq!(shop.charged_again().await, [""; 0]);
    drop(payments);
    // The newest folder resumes at its position.
    let payments = open(&shop, folder.path()).replaces_store(ReplacedStore::Any).start().await.unwrap();
    shop.paid(0, 32 + ORDERS + 32).await;
    // The copy may have handled some of the last orders before the detection; this store does not contain them.
    let last: Vec<_> = (32 + ORDERS..32 + ORDERS + 32).map(|n| format!("o{n}")).collect();
    let again = shop.charged_again().await;
    assert!(again.iter().all(|order| last.contains(order)), "{again:?}");
    payments.stop().await.unwrap();
}

#[whizbang::test]
async fn operator_permits_an_empty_store_to_charge_again() {
    let (shop, store) = (Shop::open().await, MemoryStore::new());
    let payments = shop.payments(MemoryStore::new()).start().await.unwrap();
    shop.place(0, 32).await;
    shop.paid(0, 32).await;
    drop(payments);
    let payments = shop.payments(store.clone()).replaces_store(ReplacedStore::Any).start().await.unwrap();
    shop.place(32, 1).await;
    let again = async |order: &str| shop.world.calls(order).await.len() > 1;
    let shard = shard_of("o32", 16);
    let first = (0..32).map(|n| format!("o{n}")).find(|order| shard_of(order, 16) == shard).unwrap();
    eventually(async || again(&first).await).await;
    payments.stop().await.unwrap();
    // Also at later starts, for later detections.
    let payments = shop.payments(store).start().await.unwrap();
    shop.place(33, 32).await;
    eventually(async || shop.world.called("o64").await).await;
    assert_eq!(payments.ended(), None);
}

/// An inbound that records the stores of the received events.
#[derive(Default)]
struct RecordingInbound(Mutex<Vec<Option<StoreId>>>);

impl Inbound for RecordingInbound {
    fn deliver(&self, _envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        ready(AckOutcome::Ack).boxed()
    }
    fn event(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        self.0.lock().unwrap().push(envelope.origin.and_then(|origin| origin.store));
        ready(AckOutcome::Ack).boxed()
    }
    fn request(&self, _request: Request) -> BoxFuture<'static, Response> {
        ready(Response::Refused(RequestError::NotHere)).boxed()
    }
    fn notify(&self, _notification: Notification) {}
    fn reconnected(&self) {}
    fn capacity(&self) -> usize {
        16
    }
}

#[whizbang::test]
async fn events_and_answers_name_their_store() {
    let (hub, store, inbound) = (LoopbackHub::new(), MemoryStore::new(), Arc::new(RecordingInbound::default()));
    let node = owner(&store, &hub).start().await.unwrap();
    let bridge = hub.bridge();
    let card = NodeCard::new(name("listener")).subscribing(name("wallets"), 1, [name("Filled")]);
    bridge.attach(card, Arc::clone(&inbound) as Arc<dyn Inbound>).await.unwrap();
    fill_times(&node, 2).await;
    let mine = Some(identity(&store).await);
    eventually(async || inbound.0.lock().unwrap().as_slice() == [mine, mine]).await;
    let (shard, other) = (ShardId::new(name("wallets"), 0), ShardId::new(name("listener"), 0));
    let ask = async |asked| bridge.request(asked, Duration::from_secs(5)).await.unwrap();
    let Response::Envelopes(page) = ask(Request::Events { shard: shard.clone(), after: 0, limit: 9 }).await else {
        panic!("no page")
    };
    assert_eq!((page.store, page.envelopes.len(), page.last), (mine, 2, 2));
    assert!(page.envelopes.iter().all(|event| event.origin.as_ref().unwrap().store == mine));
    let asked = Request::Outbox { from: shard.clone(), to: other.clone(), after: 0, limit: 9 };
    let Response::Envelopes(page) = ask(asked).await else { panic!("no page") };
    assert_eq!((page.store, page.committed), (mine, Some(0)));
    let answer = ask(Request::Watermark { from: other, to: shard }).await;
    assert_eq!(answer, Response::Watermark { through: 0, store: mine });
}
