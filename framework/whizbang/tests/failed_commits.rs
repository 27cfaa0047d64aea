//! Turns are speculative, replies are not: the effects of a failing store on a node.
#![cfg(feature = "testing")]

mod bank;
mod eventually;
mod instrumented_store;
mod poll_once;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bank::*;
use eventually::eventually;
use instrumented_store::{InstrumentedStore, StoreProbe};
use poll_once::poll_once;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;
use whizbang::store::StoreError;
use whizbang::{Retry, SendError};

fn broken() -> StoreError {
    StoreError::io("flushing", std::io::Error::other("the disk is gone"))
}

/// Returns one account for each shard.
fn account_of_each_shard() -> BTreeMap<u16, String> {
    let names = (0..1000).map(|n| format!("account{n}"));
    let by_shard: BTreeMap<_, _> = names.map(|name| (whizbang::message::shard_of(&name, 16), name)).collect();
    assert_eq!(by_shard.len(), 16);
    by_shard
}

async fn turn_over() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[whizbang::test]
async fn reply_waits_for_its_commit_and_the_actor_does_not() {
    let (store, faults) = MemoryStore::faulty();
    let node = start(store).await;
    let client = node.client();
    client.send(deposit("ada", 0)).await.unwrap();
    faults.hold();
    let mut replies: Vec<_> = (0..10).map(|_| client.send(deposit("ada", 1))).collect();
    for reply in &mut replies {
        assert!(futures_util::poll!(reply).is_pending());
    }
    turn_over().await;
    assert_eq!(faults.waiting(), 10, "all ten turns were taken on uncommitted state");
    for reply in &mut replies {
        assert!(futures_util::poll!(reply).is_pending());
    }
    faults.commit(4);
    turn_over().await;
    let mut ready = 0;
    for reply in &mut replies {
        if let std::task::Poll::Ready(reply) = futures_util::poll!(reply) {
            ready += 1;
            assert_eq!(reply.unwrap(), ready);
        }
    }
    assert_eq!(ready, 4);
    faults.resume();
    turn_over().await;
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 10);
}

#[whizbang::test]
async fn failed_commit_is_unknown_to_dependents_and_safe_to_retry() {
    for kept in 0..=10 {
        let (store, faults) = MemoryStore::faulty();
        let node = start(store).await;
        let client = node.client();
        client.send(deposit("ada", 0)).await.unwrap();
        faults.hold();
        let ids: Vec<_> = (0..10).map(|_| client.new_id()).collect();
        let replies: Vec<_> = ids.iter().map(|id| poll_once(client.send(deposit("ada", 1)).id(*id))).collect();
        turn_over().await;
        faults.fail(kept, broken());
        for reply in replies {
            let error = reply.await.unwrap_err();
            assert!(matches!(error, SendError::Unknown { .. }) && error.may_have_happened(), "{error}");
        }
        // The node reopens the shard without a restart.
        for (at, id) in ids.iter().enumerate() {
            let balance = loop {
                match client.send(deposit("ada", 1)).id(*id).await {
                    Ok(balance) => break balance,
                    Err(error) if error.is_transient() => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            };
            assert_eq!(balance, at as u64 + 1, "{kept} were kept");
        }
        assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 10);
    }
}

/// A shard that was reopened already must be reopened once more.
#[whizbang::test]
async fn store_that_fails_during_the_recovery_is_recovered_from() {
    let (memory, faults) = MemoryStore::faulty();
    let probe = Arc::new(StoreProbe::default());
    let store = InstrumentedStore(memory, Arc::clone(&probe));
    let node = Node::builder("bank", store).threads(0).aggregate::<Account>().start().await.unwrap();
    let client = node.client();
    let by_shard = account_of_each_shard();
    for account in by_shard.values() {
        client.send(deposit(account, 1)).await.unwrap();
    }
    for failures in 1..4 {
        probe.opens.next.store(true, Ordering::Relaxed);
        faults.fail(0, broken());
        probe.opens.reads.notified().await;
        for _ in 0..failures {
            faults.fail(0, broken());
        }
        probe.opens.go.notify_one();
        for account in by_shard.values() {
            eventually(async || client.send(deposit(account, 0)).await.is_ok_and(|balance| balance == 1)).await;
        }
    }
}

/// The store takes an append of the earlier handle for one of an earlier owner.
#[whizbang::test]
async fn commands_during_the_recovery_are_no_takeover() {
    let (memory, faults) = MemoryStore::faulty();
    let probe = Arc::new(StoreProbe::default());
    let store = InstrumentedStore(memory, Arc::clone(&probe));
    let node = Node::builder("bank", store).threads(0).aggregate::<Account>().start().await.unwrap();
    let client = node.client();
    let by_shard = account_of_each_shard();
    probe.opens.next.store(true, Ordering::Relaxed);
    faults.fail(0, broken());
    probe.opens.reads.notified().await;
    // One shard is open again, and its handle is not installed yet.
    let sent: Vec<_> = by_shard.values().map(|account| poll_once(client.send(deposit(account, 1)))).collect();
    turn_over().await;
    probe.opens.go.notify_one();
    for reply in sent {
        assert_eq!(reply.await.unwrap(), 1);
    }
    assert_eq!(node.ended(), None);
    for account in by_shard.values() {
        assert_eq!(client.send(deposit(account, 1)).await.unwrap(), 2);
    }
    eventually(async || node.health().ready).await;
    node.stop().await.unwrap();
}

/// Longer than any number of attempts: a disk or a server may be away for hours.
#[tokio::test(start_paused = true)]
async fn store_that_cannot_be_opened_is_waited_for() {
    let test = async {
        let (memory, faults) = MemoryStore::faulty();
        let probe = Arc::new(StoreProbe::default());
        let store = InstrumentedStore(memory, Arc::clone(&probe));
        let node = Node::builder("bank", store).threads(0).aggregate::<Account>().start().await.unwrap();
        let client = node.client();
        client.send(deposit("ada", 1)).await.unwrap();
        let opened = probe.openings.load(Ordering::Relaxed);
        probe.fail("open");
        faults.fail(0, broken());
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let health = node.health();
            assert!(health.live && !health.ready, "{health:?}");
            assert!(health.reasons.iter().any(|reason| reason.contains("failed to commit")), "{health:?}");
        }
        // Each attempt ends at the first shard.
        assert!(probe.openings.load(Ordering::Relaxed) > opened + 50);
        probe.heal();
        // Without a commit: nothing is sent to a node that is not ready.
        tokio::time::sleep(Duration::from_secs(45)).await;
        assert!(node.health().ready, "{:?}", node.health());
        assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 1);
        node.stop().await.unwrap();
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

#[tokio::test(start_paused = true)]
async fn stalled_destination_is_not_reported_once_it_commits() {
    let test = async {
        let (hub, (store, faults)) = (LoopbackHub::new(), MemoryStore::faulty());
        let transfers = Node::builder("transfers", store).threads(0).saga::<Transfer>().bridge(hub.bridge());
        let transfers = transfers.start().await.unwrap();
        let client = transfers.client();
        client.send(transfer("t1", "ada", "bob", 10)).await.unwrap();
        let stalled = || transfers.health().reasons.iter().any(|reason| reason.contains("commits no messages of"));
        while !stalled() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        // The windows begin again with the reopened shards.
        faults.hold();
        let lost = poll_once(client.send(outcome("t1")));
        turn_over().await;
        faults.fail(0, broken());
        lost.await.unwrap_err();
        while client.send(outcome("t1")).await.is_err() {
            turn_over().await;
        }
        let accounts = Node::builder("accounts", MemoryStore::new()).threads(0).aggregate::<Account>();
        let accounts = accounts.bridge(hub.bridge()).start().await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_ne!(client.send(outcome("t1")).await.unwrap(), "open");
        assert!(transfers.health().reasons.is_empty(), "{:?}", transfers.health());
        transfers.stop().await.unwrap();
        accounts.stop().await.unwrap();
    };
    tokio::task::LocalSet::new().run_until(test).await;
}

/// Returns keys in shard 0 of sixteen.
fn keys(prefix: &str, count: usize) -> Vec<String> {
    let all = (0..).map(|n| format!("{prefix}{n}"));
    all.filter(|key| whizbang::message::shard_of(key, 16) == 0).take(count).collect()
}

#[whizbang::test]
async fn refused_append_is_not_acknowledged() {
    const ROUNDS: usize = 20;
    let (store, faults) = MemoryStore::faulty();
    // All sagas are in one shard and all accounts in one shard, so their messages share one row of sequences.
    let (sagas, accounts) = (keys("t", 2 * ROUNDS), keys("from", 2 * ROUNDS));
    {
        let node = start(store.clone()).await;
        for account in &accounts {
            node.client().send(deposit(account, 100)).await.unwrap();
        }
    }
    for (round, pair) in sagas.chunks(2).zip(accounts.chunks(2)).enumerate() {
        let node = start(store.clone()).await;
        let client = node.client();
        client.send(outcome("warm")).await.unwrap();
        faults.hold();
        let accepted: Vec<_> = pair
            .0
            .iter()
            .zip(pair.1)
            .map(|(saga, account)| poll_once(client.send(transfer(saga, account, "bob", 10))))
            .collect();
        turn_over().await;
        assert_eq!(faults.waiting(), 2);
        // The next append, which the node makes in the background, finds the disk full; the one after it does not. Then
        // the node dies before it retries.
        faults.refuse(1, StoreError::Full { at: "memory".to_owned() });
        faults.resume();
        for reply in accepted {
            reply.await.unwrap();
        }
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        drop(node);
        turn_over().await;
    }
    let node = start(store).await;
    let client = node.client();
    eventually(async || client.send(deposit("bob", 0)).await.unwrap() == 20 * ROUNDS as u64).await;
    for account in &accounts {
        assert_eq!(client.send(deposit(account, 0)).await.unwrap(), 90, "{account}");
    }
}

#[whizbang::test]
async fn caller_of_a_dying_node_learns_it_may_have_happened() {
    let (store, faults) = MemoryStore::faulty();
    let node = start(store.clone()).await;
    let client = node.client();
    client.send(deposit("ada", 0)).await.unwrap();
    faults.hold();
    let fresh = poll_once(client.send(deposit("ada", 1)));
    let id = client.new_id();
    let named = poll_once(client.send(deposit("ada", 2)).id(id));
    turn_over().await;
    assert_eq!(faults.waiting(), 2);
    drop(node);
    for reply in [fresh, named] {
        let error = reply.await.unwrap_err();
        assert!(error.may_have_happened(), "{error}");
    }
    faults.resume();
    let node = start(store).await;
    let client = node.client();
    assert_eq!(client.send(deposit("ada", 2)).id(id).await.unwrap(), 3, "it had happened");
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 3);
}

/// Messages between two actors of which one fails while the disk is full.
mod failing_appends {
    use std::cell::RefCell;

    use whizbang::prelude::*;
    use whizbang::store::StoreError;
    use whizbang::store::memory::CommitControl;

    thread_local! {
        /// The number of panics left, and the store whose next append the handler then refuses.
        pub(super) static PANICS: RefCell<(u32, Option<CommitControl>)> = const { RefCell::new((0, None)) };
    }

    #[derive(Domain)]
    #[domain(name = "walkers")]
    pub(super) struct Walkers;

    #[derive(Command, Serialize, Deserialize)]
    #[command(domain = Walkers)]
    pub(super) struct Push {
        #[key]
        pub walker: String,
        pub other: String,
        pub steps: u64,
    }

    #[derive(Command, Serialize, Deserialize)]
    #[command(domain = Walkers, reply = u64)]
    pub(super) struct Step {
        #[key]
        pub walker: String,
        pub steps: u64,
    }

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Walkers)]
    pub(super) struct Stepped {
        steps: u64,
    }

    #[derive(Aggregate, Default)]
    #[aggregate(domain = Walkers, handles(Push, Step), applies(Stepped))]
    pub(super) struct Walker {
        steps: u64,
    }

    impl Handle<Push> for Walker {
        fn handle(&self, push: Push, effects: &mut Effects<Self>) -> Result<(), Rejection> {
            for _ in 0..push.steps {
                effects.send(Step { walker: push.other.clone(), steps: 1 });
            }
            Ok(())
        }
    }

    impl Handle<Step> for Walker {
        fn handle(&self, step: Step, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
            let panics = PANICS.with_borrow_mut(|(left, faults)| {
                let panics = step.steps > 0 && *left > 0;
                if panics {
                    *left -= 1;
                    if let Some(faults) = faults {
                        faults.refuse(1, StoreError::Full { at: "memory".to_owned() });
                    }
                }
                panics
            });
            assert!(!panics, "planned: the handler panics");
            effects.record(Stepped { steps: step.steps });
            Ok(self.steps + step.steps)
        }
    }

    impl Apply<Stepped> for Walker {
        fn apply(&mut self, stepped: &Stepped) {
            self.steps += stepped.steps;
        }
    }
}

#[whizbang::test]
async fn message_with_an_unrecorded_attempt_is_not_skipped() {
    use failing_appends::{PANICS, Push, Step, Walker};

    // The refused append is the note of the attempt if another attempt is left, and the dead letter if not.
    for attempts in [3, 1] {
        let (store, faults) = MemoryStore::faulty();
        let retry = Retry { attempts, first: Duration::from_millis(1), longest: Duration::from_millis(4) };
        let node = Node::builder("walks", store).threads(0).aggregate::<Walker>().retry(retry).start().await.unwrap();
        let client = node.client();
        let steps = async || client.send(Step { walker: "ada".into(), steps: 0 }).await.unwrap();
        steps().await;
        PANICS.set((2, Some(faults)));
        client.send(Push { walker: "bob".into(), other: "ada".into(), steps: 3 }).await.unwrap();
        eventually(async || steps().await == 3).await;
        assert_eq!(PANICS.with_borrow(|(left, _)| *left), 0, "it never stumbled");
    }
}
