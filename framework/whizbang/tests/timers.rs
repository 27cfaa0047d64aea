//! Timers: many due at once, of types that are not hosted, of keys that are stuck, and under clocks that jump. The
//! clock is paused.
#![cfg(feature = "testing")]

mod instrumented_store;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use instrumented_store::{InstrumentedStore, StoreProbe};
use whizbang::Retry;
use whizbang::clock::{Clock, Timestamp};
use whizbang::prelude::*;

#[derive(Domain)]
#[domain(name = "alarms", shards = 2)]
struct Alarms;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Alarms)]
struct Set {
    #[key]
    name: String,
    millis: u64,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Alarms)]
struct SetOld {
    #[key]
    name: String,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Alarms)]
struct Due {}

thread_local! {
    static FIRED: Cell<usize> = const { Cell::new(0) };
}

#[derive(Saga, Default)]
#[saga(domain = Alarms, handles(Set), timers(Due))]
struct Alarm {}

impl Handle<Set> for Alarm {
    fn handle(&self, set: Set, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.set_timer(&Due {}, Duration::from_millis(set.millis));
        Ok(())
    }
}

impl OnTimer<Due> for Alarm {
    fn on_timer(&self, _due: Due, effects: &mut Effects<Self>) {
        assert!(!effects.key().starts_with("stuck"), "planned: this key is stuck");
        FIRED.set(FIRED.get() + 1);
    }
}

/// An actor type that the next version of the service does not have.
#[derive(Saga, Default)]
#[saga(domain = Alarms, handles(SetOld), timers(Due))]
struct Retired {}

impl Handle<SetOld> for Retired {
    fn handle(&self, _set: SetOld, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.set_timer(&Due {}, Duration::from_millis(1));
        Ok(())
    }
}

impl OnTimer<Due> for Retired {
    fn on_timer(&self, _due: Due, _effects: &mut Effects<Self>) {}
}

fn set(name: &str, millis: u64) -> Set {
    Set { name: name.to_owned(), millis }
}

fn node(store: InstrumentedStore) -> whizbang::NodeBuilder {
    Node::builder("alarms", store).threads(0).retired("retired").saga::<Alarm>()
}

/// Advances virtual time and runs everything that is due in it.
async fn pass(span: Duration) {
    tokio::time::sleep(span).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn run(test: impl Future<Output = ()>) {
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn timers_of_unknown_actor_types_are_reported_without_turns() {
    run(async {
        let (store, probe) = (MemoryStore::new(), Arc::<StoreProbe>::default());
        let watched = || InstrumentedStore(store.clone(), Arc::clone(&probe));
        {
            // The timers are set, and the node ends before they are due.
            let (clock, _hand) = Clock::manual(Timestamp::from_millis(1_000_000));
            let old = node(watched()).saga::<Retired>().clock(clock).start().await.unwrap();
            for n in 0..500 {
                old.client().send(SetOld { name: n.to_string() }).await.unwrap();
            }
            old.stop().await.unwrap();
        }
        let (clock, hand) = Clock::manual(Timestamp::from_millis(2_000_000));
        let young = node(watched()).clock(clock).start().await.unwrap();
        pass(Duration::from_secs(1)).await;
        let health = young.health();
        let noted: usize = health
            .reasons
            .iter()
            .filter_map(|reason| {
                reason
                    .contains("unknown actor type `retired`")
                    .then(|| reason.split(' ').next()?.parse::<usize>().ok())?
            })
            .sum();
        assert_eq!((noted, health.ready), (500, true), "{health:?}");
        // Turns that set later timers read no timers, even if due timers exist that never fire.
        let (pages, timers) = (probe.pages.load(Ordering::Relaxed), probe.timers.load(Ordering::Relaxed));
        for n in 0..200 {
            young.client().send(set(&format!("a{n}"), 60_000 + n)).await.unwrap();
            tokio::task::yield_now().await;
        }
        let read = probe.pages.load(Ordering::Relaxed) - pages;
        assert!(read <= 10, "{read} pages were read for 200 turns");
        assert_eq!(probe.timers.load(Ordering::Relaxed), timers);
        FIRED.set(0);
        hand.advance(Duration::from_secs(61));
        pass(Duration::from_secs(31)).await;
        assert_eq!(FIRED.get(), 200, "the others fire");
        drop(young);
        // The type is hosted again: its timers fire, and the health issue is resolved.
        let back = node(watched()).saga::<Retired>().start().await.unwrap();
        pass(Duration::from_secs(1)).await;
        assert!(back.health().reasons.is_empty(), "{:?}", back.health());
        back.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn many_due_timers_are_read_once_each() {
    run(async {
        const MANY: usize = 3000;
        let (store, probe) = (MemoryStore::new(), Arc::<StoreProbe>::default());
        let node = node(InstrumentedStore(store, Arc::clone(&probe))).start().await.unwrap();
        let client = node.client();
        for n in 0..MANY {
            client.send(set(&n.to_string(), 1000)).await.unwrap();
        }
        FIRED.set(0);
        tokio::time::advance(Duration::from_secs(2)).await;
        // Commands are handled while the timers fire.
        let mut seen = Vec::new();
        while FIRED.get() < MANY {
            client.send(set("between", 1_000_000)).await.unwrap();
            seen.push(FIRED.get());
            tokio::task::yield_now().await;
        }
        assert!(seen.iter().filter(|fired| (1..MANY).contains(*fired)).count() > 5, "{seen:?}");
        pass(Duration::from_secs(1)).await;
        assert_eq!(FIRED.get(), MANY);
        assert_eq!(probe.timers.load(Ordering::Relaxed), MANY, "each was read once");
        assert!(probe.largest.load(Ordering::Relaxed) <= 256);
        let pages = probe.pages.load(Ordering::Relaxed);
        assert!(pages <= 100, "{pages} pages");
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn stuck_keys_do_not_delay_other_timers() {
    run(async {
        let hour = Duration::from_secs(3600);
        let store = InstrumentedStore(MemoryStore::new(), Arc::default());
        let node = node(store).retry(Retry { attempts: 5, first: hour, longest: hour }).start().await.unwrap();
        let client = node.client();
        // More than may be in flight.
        for n in 0..700 {
            client.send(set(&format!("stuck {n}"), 10)).await.unwrap();
        }
        for n in 0..100 {
            client.send(set(&format!("good {n}"), 20)).await.unwrap();
        }
        FIRED.set(0);
        pass(Duration::from_secs(10)).await;
        assert_eq!(FIRED.get(), 100);
        drop(node);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn clock_jumps_do_not_move_live_timers() {
    run(async {
        for jump in [3_600_000_i64, -3_600_000] {
            let (clock, jumps) = Clock::ticking(Timestamp::from_millis(10_000_000));
            let store = MemoryStore::new();
            let watched = || InstrumentedStore(store.clone(), Arc::default());
            let live = node(watched()).clock(clock.clone()).start().await.unwrap();
            FIRED.set(0);
            live.client().send(set("before", 60_000)).await.unwrap();
            jumps.jump(jump);
            live.client().send(set("after", 60_000)).await.unwrap();
            pass(Duration::from_millis(59_900)).await;
            assert_eq!(FIRED.get(), 0, "none fires early after a jump of {jump} ms");
            pass(Duration::from_millis(200)).await;
            assert_eq!(FIRED.get(), 2, "none fires late after a jump of {jump} ms");
            // After a restart only the wall clock is left.
            live.client().send(set("kept", 60_000)).await.unwrap();
            drop(live);
            pass(Duration::from_secs(1)).await;
            let next = node(watched()).clock(clock).start().await.unwrap();
            pass(Duration::from_secs(30)).await;
            let expected = if jump > 0 { 3 } else { 2 };
            assert_eq!(FIRED.get(), expected, "after a jump of {jump} ms between two starts");
            drop(next);
        }
    })
    .await;
}
