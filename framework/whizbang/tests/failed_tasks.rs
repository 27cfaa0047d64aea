//! A panic of the store or of the bridge in background work of a node for one key, job, view or source: it is reported,
//! and the work in flight resumes. The clock is paused.
#![cfg(feature = "testing")]

mod instrumented_store;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use instrumented_store::{InstrumentedStore, StoreProbe};
use parking_lot::Mutex;
use whizbang::SendError;
use whizbang::bridge::loopback::{LoopbackBridge, LoopbackHub};
use whizbang::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, Response};
use whizbang::message::Envelope;
use whizbang::prelude::*;
use whizbang::store::StoreError;

#[derive(Domain)]
#[domain(name = "mill", shards = 1)]
struct Mill;

#[derive(Domain)]
#[domain(name = "bakery", shards = 1)]
struct Bakery;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Mill, reply = u64)]
struct Grind {
    #[key]
    sack: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Mill)]
struct Ground {}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Mill, reply = u64)]
struct Sum {}

/// A job.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bakery)]
struct Bake {
    #[key]
    loaf: String,
}

#[derive(Aggregate, Default, Serialize, Deserialize)]
#[aggregate(domain = Mill, handles(Grind), applies(Ground))]
struct Sack {
    count: u64,
}

impl Handle<Grind> for Sack {
    fn handle(&self, grind: Grind, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Ground {});
        effects.send(Bake { loaf: grind.sack });
        Ok(self.count + 1)
    }
}

impl Apply<Ground> for Sack {
    fn apply(&mut self, _: &Ground) {
        self.count += 1;
    }
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Ground), answers(Sum))]
struct Sums {
    sum: u64,
}

impl Project<Ground> for Sums {
    fn project(&mut self, _: &Ground, _: &EventContext) {
        self.sum += 1;
    }
}

impl whizbang::Answer<Sum> for Sums {
    fn answer(&self, _: Sum) -> u64 {
        self.sum
    }
}

#[derive(Worker)]
#[worker(domain = Bakery, performs(Bake))]
struct Oven(Arc<AtomicUsize>);

impl Perform<Bake> for Oven {
    async fn perform(&self, _: Bake, _: Job) -> Result<(), WorkError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Advances the paused clock step by step until a condition holds, for a minute at most.
async fn moved_until(holds: impl AsyncFn() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(tokio::time::Instant::now() < limit, "the condition did not hold in time");
        tokio::time::advance(Duration::from_millis(1)).await;
        tokio::task::yield_now().await;
    }
}

fn grind(sack: &str) -> Grind {
    Grind { sack: sack.into() }
}

/// Returns whether the health of a node that is live and ready names a failed task.
fn names(node: &Node, task: &str) -> bool {
    let health = node.health();
    let said = |reason: &String| reason.contains(&format!("background task `{task}` failed: planned"));
    health.live && health.ready && health.reasons.iter().any(said)
}

/// Starts a node with an actor of every kind. Returns it with the number of jobs done.
async fn node(probe: &Arc<StoreProbe>) -> (Node, Arc<AtomicUsize>) {
    let done = Arc::<AtomicUsize>::default();
    let store = InstrumentedStore(MemoryStore::new(), Arc::clone(probe));
    let builder = Node::builder("mill", store).threads(0).aggregate::<Sack>().projection::<Sums>();
    (builder.worker(Oven(Arc::clone(&done))).start().await.unwrap(), done)
}

async fn paused<F: Future<Output = ()>>(test: F) {
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn failed_subscription_is_reported_and_restarted() {
    paused(async {
        let probe = Arc::<StoreProbe>::default();
        let (node, _) = node(&probe).await;
        probe.panic_in("events", 2);
        node.client().send(grind("a")).await.unwrap();
        moved_until(async || names(&node, "subscription to mill/0")).await;
        moved_until(async || node.client().query(Sum {}).await.unwrap() == 1).await;
        moved_until(async || !names(&node, "subscription to mill/0")).await;
        assert_eq!(node.metrics().failed_tasks, 2);
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn job_whose_commit_panics_runs_again() {
    paused(async {
        let probe = Arc::<StoreProbe>::default();
        let (node, done) = node(&probe).await;
        probe.panic_in("append oven", 2);
        node.client().send(grind("a")).await.unwrap();
        moved_until(async || names(&node, "jobs of oven")).await;
        moved_until(async || !names(&node, "jobs of oven")).await;
        node.wait_idle().await;
        assert_eq!((node.metrics().failed_tasks, done.load(Ordering::Relaxed)), (2, 3));
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn caller_of_a_panicking_commit_gets_a_reply() {
    paused(async {
        let probe = Arc::<StoreProbe>::default();
        let (node, done) = node(&probe).await;
        let bake = || Bake { loaf: "a".into() };
        // When it is answered, the worker has finished the reads of its start.
        node.client().send(bake()).idempotency_key("zero").await.unwrap();
        // Before the job begins: nothing was done.
        probe.panic_in("load oven", 1);
        let failed = node.client().send(bake()).idempotency_key("one").no_retry().await;
        assert!(matches!(failed, Err(SendError::Stopped)), "{failed:?}");
        assert!(names(&node, "jobs of oven"), "{:?}", node.health());
        node.client().send(bake()).idempotency_key("one").await.unwrap();
        assert!(!names(&node, "jobs of oven"), "{:?}", node.health());
        // After it: the outcome is unknown.
        probe.panic_in("append oven", 1);
        let failed = node.client().send(bake()).idempotency_key("two").no_retry().await;
        assert!(matches!(failed, Err(SendError::Unknown { .. })), "{failed:?}");
        assert_eq!((node.metrics().failed_tasks, done.load(Ordering::Relaxed)), (2, 3));
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn panic_while_a_key_loads_fails_one_command() {
    paused(async {
        let probe = Arc::<StoreProbe>::default();
        let (node, _) = node(&probe).await;
        // The command loads its key once more.
        probe.panic_in("load sack", 2);
        let refused = node.client().send(grind("a")).await;
        assert!(matches!(refused, Err(SendError::Refused(_))), "{refused:?}");
        assert!(names(&node, "load a key"), "{:?}", node.health());
        assert_eq!(node.client().send(grind("a")).await.unwrap(), 1);
        assert!(!names(&node, "load a key"), "{:?}", node.health());
        assert_eq!(node.metrics().failed_tasks, 2);
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn caller_of_a_panicking_append_gets_unknown() {
    paused(async {
        let probe = Arc::<StoreProbe>::default();
        let (node, _) = node(&probe).await;
        let send = |id: u8| node.client().send(grind("a")).idempotency_key(&id.to_string()).no_retry();
        // The turn runs inline at the second command, and from the mailbox at the others.
        for round in 1..=3_u8 {
            send(round).await.unwrap();
            probe.panic_in("append sack", 1);
            let failed = if round == 2 {
                node.client().send(grind("a")).no_retry().await.map(drop)
            } else {
                send(100 + round).await.map(drop)
            };
            assert!(matches!(failed, Err(SendError::Unknown { .. })), "{failed:?}");
            // The first time the shards are reopened at once.
            assert!(round == 1 || names(&node, "append a turn"), "{:?}", node.health());
            moved_until(async || !names(&node, "append a turn")).await;
            assert_eq!(node.metrics().failed_tasks, u64::from(round));
        }
        assert_eq!(send(4).await.unwrap(), 4, "nothing of the failed turns is stored");
        node.wait_idle().await;
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn reply_is_sent_although_the_snapshot_panics() {
    paused(async {
        let probe = Arc::<StoreProbe>::default();
        let (node, _) = node(&probe).await;
        probe.panic_in("save_snapshot", 1);
        let mut sent = 0;
        while !probe.has_panicked() {
            sent += 1;
            assert!(sent < 10_000, "no snapshot was saved");
            assert_eq!(node.client().send(grind("a")).await.unwrap(), sent);
        }
        assert_eq!(node.metrics().snapshots_skipped, 1);
        assert_eq!(node.client().send(grind("a")).await.unwrap(), sent + 1);
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn panic_while_a_view_is_saved_is_retried() {
    paused(async {
        let probe = Arc::<StoreProbe>::default();
        let (node, _) = node(&probe).await;
        probe.panic_in("save_view", 1);
        node.client().send(grind("a")).await.unwrap();
        moved_until(async || names(&node, "save view sums")).await;
        assert_eq!(node.client().query(Sum {}).await.unwrap(), 1);
        moved_until(async || !names(&node, "save view sums")).await;
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn refused_view_shows_in_health_until_it_is_saved() {
    paused(async {
        let probe = Arc::<StoreProbe>::default();
        let (node, _) = node(&probe).await;
        *probe.view_error.lock() = Some(StoreError::io("saving", std::io::Error::other("planned")));
        node.client().send(grind("a")).await.unwrap();
        let is_named = || node.health().reasons.iter().any(|reason| reason.contains("failed to save view `sums`: "));
        moved_until(async || is_named()).await;
        assert!(node.health().ready && node.health().live, "{:?}", node.health());
        assert_eq!(node.client().query(Sum {}).await.unwrap(), 1);
        *probe.view_error.lock() = None;
        moved_until(async || !is_named()).await;
        node.stop().await.unwrap();
    })
    .await;
}

/// A bridge that panics once when it sends a confirmation.
struct PanickingBridge {
    bridge: LoopbackBridge,
    panics: Mutex<bool>,
}

impl Bridge for PanickingBridge {
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
        self.bridge.attach(card, inbound)
    }
    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.bridge.send(envelope)
    }
    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.bridge.publish(event)
    }
    fn request(&self, to: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
        self.bridge.request(to, deadline)
    }
    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
        let panics = matches!(notification, Notification::Committed { .. }) && std::mem::take(&mut *self.panics.lock());
        assert!(!panics, "planned: the bridge panics");
        self.bridge.notify(notification)
    }
    fn durability(&self) -> String {
        self.bridge.durability()
    }
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
        self.bridge.detach()
    }
    fn abandon(&self) {
        self.bridge.abandon();
    }
}

#[tokio::test(start_paused = true)]
async fn panicking_confirmation_is_sent_again() {
    paused(async {
        let hub = LoopbackHub::new();
        let done = Arc::<AtomicUsize>::default();
        let bridge = PanickingBridge { bridge: hub.bridge(), panics: Mutex::new(true) };
        let bakery =
            Node::builder("bakery", MemoryStore::new()).threads(0).worker(Oven(Arc::clone(&done))).bridge(bridge);
        let bakery = bakery.start().await.unwrap();
        let mill = Node::builder("mill", MemoryStore::new()).threads(0).aggregate::<Sack>().bridge(hub.bridge());
        let mill = mill.start().await.unwrap();
        mill.client().send(grind("a")).await.unwrap();
        moved_until(async || bakery.metrics().failed_tasks == 1).await;
        // The sender is idle once it knows that its command is committed. It does not send the command again for that.
        mill.wait_idle().await;
        assert_eq!((done.load(Ordering::Relaxed), bakery.metrics().duplicates), (1, 0));
        mill.stop().await.unwrap();
        bakery.stop().await.unwrap();
    })
    .await;
}
