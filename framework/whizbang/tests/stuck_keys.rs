//! A key that cannot be loaded, and a key in back-off, delay no other key.

mod eventually;
mod instrumented_store;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use eventually::eventually;
use instrumented_store::{InstrumentedStore, StoreProbe};
use parking_lot::Mutex;
use whizbang::prelude::*;
use whizbang::store::{Store, StoreError};
use whizbang::{NodeConfig, Retry, SendError};

/// More messages than a source or a subscription may have in flight.
const OTHERS: u64 = 3000;
const AHEAD: u64 = 1100;

/// Keys whose events cannot be applied, and keys whose handlers panic. Each test has keys of its own.
static UNLOADABLE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
static FAILING: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
/// The messages that arrived at each key, in order.
static ARRIVED: LazyLock<Mutex<BTreeMap<String, Vec<u64>>>> = LazyLock::new(Mutex::default);

fn arrived(key: &str) -> Vec<u64> {
    ARRIVED.lock().get(key).cloned().unwrap_or_default()
}

#[derive(Domain)]
#[domain(name = "senders", shards = 1)]
struct Senders;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Senders)]
struct Send {
    #[key]
    sender: String,
    to: String,
    first: u64,
    count: u64,
    each: bool,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Senders)]
struct Sent {
    to: String,
    n: u64,
}

/// Sends commands to boxes, or records events that boxes handle.
#[derive(Aggregate, Default)]
#[aggregate(domain = Senders, handles(Send), records(Sent))]
struct Sender;

impl Handle<Send> for Sender {
    fn handle(&self, send: Send, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for n in send.first..send.first + send.count {
            let to = if send.each { format!("{}-{n}", send.to) } else { send.to.clone() };
            effects.send(Put { box_: to, n });
        }
        Ok(())
    }
}

#[derive(Domain)]
#[domain(name = "speakers", shards = 1)]
struct Speakers;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Speakers)]
struct Say {
    #[key]
    speaker: String,
    to: String,
    first: u64,
    count: u64,
    each: bool,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Speakers)]
struct Said {
    to: String,
    n: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Speakers, handles(Say), records(Said))]
struct Speaker;

impl Handle<Say> for Speaker {
    fn handle(&self, say: Say, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for n in say.first..say.first + say.count {
            let to = if say.each { format!("{}-{n}", say.to) } else { say.to.clone() };
            effects.record(Said { to, n });
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
    box_: String,
    n: u64,
}

#[derive(Saga, Default)]
#[saga(domain = Boxes, name = "box", handles(Put, Look), reacts(Said), applies(Held))]
struct Box_ {
    holds: Vec<u64>,
}

fn put(key: &str, n: u64, effects: &mut Effects<Box_>) {
    assert!(!FAILING.lock().contains(key), "the handler of the box panics");
    effects.record(Held { box_: key.to_owned(), n });
}

impl Handle<Put> for Box_ {
    fn handle(&self, put_: Put, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        put(&put_.box_, put_.n, effects);
        Ok(())
    }
}

impl Handle<Look> for Box_ {
    fn handle(&self, _look: Look, _effects: &mut Effects<Self>) -> Result<Vec<u64>, Rejection> {
        Ok(self.holds.clone())
    }
}

impl React<Said> for Box_ {
    fn key(said: &Said, _context: &EventContext) -> Option<String> {
        Some(said.to.clone())
    }

    fn react(&self, said: Said, effects: &mut Effects<Self>) {
        put(&said.to, said.n, effects);
    }
}

impl Apply<Held> for Box_ {
    fn apply(&mut self, held: &Held) {
        assert!(!UNLOADABLE.lock().contains(&held.box_), "the box cannot be opened");
        self.holds.push(held.n);
        let mut arrived = ARRIVED.lock();
        let list = arrived.entry(held.box_.clone()).or_default();
        if !list.contains(&held.n) {
            list.push(held.n);
        }
    }
}

/// A back-off that outlasts every test.
const LONG: Retry = Retry { attempts: 100, first: Duration::from_secs(600), longest: Duration::from_secs(600) };
/// A back-off that ends soon.
const SHORT: Retry = Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(2) };

async fn start(store: &MemoryStore, retry: Retry) -> Node {
    start_on(store.clone(), retry).await
}

async fn start_on(store: impl Store, retry: Retry) -> Node {
    let config = NodeConfig { threads: 0, retry, ..NodeConfig::default() };
    let builder = Node::builder("boxes", store).threads(0).config(config);
    builder.aggregate::<Sender>().aggregate::<Speaker>().saga::<Box_>().start().await.unwrap()
}

/// The kind of messages that a box receives.
#[derive(Clone, Copy, Debug)]
enum Way {
    Commands,
    Events,
}

/// Sends `count` messages to one box, or one each to as many boxes.
async fn send(node: &Node, way: Way, to: &str, first: u64, count: u64, each: bool) {
    const CHUNK: u64 = 500;
    let end = first + count;
    for first in (first..end).step_by(CHUNK as usize) {
        let count = CHUNK.min(end - first);
        let to = to.to_owned();
        match way {
            Way::Commands => {
                node.client().send(Send { sender: "s".to_owned(), to, first, count, each }).await.unwrap();
            }
            Way::Events => {
                node.client().send(Say { speaker: "s".to_owned(), to, first, count, each }).await.unwrap();
            }
        }
    }
}

fn others(prefix: &str) -> u64 {
    ARRIVED.lock().keys().filter(|key| key.starts_with(prefix)).count() as u64
}

/// Asserts that a stopped node stops within a fraction of its stop timeout, because nothing is left running.
async fn stop_promptly(node: Node) {
    tokio::time::timeout(Duration::from_secs(5), node.stop()).await.expect("the node stops promptly").unwrap();
}

async fn other_keys_are_reached(way: Way, name: &str) {
    let store = MemoryStore::new();
    let (stuck, other) = (format!("stuck-{name}"), format!("other-{name}"));
    // A key that cannot be loaded.
    let node = start(&store, SHORT).await;
    send(&node, way, &stuck, 0, 1, false).await;
    node.wait_idle().await;
    stop_promptly(node).await;
    UNLOADABLE.lock().insert(stuck.clone());
    let node = start(&store, SHORT).await;
    send(&node, way, &stuck, 1, AHEAD - 1, false).await;
    send(&node, way, &other, 0, OTHERS, true).await;
    eventually(async || others(&other) == OTHERS).await;
    eventually(async || node.health().reasons.iter().any(|reason| reason.contains(&stuck))).await;
    assert!(node.health().live && node.health().ready, "one key does not take the node out of service");
    assert_eq!(node.metrics().unloadable_keys, 1);
    eventually(async || node.dead_letters().await.unwrap().iter().any(|letter| letter.key == stuck)).await;
    stop_promptly(node).await;
    // Handled messages are not handled again.
    let node = start(&store, SHORT).await;
    eventually(async || node.metrics().unloadable_keys == 1).await;
    send(&node, way, &other, OTHERS, 1, true).await;
    eventually(async || others(&other) == OTHERS + 1).await;
    assert!(node.metrics().activations < 20, "{} activations", node.metrics().activations);
    // The program is fixed, and an operator redrives the key.
    UNLOADABLE.lock().remove(&stuck);
    let letters = node.dead_letters().await.unwrap();
    let letter = letters.iter().find(|letter| letter.key == stuck).unwrap();
    node.redrive(letter).await.unwrap();
    eventually(async || arrived(&stuck).len() as u64 == AHEAD).await;
    assert!(arrived(&stuck).is_sorted(), "in order");
    eventually(async || node.health().reasons.is_empty()).await;
    eventually(async || node.dead_letters().await.unwrap().is_empty()).await;
    assert_eq!(node.metrics().unloadable_keys, 0);
    stop_promptly(node).await;
}

#[whizbang::test]
async fn unloadable_key_delays_no_command_to_others() {
    other_keys_are_reached(Way::Commands, "load-commands").await;
}

#[whizbang::test]
async fn unloadable_key_delays_no_event_to_others() {
    other_keys_are_reached(Way::Events, "load-events").await;
}

/// A message for a stuck key is deferred to the log of its receiver, so the position of the subscription moves on.
#[whizbang::test]
async fn restart_beside_an_unloadable_key_reads_few_events() {
    let store = MemoryStore::new();
    let (stuck, other) = ("stuck-restart".to_owned(), "other-restart".to_owned());
    let node = start(&store, SHORT).await;
    send(&node, Way::Events, &stuck, 0, 1, false).await;
    node.wait_idle().await;
    stop_promptly(node).await;
    UNLOADABLE.lock().insert(stuck.clone());
    let node = start(&store, SHORT).await;
    send(&node, Way::Events, &stuck, 1, 1, false).await;
    send(&node, Way::Events, &other, 0, OTHERS, true).await;
    eventually(async || others(&other) == OTHERS).await;
    node.wait_idle().await;
    stop_promptly(node).await;
    let probe = Arc::<StoreProbe>::default();
    let node = start_on(InstrumentedStore(store, Arc::clone(&probe)), SHORT).await;
    send(&node, Way::Events, &other, OTHERS, 1, true).await;
    eventually(async || others(&other) == OTHERS + 1).await;
    eventually(async || node.metrics().unloadable_keys == 1).await;
    node.wait_idle().await;
    let read = probe.events.load(Ordering::Relaxed);
    assert!((1..100).contains(&read), "{read} of {OTHERS} events since the key is stuck were read at the restart");
    stop_promptly(node).await;
}

async fn back_off_delays_no_other(way: Way, name: &str) {
    let store = MemoryStore::new();
    let (stuck, other) = (format!("failing-{name}"), format!("good-{name}"));
    FAILING.lock().insert(stuck.clone());
    let node = start(&store, LONG).await;
    send(&node, way, &stuck, 0, AHEAD, false).await;
    send(&node, way, &other, 0, OTHERS, true).await;
    eventually(async || others(&other) == OTHERS).await;
    assert_eq!((node.metrics().retries, node.metrics().dead_letters), (1, 0));
    stop_promptly(node).await;
    FAILING.lock().remove(&stuck);
    let node = start(&store, LONG).await;
    node.wait_idle().await;
    let holds = node.client().send(Look { box_: stuck.clone() }).await.unwrap();
    assert!(holds == (0..AHEAD).collect::<Vec<_>>(), "all {AHEAD} in order: {}", holds.len());
    assert!(node.metrics().activations < 20, "{} activations", node.metrics().activations);
    assert!(node.dead_letters().await.unwrap().is_empty());
    stop_promptly(node).await;
}

#[whizbang::test]
async fn key_in_back_off_delays_no_command_to_others() {
    back_off_delays_no_other(Way::Commands, "commands").await;
}

#[whizbang::test]
async fn key_in_back_off_delays_no_event_to_others() {
    back_off_delays_no_other(Way::Events, "events").await;
}

#[whizbang::test]
async fn back_off_ends_and_order_is_kept_within_one_run() {
    let store = MemoryStore::new();
    let key = "recovers".to_owned();
    FAILING.lock().insert(key.clone());
    let retry = Retry { attempts: 1000, first: Duration::from_millis(1), longest: Duration::from_millis(5) };
    let node = start(&store, retry).await;
    for way in [Way::Commands, Way::Events] {
        send(&node, way, &key, 0, AHEAD, false).await;
    }
    eventually(async || node.metrics().retries > 3).await;
    FAILING.lock().remove(&key);
    send(&node, Way::Commands, &key, AHEAD, 100, false).await;
    node.wait_idle().await;
    let holds = node.client().send(Look { box_: key }).await.unwrap();
    // Each source in its own order; the order between the two is undefined.
    assert_eq!(holds.len() as u64, 2 * AHEAD + 100, "of {AHEAD} twice and 100");
    let of_all: BTreeMap<u64, usize> = holds.iter().fold(BTreeMap::new(), |mut counts, n| {
        *counts.entry(*n).or_default() += 1;
        counts
    });
    assert!((0..AHEAD).all(|n| of_all.get(&n) == Some(&2)), "each of both came once");
    stop_promptly(node).await;
}

#[tokio::test(start_paused = true)]
async fn unloadable_key_without_retries_is_not_loaded_in_a_loop() {
    tokio::task::LocalSet::new().run_until(loads_of_an_unloadable_key()).await;
}

async fn loads_of_an_unloadable_key() {
    let store = MemoryStore::new();
    let key = "never-again".to_owned();
    let node = start(&store, Retry::NEVER).await;
    send(&node, Way::Commands, &key, 0, 1, false).await;
    node.wait_idle().await;
    drop(node);
    UNLOADABLE.lock().insert(key.clone());
    let node = start(&store, Retry::NEVER).await;
    send(&node, Way::Commands, &key, 1, 10, false).await;
    let panics = || node.metrics().panics;
    while node.metrics().unloadable_keys == 0 {
        assert!(panics() < 10, "health has reported it");
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    // Ten seconds of the paused clock: at most one load per second.
    let before = panics();
    for _ in 0..1000 {
        tokio::time::advance(Duration::from_millis(10)).await;
    }
    assert!(panics() - before <= 11, "{} loads", panics() - before);
    // The caller gets an error, and others are answered.
    assert!(matches!(node.client().send(Look { box_: key }).await, Err(SendError::Refused(_))));
    node.client().send(Look { box_: "fine".to_owned() }).await.unwrap();
    stop_promptly(node).await;
}

#[whizbang::test]
async fn discarded_letter_of_unloadable_key_is_not_handled() {
    let store = MemoryStore::new();
    let key = "discarded".to_owned();
    let node = start(&store, SHORT).await;
    send(&node, Way::Commands, &key, 0, 1, false).await;
    node.wait_idle().await;
    drop(node);
    UNLOADABLE.lock().insert(key.clone());
    let node = start(&store, SHORT).await;
    send(&node, Way::Commands, &key, 1, 3, false).await;
    eventually(async || node.metrics().unloadable_keys == 1).await;
    node.wait_idle().await;
    let letters = node.dead_letters().await.unwrap();
    let first = letters.iter().find(|letter| letter.reason.as_str() == "unloadable").unwrap();
    node.discard(first).await.unwrap();
    assert!(node.discard(first).await.is_err(), "it is gone");
    drop(node);
    UNLOADABLE.lock().remove(&key);
    let node = start(&store, SHORT).await;
    node.wait_idle().await;
    assert_eq!(node.client().send(Look { box_: key }).await.unwrap(), [0, 2, 3]);
    stop_promptly(node).await;
}

#[whizbang::test]
async fn full_disk_shows_in_health_until_commits_succeed() {
    let (store, faults) = MemoryStore::faulty();
    let node = start(&store, SHORT).await;
    faults.refuse(1, StoreError::Full { at: "memory".to_owned() });
    let look = || Look { box_: "disk".to_owned() };
    assert!(matches!(node.client().send(look()).await, Err(SendError::Refused(StoreError::Full { .. }))));
    let health = node.health();
    assert!(!health.ready && health.reasons.iter().any(|reason| reason.contains("failed to commit")), "{health:?}");
    node.client().send(look()).await.unwrap();
    assert!(node.health().ready, "{:?}", node.health());
    stop_promptly(node).await;
}

/// A random number generator (Knuth, MMIX).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Runs keys that fail and recover at random and cannot be loaded for a while, on a node that is killed at random. Each
/// message arrives once, those of one source in order.
async fn seed_holds(seed: u64) {
    let (store, mut random) = (MemoryStore::new(), Random(seed));
    let retry = Retry { attempts: u32::MAX, first: Duration::from_millis(1), longest: Duration::from_millis(4) };
    let keys: Vec<String> = (0..6).map(|key| format!("random-{seed}-{key}")).collect();
    let mut node = start(&store, retry).await;
    let mut sent = BTreeMap::<String, [u64; 2]>::new();
    for _ in 0..60 {
        let key = &keys[random.below(6) as usize];
        match random.below(10) {
            0 | 1 => drop(FAILING.lock().insert(key.clone())),
            2 => drop(FAILING.lock().remove(key)),
            3 => drop(UNLOADABLE.lock().insert(key.clone())),
            4 => drop(UNLOADABLE.lock().remove(key)),
            5 => {
                drop(node);
                node = start(&store, retry).await;
            }
            6 => tokio::time::advance(Duration::from_millis(random.below(6))).await,
            way => {
                let (way, at) = if way == 7 { (Way::Events, 1) } else { (Way::Commands, 0) };
                let count = 1 + random.below(40);
                let first = &mut sent.entry(key.clone()).or_default()[at];
                send(&node, way, key, 2 * 1000 * at as u64 + *first, count, false).await;
                *first += count;
            }
        }
    }
    drop(node);
    FAILING.lock().retain(|key| !keys.contains(key));
    UNLOADABLE.lock().retain(|key| !keys.contains(key));
    let node = start(&store, retry).await;
    node.wait_idle().await;
    for (key, [commands, events]) in sent {
        let holds = node.client().send(Look { box_: key.clone() }).await.unwrap();
        let (of_events, of_commands): (Vec<u64>, Vec<u64>) = holds.iter().partition(|n| **n >= 2000);
        assert!(of_commands == (0..commands).collect::<Vec<_>>(), "seed {seed}: commands to {key}: {of_commands:?}");
        assert!(of_events == (2000..2000 + events).collect::<Vec<_>>(), "seed {seed}: events to {key}: {of_events:?}");
    }
    assert!(node.dead_letters().await.unwrap().is_empty(), "seed {seed}");
    let metrics = node.metrics();
    assert_eq!((metrics.deferred, metrics.unloadable_keys), (0, 0), "seed {seed}");
    assert!(node.health().reasons.is_empty(), "seed {seed}: {:?}", node.health());
    stop_promptly(node).await;
}

#[tokio::test(start_paused = true)]
async fn random_failures_and_kills_keep_count_and_order() {
    let seeds = async {
        for seed in 0..20 {
            seed_holds(seed).await;
        }
    };
    tokio::task::LocalSet::new().run_until(seeds).await;
}
