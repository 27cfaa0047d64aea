//! Idle actors are passivated and restored unchanged. The clock is paused, so minutes take no time.
#![cfg(feature = "testing")]

mod bank;

use std::time::Duration;

use bank::*;
use whizbang::prelude::*;
use whizbang::{NodeConfig, Retry, SendError};

async fn node(store: MemoryStore, config: NodeConfig) -> Node {
    let builder = Node::builder("bank", store).threads(0).config(config).retry(Retry::NEVER);
    builder.aggregate::<Account>().start().await.unwrap()
}

fn resting_after(span: Duration) -> NodeConfig {
    NodeConfig { threads: 0, passivate_after: span, ..NodeConfig::default() }
}

/// Advances the clock by a span and runs everything that is due in it.
async fn pass(span: Duration) {
    let mut left = span;
    while !left.is_zero() {
        let step = left.min(Duration::from_millis(100));
        tokio::time::advance(step).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        left -= step;
    }
}

#[tokio::test(start_paused = true)]
async fn idle_actor_is_passivated_and_restored() {
    let test = async {
        let node = node(MemoryStore::new(), resting_after(Duration::from_secs(60))).await;
        let client = node.client();
        for account in ["ada", "bob", "eve"] {
            client.send(deposit(account, 5)).await.unwrap();
        }
        for _ in 0..3 {
            pass(Duration::from_secs(30)).await;
            client.send(deposit("eve", 1)).await.unwrap();
        }
        let metrics = node.metrics();
        assert_eq!((metrics.activations, metrics.passivations), (3, 2), "eve was never idle for long");
        for (account, cents) in [("ada", 6), ("bob", 6), ("eve", 9)] {
            assert_eq!(client.send(deposit(account, 1)).await.unwrap(), cents);
        }
        assert_eq!(node.metrics().activations, 5);
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn longest_idle_actors_are_passivated_first() {
    let test = async {
        let config = NodeConfig { threads: 0, live_actors: 3, ..resting_after(Duration::from_secs(60)) };
        let node = node(MemoryStore::new(), config).await;
        let client = node.client();
        for account in 0..10 {
            client.send(deposit(&account.to_string(), 5)).await.unwrap();
            // Ten of them fall into one idle period, but not into one sweep.
            if account == 6 {
                pass(Duration::from_secs(14)).await;
            }
        }
        pass(Duration::from_secs(16)).await;
        assert_eq!(node.metrics().passivations, 7);
        for account in 7..10 {
            client.send(deposit(&account.to_string(), 1)).await.unwrap();
        }
        assert_eq!(node.metrics().activations, 10, "the youngest three are still live");
        assert_eq!(client.send(deposit("0", 1)).await.unwrap(), 6);
        assert_eq!(node.metrics().activations, 11);
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn live_actors_are_limited_while_keys_are_activated() {
    let test = async {
        let config = NodeConfig { threads: 0, live_actors: 10, ..NodeConfig::default() };
        let node = node(MemoryStore::new(), config).await;
        let client = node.client();
        let live = || node.metrics().activations - node.metrics().passivations;
        for account in 0..1000 {
            client.send(deposit(&account.to_string(), 5)).await.unwrap();
            assert!(live() <= 10, "{} live after {account}", live());
        }
        // A key that is used all the time stays, and one that was passivated is restored unchanged.
        let before = node.metrics().activations;
        for account in 0..100 {
            client.send(deposit("often", 1)).await.unwrap();
            assert_eq!(client.send(deposit(&account.to_string(), 1)).await.unwrap(), 6);
        }
        assert_eq!(node.metrics().activations, before + 101);
        assert!(live() <= 10);
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn busy_actors_stay_above_the_limit_and_no_longer() {
    let test = async {
        let (store, faults) = MemoryStore::faulty();
        let node = node(store, NodeConfig { threads: 0, live_actors: 10, ..NodeConfig::default() }).await;
        let client = node.client();
        let live = || node.metrics().activations - node.metrics().passivations;
        faults.hold();
        let replies: Vec<_> =
            (0..50).map(|n| tokio::task::spawn_local(client.send(deposit(&format!("busy {n}"), 5)))).collect();
        pass(Duration::from_millis(100)).await;
        assert_eq!((live(), faults.waiting()), (50, 50), "what is under way is not passivated, and nothing is refused");
        faults.resume();
        for reply in replies {
            assert_eq!(reply.await.unwrap().unwrap(), 5);
        }
        for account in 0..100 {
            client.send(deposit(&account.to_string(), 5)).await.unwrap();
        }
        assert!(live() <= 10, "{} live", live());
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn actor_with_an_uncommitted_turn_is_not_passivated() {
    let test = async {
        let (store, faults) = MemoryStore::faulty();
        let node = node(store, resting_after(Duration::from_secs(1))).await;
        let client = node.client();
        client.send(deposit("ada", 5)).await.unwrap();
        faults.hold();
        let reply = tokio::task::spawn_local(client.send(deposit("ada", 1)));
        pass(Duration::from_secs(5)).await;
        assert_eq!((faults.waiting(), node.metrics().passivations), (1, 0));
        faults.resume();
        assert_eq!(reply.await.unwrap().unwrap(), 6);
        pass(Duration::from_secs(5)).await;
        assert_eq!(node.metrics().passivations, 1);
        assert_eq!(client.send(deposit("ada", 1)).await.unwrap(), 7);
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn actor_with_an_uncommitted_redrive_is_not_passivated() {
    let test = async {
        let (store, faults) = MemoryStore::faulty();
        let builder = Node::builder("bank", store).threads(0).aggregate::<Account>().aggregate::<Branch>();
        let node = builder.retry(Retry::NEVER).config(resting_after(Duration::from_secs(1))).start().await.unwrap();
        let node = std::rc::Rc::new(node);
        let client = node.client();
        park(&node, "ada").await;
        // The branch that sent it is passivated as well, and counts.
        pass(Duration::from_secs(5)).await;
        let before = node.metrics().passivations;
        assert!(matches!(client.send(deposit("ada", 5)).await, Err(SendError::DeadLetter { .. })));
        let letters = node.dead_letters().await.unwrap();
        let exploded = letters.iter().find(|letter| letter.envelope.name.as_str() == "Explode").unwrap();

        faults.hold();
        let (at, letter) = (std::rc::Rc::clone(&node), exploded.clone());
        let discarding = tokio::task::spawn_local(async move { at.discard(&letter).await });
        pass(Duration::from_secs(5)).await;
        assert_eq!((faults.waiting(), node.metrics().passivations), (1, before));
        faults.resume();
        discarding.await.unwrap().unwrap();

        faults.hold();
        let (at, letter) = (std::rc::Rc::clone(&node), exploded.clone());
        let redriving = tokio::task::spawn_local(async move { at.redrive(&letter).await });
        pass(Duration::from_secs(5)).await;
        assert_eq!((faults.waiting(), node.metrics().passivations), (1, before));
        let next = tokio::task::spawn_local(client.send(deposit("ada", 1)));
        pass(Duration::from_secs(5)).await;
        faults.resume();
        redriving.await.unwrap().unwrap();
        assert_eq!(next.await.unwrap().unwrap(), 6, "it was decided on what is written");
    };
    tokio::task::LocalSet::new().run_until(test).await;
}
