//! The identity of the store, to which each start of a node adds itself.

use std::sync::Arc;

use super::super::{Fixture, SharedFixture};
use whizbang_core::message::{Run, StoreIdentity};
use whizbang_core::store::Store;

/// Nodes that start at the same time.
const STARTS: u64 = 8;

/// Returns the stored identity, which must exist.
async fn identity(store: &Arc<dyn Store>) -> StoreIdentity {
    store.identity().await.unwrap().expect("the store has an identity")
}

/// An identity that was replaced in between is not overwritten, and the last one is found after a restart.
///
/// The identity tells a replaced or restored store from a restarted node. A start that overwrote another one would let
/// two runs have one number.
pub async fn changed_identity_is_not_replaced(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let new = identity(&store).await;
    let (first, run) = new.clone().trying(1);
    assert!(store.replace_identity(new.clone(), first.clone()).await.unwrap());
    assert!(!store.replace_identity(new.clone(), new.clone().trying(2).0).await.unwrap());
    assert_eq!(identity(&store).await, first);
    drop(store);
    let store = fixture.store().await;
    assert_eq!(identity(&store).await, first);
    let won = first.clone().has_won(run);
    assert!(!store.replace_identity(new, won.clone()).await.unwrap());
    assert!(store.replace_identity(first, won.clone()).await.unwrap());
    assert_eq!(identity(&store).await, won);
}

/// Starts at the same time are all recorded, with different numbers.
///
/// Nodes of a service may start together after an update of the whole service.
pub async fn starts_at_the_same_time_are_all_recorded(fixture: &impl Fixture) {
    let store = fixture.store().await;
    race(&store, &store).await;
}

/// Starts at the same time on two instances of the store are all recorded, with different numbers.
///
/// The comparison with the previous identity must therefore be made by the shared data, not by an instance.
pub async fn starts_on_two_instances_are_all_recorded(fixture: &impl SharedFixture) {
    let (one, other) = (fixture.store().await, fixture.second().await);
    race(&one, &other).await;
    assert_eq!(identity(&one).await, identity(&other).await);
}

/// Adds starts through both instances at the same time, and checks that none is lost.
async fn race(one: &Arc<dyn Store>, other: &Arc<dyn Store>) {
    let starts = (1..=STARTS).map(|nonce| start(if nonce % 2 == 0 { one } else { other }, nonce));
    let mut runs = futures_util::future::join_all(starts).await;
    runs.sort_by_key(|run| run.epoch);
    assert_eq!(identity(one).await.runs(), runs);
    let epochs: Vec<u64> = runs.iter().map(|run| run.epoch).collect();
    assert_eq!(epochs, (1..=STARTS).collect::<Vec<_>>());
}

/// Adds a start as a node does. All starts read before the first of them writes.
async fn start(store: &Arc<dyn Store>, nonce: u64) -> Run {
    loop {
        let before = identity(store).await;
        tokio::task::yield_now().await;
        let (tried, run) = before.clone().trying(nonce);
        if store.replace_identity(before, tried).await.unwrap() {
            return run;
        }
    }
}
