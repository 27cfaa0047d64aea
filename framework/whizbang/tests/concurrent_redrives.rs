//! Two operators handle a worker's dead letters at the same time: each job runs once more, not once per operator.

mod eventually;
mod instrumented_store;
mod payments;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use eventually::eventually;
use instrumented_store::{InstrumentedStore, StoreProbe};
use payments::*;
use whizbang::SendError;
use whizbang::prelude::*;
use whizbang::store::DeadLetter;

/// Starts a node with one dead letter: a charge that was tried three times.
async fn with_a_dead_letter(world: &Arc<World>, probe: &Arc<StoreProbe>) -> (Node, DeadLetter) {
    let store = InstrumentedStore(MemoryStore::new(), Arc::clone(probe));
    let builder = Node::builder("shop", store).threads(0).worker(Charger(Arc::clone(world)));
    let node = builder.retry(quick()).start().await.unwrap();
    world.fails.store(usize::MAX, Ordering::Relaxed);
    node.client().send(charge("o1", 5)).await.unwrap_err();
    world.fails.store(0, Ordering::Relaxed);
    let letter = node.dead_letters().await.unwrap().remove(0);
    (node, letter)
}

#[whizbang::test]
async fn concurrent_redrives_run_a_job_once() {
    let (world, probe) = (Arc::<World>::default(), Arc::<StoreProbe>::default());
    let (node, letter) = with_a_dead_letter(&world, &probe).await;
    probe.letters.next.store(true, Ordering::Relaxed);
    let both = async {
        probe.letters.reads.notified().await;
        node.redrive(&letter).await.unwrap();
        probe.letters.go.notify_one();
    };
    let (slow, ()) = tokio::join!(node.redrive(&letter), both);
    slow.unwrap();
    assert_eq!(world.calls("o1").await.len(), 3 + 1);
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

#[whizbang::test]
async fn dead_letter_of_a_running_job_is_busy() {
    let (world, probe) = (Arc::<World>::default(), Arc::<StoreProbe>::default());
    let (node, letter) = with_a_dead_letter(&world, &probe).await;
    world.holds.store(true, Ordering::Relaxed);
    let others = async {
        eventually(async || world.calls("o1").await.len() == 3 + 1).await;
        assert!(matches!(node.redrive(&letter).await, Err(SendError::Busy { .. })));
        assert!(matches!(node.discard(&letter).await, Err(SendError::Busy { .. })));
        world.release();
    };
    let (first, ()) = tokio::join!(node.redrive(&letter), others);
    first.unwrap();
    assert_eq!(world.calls("o1").await.len(), 3 + 1);
    assert!(matches!(node.discard(&letter).await, Err(SendError::Unhandled { .. })));
}
