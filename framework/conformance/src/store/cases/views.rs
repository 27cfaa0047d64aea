//! Views and their checkpoints.
//!
//! A view is saved by the node that owns its projection, under an epoch. The store does not read it.

use bytes::Bytes;

use super::super::Fixture;
use super::super::turn_builder::{name, shard};
use whizbang_core::store::{StoreError, View};

/// Returns a view whose parts all follow from a number.
fn view(number: u64) -> View {
    View {
        schema: 2,
        checkpoint: vec![(shard("bank", 0), number), (shard("shop", 3), number * 2)],
        bytes: Bytes::from(vec![number as u8; usize::try_from(number * 1_000).unwrap()]),
    }
}

/// A view is the last saved one, with its checkpoint.
///
/// View and checkpoint are replaced together: with a newer checkpoint the view would miss events, with an older one it
/// would apply events twice.
pub async fn view_is_replaced_with_its_checkpoint(fixture: &impl Fixture) {
    let store = fixture.store().await;
    assert_eq!(store.view(&name("balances")).await.unwrap(), None);
    let epoch = store.claim_view(&name("balances")).await.unwrap();
    for number in [3, 1, 2] {
        store.save_view(&name("balances"), epoch, view(number)).await.unwrap();
        assert_eq!(store.view(&name("balances")).await.unwrap(), Some(view(number)));
    }
    assert_eq!(store.view(&name("Balances")).await.unwrap(), None);
    let empty = View { schema: 0, checkpoint: Vec::new(), bytes: Bytes::new() };
    let epoch = store.claim_view(&name("empty")).await.unwrap();
    store.save_view(&name("empty"), epoch, empty.clone()).await.unwrap();
    assert_eq!(store.view(&name("empty")).await.unwrap(), Some(empty));
}

/// A reopened store returns the saved views.
///
/// A view that is lost is rebuilt from the first event, which takes long and needs the complete log.
pub async fn views_are_found_after_a_restart(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let epoch = store.claim_view(&name("balances")).await.unwrap();
    store.save_view(&name("balances"), epoch, view(5)).await.unwrap();
    store.save_view(&name("balances"), epoch, view(6)).await.unwrap();
    let other = store.claim_view(&name("other")).await.unwrap();
    store.save_view(&name("other"), other, view(1)).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let store = fixture.store().await;
    assert_eq!(store.view(&name("balances")).await.unwrap(), Some(view(6)));
    assert_eq!(store.view(&name("other")).await.unwrap(), Some(view(1)));
}

/// An owner that has lost a view can no longer save it.
///
/// Otherwise a node that was paused could replace a newer view by an older one.
pub async fn older_owner_of_a_view_is_fenced(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let balances = name("balances");
    let old = store.claim_view(&balances).await.unwrap();
    store.save_view(&balances, old, view(1)).await.unwrap();
    let other = store.claim_view(&name("other")).await.unwrap();
    let young = store.claim_view(&balances).await.unwrap();
    assert!(young > old);
    assert_eq!(store.view(&balances).await.unwrap(), Some(view(1)), "the new owner starts with the stored view");
    store.save_view(&balances, young, view(3)).await.unwrap();
    match store.save_view(&balances, old, view(2)).await {
        Err(StoreError::ViewTaken { projection, mine, current }) => {
            assert_eq!((projection.as_str(), mine, current), ("balances", old, young));
        }
        saved => panic!("{saved:?}"),
    }
    assert_eq!(store.view(&balances).await.unwrap(), Some(view(3)));
    store.save_view(&name("other"), other, view(1)).await.unwrap();
}
