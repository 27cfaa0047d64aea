//! A key that has reached a limit of waiting messages, or that the store refuses, delays no other key.

mod eventually;
mod instrumented_store;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use eventually::eventually;
use instrumented_store::{InstrumentedStore, StoreProbe};
use parking_lot::Mutex;
use whizbang::message::{Name, ShardId};
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::{NodeConfig, Retry};

/// More messages than a source or a subscription may have in flight.
const OTHERS: u64 = 3000;
/// The most messages that are sent by one command.
const CHUNK: u64 = 500;
/// A back-off that outlasts every test.
const LONG: Retry = Retry { attempts: 100, first: Duration::from_secs(600), longest: Duration::from_secs(600) };
/// A back-off that ends soon.
const SHORT: Retry = Retry { attempts: u32::MAX, first: Duration::from_millis(1), longest: Duration::from_millis(20) };

/// The keys whose handlers panic. Each test has keys of its own.
static FAILING: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
/// The number of messages that arrived at the other keys of each test.
static ARRIVED: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];

#[derive(Domain)]
#[domain(name = "senders", shards = 1)]
struct Senders;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Senders)]
struct Spread {
    #[key]
    sender: String,
    to: Vec<String>,
    first: u64,
    count: u64,
    bytes: usize,
    by_event: bool,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Senders)]
struct Told {
    to: String,
    n: u64,
    filling: String,
}

/// Sends commands to boxes, or records events that boxes handle.
#[derive(Aggregate, Default)]
#[aggregate(domain = Senders, handles(Spread), records(Told))]
struct Sender;

impl Handle<Spread> for Sender {
    fn handle(&self, spread: Spread, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for n in spread.first..spread.first + spread.count {
            for to in &spread.to {
                let (to, filling) = (to.clone(), "x".repeat(spread.bytes));
                if spread.by_event {
                    effects.record(Told { to, n, filling });
                } else {
                    effects.send(Put { box_: to, n, filling });
                }
            }
        }
        Ok(())
    }
}

#[derive(Domain)]
#[domain(name = "boxes", shards = 1)]
struct Boxes;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Boxes)]
struct Put {
    #[key]
    box_: String,
    n: u64,
    filling: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Boxes, reply = Vec<u64>)]
struct Look {
    #[key]
    box_: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Boxes)]
struct Held {
    n: u64,
}

#[derive(Saga, Default)]
#[saga(domain = Boxes, name = "box", handles(Put, Look), reacts(Told), applies(Held))]
struct Box_ {
    holds: Vec<u64>,
}

fn put(n: u64, effects: &mut Effects<Box_>) {
    let key = effects.key().to_owned();
    assert!(!FAILING.lock().contains(&key), "the handler of the box panics");
    if let Some(test) = key.strip_prefix("other-").and_then(|test| test.parse::<usize>().ok()) {
        ARRIVED[test].fetch_add(1, Ordering::Relaxed);
    }
    effects.record(Held { n });
}

impl Handle<Put> for Box_ {
    fn handle(&self, Put { n, .. }: Put, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        put(n, effects);
        Ok(())
    }
}

impl Handle<Look> for Box_ {
    fn handle(&self, _look: Look, _effects: &mut Effects<Self>) -> Result<Vec<u64>, Rejection> {
        Ok(self.holds.clone())
    }
}

impl React<Told> for Box_ {
    fn key(told: &Told, _context: &EventContext) -> Option<String> {
        Some(told.to.clone())
    }

    fn react(&self, told: Told, effects: &mut Effects<Self>) {
        put(told.n, effects);
    }
}

impl Apply<Held> for Box_ {
    fn apply(&mut self, held: &Held) {
        self.holds.push(held.n);
    }
}

/// One test: its number gives it keys of its own.
struct World {
    test: usize,
    by_event: bool,
    store: MemoryStore,
    probe: Arc<StoreProbe>,
    node: Node,
}

impl World {
    async fn start(test: usize, by_event: bool, retry: Retry) -> Self {
        let (store, probe) = (MemoryStore::new(), Arc::default());
        let node = start(&store, &probe, retry).await;
        Self { test, by_event, store, probe, node }
    }

    async fn restarted(self, retry: Retry) -> Self {
        self.node.stop().await.unwrap();
        let node = start(&self.store, &self.probe, retry).await;
        Self { node, ..self }
    }

    fn stuck(&self) -> String {
        format!("stuck-{}", self.test)
    }

    /// Sends messages with these numbers to each of the keys.
    async fn spread(&self, to: &[String], first: u64, count: u64, bytes: usize) {
        let chunk = if bytes > 0 { 4 } else { CHUNK };
        for first in (first..first + count).step_by(chunk as usize).map(|at| at..(at + chunk).min(first + count)) {
            let (count, first) = (first.end - first.start, first.start);
            let (sender, to) = ("s".to_owned(), to.to_vec());
            let spread = Spread { sender, to, first, count, bytes, by_event: self.by_event };
            self.node.client().send(spread).await.unwrap();
        }
    }

    async fn spread_stuck(&self, first: u64, count: u64, bytes: usize) {
        self.spread(&[self.stuck()], first, count, bytes).await;
    }

    /// Sends messages to another key of the same lane, and waits for all of them.
    async fn others_arrive(&self) {
        self.spread(&[format!("other-{}", self.test)], 0, OTHERS, 0).await;
        let arrived = &ARRIVED[self.test];
        eventually(async || arrived.load(Ordering::Relaxed) >= OTHERS).await;
        assert_eq!(arrived.load(Ordering::Relaxed), OTHERS, "each once");
    }

    /// Asserts that the stuck key has handled these numbers, in order.
    async fn stuck_has_all(&self, count: u64) {
        let mut holds = Vec::new();
        eventually(async || {
            holds = self.node.client().send(Look { box_: self.stuck() }).await.unwrap_or_default();
            holds.len() as u64 >= count
        })
        .await;
        assert!(holds == (0..count).collect::<Vec<_>>(), "{} of {count} in order", holds.len());
        self.node.wait_idle().await;
        assert_eq!((self.node.metrics().deferred, self.node.health().reasons), (0, vec![]));
    }
}

async fn start(store: &MemoryStore, probe: &Arc<StoreProbe>, retry: Retry) -> Node {
    let config = NodeConfig { threads: 0, retry, ..NodeConfig::default() };
    let store = InstrumentedStore(store.clone(), Arc::clone(probe));
    let builder = Node::builder("boxes", store).threads(0).config(config);
    builder.aggregate::<Sender>().saga::<Box_>().start().await.unwrap()
}

/// The limit is 64 MiB of parked messages.
async fn full_parked_key_delays_no_other(test: usize, by_event: bool) {
    const FULL: u64 = 170;
    let world = World::start(test, by_event, Retry::NEVER).await;
    FAILING.lock().insert(world.stuck());
    world.spread_stuck(0, FULL, 400 << 10).await;
    world.spread_stuck(FULL, 3, 0).await;
    world.others_arrive().await;
    world.node.wait_idle().await;
    let letters = world.node.dead_letters().await.unwrap();
    assert!((150..FULL as usize).contains(&letters.len()), "{} are parked", letters.len());
    assert_eq!(world.node.metrics().deferred, FULL + 3 - letters.len() as u64);
    let world = world.restarted(Retry::NEVER).await;
    world.node.wait_idle().await;
    world.spread_stuck(FULL + 3, 1, 0).await;
    FAILING.lock().remove(&world.stuck());
    world.node.redrive(&letters[0]).await.unwrap();
    world.stuck_has_all(FULL + 4).await;
    world.node.stop().await.unwrap();
}

#[whizbang::test]
async fn full_parked_key_delays_no_command_to_others() {
    full_parked_key_delays_no_other(0, false).await;
}

#[whizbang::test]
async fn full_parked_key_delays_no_event_to_others() {
    full_parked_key_delays_no_other(1, true).await;
}

async fn refused_key_delays_no_other(test: usize, by_event: bool) {
    let world = World::start(test, by_event, SHORT).await;
    let refused = StoreError::OutOfTurn { shard: ShardId::new(Name::new("boxes").unwrap(), 0), expected: 7 };
    world.probe.refuse("box", Some(&world.stuck()), refused);
    world.spread_stuck(0, 3, 0).await;
    world.others_arrive().await;
    eventually(async || world.node.metrics().stuck_keys == 1).await;
    let reasons = world.node.health().reasons;
    assert!(reasons.iter().any(|reason| reason.contains(&world.stuck())), "{reasons:?}");
    world.spread_stuck(3, 3, 0).await;
    let world = world.restarted(SHORT).await;
    world.spread_stuck(6, 1, 0).await;
    world.probe.accept();
    world.stuck_has_all(7).await;
    world.node.stop().await.unwrap();
}

#[whizbang::test]
async fn key_that_the_store_refuses_delays_no_command_to_others() {
    refused_key_delays_no_other(2, false).await;
}

#[whizbang::test]
async fn key_that_the_store_refuses_delays_no_event_to_others() {
    refused_key_delays_no_other(3, true).await;
}

/// The limit is 65,536 deferred messages in memory.
#[whizbang::test]
async fn full_backlog_delays_no_message_to_others() {
    const DEFERRED: u64 = 65_536 + 10;
    let world = World::start(4, false, LONG).await;
    FAILING.lock().insert(world.stuck());
    world.spread_stuck(0, DEFERRED, 0).await;
    world.others_arrive().await;
    let world = world.restarted(LONG).await;
    world.spread_stuck(DEFERRED, 10, 0).await;
    FAILING.lock().remove(&world.stuck());
    let world = world.restarted(SHORT).await;
    world.node.wait_idle().await;
    world.stuck_has_all(DEFERRED + 10).await;
    world.node.stop().await.unwrap();
}
