//! Snapshots by default: saved if the state can be written and read, ignored once its shape has changed.
#![cfg(feature = "testing")]

mod instrumented_store;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use instrumented_store::{InstrumentedStore, StoreProbe};

use whizbang::prelude::*;

#[derive(Domain)]
#[domain(name = "meters", shards = 1)]
struct Meters;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Meters, reply = u64)]
struct Count {
    #[key]
    meter: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Meters)]
struct Counted {}

/// Implements the handlers that all meters share.
macro_rules! meter {
    ($meter:ty) => {
        impl Handle<Count> for $meter {
            fn handle(&self, _: Count, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
                effects.record(Counted {});
                Ok(u64::from(self.count) + 1)
            }
        }
        impl Apply<Counted> for $meter {
            fn apply(&mut self, _: &Counted) {
                self.count += 1;
            }
        }
    };
}

/// A meter with default settings.
#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(domain = Meters, name = "meter", handles(Count), applies(Counted))]
struct Meter {
    count: u64,
}
meter!(Meter);

/// A meter of another shape, whose bytes could be read as the first one's.
#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(domain = Meters, name = "meter", handles(Count), applies(Counted))]
struct NarrowMeter {
    count: u32,
}
meter!(NarrowMeter);

/// A meter without snapshots.
#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(domain = Meters, name = "meter", handles(Count), applies(Counted), snapshot(never))]
struct ForgetfulMeter {
    count: u64,
}
meter!(ForgetfulMeter);

/// Counts in batches, each of which is awaited as a whole.
async fn count<A: Aggregate>(store: &MemoryStore, turns: u64) {
    let node = Node::builder("meters", store.clone()).aggregate::<A>().start().await.unwrap();
    let client = node.client();
    for _ in 0..turns / 500 {
        let sent = (0..500).map(|_| async { client.send(Count { meter: "old".into() }).await.unwrap() });
        futures_util::future::join_all(sent).await;
    }
    node.stop().await.unwrap();
}

/// Runs one turn on a new node. Returns the reply, and the number of turns that were read from the store for it.
async fn next<A: Aggregate>(store: &MemoryStore) -> (u64, usize) {
    let probe = Arc::new(StoreProbe::default());
    let watched = InstrumentedStore(store.clone(), Arc::clone(&probe));
    let node = Node::builder("meters", watched).aggregate::<A>().start().await.unwrap();
    let before = probe.turns.load(Ordering::Relaxed);
    let reply = node.client().send(Count { meter: "old".into() }).await.unwrap();
    let read = probe.turns.load(Ordering::Relaxed) - before;
    node.stop().await.unwrap();
    (reply, read)
}

#[whizbang::test]
async fn long_history_is_not_read_without_any_setting() {
    const TURNS: u64 = 20_000;
    let store = MemoryStore::new();
    count::<Meter>(&store, TURNS).await;
    let (reply, read) = next::<Meter>(&store).await;
    assert_eq!(reply, TURNS + 1);
    // Data that is kept with the state, such as ids of callers, makes snapshots slightly rarer than one in 200 turns.
    assert!((0..=400).contains(&read), "{read} of {TURNS} turns were read");
}

#[whizbang::test]
async fn snapshot_of_another_shape_is_not_used() {
    const TURNS: u64 = 1_000;
    let store = MemoryStore::new();
    count::<Meter>(&store, TURNS).await;
    let (reply, read) = next::<NarrowMeter>(&store).await;
    assert_eq!(reply, TURNS + 1);
    assert!(read as u64 >= TURNS, "{read} turns were read");
    // A snapshot was due, so the turn has saved one of the new shape.
    let (reply, read) = next::<NarrowMeter>(&store).await;
    assert_eq!(reply, TURNS + 2);
    assert!(read < 200, "{read} turns were read");
}

#[whizbang::test]
async fn type_without_snapshots_reads_its_history() {
    const TURNS: u64 = 1_000;
    let store = MemoryStore::new();
    count::<ForgetfulMeter>(&store, TURNS).await;
    assert_eq!(next::<ForgetfulMeter>(&store).await, (TURNS + 1, TURNS as usize));
    // The snapshot is now that of another program, and the whole stream is still correct without it.
    count::<Meter>(&store, 500).await;
    let (reply, read) = next::<ForgetfulMeter>(&store).await;
    assert_eq!(reply, TURNS + 502);
    assert!(read as u64 > TURNS + 500, "{read} turns were read");
}
