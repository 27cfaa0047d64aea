//! A single node: turns, duplicates, panics, dead letters, sagas, timers, restarts.

mod bank;
mod eventually;
mod poll_once;

use std::time::Duration;

use bank::*;
use eventually::eventually;
use poll_once::poll_once;
use whizbang::message::{Name, ShardId, shard_of};
use whizbang::prelude::*;
use whizbang::store::{Note, Store, StoreError};
use whizbang::{Retry, SendError};

fn quick() -> Retry {
    Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(4) }
}

#[whizbang::test]
async fn command_is_handled_and_its_reply_returned() {
    let node = start(MemoryStore::new()).await;
    let client = node.client();
    assert_eq!(client.send(deposit("ada", 500)).await.unwrap(), 500);
    assert_eq!(client.send(deposit("ada", 20)).await.unwrap(), 520);
    assert_eq!(client.send(deposit("bob", 1)).await.unwrap(), 1);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn rejection_is_final_and_changes_nothing() {
    let node = start(MemoryStore::new()).await;
    let client = node.client();
    client.send(deposit("ada", 5)).await.unwrap();
    let no = client.send(withdraw("ada", 6, "t")).await.unwrap_err();
    assert_eq!(no.rejection().map(Rejection::code), Some("bank.insufficient-funds"));
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 5);
}

#[whizbang::test]
async fn restarted_node_restores_all_states() {
    let store = MemoryStore::new();
    let node = start(store.clone()).await;
    for cents in 1..=10 {
        node.client().send(deposit("ada", cents)).await.unwrap();
    }
    drop(node);
    let node = start(store).await;
    assert_eq!(node.client().send(deposit("ada", 0)).await.unwrap(), 55);
}

#[whizbang::test]
async fn repeated_id_returns_first_reply_or_conflict() {
    let store = MemoryStore::new();
    let node = start(store.clone()).await;
    let client = node.client();
    let id = client.new_id();
    assert_eq!(client.send(deposit("ada", 5)).id(id).await.unwrap(), 5);
    assert_eq!(client.send(deposit("ada", 5)).id(id).await.unwrap(), 5);
    assert!(matches!(client.send(deposit("ada", 6)).id(id).await, Err(SendError::Conflict)));
    for n in 0..200 {
        client.send(deposit("ada", 1)).idempotency_key(&n.to_string()).await.unwrap();
        client.send(deposit("ada", 1)).await.unwrap();
    }
    // Evicted from memory, found in the log.
    assert_eq!(client.send(deposit("ada", 5)).id(id).await.unwrap(), 5);
    drop(node);
    let node = start(store).await;
    let client = node.client();
    assert_eq!(client.send(deposit("ada", 5)).id(id).await.unwrap(), 5);
    assert_eq!(client.send(deposit("ada", 1)).idempotency_key("7").await.unwrap(), 5 + 15);
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 405);
}

#[whizbang::test]
async fn repeated_panic_makes_a_dead_letter_and_parks_one_key() {
    let store = MemoryStore::new();
    let branches =
        || Node::builder("bank", store.clone()).threads(0).aggregate::<Account>().aggregate::<Branch>().retry(quick());
    let node = branches().start().await.unwrap();
    let client = node.client();
    client.send(deposit("ada", 5)).await.unwrap();
    assert!(park(&node, "ada").await.error.contains("boom"));
    // Its key waits in order, others proceed.
    assert!(matches!(client.send(deposit("ada", 1)).await, Err(SendError::DeadLetter { .. })));
    assert_eq!(client.send(deposit("bob", 2)).await.unwrap(), 2);
    let metrics = node.metrics();
    assert_eq!((metrics.panics, metrics.retries, metrics.dead_letters), (3, 2, 1));
    drop(node);
    let node = branches().start().await.unwrap();
    assert!(matches!(node.client().send(deposit("ada", 1)).await, Err(SendError::DeadLetter { .. })));
}

#[whizbang::test]
async fn retry_of_one_message_type_overrides_the_default() {
    let builder = Node::builder("bank", MemoryStore::new()).threads(0).aggregate::<Account>().retry(quick());
    let node = builder.retry_of::<Explode>(Retry { attempts: 7, ..quick() }).start().await.unwrap();
    let client = node.client();
    client.send(Explode { account: "ada".into() }).await.unwrap_err();
    let metrics = node.metrics();
    assert_eq!((metrics.panics, metrics.retries, metrics.failed), (7, 6, 1));
    let builder = Node::builder("bank", MemoryStore::new()).threads(0).aggregate::<Account>().retry(quick());
    let node = builder.retry_of::<Deposit>(Retry::NEVER).start().await.unwrap();
    node.client().send(Explode { account: "ada".into() }).await.unwrap_err();
    assert_eq!(node.metrics().panics, 3, "the policy applies to its message type only");
}

#[whizbang::test]
async fn parked_key_resumes_in_order_after_discard_and_redrive() {
    let store = MemoryStore::new();
    let builder = Node::builder("bank", store.clone()).threads(0).aggregate::<Account>().aggregate::<Branch>();
    let node = builder.retry(Retry::NEVER).start().await.unwrap();
    let client = node.client();
    park(&node, "ada").await;
    let waiting = client.new_id();
    for id in [waiting, client.new_id()] {
        assert!(matches!(client.send(deposit("ada", 7)).id(id).await, Err(SendError::DeadLetter { .. })));
    }
    let letters = node.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 3);
    let exploded = letters.iter().find(|letter| letter.envelope.name.as_str() == "Explode").unwrap();
    assert_eq!((exploded.reason.as_str(), exploded.attempts, exploded.key.as_str()), ("attempts", 1, "ada"));
    // It fails again, so the messages behind it stay parked.
    assert!(matches!(node.redrive(exploded).await, Err(SendError::DeadLetter { .. })));
    assert_eq!(node.dead_letters().await.unwrap().len(), 3);
    node.discard(exploded).await.unwrap();
    assert!(matches!(node.discard(exploded).await, Err(SendError::Unhandled { .. })));
    node.redrive(exploded).await.unwrap();
    assert_eq!(node.dead_letters().await.unwrap(), []);
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 14);
    // A caller that repeats the id of a parked command gets its reply.
    assert_eq!(client.send(deposit("ada", 7)).id(waiting).await.unwrap(), 7);
    drop(node);
    let node =
        Node::builder("bank", store).threads(0).aggregate::<Account>().aggregate::<Branch>().start().await.unwrap();
    assert_eq!(node.client().send(deposit("ada", 7)).id(waiting).await.unwrap(), 7);
    assert_eq!(node.client().send(deposit("ada", 0)).await.unwrap(), 14);
}

#[whizbang::test]
async fn saga_moves_money_between_two_accounts() {
    let node = start(MemoryStore::new()).await;
    let client = node.client();
    client.send(deposit("ada", 100)).await.unwrap();
    client.send(transfer("t1", "ada", "bob", 30)).await.unwrap();
    eventually(async || client.send(deposit("bob", 0)).await.unwrap() == 30).await;
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 70);
}

#[whizbang::test]
async fn rejected_step_compensates_the_saga() {
    let store = MemoryStore::new();
    let node = start(store.clone()).await;
    let client = node.client();
    client.send(deposit("ada", 100)).await.unwrap();
    client.send(Close { account: "bob".into() }).await.unwrap();
    client.send(transfer("t1", "ada", "bob", 30)).await.unwrap();
    eventually(async || client.send(outcome("t1")).await.unwrap() == "failed").await;
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 100);
    client.send(transfer("t2", "ada", "cy", 300)).await.unwrap();
    eventually(async || client.send(outcome("t2")).await.unwrap() == "failed").await;
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 100);
}

/// Returns whether the store says that a transfer has begun and has not ended.
async fn is_under_way(store: &MemoryStore, transfer: &str) -> bool {
    let name = |text: &str| Name::new(text).unwrap();
    let shard = ShardId::new(name("transfers"), shard_of(transfer, <Transfers as whizbang::message::Domain>::SHARDS));
    let Some(reader) = store.read(&shard).await.unwrap() else { return false };
    let turns = reader.history(&name("transfer"), transfer).await.unwrap();
    !turns.is_empty() && turns.iter().all(|turn| !turn.notes.contains(&Note::Ended))
}

/// Begins a transfer, exactly once even if repeated.
fn begin(node: &Node, n: u64) -> impl Future<Output = Result<(), SendError>> + use<> {
    let start = transfer(&format!("t{n}"), &format!("from{n}"), "bob", 10);
    node.client().send(start).idempotency_key(&format!("t{n}"))
}

/// Starts a node that delivers a message again however often the process has ended during its delivery.
async fn start_patient(store: MemoryStore) -> Node {
    let retry = Retry { attempts: 1_000, ..Retry::default() };
    let builder = Node::builder("bank", store).threads(0).aggregate::<Account>().saga::<Transfer>();
    builder.retry(retry).start().await.unwrap()
}

#[whizbang::test]
async fn saga_resumes_after_its_node_was_killed_at_any_moment() {
    let (store, faults) = MemoryStore::faulty();
    {
        let node = start(store.clone()).await;
        for n in 0..50 {
            node.client().send(deposit(&format!("from{n}"), 100)).await.unwrap();
        }
    }
    let mut open = 0;
    for n in 0..50u64 {
        let node = start_patient(store.clone()).await;
        faults.hold();
        let asked = tokio::task::spawn_local(begin(&node, n));
        // The number of commits that the node knows when it dies; some of the pending ones are in the log.
        for _ in 0..n % 6 {
            for _ in 0..100 {
                if faults.waiting() > 0 {
                    break;
                }
                tokio::task::yield_now().await;
            }
            faults.commit(1);
        }
        drop(node);
        asked.abort();
        faults.fail(usize::from(n % 2 == 0), StoreError::Closed);
        open += u32::from(is_under_way(&store, &format!("t{n}")).await);
    }
    assert!(open >= 20, "{open} of 50 sagas were under way when their node was killed");
    let node = start_patient(store).await;
    let client = node.client();
    for n in 0..50 {
        // Begun before the kill or now, it begins once.
        begin(&node, n).await.unwrap();
    }
    eventually(async || client.send(deposit("bob", 0)).await.unwrap() == 500).await;
    for n in 0..50 {
        assert_eq!(client.send(deposit(&format!("from{n}"), 0)).await.unwrap(), 90);
    }
}

#[whizbang::test]
async fn timer_due_while_its_node_is_stopped_fires_later() {
    let (clock, hand) = whizbang::clock::Clock::manual(whizbang::clock::Timestamp::from_millis(1_800_000_000_000));
    let store = MemoryStore::new();
    let transfers = || Node::builder("transfers", store.clone()).threads(0).saga::<Transfer>().clock(clock.clone());
    let node = transfers().start().await.unwrap();
    // The accounts have no owner, so the withdrawal stays in the outbox and the transfer waits an hour.
    node.client().send(transfer("t1", "ada", "bob", 30)).await.unwrap();
    drop(node);
    hand.advance(Duration::from_secs(3599));
    let node = transfers().start().await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(node.client().send(outcome("t1")).await.unwrap(), "open");
    drop(node);
    hand.advance(Duration::from_secs(2));
    let node = transfers().start().await.unwrap();
    let client = node.client();
    eventually(async || client.send(outcome("t1")).await.unwrap() == "failed").await;
    // It fired once: another start finds no timer.
    drop(node);
    hand.advance(Duration::from_secs(7200));
    let node = transfers().start().await.unwrap();
    assert_eq!(node.client().send(outcome("t1")).await.unwrap(), "failed");
}

#[whizbang::test]
async fn many_callers_on_many_threads_get_their_own_replies() {
    let node = Node::builder("bank", MemoryStore::new())
        .aggregate::<Account>()
        .saga::<Transfer>()
        .threads(2)
        .start()
        .await
        .unwrap();
    let client = node.client();
    let callers: Vec<_> = (0..64)
        .map(|caller| {
            let client = client.clone();
            std::thread::spawn(move || {
                whizbang::derive::block_on(async move {
                    for n in 1..=50u64 {
                        let balance = client.send(deposit(&format!("key{caller}"), 1)).await.unwrap();
                        assert_eq!(balance, n);
                    }
                });
            })
        })
        .collect();
    for caller in callers {
        while !caller.is_finished() {
            tokio::task::yield_now().await;
        }
        caller.join().unwrap();
    }
    client.send(transfer("t1", "key0", "key1", 7)).await.unwrap();
    eventually(async || client.send(deposit("key1", 0)).await.unwrap() == 57).await;
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn overloaded_node_replies_busy_and_loses_nothing() {
    let config = whizbang::NodeConfig { threads: 0, in_flight: 10, ..whizbang::NodeConfig::default() };
    let node = Node::builder("bank", MemoryStore::new())
        .threads(0)
        .aggregate::<Account>()
        .config(config)
        .start()
        .await
        .unwrap();
    let client = node.client();
    let asked: Vec<_> = (0..100).map(|_| poll_once(client.send(deposit("ada", 1)).no_retry())).collect();
    let (mut done, mut busy) = (0, 0);
    for reply in asked {
        match reply.await {
            Ok(_) => done += 1,
            Err(SendError::Busy { .. }) => busy += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((done, busy), (10, 90));
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 10);
}

/// The first poll refuses most of them, on the node's thread or on its way there.
#[tokio::test]
async fn busy_commands_are_sent_again_until_they_are_handled() {
    tokio::task::LocalSet::new()
        .run_until(async {
            for threads in [0, 1] {
                let config = whizbang::NodeConfig { threads, in_flight: 4, ..whizbang::NodeConfig::default() };
                let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().config(config);
                let node = node.start().await.unwrap();
                let client = node.client();
                let sent = |n: u64| {
                    let one = client.send(deposit("ada", 1));
                    poll_once(if n.is_multiple_of(2) { one } else { one.idempotency_key(&format!("d{n}")) })
                };
                let all: Vec<_> = (0..100).map(sent).collect();
                for reply in all {
                    reply.await.unwrap();
                }
                assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 100, "each once, on {threads} threads");
                assert!(threads > 0 || node.metrics().busy >= 90, "{:?}", node.metrics());
                node.stop().await.unwrap();
            }
        })
        .await;
}
