//! Two people at once at a worker's dead letters: each job is done once more, and not once for each of them.

mod payments;
mod watched;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use payments::*;
use watched::{Watch, WatchedStore};
use whizbang::SendError;
use whizbang::prelude::*;
use whizbang::store::DeadLetter;

/// A node with one dead letter: a charge that was tried three times.
async fn with_a_letter(world: &Arc<World>, watch: &Arc<Watch>) -> (Node, DeadLetter) {
    let store = WatchedStore(MemoryStore::new(), Arc::clone(watch));
    let builder = Node::builder("shop", store).threads(0).worker(Charger(Arc::clone(world)));
    let node = builder.retry(quick()).start().await.unwrap();
    world.fails.store(usize::MAX, Ordering::Relaxed);
    node.client().send(charge("o1", 5)).await.unwrap_err();
    world.fails.store(0, Ordering::Relaxed);
    let letter = node.dead_letters().await.unwrap().remove(0);
    (node, letter)
}

#[whizbang::test]
async fn two_redrives_at_once_do_a_job_once() {
    let (world, watch) = (Arc::<World>::default(), Arc::<Watch>::default());
    let (node, letter) = with_a_letter(&world, &watch).await;
    watch.letters.next.store(true, Ordering::Relaxed);
    let both = async {
        watch.letters.reads.notified().await;
        node.redrive(&letter).await.unwrap();
        watch.letters.go.notify_one();
    };
    let (slow, ()) = tokio::join!(node.redrive(&letter), both);
    slow.unwrap();
    assert_eq!(world.calls("o1").await.len(), 3 + 1);
    assert_eq!(node.dead_letters().await.unwrap(), []);
}

#[whizbang::test]
async fn a_dead_letter_whose_job_is_under_way_is_neither_driven_again_nor_thrown_away() {
    let (world, watch) = (Arc::<World>::default(), Arc::<Watch>::default());
    let (node, letter) = with_a_letter(&world, &watch).await;
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
