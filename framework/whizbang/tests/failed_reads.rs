//! Reads of the store that fail again and again show in health and metrics until they succeed, and lose nothing.

mod instrumented_store;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use instrumented_store::{InstrumentedStore, StoreProbe};
use whizbang::clock::Clock;
use whizbang::prelude::*;
use whizbang::store::Statement;
use whizbang::{NodeConfig, Retry, SendError, WorkerOptions};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Domain)]
#[domain(name = "forge", shards = 1)]
struct Forge;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Forge)]
struct Order {
    #[key]
    customer: String,
    tool: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Forge, reply = u64)]
struct Shape {
    #[key]
    tool: String,
}

/// A job.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Forge)]
struct Heat {
    #[key]
    tool: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Forge)]
struct Shaped {}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Forge, reply = u64)]
struct Count {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Forge, handles(Order))]
struct Customer {}

impl Handle<Order> for Customer {
    fn handle(&self, order: Order, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(Shape { tool: order.tool.clone() });
        effects.send(Heat { tool: order.tool });
        Ok(())
    }
}

/// While it is set, tools cannot be shaped. The tests of this file run in one process, so each uses one of two.
static ASLEEP: AtomicBool = AtomicBool::new(false);

#[derive(Aggregate, Default)]
#[aggregate(domain = Forge, handles(Shape), applies(Shaped))]
struct Tool {
    count: u64,
}

impl Handle<Shape> for Tool {
    fn handle(&self, shape: Shape, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        assert!(shape.tool != "asleep" || !ASLEEP.load(Ordering::Relaxed), "planned: the handler panics");
        effects.record(Shaped {});
        Ok(self.count + 1)
    }
}

impl Apply<Shaped> for Tool {
    fn apply(&mut self, _: &Shaped) {
        self.count += 1;
    }
}

#[derive(Default)]
struct Fire {
    is_cold: AtomicBool,
    heated: AtomicUsize,
}

#[derive(Worker)]
#[worker(domain = Forge, performs(Heat))]
struct Furnace(Arc<Fire>);

impl Perform<Heat> for Furnace {
    async fn perform(&self, _: Heat, _: Job) -> Result<(), WorkError> {
        if self.0.is_cold.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("planned: the fire is out").into());
        }
        self.0.heated.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Shaped), answers(Count), reset = "reset")]
struct Shapes {
    count: u64,
}

impl Project<Shaped> for Shapes {
    fn project(&mut self, _: &Shaped, _: &EventContext) {
        self.count += 1;
    }

    fn statements(&self, _: &Shaped, _: &EventContext) -> Vec<Statement> {
        vec![Statement::new("add")]
    }
}

impl Answer<Count> for Shapes {
    fn answer(&self, _: Count) -> u64 {
        self.count
    }
}

#[derive(Default)]
struct World {
    store: MemoryStore,
    probe: Arc<StoreProbe>,
    fire: Arc<Fire>,
}

impl World {
    fn builder(&self) -> whizbang::NodeBuilder {
        let retry = Retry { attempts: u32::MAX, first: SECOND, longest: 10 * SECOND };
        let config = NodeConfig { threads: 0, retry, ..NodeConfig::default() };
        let store = InstrumentedStore(self.store.clone(), Arc::clone(&self.probe));
        Node::builder("forge", store).threads(0).config(config).aggregate::<Customer>().aggregate::<Tool>()
    }

    async fn start(&self, options: WorkerOptions) -> Node {
        self.builder().worker_with(Furnace(Arc::clone(&self.fire)), options).start().await.unwrap()
    }

    fn heated(&self) -> usize {
        self.fire.heated.load(Ordering::Relaxed)
    }
}

async fn order(node: &Node, tool: &str) {
    node.client().send(Order { customer: "ada".to_owned(), tool: tool.to_owned() }).await.unwrap();
}

async fn shape(node: &Node, tool: &str) -> u64 {
    node.client().send(Shape { tool: tool.to_owned() }).await.unwrap()
}

fn names(node: &Node, text: &str) -> bool {
    node.health().reasons.iter().any(|reason| reason.contains(text))
}

/// Moves the paused clock until a condition holds, for ten minutes at most.
#[track_caller]
fn until(holds: impl AsyncFn() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        for _ in 0..60_000 {
            if holds().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{caller}: the condition did not hold in time");
    }
}

/// Waits until health lists `text`, heals the store, and waits until nothing is listed.
async fn until_listed_and_healed(node: &Node, probe: &StoreProbe, text: &str) {
    until(async || names(node, text)).await;
    assert_eq!(node.metrics().stuck_keys, 1, "{:?}", node.health());
    assert!(node.health().live && node.health().ready, "{:?}", node.health());
    probe.heal();
    until(async || node.metrics().stuck_keys == 0 && node.health().reasons.is_empty()).await;
}

async fn paused<F: Future<Output = ()>>(test: F) {
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn unreadable_message_shows_until_it_is_read() {
    paused(async {
        let world = World::default();
        ASLEEP.store(true, Ordering::Relaxed);
        let node = world.start(WorkerOptions::new()).await;
        order(&node, "asleep").await;
        until(async || node.metrics().deferred == 1).await;
        drop(node);
        world.probe.fail("dead_letters");
        let node = world.start(WorkerOptions::new()).await;
        ASLEEP.store(false, Ordering::Relaxed);
        assert_eq!(shape(&node, "other").await, 1, "other keys are served");
        let text = "failed to read the next message of key `asleep` of `tool` in forge/0: ";
        until_listed_and_healed(&node, &world.probe, text).await;
        until(async || node.metrics().deferred == 0).await;
        assert_eq!(shape(&node, "asleep").await, 2);
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn unreadable_records_of_jobs_show_until_they_are_read() {
    paused(async {
        let world = World::default();
        world.probe.fail("load furnace");
        let node = world.start(WorkerOptions::new()).await;
        let text = "failed to read the records of jobs of `furnace` in forge/0: ";
        // At the start, before any job arrives.
        until_listed_and_healed(&node, &world.probe, text).await;
        drop(node);
        let node = world.start(WorkerOptions::new()).await;
        order(&node, "a").await;
        until(async || world.heated() == 1).await;
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn unreadable_waiting_job_shows_until_it_is_read() {
    paused(async {
        for options in [WorkerOptions::new(), WorkerOptions::new().exclusive_by_key()] {
            let world = World::default();
            world.fire.is_cold.store(true, Ordering::Relaxed);
            let node = world.start(options.clone()).await;
            order(&node, "a").await;
            until(async || node.metrics().deferred == 1).await;
            drop(node);
            world.fire.is_cold.store(false, Ordering::Relaxed);
            world.probe.fail("dead_letters");
            let node = world.start(options).await;
            let text = "failed to read a waiting job of `furnace` in forge/0: ";
            until_listed_and_healed(&node, &world.probe, text).await;
            node.wait_idle().await;
            assert_eq!(world.heated(), 1);
            node.stop().await.unwrap();
        }
    })
    .await;
}

/// A store whose read lacks a record makes the next one fail, and the records are read again.
#[tokio::test(start_paused = true)]
async fn worker_that_lacks_a_record_reads_its_log_again() {
    paused(async {
        let world = World::default();
        for round in 1..=3 {
            let node = world.start(WorkerOptions::new()).await;
            order(&node, "a").await;
            tokio::time::timeout(60 * SECOND, node.wait_idle()).await.expect("the job is recorded");
            assert_eq!(world.heated(), round, "each job is done once");
            assert!(world.probe.has_hidden());
            node.stop().await.unwrap();
            world.probe.hide_last_turn("furnace", "shard-0");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn unreadable_outbox_shows_until_it_is_read() {
    paused(async {
        let world = World::default();
        let node = world.start(WorkerOptions::new()).await;
        world.probe.fail("outbox");
        order(&node, "a").await;
        until_listed_and_healed(&node, &world.probe, "failed to read the outbox of forge/0: ").await;
        node.wait_idle().await;
        assert_eq!((world.heated(), shape(&node, "a").await), (1, 2));
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn unreadable_events_show_until_they_are_read() {
    paused(async {
        let world = World::default();
        *world.probe.statements.lock() = Some(0);
        let node = world.builder().projection::<Shapes>().start().await.unwrap();
        world.probe.fail("events");
        shape(&node, "a").await;
        until_listed_and_healed(&node, &world.probe, "failed to read events of forge/0 for ").await;
        assert_eq!(node.client().query(Count {}).await.unwrap(), 1);
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn unreadable_view_shows_until_it_is_read() {
    paused(async {
        let world = World::default();
        *world.probe.statements.lock() = Some(0);
        let node = world.builder().projection::<Shapes>().start().await.unwrap();
        node.wait_idle().await;
        // A save that fails makes the projection read its view again.
        *world.probe.view_error.lock() = Some(whizbang::store::StoreError::Closed);
        world.probe.fail("view");
        shape(&node, "a").await;
        let text = "projection `shapes` waits for its view, and its queries wait: failed to read it: ";
        until(async || names(&node, text)).await;
        assert!(node.health().ready && node.metrics().retries > 0, "{:?}", node.health());
        *world.probe.view_error.lock() = None;
        world.probe.heal();
        until(async || node.health().reasons.is_empty()).await;
        assert_eq!(node.client().query(Count {}).await.unwrap(), 1);
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn node_that_cannot_claim_its_view_is_not_idle() {
    paused(async {
        let (clock, _hand) = Clock::ticking(whizbang::clock::Timestamp::from_millis(1_800_000_000_000));
        let world = World { store: MemoryStore::shared(&clock), ..World::default() };
        *world.probe.statements.lock() = Some(0);
        world.probe.fail("claim_view");
        let node = world.builder().clock(clock).projection::<Shapes>().start().await.unwrap();
        until(async || names(&node, "projection `shapes` waits for its view: failed to claim it: ")).await;
        shape(&node, "a").await;
        let idle = tokio::time::timeout(60 * SECOND, node.wait_idle()).await;
        assert!(idle.is_err(), "its table lacks the event");
        assert_eq!(*world.probe.statements.lock(), Some(0));
        world.probe.heal();
        node.wait_idle().await;
        assert!(*world.probe.statements.lock() > Some(0));
        until(async || node.health().reasons.is_empty()).await;
        node.stop().await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn many_unloadable_keys_are_counted_and_some_listed() {
    const KEYS: u64 = 120;
    paused(async {
        let world = World::default();
        world.probe.fail("load tool");
        let node = world.start(WorkerOptions::new()).await;
        for n in 0..KEYS {
            let refused = node.client().send(Shape { tool: format!("tool-{n}") }).no_retry().await;
            assert!(matches!(refused, Err(SendError::Refused(_))), "{refused:?}");
        }
        assert_eq!((node.metrics().unloadable_keys, node.metrics().dead_letters), (KEYS, 0));
        let health = node.health();
        let summary = format!("{KEYS} keys cannot be loaded, 100 of them are listed");
        assert!(health.ready && health.reasons.len() == 101 && health.reasons.contains(&summary), "{health:?}");
        world.probe.heal();
        for n in 0..KEYS {
            assert_eq!(shape(&node, &format!("tool-{n}")).await, 1);
        }
        assert_eq!((node.metrics().unloadable_keys, node.health().reasons), (0, Vec::new()));
        node.stop().await.unwrap();
    })
    .await;
}
