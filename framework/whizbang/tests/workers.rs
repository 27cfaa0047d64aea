//! Workers: jobs with I/O, run at least once with a stable key, replied to once, retried, made dead letters, and
//! independent of each other.

mod eventually;
mod payments;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use eventually::eventually;
use payments::*;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;
use whizbang::{NodeConfig, Retry, SendError};

#[whizbang::test]
async fn command_is_performed_and_its_reply_returned() {
    let (store, world) = (MemoryStore::new(), Arc::default());
    let node = start(&store, &world).await;
    assert_eq!(node.client().send(charge("o1", 5)).await.unwrap(), "5 charged");
    let no = node.client().send(charge("o2", 0)).await.unwrap_err();
    assert_eq!(no.rejection().map(Rejection::code), Some("payments.nothing"));
    assert_eq!(world.calls("o2").await.len(), 1, "a rejection is final");
    node.client().post(charge("o3", 5)).await.unwrap();
    node.wait_idle().await;
    assert_eq!(world.calls("o3").await.len(), 1);
    let text = node.manifest().to_string();
    assert!(text.contains("worker charger") && text.contains("worker mailer"), "{text}");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn repeated_id_or_key_returns_the_first_reply() {
    let (store, world) = (MemoryStore::new(), Arc::default());
    let node = start(&store, &world).await;
    let client = node.client();
    let id = client.new_id();
    for _ in 0..3 {
        assert_eq!(client.send(charge("o1", 5)).id(id).await.unwrap(), "5 charged");
        assert_eq!(client.send(charge("o2", 6)).idempotency_key("k").await.unwrap(), "6 charged");
    }
    assert!(matches!(client.send(charge("o1", 7)).id(id).await, Err(SendError::Conflict)));
    assert!(matches!(client.send(charge("o2", 7)).idempotency_key("k").await, Err(SendError::Conflict)));
    drop(node);
    let node = start(&store, &world).await;
    assert_eq!(node.client().send(charge("o1", 5)).id(id).await.unwrap(), "5 charged");
    assert_eq!(node.client().send(charge("o2", 6)).idempotency_key("k").await.unwrap(), "6 charged");
    assert_eq!((world.calls("o1").await.len(), world.calls("o2").await.len()), (1, 1));
}

#[whizbang::test]
async fn duplicate_of_a_running_job_waits_for_it() {
    let (store, world) = (MemoryStore::new(), Arc::<World>::default());
    world.holds.store(true, Ordering::Relaxed);
    let node = start(&store, &world).await;
    let client = node.client();
    let first = background(client.send(charge("o1", 5)).idempotency_key("k"));
    eventually(async || world.called("o1").await).await;
    let again = background(client.send(charge("o1", 5)).idempotency_key("k"));
    assert!(matches!(client.send(charge("o1", 6)).idempotency_key("k").await, Err(SendError::Conflict)));
    world.release();
    assert_eq!(first.await.unwrap().unwrap(), "5 charged");
    assert_eq!(again.await.unwrap().unwrap(), "5 charged");
    assert_eq!(world.calls("o1").await.len(), 1);
}

#[whizbang::test]
async fn failed_job_runs_again_with_the_same_key() {
    let (store, world) = (MemoryStore::new(), Arc::<World>::default());
    world.fails.store(2, Ordering::Relaxed);
    let node = start(&store, &world).await;
    assert_eq!(node.client().send(charge("o1", 5)).await.unwrap(), "5 charged");
    let calls = world.calls("o1").await;
    assert_eq!(calls.iter().map(|(_, delivery)| *delivery).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(calls.iter().all(|(key, _)| *key == calls[0].0), "{calls:?}");
    assert_eq!(node.metrics().retries, 2);
}

#[whizbang::test]
async fn hanging_job_is_dropped_and_runs_again_with_its_key() {
    let (store, world) = (MemoryStore::new(), Arc::<World>::default());
    world.holds.store(true, Ordering::Relaxed);
    let config = NodeConfig {
        threads: 0,
        job_limit: Duration::from_millis(20),
        retry: quick(),
        jobs: 1,
        ..NodeConfig::default()
    };
    let node = Node::builder("shop", store)
        .threads(0)
        .worker(Charger(Arc::clone(&world)))
        .config(config)
        .start()
        .await
        .unwrap();
    let error = node.client().send(charge("o1", 5)).await.unwrap_err();
    assert!(matches!(&error, SendError::DeadLetter { reason } if reason.contains("longer than 20ms")), "{error}");
    let calls = world.calls("o1").await;
    assert_eq!(calls.iter().map(|(_, delivery)| *delivery).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(calls.iter().all(|(key, _)| *key == calls[0].0), "{calls:?}");
    assert_eq!(world.now.load(Ordering::Relaxed), 0, "the dropped job has released its key");
    world.release();
    assert_eq!(node.client().send(charge("o2", 6)).await.unwrap(), "6 charged", "the slot is free again");
}

#[whizbang::test]
async fn caller_of_a_begun_job_is_not_told_that_nothing_happened() {
    let (store, world) = (MemoryStore::new(), Arc::<World>::default());
    world.fails.store(usize::MAX, Ordering::Relaxed);
    let slow = Retry { attempts: 3, first: Duration::from_secs(60), longest: Duration::from_secs(60) };
    let node =
        Node::builder("shop", store).threads(0).worker(Charger(Arc::clone(&world))).retry(slow).start().await.unwrap();
    let client = node.client();
    let reply = background(client.send(charge("o1", 5)));
    eventually(async || node.metrics().retries == 1).await;
    node.stop().await.unwrap();
    let error = reply.await.unwrap().unwrap_err();
    assert!(error.may_have_happened(), "{error}");
}

#[whizbang::test]
async fn repeatedly_failing_job_becomes_a_redrivable_dead_letter() {
    let (store, world) = (MemoryStore::new(), Arc::<World>::default());
    world.fails.store(usize::MAX, Ordering::Relaxed);
    let node = start(&store, &world).await;
    let error = node.client().send(charge("o1", 5)).idempotency_key("k").await.unwrap_err();
    assert!(matches!(&error, SendError::DeadLetter { reason } if reason.contains("does not answer")), "{error}");
    node.client().send(place("o2", 7)).await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.client().send(state("o2")).await.unwrap(), "placed");
    world.fails.store(0, Ordering::Relaxed);
    // Nothing is parked behind it.
    assert_eq!(node.client().send(charge("o1", 6)).await.unwrap(), "6 charged");
    let letters = node.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 3, "the charge from outside, the saga's charge, the mail");
    for letter in &letters {
        node.redrive(letter).await.unwrap();
    }
    node.wait_idle().await;
    assert_eq!(node.dead_letters().await.unwrap(), []);
    assert_eq!(node.client().send(state("o2")).await.unwrap(), "paid");
    assert_eq!(node.client().send(charge("o1", 5)).idempotency_key("k").await.unwrap(), "5 charged");
    assert_eq!(world.calls("o1").await.len(), 3 + 1 + 1);
}

#[whizbang::test]
async fn discarded_dead_letter_is_never_performed() {
    let (store, world) = (MemoryStore::new(), Arc::<World>::default());
    let node = start(&store, &world).await;
    assert!(matches!(node.client().send(charge("o1", 666)).await, Err(SendError::DeadLetter { .. })));
    assert_eq!(world.calls("o1").await.len(), 1, "what will not pass is not tried again");
    let letters = node.dead_letters().await.unwrap();
    node.discard(&letters[0]).await.unwrap();
    assert_eq!(node.dead_letters().await.unwrap(), []);
    assert!(matches!(node.discard(&letters[0]).await, Err(SendError::Unhandled { .. })));
}

#[whizbang::test]
async fn panic_in_a_job_is_a_failure_of_that_job_only() {
    let (store, world) = (MemoryStore::new(), Arc::default());
    let node = start(&store, &world).await;
    let client = node.client();
    let unlucky = background(client.send(charge("o1", 13)));
    assert_eq!(client.send(charge("o2", 5)).await.unwrap(), "5 charged");
    let error = unlucky.await.unwrap().unwrap_err();
    assert!(matches!(&error, SendError::DeadLetter { reason } if reason.contains("unlucky")), "{error}");
    assert_eq!(node.metrics().panics, 3);
}

#[whizbang::test]
async fn attempts_are_counted_across_crashes() {
    let (store, world) = (MemoryStore::new(), Arc::<World>::default());
    world.fails.store(1, Ordering::Relaxed);
    let slow = Retry { attempts: 3, first: Duration::from_secs(3600), longest: Duration::from_secs(3600) };
    let node = Node::builder("shop", store.clone())
        .threads(0)
        .saga::<Order>()
        .worker(Charger(Arc::clone(&world)))
        .retry(slow)
        .start()
        .await
        .unwrap();
    node.client().send(place("o1", 5)).await.unwrap();
    eventually(async || node.metrics().retries == 1).await;
    drop(node);
    let node = start(&store, &world).await;
    eventually(async || node.client().send(state("o1")).await.unwrap() == "paid").await;
    let calls = world.calls("o1").await;
    assert_eq!(calls.iter().map(|(_, delivery)| *delivery).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(calls[0].0, calls[1].0);
}

#[whizbang::test]
async fn killed_node_runs_its_job_again_with_the_same_key() {
    let (store, world) = (MemoryStore::new(), Arc::<World>::default());
    world.holds.store(true, Ordering::Relaxed);
    let node = start(&store, &world).await;
    node.client().send(place("o1", 5)).await.unwrap();
    eventually(async || world.called("o1").await && world.called("mail 5").await).await;
    drop(node);
    let node = start(&store, &world).await;
    world.release();
    node.wait_idle().await;
    assert_eq!(node.client().send(state("o1")).await.unwrap(), "paid");
    for what in ["o1", "mail 5"] {
        let calls = world.calls(what).await;
        assert_eq!(calls.len(), 2, "{what}: {calls:?}");
        assert_eq!(calls[0].0, calls[1].0, "{what}");
    }
}

#[whizbang::test]
async fn jobs_ending_out_of_order_are_remembered_after_a_crash() {
    let (store, world) = (MemoryStore::new(), Arc::<World>::default());
    let node = start(&store, &world).await;
    // One order, so all its charges have one source and all its events one log; the first of each is held.
    world.holds.store(true, Ordering::Relaxed);
    *world.held.lock().await = vec!["o 1001".to_owned(), "mail 1001".to_owned()];
    for n in 1..=1500u64 {
        node.client().send(place("o", 1000 + n)).await.unwrap();
    }
    eventually(async || world.called("o 2000").await && world.called("mail 2000").await).await;
    drop(node);
    let node = start(&store, &world).await;
    world.release();
    node.wait_idle().await;
    for n in 1..=1500u64 {
        for what in [format!("o {}", 1000 + n), format!("mail {}", 1000 + n)] {
            let calls = world.calls(&what).await;
            assert!(calls.iter().all(|(key, _)| *key == calls[0].0), "{what}: {calls:?}");
            let again = calls.len() - 1;
            assert!(again == usize::from(n == 1) || (again == 1 && n > 900), "{what}: {calls:?}");
        }
    }
    let before: BTreeMap<_, _> = world.calls.lock().await.clone();
    node.stop().await.unwrap();
    let node = start(&store, &world).await;
    node.wait_idle().await;
    assert_eq!(*world.calls.lock().await, before, "finished jobs do not run again");
}

#[whizbang::test]
async fn no_more_jobs_run_at_once_than_the_configuration_says() {
    let (store, world) = (MemoryStore::new(), Arc::<World>::default());
    let node = Node::builder("shop", store)
        .threads(0)
        .worker(Charger(Arc::clone(&world)))
        .config(NodeConfig { threads: 0, jobs: 3, ..NodeConfig::default() })
        .start()
        .await
        .unwrap();
    world.holds.store(true, Ordering::Relaxed);
    let client = node.client();
    let all: Vec<_> = (0..50).map(|n| background(client.send(charge(&format!("o{n}"), 5)))).collect();
    eventually(async || world.now.load(Ordering::Relaxed) == 3).await;
    world.release();
    for one in all {
        assert_eq!(one.await.unwrap().unwrap(), "5 charged");
    }
    assert_eq!(world.most.load(Ordering::Relaxed), 3);
}

#[whizbang::test]
async fn stopping_node_finishes_its_jobs_and_starts_none() {
    let (store, world) = (MemoryStore::new(), Arc::<World>::default());
    let node = start(&store, &world).await;
    world.holds.store(true, Ordering::Relaxed);
    let first = background(node.client().send(charge("o1", 5)));
    eventually(async || world.called("o1").await).await;
    let client = node.client();
    let stopping = background(node.stop());
    eventually(async || client.send(charge("o2", 5)).await.is_err()).await;
    world.release();
    assert_eq!(first.await.unwrap().unwrap(), "5 charged");
    stopping.await.unwrap().unwrap();
    assert!(!world.called("o2").await);
}

#[whizbang::test]
async fn saga_and_its_worker_work_together_over_a_bridge() {
    let (hub, world) = (LoopbackHub::new(), Arc::<World>::default());
    let orders = Node::builder("orders", MemoryStore::new())
        .threads(0)
        .saga::<Order>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap();
    let payments = Node::builder("payments", MemoryStore::new())
        .worker(Charger(Arc::clone(&world)))
        .worker(Mailer(Arc::clone(&world)))
        .threads(2)
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap();
    let outside = Client::connect("wallet", hub.bridge()).await.unwrap();
    for n in 0..40u64 {
        outside.send(place(&format!("o{n}"), n)).await.unwrap();
    }
    assert_eq!(outside.send(charge("x", 5)).idempotency_key("k").await.unwrap(), "5 charged");
    assert_eq!(outside.send(charge("x", 5)).idempotency_key("k").await.unwrap(), "5 charged");
    assert_eq!(world.calls("x").await.len(), 1);
    let open = Cell::new(0);
    eventually(async || {
        open.set(0);
        for n in 0..40u64 {
            let expected = match n {
                0 => "payments.nothing",
                13 => "placed",
                _ => "paid",
            };
            if orders.client().send(state(&format!("o{n}"))).await.unwrap() != expected {
                open.set(open.get() + 1);
            }
        }
        open.get() == 0
    })
    .await;
    payments.wait_idle().await;
    for n in 0..40u64 {
        assert_eq!(world.calls(&format!("mail {n}")).await.len(), 1);
    }
    payments.stop().await.unwrap();
    orders.stop().await.unwrap();
}
