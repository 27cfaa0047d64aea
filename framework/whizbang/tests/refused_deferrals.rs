//! Messages that must wait for an earlier one of their key while the store accepts no deferred messages.

mod eventually;
mod instrumented_store;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eventually::eventually;
use instrumented_store::{InstrumentedStore, StoreProbe};
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::{NodeConfig, Retry};

#[derive(Domain)]
#[domain(name = "forge", shards = 1)]
struct Forge;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Forge)]
struct Order {
    #[key]
    customer: String,
    number: u64,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Forge)]
struct Shape {
    #[key]
    tool: String,
    number: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Forge)]
struct Shaped {
    number: u64,
}

/// Returns the numbers of a tool, in the order in which they were handled.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Forge, reply = Vec<u64>)]
struct List {
    #[key]
    tool: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Forge, handles(Order))]
struct Customer;

impl Handle<Order> for Customer {
    fn handle(&self, order: Order, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(Shape { tool: "saw".to_owned(), number: order.number });
        Ok(())
    }
}

thread_local! {
    /// The handler of the first number fails.
    static FAILS: Arc<AtomicBool> = Arc::default();
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Forge, handles(Shape, List), applies(Shaped))]
struct Tool {
    numbers: Vec<u64>,
}

impl Handle<Shape> for Tool {
    fn handle(&self, shape: Shape, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let fails = FAILS.with(|fails| fails.load(Ordering::Relaxed));
        assert!(shape.number != 1 || !fails, "planned: the handler panics");
        effects.record(Shaped { number: shape.number });
        Ok(())
    }
}

impl Handle<List> for Tool {
    fn handle(&self, _: List, _: &mut Effects<Self>) -> Result<Vec<u64>, Rejection> {
        Ok(self.numbers.clone())
    }
}

impl Apply<Shaped> for Tool {
    fn apply(&mut self, shaped: &Shaped) {
        self.numbers.push(shaped.number);
    }
}

/// A node whose store refuses deferred messages, and whose first message is in back-off.
async fn refusing() -> (Node, Arc<StoreProbe>) {
    refusing_on(&MemoryStore::new()).await
}

async fn start(store: &MemoryStore, probe: &Arc<StoreProbe>) -> Node {
    let retry = Retry { attempts: u32::MAX, first: Duration::from_millis(400), longest: Duration::from_millis(400) };
    let config = NodeConfig { threads: 0, retry, ..NodeConfig::default() };
    let store = InstrumentedStore(store.clone(), Arc::clone(probe));
    let node = Node::builder("forge", store).config(config).aggregate::<Customer>().aggregate::<Tool>();
    node.start().await.unwrap()
}

async fn refusing_on(store: &MemoryStore) -> (Node, Arc<StoreProbe>) {
    let probe = Arc::<StoreProbe>::default();
    let node = start(store, &probe).await;
    let full = StoreError::io("writing a deferred message", std::io::Error::other("planned"));
    probe.refuse("whizbang-deferred", None, full);
    FAILS.with(|fails| fails.store(true, Ordering::Relaxed));
    order(&node, 1).await;
    eventually(async || node.metrics().retries > 0).await;
    (node, probe)
}

async fn order(node: &Node, number: u64) {
    // One customer, so that all messages come from one source in order.
    node.client().send(Order { customer: "ada".to_owned(), number }).await.unwrap();
}

async fn list(node: &Node) -> Vec<u64> {
    node.client().send(List { tool: "saw".to_owned() }).deadline(Duration::from_secs(60)).await.expect("a reply")
}

async fn handles_all(node: Node, numbers: &[u64]) {
    FAILS.with(|fails| fails.store(false, Ordering::Relaxed));
    let mut last = Vec::new();
    eventually(async || {
        last = list(&node).await;
        last.len() >= numbers.len()
    })
    .await;
    node.wait_idle().await;
    assert_eq!(list(&node).await, numbers);
    assert_eq!(node.health().reasons, [""; 0]);
    node.stop().await.unwrap();
}

/// The later message would make the earlier one a duplicate.
#[whizbang::test]
async fn accepted_deferral_does_not_overtake_a_refused_one() {
    let (node, probe) = refusing().await;
    probe.accept();
    order(&node, 2).await;
    order(&node, 3).await;
    handles_all(node, &[1, 2, 3]).await;
}

/// Messages that cannot be deferred do not hold the mailbox of the message that they wait for.
#[whizbang::test]
async fn refused_deferrals_do_not_stop_retries() {
    let (node, _probe) = refusing().await;
    for number in 2..=20 {
        order(&node, number).await;
    }
    handles_all(node, &(1..=20).collect::<Vec<_>>()).await;
}

/// Some are accepted, then none, then all.
#[whizbang::test]
async fn deferrals_that_are_refused_in_between_keep_their_order() {
    let (node, probe) = refusing().await;
    probe.accept();
    // The next attempt writes the first message to the log.
    eventually(async || node.metrics().deferred > 0).await;
    order(&node, 2).await;
    let full = StoreError::io("writing a deferred message", std::io::Error::other("planned"));
    probe.refuse("whizbang-deferred", None, full);
    for number in 3..=6 {
        order(&node, number).await;
    }
    probe.accept();
    for number in 7..=9 {
        order(&node, number).await;
    }
    handles_all(node, &(1..=9).collect::<Vec<_>>()).await;
}

/// A message that a stopping node gives back is delivered again, so those behind it must not be handled before.
#[whizbang::test]
async fn node_that_stops_gives_back_all_messages_in_order() {
    let store = MemoryStore::new();
    let (node, probe) = refusing_on(&store).await;
    for number in 2..=5 {
        order(&node, number).await;
    }
    node.stop().await.unwrap();
    probe.accept();
    let node = start(&store, &probe).await;
    handles_all(node, &[1, 2, 3, 4, 5]).await;
}
