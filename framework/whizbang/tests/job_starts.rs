//! Jobs after a start of the node: the order of a key, and jobs that may have ended the process before.

mod eventually;
mod instrumented_store;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use eventually::eventually;
use instrumented_store::{InstrumentedStore, StoreProbe};
use parking_lot::Mutex;
use whizbang::clock::{Clock, Timestamp};
use whizbang::prelude::*;
use whizbang::{Retry, WorkerOptions};

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Domain)]
#[domain(name = "yards", shards = 1)]
struct Yards;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Yards)]
struct Load {
    #[key]
    truck: String,
    number: u64,
}

/// Sends numbered loads for one truck.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Yards)]
struct Plan {
    #[key]
    desk: String,
    count: u64,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Yards)]
struct Park {
    #[key]
    desk: String,
    number: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Yards)]
struct Parked {
    number: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Yards, handles(Plan, Park), records(Parked))]
struct Desk;

impl Handle<Plan> for Desk {
    fn handle(&self, plan: Plan, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for number in 0..plan.count {
            effects.send(Load { truck: "t".to_owned(), number });
        }
        Ok(())
    }
}

impl Handle<Park> for Desk {
    fn handle(&self, park: Park, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Parked { number: park.number });
        Ok(())
    }
}

/// The jobs that have begun and that are done, and the behavior of the next ones.
#[derive(Default)]
struct Yard {
    begun: Mutex<Vec<u64>>,
    done: Mutex<Vec<u64>>,
    holds: AtomicBool,
    /// The first one fails.
    fails: AtomicBool,
}

impl Yard {
    async fn call(&self, number: u64) -> Result<(), WorkError> {
        self.begun.lock().push(number);
        if number == 1 && self.fails.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("jammed").into());
        }
        if self.holds.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.done.lock().push(number);
        Ok(())
    }

    /// Returns the jobs that have begun since the last call.
    fn begun(&self) -> Vec<u64> {
        let mut begun = std::mem::take(&mut *self.begun.lock());
        begun.sort_unstable();
        begun
    }
}

#[derive(Worker)]
#[worker(domain = Yards, performs(Load), on(Parked))]
struct Loader(Arc<Yard>);

impl Perform<Load> for Loader {
    async fn perform(&self, load: Load, _job: Job) -> Result<(), WorkError> {
        self.0.call(load.number).await
    }
}

impl OnEvent<Parked> for Loader {
    async fn on_event(&self, parked: Parked, _job: Job) -> Result<(), WorkError> {
        self.0.call(parked.number).await
    }
}

#[whizbang::test]
async fn failed_read_of_a_log_keeps_the_order_of_a_key() {
    let (yard, probe) = (Arc::<Yard>::default(), Arc::<StoreProbe>::default());
    // That of the start, and that of the first message.
    probe.panic_in("load loader", 2);
    let store = InstrumentedStore(MemoryStore::new(), Arc::clone(&probe));
    let node = Node::builder("yards", store)
        .threads(0)
        .aggregate::<Desk>()
        .worker_with(Loader(Arc::clone(&yard)), WorkerOptions::new().exclusive_by_key())
        .start()
        .await
        .unwrap();
    node.client().send(Plan { desk: "d".to_owned(), count: 5 }).await.unwrap();
    eventually(async || yard.done.lock().len() == 5).await;
    assert!(probe.has_panicked());
    assert_eq!(*yard.done.lock(), [0, 1, 2, 3, 4]);
    node.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn suspects_of_a_crash_do_not_block_each_other() {
    let (yard, probe, store) = (Arc::<Yard>::default(), Arc::<StoreProbe>::default(), MemoryStore::new());
    let (clock, hand) = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    let start = async |jobs| {
        let store = InstrumentedStore(store.clone(), Arc::clone(&probe));
        let node = Node::builder("yards", store).threads(0).aggregate::<Desk>().clock(clock.clone());
        let retry = Retry { attempts: 9, first: HOUR, longest: HOUR };
        let node = node.worker_with(Loader(Arc::clone(&yard)), WorkerOptions::new().retry(retry).jobs(jobs));
        node.start().await.unwrap()
    };
    let test = async {
        yard.holds.store(true, Ordering::Relaxed);
        let node = start(2).await;
        for number in [1, 2] {
            node.client().send(Park { desk: "d".to_owned(), number }).await.unwrap();
        }
        eventually(async || yard.begun.lock().len() == 2).await;
        drop(node);
        assert_eq!(yard.begun(), [1, 2]);
        // The attempts of both are recorded. The first one fails and is deferred, the other one ends with the process.
        hand.advance(Duration::from_secs(1));
        yard.fails.store(true, Ordering::Relaxed);
        let node = start(2).await;
        eventually(async || yard.begun.lock().len() == 2 && node.metrics().deferred == 1).await;
        drop(node);
        assert_eq!(yard.begun(), [1, 2]);
        // The deferred job has the only slot and is read while the other one arrives.
        hand.advance(Duration::from_secs(1));
        yard.fails.store(false, Ordering::Relaxed);
        yard.holds.store(false, Ordering::Relaxed);
        probe.letters.next.store(true, Ordering::Relaxed);
        let node = start(1).await;
        probe.letters.reads.notified().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(yard.begun(), [0; 0]);
        probe.letters.go.notify_one();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(yard.begun(), [1, 2]);
        assert_eq!(yard.done.lock().len(), 2);
        node.stop().await.unwrap();
    };
    tokio::task::LocalSet::new().run_until(test).await;
}
