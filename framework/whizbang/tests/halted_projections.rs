//! Projections that halt before an event, are rebuilt, or are large: the rest of the node proceeds, and no answer is
//! older than an earlier one.

mod bank;
mod eventually;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bank::*;
use eventually::eventually;
use whizbang::Retry;
use whizbang::message::{Domain as _, Name, ShardId, shard_of};
use whizbang::prelude::*;
use whizbang::projection::SkipError;
use whizbang::store::Store as _;

/// The number of deposits.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited), answers(Counted))]
struct Counter {
    deposits: u64,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
struct Counted {}

impl Project<Deposited> for Counter {
    fn project(&mut self, _deposited: &Deposited, _context: &EventContext) {
        self.deposits += 1;
    }
}

impl Answer<Counted> for Counter {
    fn answer(&self, _query: Counted) -> u64 {
        self.deposits
    }
}

fn quick() -> Retry {
    Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(4) }
}

async fn checkpoint(store: &MemoryStore, projection: &'static str) -> u64 {
    let name = whizbang::message::Name::from_static(projection).unwrap();
    let view = store.view(&name).await.unwrap();
    view.map_or(0, |view| view.checkpoint.iter().map(|(_, position)| position).sum())
}

thread_local! {
    static PANICS: Rc<Cell<u32>> = Rc::new(Cell::new(0));
}

/// A projection that panics in the middle of a change a given number of times.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited), answers(FragileSum))]
struct Fragile {
    cents: u64,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
struct FragileSum {}

impl Project<Deposited> for Fragile {
    fn project(&mut self, deposited: &Deposited, _context: &EventContext) {
        self.cents += deposited.cents;
        let left = PANICS.with(|panics| panics.get());
        if deposited.cents == 13 && left > 0 {
            PANICS.with(|panics| panics.set(left - 1));
            panic!("unlucky");
        }
    }
}

impl Answer<FragileSum> for Fragile {
    fn answer(&self, _query: FragileSum) -> u64 {
        self.cents
    }
}

async fn fragile(store: &MemoryStore) -> Node {
    Node::builder("bank", store.clone())
        .threads(0)
        .aggregate::<Account>()
        .projection::<Fragile>()
        .projection::<Counter>()
        .retry(quick())
        .start()
        .await
        .unwrap()
}

#[whizbang::test]
async fn panic_in_project_is_retried_and_leaves_no_change() {
    PANICS.with(|panics| panics.set(2));
    let node = fragile(&MemoryStore::new()).await;
    let client = node.client();
    for cents in [1, 2, 13, 4] {
        client.send(deposit("ada", cents)).await.unwrap();
    }
    node.wait_idle().await;
    assert_eq!(client.query(FragileSum {}).await.unwrap(), 20);
    assert!(node.health().ready);
    assert_eq!(node.metrics().panics, 2);
}

/// Returns the shard of an account, and an account in another shard.
fn shards(account: &str) -> (ShardId, String) {
    let shard = shard_of(account, Bank::SHARDS);
    let elsewhere = (0..).map(|n| format!("other {n}")).find(|other| shard_of(other, Bank::SHARDS) != shard);
    (ShardId::new(Name::from_static("bank").unwrap(), shard), elsewhere.unwrap())
}

#[whizbang::test]
async fn event_that_cannot_be_projected_halts_its_shard_alone() {
    PANICS.with(|panics| panics.set(u32::MAX));
    let store = MemoryStore::new();
    let node = fragile(&store).await;
    let client = node.client();
    let (shard, other) = shards("ada");
    for cents in [1, 2, 13, 4] {
        client.send(deposit("ada", cents)).await.unwrap();
    }
    node.wait_idle().await;
    let health = node.health();
    // One event must not remove a whole service from traffic: the node is ready, and health names the halted shard.
    assert!(health.ready && health.live, "{health:?}");
    let place = format!("projection `fragile` halted at position 3 of {shard}");
    assert!(health.reasons[0].contains(&place) && health.reasons[0].contains("unlucky"), "{health:?}");
    assert_eq!(client.query(FragileSum {}).await.unwrap(), 3, "the view with everything up to the event");
    // Other shards of the projection, other projections and the aggregates proceed.
    for _ in 0..3000 {
        client.send(deposit(&other, 1)).await.unwrap();
    }
    node.wait_idle().await;
    assert_eq!(client.query(Counted {}).await.unwrap(), 3004);
    assert_eq!(client.query(FragileSum {}).await.unwrap(), 3003);
    node.stop().await.unwrap();
    // The projected events are saved, and a restart does not skip the event.
    let node = fragile(&store).await;
    node.wait_idle().await;
    assert_eq!(node.client().query(FragileSum {}).await.unwrap(), 3003);
    assert!(node.health().reasons[0].contains(&place), "{:?}", node.health());
    node.stop().await.unwrap();
    // Once the event can be projected, nothing is missing.
    PANICS.with(|panics| panics.set(0));
    let node = fragile(&store).await;
    node.wait_idle().await;
    assert_eq!(node.client().query(FragileSum {}).await.unwrap(), 3020);
    assert!(node.health().ready && node.health().reasons.is_empty(), "{:?}", node.health());
}

#[whizbang::test]
async fn skipped_event_is_recorded_and_skipped_by_every_rebuild() {
    PANICS.with(|panics| panics.set(u32::MAX));
    let store = MemoryStore::new();
    let node = fragile(&store).await;
    let client = node.client();
    let (shard, _) = shards("ada");
    for cents in [1, 2, 13, 4] {
        client.send(deposit("ada", cents)).await.unwrap();
    }
    node.wait_idle().await;
    for (projection, position) in [("fragile", 4), ("fragile", 1), ("unknown", 3)] {
        let refused = node.skip_event(projection, &shard, position).await;
        assert!(matches!(refused, Err(SkipError::NotHalted { .. })), "{refused:?}");
    }
    assert_eq!(client.query(FragileSum {}).await.unwrap(), 3);
    node.skip_event("fragile", &shard, 3).await.unwrap();
    node.wait_idle().await;
    assert_eq!(client.query(FragileSum {}).await.unwrap(), 7);
    assert!(node.health().ready && node.health().reasons.is_empty(), "{:?}", node.health());
    let skipped = node.skipped_events("fragile").await.unwrap();
    assert_eq!(skipped.len(), 1);
    assert_eq!((skipped[0].domain.as_str(), skipped[0].shard, skipped[0].position), ("bank", shard.shard, 3));
    assert!(skipped[0].reason.contains("unlucky"));
    // A node killed before the view is saved builds it again, without the event.
    drop(node);
    let node = fragile(&store).await;
    node.wait_idle().await;
    assert_eq!(node.client().query(FragileSum {}).await.unwrap(), 7);
    assert_eq!(node.skipped_events("fragile").await.unwrap(), skipped);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn retried_event_delays_neither_shards_nor_queries() {
    PANICS.with(|panics| panics.set(u32::MAX));
    let retry = Retry { attempts: 5, first: Duration::from_secs(3600), longest: Duration::from_secs(3600) };
    let builder = Node::builder("bank", MemoryStore::new()).threads(0).aggregate::<Account>().projection::<Fragile>();
    let node = builder.retry(retry).start().await.unwrap();
    let client = node.client();
    let (_, other) = shards("ada");
    for cents in [1, 2] {
        client.send(deposit("ada", cents)).await.unwrap();
    }
    node.wait_idle().await;
    let mut last = client.query(FragileSum {}).await.unwrap();
    assert_eq!(last, 3);
    client.send(deposit("ada", 13)).await.unwrap();
    for nth in 1..=600 {
        client.send(deposit(&other, 1)).await.unwrap();
        if nth % 10 == 0 {
            let answer = client.query(FragileSum {}).await.unwrap();
            assert!(answer >= last, "{answer} after {last}");
            last = answer;
        }
    }
    eventually(async || client.query(FragileSum {}).await.unwrap() == 603).await;
    drop(node);
}

#[whizbang::test]
async fn rebuilt_view_answers_no_query_before_it_caught_up() {
    const EVENTS: u64 = 5000;
    let store = MemoryStore::new();
    let node = Node::builder("bank", store.clone()).threads(0).aggregate::<Account>().start().await.unwrap();
    for n in 0..EVENTS {
        node.client().send(deposit(&format!("a{}", n % 7), 1)).await.unwrap();
    }
    node.stop().await.unwrap();
    let node = Node::builder("bank", store.clone())
        .threads(0)
        .aggregate::<Account>()
        .projection::<Counter>()
        .start()
        .await
        .unwrap();
    let health = node.health();
    assert!(!health.ready && health.live && health.reasons[0].contains("`counter` is being rebuilt"), "{health:?}");
    let asking = tokio::task::spawn_local(node.client().query(Counted {}));
    // The thread does other work in between.
    let mut turns = 0;
    while !asking.is_finished() {
        node.client().send(deposit("between", 1)).await.unwrap();
        tokio::task::yield_now().await;
        turns += 1;
    }
    let answer = asking.await.unwrap().unwrap();
    assert!(answer >= EVENTS, "an answer of a view in the making: {answer}");
    assert!(turns > 20, "{turns} turns while the view was rebuilt");
    eventually(async || node.health().ready).await;
    node.stop().await.unwrap();
}

/// A view that is slow to encode.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited), answers(Bytes))]
struct Heavy {
    #[serde(serialize_with = "encoded")]
    bytes: Vec<u8>,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Bank, reply = usize)]
struct Bytes {}

/// Blocks encoding once, for views above 256 KiB.
static GATE: parking_lot::Mutex<Option<std::sync::mpsc::Receiver<()>>> = parking_lot::Mutex::new(None);

fn encoded<S: serde::Serializer>(bytes: &Vec<u8>, serializer: S) -> Result<S::Ok, S::Error> {
    let gate = GATE.lock().take();
    if let Some(gate) = gate {
        let _ = gate.recv();
    }
    bytes.serialize(serializer)
}

impl Project<Deposited> for Heavy {
    fn project(&mut self, deposited: &Deposited, _context: &EventContext) {
        self.bytes.resize(self.bytes.len() + usize::try_from(deposited.cents).unwrap(), 7);
    }
}

impl Answer<Bytes> for Heavy {
    fn answer(&self, _query: Bytes) -> usize {
        self.bytes.len()
    }
}

#[whizbang::test]
async fn save_of_large_view_blocks_no_actor() {
    let store = MemoryStore::new();
    let heavy = async || {
        Node::builder("bank", store.clone())
            .threads(0)
            .aggregate::<Account>()
            .projection::<Heavy>()
            .start()
            .await
            .unwrap()
    };
    let node = heavy().await;
    node.client().send(deposit("ada", 1024 * 1024)).await.unwrap();
    node.wait_idle().await;
    node.stop().await.unwrap();
    let node = heavy().await;
    let (release, gate) = std::sync::mpsc::channel();
    *GATE.lock() = Some(gate);
    // Enough events to save the view; its encoding blocks until the test releases it.
    let saved = checkpoint(&store, "heavy").await;
    for _ in 0..5000 {
        node.client().send(deposit("bob", 1)).await.unwrap();
    }
    assert_eq!(checkpoint(&store, "heavy").await, saved);
    eventually(async || GATE.lock().is_none()).await;
    node.client().send(deposit("bob", 1)).await.unwrap();
    release.send(()).unwrap();
    node.wait_idle().await;
    eventually(async || checkpoint(&store, "heavy").await > saved).await;
    assert_eq!(node.client().query(Bytes {}).await.unwrap(), 1024 * 1024 + 5001);
    node.stop().await.unwrap();
    assert_eq!(checkpoint(&store, "heavy").await, 5002);
}
