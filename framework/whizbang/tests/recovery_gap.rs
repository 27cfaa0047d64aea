//! Jobs that arrive while a node reopens its shards: refused, and delivered again by their sender.

mod eventually;
mod instrumented_store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use eventually::eventually;
use instrumented_store::{InstrumentedStore, StoreProbe};
use parking_lot::Mutex;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::message::shard_of;
use whizbang::prelude::*;
use whizbang::store::StoreError;

#[derive(Domain)]
#[domain(name = "forge", shards = 4)]
struct Forge;

#[derive(Domain)]
#[domain(name = "orders", shards = 1)]
struct Orders;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Orders)]
struct Order {
    #[key]
    customer: String,
    tool: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Forge)]
struct Heat {
    #[key]
    tool: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Orders, handles(Order))]
struct Customer;

impl Handle<Order> for Customer {
    fn handle(&self, order: Order, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(Heat { tool: order.tool });
        Ok(())
    }
}

#[derive(Worker)]
#[worker(domain = Forge, performs(Heat))]
struct Furnace(Arc<Mutex<BTreeMap<String, u32>>>);

impl Perform<Heat> for Furnace {
    async fn perform(&self, heat: Heat, _: Job) -> Result<(), WorkError> {
        *self.0.lock().entry(heat.tool).or_default() += 1;
        Ok(())
    }
}

#[whizbang::test]
async fn jobs_that_arrive_during_a_recovery_block_no_sender() {
    let (memory, faults) = MemoryStore::faulty();
    let (probe, heated, hub) = (Arc::<StoreProbe>::default(), Arc::<Mutex<_>>::default(), LoopbackHub::new());
    let store = InstrumentedStore(memory, Arc::clone(&probe));
    let forge = Node::builder("forge", store).threads(0).bridge(hub.bridge()).worker(Furnace(Arc::clone(&heated)));
    let forge = forge.start().await.unwrap();
    let orders = Node::builder("orders", MemoryStore::new()).threads(0).bridge(hub.bridge()).aggregate::<Customer>();
    let orders = orders.start().await.unwrap();
    let client = orders.client();
    let order = async |tool: &str| client.send(Order { customer: "ada".to_owned(), tool: tool.to_owned() }).await;
    let tools: BTreeMap<_, _> = (0..100).map(|n| format!("tool{n}")).map(|tool| (shard_of(&tool, 4), tool)).collect();
    assert_eq!(tools.len(), 4);
    for tool in tools.values() {
        order(tool).await.unwrap();
    }
    eventually(async || heated.lock().len() == 4).await;
    for round in 2..=3 {
        probe.opens.next.store(true, Ordering::Relaxed);
        faults.fail(0, StoreError::io("flushing", std::io::Error::other("the disk is gone")));
        probe.opens.reads.notified().await;
        // One shard is open again and not installed; the others wait.
        let sent = orders.metrics().turns;
        for tool in tools.values() {
            order(tool).await.unwrap();
        }
        assert!(orders.metrics().turns >= sent + 4);
        for _ in 0..500 {
            tokio::task::yield_now().await;
        }
        probe.opens.go.notify_one();
        eventually(async || heated.lock().values().all(|count| *count >= round)).await;
        // Every message is confirmed, so none blocks its window.
        tokio::time::timeout(Duration::from_secs(60), orders.wait_idle()).await.expect("the sender becomes idle");
    }
    eventually(async || forge.health().ready).await;
    forge.stop().await.unwrap();
    orders.stop().await.unwrap();
}
