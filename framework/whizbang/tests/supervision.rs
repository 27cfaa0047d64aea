//! A panic in a background task of a node: it is reported, and tasks that can be restarted resume. The clock is paused.
#![cfg(feature = "testing")]

mod instrumented_store;

use std::sync::Arc;
use std::time::Duration;

use instrumented_store::{InstrumentedStore, StoreProbe};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::{NodeConfig, SendError};

#[derive(Domain)]
#[domain(name = "mill")]
struct Mill;

/// Starts a flow that needs the relay and a timer.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Mill)]
struct Grind {
    #[key]
    sack: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Mill, reply = u64)]
struct Count {
    #[key]
    bin: String,
    more: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Mill)]
struct Ground {}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Mill)]
struct Counted {
    more: u64,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Mill)]
struct Due {}

#[derive(Saga, Default)]
#[saga(domain = Mill, handles(Grind), applies(Ground), timers(Due))]
struct Stone {}

impl Handle<Grind> for Stone {
    fn handle(&self, _grind: Grind, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Ground {});
        effects.send(Count { bin: "sent".into(), more: 1 });
        effects.set_timer(&Due {}, Duration::from_millis(10));
        Ok(())
    }
}

impl OnTimer<Due> for Stone {
    fn on_timer(&self, _due: Due, effects: &mut Effects<Self>) {
        effects.send(Count { bin: "woken".into(), more: 1 });
        effects.complete();
    }
}

impl Apply<Ground> for Stone {
    fn apply(&mut self, _ground: &Ground) {}
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Mill, handles(Count), applies(Counted))]
struct Bin {
    count: u64,
}

impl Handle<Count> for Bin {
    fn handle(&self, count: Count, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if count.more > 0 {
            effects.record(Counted { more: count.more });
        }
        Ok(self.count + count.more)
    }
}

impl Apply<Counted> for Bin {
    fn apply(&mut self, counted: &Counted) {
        self.count += counted.more;
    }
}

async fn count(client: &Client, bin: &str) -> u64 {
    client.send(Count { bin: bin.into(), more: 0 }).await.unwrap()
}

/// Advances the paused clock step by step until a condition holds, for a minute at most.
async fn moved_until(step: Duration, holds: impl AsyncFn() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(tokio::time::Instant::now() < limit, "the condition did not hold in time");
        tokio::time::advance(step).await;
    }
}

async fn mill(hub: &LoopbackHub, probe: &Arc<StoreProbe>) -> Node {
    let store = InstrumentedStore(MemoryStore::new(), Arc::clone(probe));
    let config = NodeConfig { threads: 0, passivate_after: Duration::from_secs(1), ..NodeConfig::default() };
    let builder = Node::builder("mill", store).threads(0).config(config).saga::<Stone>().aggregate::<Bin>();
    builder.bridge(hub.bridge()).start().await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn failed_task_is_reported_and_restarted() {
    let test = async {
        // Each background task, and the store method that only this task calls.
        for (task, method) in
            [("relay", "outbox"), ("publish", "events"), ("fire timers", "timers_of"), ("passivate", "sent")]
        {
            let (hub, probe) = (LoopbackHub::new(), Arc::<StoreProbe>::default());
            let node = mill(&hub, &probe).await;
            let client = node.client();
            client.send(Grind { sack: "before".into() }).await.unwrap();
            node.wait_idle().await;
            assert!(node.health().ready, "{:?}", node.health());
            // The second panic occurs right after the first restart.
            probe.panic_in(method, 2);
            for nth in 0..10 {
                client.send(Grind { sack: format!("{task} {nth}") }).await.unwrap();
            }
            let said = |reason: &String| reason.contains(&format!("task `{task}` of thread 0"));
            moved_until(Duration::from_millis(1), async || {
                let health = node.health();
                health.live && !health.ready && health.reasons.iter().any(said)
            })
            .await;
            moved_until(Duration::from_millis(10), async || {
                probe.has_panicked() && count(&client, "sent").await == 11 && count(&client, "woken").await == 11
            })
            .await;
            moved_until(Duration::from_millis(100), async || node.health().ready).await;
            assert_eq!(node.metrics().failed_tasks, 2, "{task}");
            node.wait_idle().await;
            node.stop().await.unwrap();
        }
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn failed_completion_ends_the_node_and_fails_callers() {
    let test = async {
        let (store, faults) = MemoryStore::faulty();
        let probe = Arc::<StoreProbe>::default();
        let store = InstrumentedStore(store, Arc::clone(&probe));
        let node = Node::builder("mill", store).threads(0).aggregate::<Bin>().start().await.unwrap();
        let client = node.client();
        client.send(Count { bin: "a".into(), more: 1 }).await.unwrap();
        probe.panic_in("open", 1);
        faults.fail(0, StoreError::Closed);
        moved_until(Duration::from_millis(10), async || !node.health().live).await;
        let health = node.health();
        assert!(
            health.reasons.iter().any(|reason| reason.contains("task `complete commits` of thread 0")),
            "{health:?}"
        );
        assert_eq!(node.metrics().failed_tasks, 1);
        let refused = client.send(Count { bin: "a".into(), more: 1 }).await;
        assert!(matches!(refused, Err(SendError::Stopped)), "{refused:?}");
    };
    tokio::task::LocalSet::new().run_until(test).await;
}
