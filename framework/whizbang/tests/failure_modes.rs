//! Failure modes of a node: a snapshot of another schema, user code that panics while it chooses a key, turns that are
//! too large, timers set by the last turn, timers that fire behind a dead letter, a start that fails.
#![cfg(all(feature = "testing", feature = "embedded"))]

mod bank;
mod eventually;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eventually::eventually;
use futures_util::future::{BoxFuture, FutureExt};
use whizbang::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, Response};
use whizbang::clock::{Clock, Timestamp};
use whizbang::message::{Envelope, Name, ShardId, shard_of};
use whizbang::prelude::*;
use whizbang::store::{CommitListener, Store, StoreError, Ticket};
use whizbang::{Retry, SendError};

#[derive(Domain)]
#[domain(name = "wallets")]
struct Wallets;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Wallets, reply = u64)]
struct Put {
    #[key]
    wallet: String,
    cents: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Wallets)]
struct Filled {
    cents: u64,
}

/// The same aggregate in an older and a newer version of a program.
macro_rules! wallet {
    ($name:ident, $schema:literal) => {
        #[derive(Aggregate, Default, Serialize, Deserialize)]
        #[aggregate(domain = Wallets, name = "t", handles(Put), applies(Filled), snapshot(every = 5, schema = $schema))]
        struct $name {
            cents: u64,
        }

        impl Handle<Put> for $name {
            fn handle(&self, put: Put, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
                effects.record(Filled { cents: put.cents });
                Ok(self.cents + put.cents)
            }
        }

        impl Apply<Filled> for $name {
            fn apply(&mut self, filled: &Filled) {
                self.cents += filled.cents;
            }
        }
    };
}

wallet!(Older, 1);
wallet!(Newer, 2);

fn put(wallet: &str) -> Put {
    Put { wallet: wallet.into(), cents: 1 }
}

#[whizbang::test]
async fn snapshot_of_another_schema_is_ignored() {
    // After the last snapshot, and at it.
    for turns in [13, 20] {
        let store = MemoryStore::new();
        let id;
        {
            let node = Node::builder("wallets", store.clone()).threads(0).aggregate::<Older>().start().await.unwrap();
            id = node.client().new_id();
            assert_eq!(node.client().send(put("a")).id(id).await.unwrap(), 1);
            for _ in 1..turns {
                node.client().send(put("a")).await.unwrap();
            }
        }
        let node = Node::builder("wallets", store.clone()).threads(0).aggregate::<Newer>().start().await.unwrap();
        assert_eq!(node.client().send(put("a")).await.unwrap(), turns + 1);
        assert_eq!(node.client().send(put("a")).id(id).await.unwrap(), 1, "what was handled is remembered");
        drop(node);
        let node = Node::builder("wallets", store).threads(0).aggregate::<Newer>().start().await.unwrap();
        assert_eq!(node.client().send(put("a")).await.unwrap(), turns + 2, "versions and numbers have gone on");
    }
}

#[derive(Domain)]
#[domain(name = "watch")]
struct Watch;

/// True if the code that chooses keys and handles bells panics.
static PANICS: AtomicBool = AtomicBool::new(false);

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Watch, reply = String)]
struct Look {
    #[key]
    watch: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Watch)]
struct Seen {
    what: String,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Watch)]
struct Bell {}

#[derive(Saga, Default)]
#[saga(domain = Watch, handles(Look), applies(Seen), reacts(Filled), timers(Bell))]
struct Watcher {
    seen: Vec<String>,
}

impl Handle<Look> for Watcher {
    fn handle(&self, _look: Look, _effects: &mut Effects<Self>) -> Result<String, Rejection> {
        Ok(self.seen.join(" "))
    }
}

impl Apply<Seen> for Watcher {
    fn apply(&mut self, seen: &Seen) {
        self.seen.push(seen.what.chars().take(4).collect());
    }
}

impl React<Filled> for Watcher {
    fn key(filled: &Filled, context: &EventContext) -> Option<String> {
        assert!(filled.cents != 13, "unlucky");
        Some(context.key.clone())
    }

    fn react(&self, filled: Filled, effects: &mut Effects<Self>) {
        match filled.cents {
            7 => {
                effects.set_timer(&Bell {}, Duration::from_secs(60));
                effects.complete();
            }
            8 => effects.set_timer(&Bell {}, Duration::from_secs(60)),
            9 => {
                assert!(!PANICS.load(Ordering::Relaxed), "planned: the handler panics");
                effects.clear_timer::<Bell>();
            }
            20 => (0..5).for_each(|_| effects.record(Seen { what: "x".repeat(450 * 1024) })),
            _ => {}
        }
        effects.record(Seen { what: filled.cents.to_string() });
    }
}

impl OnTimer<Bell> for Watcher {
    fn on_timer(&self, _bell: Bell, effects: &mut Effects<Self>) {
        effects.record(Seen { what: "bell".to_owned() });
    }
}

fn quick() -> Retry {
    Retry { attempts: 2, first: Duration::from_millis(1), longest: Duration::from_millis(2) }
}

async fn watching(store: &MemoryStore, clock: &Clock) -> Node {
    let builder = Node::builder("watch", store.clone()).threads(0).aggregate::<Older>().saga::<Watcher>();
    builder.retry(quick()).clock(clock.clone()).start().await.unwrap()
}

async fn fill(node: &Node, watch: &str, cents: u64) {
    node.client().send(Put { wallet: watch.into(), cents }).await.unwrap();
}

async fn seen(node: &Node, watch: &str) -> String {
    node.client().send(Look { watch: watch.into() }).await.unwrap()
}

fn morning() -> Timestamp {
    Timestamp::from_millis(1_800_000_000_000)
}

#[whizbang::test]
async fn event_without_a_target_key_becomes_a_dead_letter() {
    let (store, clock) = (MemoryStore::new(), Clock::manual(morning()).0);
    let node = watching(&store, &clock).await;
    for (watch, cents) in [("b", 1), ("a", 13), ("b", 2)] {
        fill(&node, watch, cents).await;
    }
    node.wait_idle().await;
    assert_eq!(seen(&node, "b").await, "1 2");
    let letters = node.dead_letters().await.unwrap();
    assert!(letters.len() == 1 && letters[0].error.contains("unlucky"), "{letters:?}");
    drop(node);
    // A restart neither loses it nor is stopped by it.
    let node = watching(&store, &clock).await;
    fill(&node, "b", 3).await;
    node.wait_idle().await;
    assert_eq!((seen(&node, "b").await.as_str(), node.dead_letters().await.unwrap().len()), ("1 2 3", 1));
}

#[whizbang::test]
async fn redriven_event_runs_on_no_key_but_its_own() {
    let (store, clock) = (MemoryStore::new(), Clock::manual(morning()).0);
    let node = watching(&store, &clock).await;
    fill(&node, "a", 13).await;
    node.wait_idle().await;
    let letters = node.dead_letters().await.unwrap();
    assert!(letters.len() == 1 && letters[0].key == "a", "{letters:?}");
    let again = node.redrive(&letters[0]).await;
    assert!(matches!(&again, Err(SendError::DeadLetter { reason }) if reason.contains("unlucky")), "{again:?}");
    node.discard(&letters[0]).await.unwrap();
    assert_eq!(seen(&node, "a").await, "", "the stand-in has not taken the event");
}

#[whizbang::test]
async fn oversized_turn_becomes_a_dead_letter() {
    let (store, clock) = (MemoryStore::new(), Clock::manual(morning()).0);
    let node = watching(&store, &clock).await;
    for (watch, cents) in [("a", 20), ("a", 1), ("b", 2)] {
        fill(&node, watch, cents).await;
    }
    node.wait_idle().await;
    assert_eq!(seen(&node, "b").await, "2");
    let letters = node.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 2, "the message and those behind it: {letters:?}");
    assert!(letters.iter().any(|letter| letter.error.contains("bytes")), "{letters:?}");
}

/// Returns when the next timer of a watch's shard is due, according to the store.
async fn next_timer(store: &MemoryStore, watch: &str) -> Option<Timestamp> {
    struct Nobody;
    impl CommitListener for Nobody {
        fn committed(&self, _through: Ticket) {}
        fn failed(&self, _error: StoreError) {}
    }
    let shard = ShardId::new(Name::new("watch").unwrap(), shard_of(watch, Watch::SHARDS));
    store.open(&shard, Watch::SHARDS, Arc::new(Nobody)).await.unwrap().reader.next_timer()
}

#[whizbang::test]
async fn timer_set_in_the_last_turn_of_a_saga_is_dropped() {
    let (store, (clock, hand)) = (MemoryStore::new(), Clock::manual(morning()));
    let node = watching(&store, &clock).await;
    fill(&node, "a", 8).await;
    node.wait_idle().await;
    fill(&node, "a", 7).await;
    node.wait_idle().await;
    drop(node);
    assert_eq!(next_timer(&store, "a").await, None);
    hand.advance(Duration::from_secs(61));
    let node = watching(&store, &clock).await;
    node.wait_idle().await;
    assert_eq!(seen(&node, "a").await, "8 7");
}

#[whizbang::test]
async fn timer_parked_behind_its_clearing_message_does_nothing() {
    let (store, (clock, hand)) = (MemoryStore::new(), Clock::manual(morning()));
    let node = watching(&store, &clock).await;
    fill(&node, "a", 8).await;
    node.wait_idle().await;
    PANICS.store(true, Ordering::Relaxed);
    fill(&node, "a", 9).await;
    node.wait_idle().await;
    hand.advance(Duration::from_secs(61));
    drop(node);
    let node = watching(&store, &clock).await;
    eventually(async || node.dead_letters().await.unwrap().len() == 2).await;
    PANICS.store(false, Ordering::Relaxed);
    let letters = node.dead_letters().await.unwrap();
    node.redrive(&letters[0]).await.unwrap();
    assert_eq!(seen(&node, "a").await, "8 9", "the bell was cleared before it could be heard");
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

#[whizbang::test]
async fn idempotency_key_of_another_command_is_a_conflict() {
    let node = bank::start(MemoryStore::new()).await;
    let client = node.client();
    client.send(bank::Hold { account: "ada".into() }).idempotency_key("k").await.unwrap();
    // The same bytes for the same key, but another command.
    let error = client.send(bank::Close { account: "ada".into() }).idempotency_key("k").await.unwrap_err();
    assert!(matches!(error, SendError::Conflict), "{error}");
    assert_eq!(client.send(bank::deposit("ada", 1)).await.unwrap(), 1);
}

/// A bridge whose broker rejects every node.
struct Closed;

fn closed<T: Send + 'static>() -> BoxFuture<'static, Result<T, BridgeError>> {
    let error = BridgeError::Refused { broker: "nowhere".to_owned(), reason: "closed".to_owned() };
    std::future::ready(Err(error)).boxed()
}

impl Bridge for Closed {
    fn attach<'a>(&'a self, _card: NodeCard, _inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        closed()
    }
    fn send(&self, _envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        closed()
    }
    fn publish(&self, _event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        closed()
    }
    fn request(&self, _to: Request, _deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        closed()
    }
    fn notify(&self, _notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        closed()
    }
    fn durability(&self) -> String {
        "none".to_owned()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        closed()
    }
}

#[whizbang::test]
async fn failed_start_releases_the_store() {
    for threads in [0, 2] {
        let folder = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            let store = EmbeddedStore::open(folder.path()).unwrap();
            let node = Node::builder("wallets", store).aggregate::<Older>().bridge(Closed).threads(threads).start();
            node.await.unwrap_err();
        }
    }
}
