//! The cost of remembered ids and pending timers for later turns: the same turns with many and with few of them.

use std::time::{Duration, Instant};

use whizbang::derive::block_on;
use whizbang::prelude::*;
use whizbang::{Client, MemoryStore, Node, NodeConfig};

use crate::account::{Account, deposit};
use crate::report::{REPETITIONS, nanos_each, report};

const FEW_IDS: usize = 100;
const MANY_IDS: usize = 100_000;
/// The number of keys.
const KEYS: usize = 4;
/// The number of measured commands for each key.
const COMMANDS: usize = 2_000;

/// Measures the latency of a command with an id from the caller, for keys that remember 100,000 ids and keys that remember 100.
pub(crate) fn ids() {
    block_on(async {
        let mut pairs = Vec::new();
        for _ in 0..=REPETITIONS {
            let few = latency(FEW_IDS).await;
            pairs.push((latency(MANY_IDS).await, few));
        }
        // The first pair is a warm-up.
        let anchor = "the same with 100 remembered ids";
        report("remembered_ids", "ns", anchor, pairs.get(1..).unwrap_or_default());
    });
}

async fn latency(remembered: usize) -> f64 {
    let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().threads(0);
    let node = node.start().await.expect("it starts");
    let client = node.client();
    let names: Vec<String> = (0..KEYS).map(|key| format!("account-{key}")).collect();
    for _ in 0..remembered {
        for name in &names {
            client.send(deposit(name)).id(client.new_id()).await.expect("it is handled");
        }
    }
    let begun = Instant::now();
    for _ in 0..COMMANDS {
        for name in &names {
            let cents = client.send(deposit(name)).id(client.new_id()).await.expect("it is handled");
            std::hint::black_box(cents);
        }
    }
    let each = nanos_each(begun.elapsed(), COMMANDS * KEYS);
    node.stop().await.expect("it stops");
    each
}

#[derive(Domain)]
struct Alarms;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Alarms)]
struct Set {
    #[key]
    name: String,
    sets_timer: bool,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Alarms)]
struct Due;

#[derive(Saga, Default)]
#[saga(domain = Alarms, handles(Set), timers(Due))]
struct Alarm;

impl Handle<Set> for Alarm {
    fn handle(&self, set: Set, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if set.sets_timer {
            // Far enough in the future that no timer fires during the measurement.
            effects.set_timer(&Due, Duration::from_secs(24 * 3600));
        }
        Ok(())
    }
}

impl OnTimer<Due> for Alarm {
    fn on_timer(&self, _due: Due, _effects: &mut Effects<Self>) {}
}

const PENDING: usize = 100_000;
/// The number of other keys that set their timers.
const SETTERS: usize = 1_000;
/// The number of times that each of them does.
const SETS: usize = 200;

/// Measures the turns per second that set a timer, while 100,000 other keys have a pending timer and while they have none.
pub(crate) fn timers() {
    block_on(async {
        let mut pairs = Vec::new();
        for _ in 0..=REPETITIONS {
            let without = turns(false).await;
            pairs.push((turns(true).await, without));
        }
        // The first pair is a warm-up.
        let anchor = "the same with keys without timers";
        report("pending_timers", "1/s", anchor, pairs.get(1..).unwrap_or_default());
    });
}

async fn turns(have_timers: bool) -> f64 {
    // All keys stay live in both cases. Otherwise the actors that are measured would be spread over the memory that others have left.
    let config = NodeConfig { live_actors: 2 * PENDING, ..NodeConfig::default() };
    let node = Node::builder("alarms", MemoryStore::new()).saga::<Alarm>().config(config).threads(0);
    let node = node.start().await.expect("it starts");
    let client = node.client();
    let names: Vec<String> = (0..SETTERS).map(|name| format!("setter-{name}")).collect();
    for name in &names {
        set(&client, name.clone(), true).await;
    }
    for name in 0..PENDING {
        set(&client, format!("other-{name}"), have_timers).await;
    }
    let begun = Instant::now();
    for _ in 0..SETS {
        for name in &names {
            set(&client, name.clone(), true).await;
        }
    }
    let each = (SETS * SETTERS) as f64 / begun.elapsed().as_secs_f64();
    node.stop().await.expect("it stops");
    each
}

async fn set(client: &Client, name: String, sets_timer: bool) {
    client.send(Set { name, sets_timer }).await.expect("it is handled");
}
