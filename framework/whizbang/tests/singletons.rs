//! Singletons: a task of a service runs on one node at a time, and moves when its node stops or fails.
#![cfg(feature = "testing")]

mod bank;
mod eventually;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bank::*;
use eventually::eventually;
use parking_lot::Mutex;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::clock::Clock;
use whizbang::node::Singleton;
use whizbang::prelude::*;
use whizbang::{NodeConfig, StartError};

const LEASE: Duration = Duration::from_secs(2);

/// The runs of a singleton on all nodes.
#[derive(Default)]
struct Runs {
    state: Mutex<RunState>,
    steps: AtomicUsize,
}

#[derive(Default)]
struct RunState {
    running: BTreeSet<&'static str>,
    epochs: Vec<(&'static str, u64)>,
}

/// One run. It ends when the future of the singleton is dropped.
struct Running(Arc<Runs>, &'static str);

impl Running {
    fn begin(runs: &Arc<Runs>, node: &'static str, epoch: u64) -> Self {
        let mut state = runs.state.lock();
        assert!(state.running.is_empty(), "{node} begins while {:?} runs", state.running);
        assert!(state.epochs.last().is_none_or(|(_, last)| *last <= epoch), "{epoch} follows {:?}", state.epochs);
        state.running.insert(node);
        state.epochs.push((node, epoch));
        drop(state);
        Self(Arc::clone(runs), node)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.state.lock().running.remove(self.1);
    }
}

impl Runs {
    fn host(&self) -> Option<&'static str> {
        self.state.lock().running.first().copied()
    }

    fn count(&self) -> usize {
        self.state.lock().epochs.len()
    }

    /// A singleton that counts until it is cancelled.
    fn task(
        self: &Arc<Self>,
        node: &'static str,
    ) -> impl Fn(Singleton) -> std::pin::Pin<Box<dyn Future<Output = ()>>> + use<> {
        let runs = Arc::clone(self);
        move |singleton| {
            let runs = Arc::clone(&runs);
            Box::pin(async move {
                let _running = Running::begin(&runs, node, singleton.epoch());
                loop {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    runs.steps.fetch_add(1, Ordering::Relaxed);
                }
            })
        }
    }
}

async fn node(store: &MemoryStore, hub: &LoopbackHub, runs: &Arc<Runs>, name: &'static str) -> Node {
    let config = NodeConfig { lease: LEASE, ..NodeConfig::default() };
    let builder = Node::builder("accounts", store.clone()).config(config).label(name).aggregate::<Account>();
    builder.singleton("beat", runs.task(name)).bridge(hub.bridge()).start().await.unwrap()
}

async fn runs_on(runs: &Arc<Runs>, node: &'static str) {
    eventually(async || runs.host() == Some(node)).await;
    let before = runs.steps.load(Ordering::Relaxed);
    eventually(async || runs.steps.load(Ordering::Relaxed) > before).await;
}

#[whizbang::test]
async fn singleton_runs_on_one_node_and_moves_when_it_stops() {
    let (store, hub, runs) = (MemoryStore::shared(&Clock::system()), LoopbackHub::new(), Arc::<Runs>::default());
    let one = node(&store, &hub, &runs, "one").await;
    runs_on(&runs, "one").await;
    assert_eq!(one.metrics().singletons, 1);
    let two = node(&store, &hub, &runs, "two").await;
    eventually(async || one.cluster().unwrap().members.iter().all(|member| member.shards == 8)).await;
    let (host, first, second) = match runs.host() {
        Some("two") => ("one", two, one),
        _ => ("two", one, two),
    };
    first.stop().await.unwrap();
    runs_on(&runs, host).await;
    assert_eq!(second.metrics().singletons, 1);
    second.stop().await.unwrap();
    assert_eq!(runs.host(), None, "a node that has stopped runs nothing");
}

#[whizbang::test]
async fn singleton_of_a_crashed_node_is_started_elsewhere() {
    let (store, hub, runs) = (MemoryStore::shared(&Clock::system()), LoopbackHub::new(), Arc::<Runs>::default());
    let one = node(&store, &hub, &runs, "one").await;
    let two = node(&store, &hub, &runs, "two").await;
    eventually(async || one.cluster().unwrap().members.iter().all(|member| member.shards == 8)).await;
    runs_on(&runs, runs.host().unwrap_or("one")).await;
    let (host, crashed, rest) = match runs.host() {
        Some("two") => ("one", two, one),
        _ => ("two", one, two),
    };
    let before = runs.count();
    drop(crashed);
    runs_on(&runs, host).await;
    assert_eq!((runs.count(), rest.metrics().singletons), (before + 1, 1));
}

/// Time jumps before any task runs, as it does for a process that is stopped and continued.
#[tokio::test(start_paused = true)]
async fn singleton_of_a_suspended_process_is_cancelled() {
    let test = async {
        let (store, runs) = (MemoryStore::shared(&Clock::system()), Arc::<Runs>::default());
        let config = NodeConfig { lease: LEASE, threads: 0, ..NodeConfig::default() };
        let builder = Node::builder("accounts", store).config(config).aggregate::<Account>();
        let node = builder.singleton("beat", runs.task("one")).start().await.unwrap();
        for round in 1..=3 {
            while runs.host().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(runs.count(), round);
            tokio::time::sleep(LEASE * 3).await;
            assert_eq!(runs.count(), round, "it runs on while the lease is renewed");
            tokio::time::advance(LEASE).await;
            tokio::time::sleep(LEASE).await;
        }
        assert_eq!(runs.count(), 4, "each suspension ends a run");
        node.stop().await.unwrap();
        assert_eq!(runs.host(), None);
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[whizbang::test]
async fn singleton_runs_on_a_node_that_has_its_store_alone() {
    let folder = tempfile::tempdir().unwrap();
    let runs = Arc::<Runs>::default();
    for start in 1..=2 {
        let store = EmbeddedStore::open(folder.path()).unwrap();
        let builder = Node::builder("accounts", store).aggregate::<Account>();
        let node = builder.singleton("beat", runs.task("alone")).start().await.unwrap();
        runs_on(&runs, "alone").await;
        node.wait_idle().await;
        node.stop().await.unwrap();
        assert_eq!((runs.host(), runs.count()), (None, start));
    }
    let epochs: BTreeSet<_> = runs.state.lock().epochs.iter().map(|(_, epoch)| *epoch).collect();
    assert_eq!(epochs.len(), 2, "each start has its own epoch");
}

#[whizbang::test]
async fn panicked_singleton_is_reported_and_started_again() {
    let starts = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&starts);
    let singleton = move |singleton: Singleton| {
        let start = counted.fetch_add(1, Ordering::Relaxed);
        async move {
            assert!(start > 0, "boom");
            singleton.client().send(deposit("ada", 1)).await.unwrap();
        }
    };
    let builder = Node::builder("accounts", MemoryStore::new()).aggregate::<Account>();
    let node = builder.singleton("once", singleton).start().await.unwrap();
    let listed =
        || node.health().reasons.iter().any(|reason| reason.contains("singleton once") && reason.contains("boom"));
    eventually(async || listed() || starts.load(Ordering::Relaxed) > 1).await;
    eventually(async || node.client().send(deposit("ada", 0)).await.unwrap() == 1).await;
    // It has returned: it is not started again, and is no longer listed.
    eventually(async || node.metrics().singletons == 0 && !listed()).await;
    assert_eq!((starts.load(Ordering::Relaxed), node.metrics().panics), (2, 1));
}

#[whizbang::test]
async fn wrong_singletons_are_refused() {
    let idle = |_: Singleton| std::future::pending::<()>();
    let start = async |builder: whizbang::NodeBuilder| builder.start().await.map(drop).unwrap_err();
    let bank = || Node::builder("accounts", MemoryStore::new()).aggregate::<Account>();
    let twice = start(bank().singleton("beat", idle).singleton("beat", idle)).await;
    assert!(matches!(&twice, StartError::DoubleSingleton { name } if name == "beat"), "{twice}");
    let homeless = start(Node::builder("accounts", MemoryStore::new()).singleton("beat", idle)).await;
    assert!(matches!(&homeless, StartError::SingletonWithoutDomain { name } if name == "beat"), "{homeless}");
    let unnamed = start(bank().singleton("", idle)).await;
    assert!(matches!(&unnamed, StartError::Name(_)), "{unnamed}");
}
