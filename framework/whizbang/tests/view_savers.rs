//! Nodes that share a store: one saves a view, the others project the same events without saving it.

mod instrumented_store;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use instrumented_store::{InstrumentedStore, StoreProbe};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::clock::{Clock, Timestamp};
use whizbang::prelude::*;
use whizbang::store::Statement;
use whizbang::{NodeConfig, Retry};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Domain)]
#[domain(name = "mint", shards = 1)]
struct Mint;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Mint)]
struct Strike {
    #[key]
    die: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Mint)]
struct Struck {}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Mint, reply = u64)]
struct Count {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Mint, handles(Strike), applies(Struck))]
struct Die {}

impl Handle<Strike> for Die {
    fn handle(&self, _: Strike, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Struck {});
        Ok(())
    }
}

impl Apply<Struck> for Die {
    fn apply(&mut self, _: &Struck) {}
}

/// The number of times that the next event of the bad die fails.
static PANICS: AtomicU32 = AtomicU32::new(0);

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Struck), answers(Count), reset = "reset")]
struct Coins {
    count: u64,
}

impl Project<Struck> for Coins {
    fn project(&mut self, _: &Struck, context: &EventContext) {
        let one_less = || PANICS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert!(context.key != "bad" || one_less().is_err(), "planned: a panic");
        self.count += 1;
    }

    fn statements(&self, _: &Struck, _: &EventContext) -> Vec<Statement> {
        vec![Statement::new("add")]
    }
}

impl Answer<Count> for Coins {
    fn answer(&self, _: Count) -> u64 {
        self.count
    }
}

/// Starts a node whose first save never ends, and returns the probe of its store.
async fn start(store: &MemoryStore, clock: &Clock, hub: &LoopbackHub) -> (Node, Arc<StoreProbe>) {
    let probe = Arc::<StoreProbe>::default();
    *probe.statements.lock() = Some(0);
    probe.saves.next.store(true, Ordering::Relaxed);
    let retry = Retry { attempts: 3, first: SECOND, longest: SECOND };
    let config = NodeConfig { threads: 0, lease: 2 * SECOND, retry, ..NodeConfig::default() };
    let builder = Node::builder("mint", InstrumentedStore(store.clone(), Arc::clone(&probe))).threads(0).config(config);
    let builder = builder.clock(clock.clone()).bridge(hub.bridge()).aggregate::<Die>().projection::<Coins>();
    (builder.start().await.unwrap(), probe)
}

/// An event that has failed twice on a node that does not save the view, and then succeeded, has three attempts again when that
/// node takes the view over.
#[tokio::test(start_paused = true)]
async fn attempts_begin_anew_for_the_next_saver() {
    let test = async {
        let (clock, _jumps) = Clock::ticking(Timestamp::from_millis(1_800_000_000_000));
        let (store, hub) = (MemoryStore::shared(&clock), LoopbackHub::new());
        let (first, of_first) = start(&store, &clock, &hub).await;
        let strike = async |node: &Node, die: &str| node.client().send(Strike { die: die.to_owned() }).await.unwrap();
        strike(&first, "good").await;
        of_first.saves.reads.notified().await;
        let (second, of_second) = start(&store, &clock, &hub).await;
        tokio::time::sleep(10 * SECOND).await;
        // The ids of the nodes decide which one saves now. The save of the other one is rejected.
        let (saver, other, probe) = if of_second.saves.next.swap(false, Ordering::Relaxed) {
            (first, second, of_second)
        } else {
            of_first.saves.go.notify_one();
            (second, first, of_first)
        };
        PANICS.store(2, Ordering::Relaxed);
        strike(&saver, "bad").await;
        let counted = async || other.client().query(Count {}).await.unwrap_or(0) == 2;
        while !counted().await {
            tokio::time::sleep(SECOND).await;
        }
        assert_eq!((PANICS.load(Ordering::Relaxed), *probe.statements.lock()), (0, Some(0)));
        PANICS.store(1, Ordering::Relaxed);
        drop(saver);
        while *probe.statements.lock() < Some(3) {
            let halted = other.health().reasons.into_iter().find(|reason| reason.contains("halted"));
            assert_eq!(halted, None, "it failed once");
            tokio::time::sleep(SECOND).await;
        }
        assert!(counted().await);
        other.stop().await.unwrap();
    };
    tokio::time::timeout(3600 * SECOND, tokio::task::LocalSet::new().run_until(test)).await.expect("the view is saved");
}
