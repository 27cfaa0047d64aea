//! Slow jobs, and jobs that wait for them, delay no other job and no other key.

mod eventually;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use eventually::eventually;
use tokio::sync::Notify;
use whizbang::prelude::*;
use whizbang::{NodeConfig, SendError};

/// More messages than a source may have in flight.
const OTHERS: u64 = 3000;

/// Asserts that a stopped node stops within a fraction of its stop timeout, because nothing is left running.
async fn stop_promptly(node: Node) {
    tokio::time::timeout(Duration::from_secs(5), node.stop()).await.expect("the node stops promptly").unwrap();
}

#[derive(Domain)]
#[domain(name = "works", shards = 1)]
struct Works;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Works)]
struct Work {
    #[key]
    key: String,
    slow: bool,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Works, reply = u64)]
struct Count {
    #[key]
    key: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Works, handles(Count))]
struct Counter;

impl Handle<Count> for Counter {
    fn handle(&self, _count: Count, _effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        Ok(1)
    }
}

#[derive(Domain)]
#[domain(name = "planners", shards = 1)]
struct Planners;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Planners)]
struct Plan {
    #[key]
    planner: String,
    slow: bool,
    count: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Planners, handles(Plan))]
struct Planner;

impl Handle<Plan> for Planner {
    fn handle(&self, plan: Plan, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for n in 0..plan.count {
            effects.send(Work { key: format!("k{n}"), slow: plan.slow });
        }
        Ok(())
    }
}

#[derive(Default)]
struct Shop {
    begun: AtomicUsize,
    slow: AtomicUsize,
    quick: AtomicUsize,
    opens: Notify,
    is_open: std::sync::atomic::AtomicBool,
}

impl Shop {
    fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
        self.opens.notify_waiters();
    }
}

#[derive(Worker)]
#[worker(domain = Works, performs(Work))]
struct Smith(Arc<Shop>);

impl Perform<Work> for Smith {
    async fn perform(&self, work: Work, _job: Job) -> Result<(), WorkError> {
        if work.slow {
            self.0.begun.fetch_add(1, Ordering::Relaxed);
            let opens = self.0.opens.notified();
            if !self.0.is_open.load(Ordering::Relaxed) {
                opens.await;
            }
            self.0.slow.fetch_add(1, Ordering::Relaxed);
        } else {
            self.0.quick.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

async fn works(store: &MemoryStore, shop: &Arc<Shop>, config: NodeConfig) -> Node {
    Node::builder("works", store.clone())
        .threads(0)
        .aggregate::<Planner>()
        .aggregate::<Counter>()
        .worker(Smith(Arc::clone(shop)))
        .config(config)
        .start()
        .await
        .unwrap()
}

async fn plan(node: &Node, slow: bool, count: u64) {
    for _ in 0..count.div_ceil(500) {
        let plan = Plan { planner: "p".to_owned(), slow, count: count.min(500) };
        node.client().send(plan).await.unwrap();
    }
}

#[whizbang::test]
async fn slow_job_delays_no_other_job() {
    let (store, shop) = (MemoryStore::new(), Arc::<Shop>::default());
    let node = works(&store, &shop, NodeConfig::default()).await;
    plan(&node, true, 1).await;
    eventually(async || shop.begun.load(Ordering::Relaxed) == 1).await;
    plan(&node, false, OTHERS).await;
    eventually(async || shop.quick.load(Ordering::Relaxed) as u64 == OTHERS).await;
    assert_eq!(shop.slow.load(Ordering::Relaxed), 0);
    // Jobs in flight when the node ended run again, and no others.
    drop(node);
    let node = works(&store, &shop, NodeConfig::default()).await;
    eventually(async || shop.begun.load(Ordering::Relaxed) == 2).await;
    shop.open();
    node.wait_idle().await;
    assert_eq!((shop.slow.load(Ordering::Relaxed), shop.quick.load(Ordering::Relaxed) as u64), (1, OTHERS));
    assert!(node.dead_letters().await.unwrap().is_empty());
    drop(node);
    let node = works(&store, &shop, NodeConfig::default()).await;
    node.wait_idle().await;
    assert_eq!(shop.slow.load(Ordering::Relaxed), 1, "finished jobs do not run again");
    stop_promptly(node).await;
}

#[whizbang::test]
async fn waiting_jobs_delay_neither_their_source_nor_their_thread() {
    let (store, shop) = (MemoryStore::new(), Arc::<Shop>::default());
    let config = NodeConfig { threads: 0, jobs: 4, in_flight: 512, ..NodeConfig::default() };
    let node = works(&store, &shop, config.clone()).await;
    plan(&node, true, OTHERS).await;
    eventually(async || shop.begun.load(Ordering::Relaxed) == 4).await;
    let client = node.client();
    let waiting: Vec<_> = (0..600)
        .map(|n| {
            let work = client.send(Work { key: format!("w{n}"), slow: true }).no_retry();
            tokio::task::spawn_local(work)
        })
        .collect();
    tokio::task::yield_now().await;
    for n in 0..100 {
        assert_eq!(client.send(Count { key: format!("c{n}") }).await.unwrap(), 1);
    }
    shop.open();
    let mut done = 0;
    for work in waiting {
        match work.await.unwrap() {
            Ok(()) => done += 1,
            Err(error) => assert!(matches!(error, SendError::Busy { .. }), "{error}"),
        }
    }
    assert!(done > 0);
    node.wait_idle().await;
    assert_eq!(shop.slow.load(Ordering::Relaxed) as u64, OTHERS + done);
    stop_promptly(node).await;
}
