//! A key that the store refuses again and again shows in health, counters and nowhere else; the others are served.

mod eventually;
mod instrumented_store;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use eventually::eventually;
use instrumented_store::{InstrumentedStore, StoreProbe};
use whizbang::message::{Name, ShardId};
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::{NodeConfig, Retry, SendError};

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

#[derive(Aggregate, Default)]
#[aggregate(domain = Forge, handles(Shape), applies(Shaped))]
struct Tool {
    count: u64,
}

impl Handle<Shape> for Tool {
    fn handle(&self, shape: Shape, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        assert!(shape.tool != "broken", "planned: the handler panics");
        effects.record(Shaped {});
        Ok(self.count + 1)
    }
}

impl Apply<Shaped> for Tool {
    fn apply(&mut self, _: &Shaped) {
        self.count += 1;
    }
}

#[derive(Worker)]
#[worker(domain = Forge, performs(Heat))]
struct Furnace(Arc<AtomicUsize>);

impl Perform<Heat> for Furnace {
    async fn perform(&self, _: Heat, _: Job) -> Result<(), WorkError> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

struct World {
    node: Node,
    probe: Arc<StoreProbe>,
    heated: Arc<AtomicUsize>,
}

impl World {
    async fn start(attempts: u32) -> Self {
        Self::start_with(attempts, Duration::from_millis(20), 1).await
    }

    async fn start_with(attempts: u32, longest: Duration, live_actors: usize) -> Self {
        let (probe, heated) = (Arc::<StoreProbe>::default(), Arc::<AtomicUsize>::default());
        let retry = Retry { attempts, first: Duration::from_millis(1), longest };
        let config = NodeConfig { threads: 0, live_actors, retry, ..NodeConfig::default() };
        let store = InstrumentedStore(MemoryStore::new(), Arc::clone(&probe));
        let builder = Node::builder("forge", store).threads(0).config(config);
        let builder = builder.aggregate::<Customer>().aggregate::<Tool>().worker(Furnace(Arc::clone(&heated)));
        Self { node: builder.start().await.unwrap(), probe, heated }
    }

    async fn order(&self, tool: &str) {
        self.order_of("ada", tool).await.unwrap();
    }

    async fn order_of(&self, customer: &str, tool: &str) -> Result<(), SendError> {
        self.node.client().send(Order { customer: customer.to_owned(), tool: tool.to_owned() }).no_retry().await
    }

    async fn shape(&self, tool: &str) -> Result<u64, SendError> {
        self.node.client().send(Shape { tool: tool.to_owned() }).no_retry().await
    }

    /// Waits until health names one stuck key with this text. The shard commits the turns of other keys until then.
    async fn until_named(&self, text: &str) {
        eventually(async || {
            self.order("other").await;
            self.reasons().iter().any(|reason| reason.contains(text))
        })
        .await;
        assert_eq!(self.node.metrics().stuck_keys, 1, "{:?}", self.reasons());
    }

    fn reasons(&self) -> Vec<String> {
        self.node.health().reasons
    }

    async fn until_served(&self) {
        eventually(async || self.reasons().is_empty()).await;
        assert_eq!(self.node.metrics().stuck_keys, 0);
    }
}

fn out_of_turn() -> StoreError {
    StoreError::OutOfTurn { shard: ShardId::new(Name::new("forge").unwrap(), 0), expected: 7 }
}

fn broken() -> StoreError {
    StoreError::io("writing one key", std::io::Error::other("planned"))
}

#[whizbang::test]
async fn refused_key_shows_in_health_until_it_is_served() {
    for error in [out_of_turn(), broken()] {
        let world = World::start(3).await;
        let other_errors = world.reasons();
        assert!(other_errors.is_empty(), "{other_errors:?}");
        world.probe.refuse("tool", Some("bad`key"), error);
        world.order("bad`key").await;
        world.until_named("the store refuses turns of key `bad`key` of `tool` in forge/0: ").await;
        assert!(world.node.health().live);
        assert!(world.shape("other").await.is_ok(), "other keys are served");
        world.probe.accept();
        world.until_served().await;
        assert_eq!(world.shape("bad`key").await.unwrap(), 2, "the command was handled once");
        world.node.stop().await.unwrap();
    }
}

#[whizbang::test]
async fn rarely_used_key_is_listed_until_it_is_served() {
    let world = World::start(3).await;
    world.probe.refuse("tool", Some("bad"), out_of_turn());
    for refusals in 1..=4 {
        assert!(matches!(world.shape("bad").await, Err(SendError::Refused(_))));
        assert_eq!(world.node.metrics().stuck_keys, u64::from(refusals >= 3), "one refusal may end by itself");
        // Another key takes its place among the live actors.
        let passivations = world.node.metrics().passivations;
        world.shape("other").await.unwrap();
        assert!(world.node.metrics().passivations > passivations);
        assert_eq!(world.node.metrics().stuck_keys, u64::from(refusals >= 3));
    }
    let health = world.node.health();
    assert!(health.ready && health.reasons.iter().any(|reason| reason.contains("`bad`")), "{health:?}");
    world.probe.accept();
    assert_eq!(world.shape("bad").await.unwrap(), 1);
    world.until_served().await;
    world.node.stop().await.unwrap();
}

/// The sweep passivates keys as well.
#[tokio::test(start_paused = true)]
async fn failures_of_an_idle_key_are_not_forgotten() {
    let test = async {
        let world = World::start_with(3, Duration::from_millis(20), 100).await;
        world.probe.refuse("tool", Some("bad"), out_of_turn());
        for _ in 0..3 {
            assert!(world.shape("bad").await.is_err());
            let passivations = world.node.metrics().passivations;
            tokio::time::sleep(Duration::from_secs(3600)).await;
            assert!(world.node.metrics().passivations > passivations);
        }
        assert_eq!(world.node.metrics().stuck_keys, 1);
        world.node.stop().await.unwrap();
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[whizbang::test]
async fn many_stuck_keys_are_counted_and_some_listed() {
    const KEYS: usize = 120;
    let world = World::start_with(3, Duration::from_millis(20), 2 * KEYS).await;
    world.probe.refuse("tool", None, out_of_turn());
    for key in (0..3 * KEYS).map(|at| at % KEYS) {
        assert!(world.shape(&format!("key-{key}")).await.is_err());
    }
    assert_eq!(world.node.metrics().stuck_keys, KEYS as u64);
    let health = world.node.health();
    let summary = format!("{KEYS} keys fail repeatedly, 100 of them are listed");
    assert!(health.ready && health.reasons.len() == 101 && health.reasons.contains(&summary), "{health:?}");
    world.probe.accept();
    for key in 0..KEYS {
        assert_eq!(world.shape(&format!("key-{key}")).await.unwrap(), 1);
    }
    world.until_served().await;
    world.node.stop().await.unwrap();
}

#[whizbang::test]
async fn store_that_accepts_nothing_is_reported_once() {
    let world = World::start(3).await;
    world.probe.refuse("tool", None, StoreError::Full { at: "memory".to_owned() });
    for tool in ["a", "a", "a", "a", "b"] {
        assert!(matches!(world.shape(tool).await, Err(SendError::Refused(_))));
    }
    let health = world.node.health();
    assert!(!health.ready && health.reasons.len() == 1, "{health:?}");
    assert_eq!(world.node.metrics().stuck_keys, 0);
    world.probe.accept();
    assert_eq!(world.shape("a").await.unwrap(), 1);
    world.until_served().await;
    world.node.stop().await.unwrap();
}

/// A node that is not ready gets no commands, so no commit would ever end the report.
#[tokio::test(start_paused = true)]
async fn idle_node_is_ready_again_after_a_refused_turn() {
    let test = async {
        let world = World::start(3).await;
        world.probe.refuse("tool", None, StoreError::Full { at: "memory".to_owned() });
        for _ in 0..10 {
            assert!(world.shape("a").await.is_err());
            tokio::time::sleep(Duration::from_secs(7)).await;
            assert!(!world.node.health().ready, "the store still refuses turns");
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(world.node.health().ready, "{:?}", world.node.health());
        assert!(world.shape("a").await.is_err());
        assert!(!world.node.health().ready);
        world.probe.accept();
        assert_eq!(world.shape("a").await.unwrap(), 1);
        world.until_served().await;
        world.node.stop().await.unwrap();
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[whizbang::test]
async fn refused_record_of_job_shows_in_health_until_it_is_kept() {
    let world = World::start(3).await;
    world.probe.refuse("furnace", None, broken());
    world.order("a").await;
    eventually(async || {
        let _ = world.shape("other").await;
        world.node.metrics().stuck_keys == 1
    })
    .await;
    let text = "the store refuses the records of jobs of `furnace` in forge/0: ";
    assert!(world.reasons().iter().any(|reason| reason.contains(text)), "{:?}", world.reasons());
    world.probe.accept();
    world.until_served().await;
    world.node.wait_idle().await;
    assert_eq!(world.heated.load(Ordering::Relaxed), 1, "the job was done once, and only its record was repeated");
    world.node.stop().await.unwrap();
}

#[whizbang::test]
async fn refused_backlog_shows_in_health_until_it_is_written() {
    // The back-off of a late attempt is longer than the waits of the message behind it.
    let world = World::start_with(u32::MAX, Duration::from_secs(2), 1).await;
    world.probe.refuse("whizbang-deferred", None, out_of_turn());
    // The handler panics, so the second message of the key must wait in the log.
    world.order("broken").await;
    world.order("broken").await;
    let text = "the store refuses deferred messages of key `broken` of `tool` in forge/0: ";
    eventually(async || world.reasons().iter().any(|reason| reason.contains(text))).await;
    assert_eq!(world.node.metrics().stuck_keys, 1);
    world.probe.accept();
    world.until_served().await;
    world.node.stop().await.unwrap();
}

/// A store whose read lacks a turn makes the next append fail, and the state is read again.
#[whizbang::test]
async fn actor_that_lacks_a_turn_reads_its_log_again() {
    let world = World::start(3).await;
    for customer in ["ada", "ada", "bob"] {
        world.order_of(customer, "a").await.unwrap();
    }
    // It was passivated for the other customer. Its turns record no event.
    world.probe.hide_last_turn("customer", "ada");
    let refused = world.order_of("ada", "a").await;
    assert!(matches!(refused, Err(SendError::Refused(StoreError::OutOfTurn { .. }))), "{refused:?}");
    assert!(world.probe.has_hidden());
    world.order_of("ada", "a").await.unwrap();
    world.node.stop().await.unwrap();
}
