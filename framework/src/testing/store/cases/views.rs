//! Views and their checkpoints.

use bytes::Bytes;

use super::super::Fixture;
use super::super::draft::{name, shard};
use crate::store::View;

fn view(number: u64) -> View {
    View {
        schema: 2,
        checkpoint: vec![(shard("bank", 0), number), (shard("shop", 3), number * 2)],
        bytes: Bytes::from(vec![number as u8; usize::try_from(number * 1_000).unwrap()]),
    }
}

/// A view is what was saved last, checkpoint and bytes together.
pub async fn a_view_is_replaced_with_its_checkpoint(fixture: &impl Fixture) {
    let store = fixture.store().await;
    assert_eq!(store.view(&name("balances")).await.unwrap(), None);
    for number in [3, 1, 2] {
        store.save_view(&name("balances"), view(number)).await.unwrap();
        assert_eq!(store.view(&name("balances")).await.unwrap(), Some(view(number)));
    }
    assert_eq!(store.view(&name("Balances")).await.unwrap(), None);
    let empty = View { schema: 0, checkpoint: Vec::new(), bytes: Bytes::new() };
    store.save_view(&name("empty"), empty.clone()).await.unwrap();
    assert_eq!(store.view(&name("empty")).await.unwrap(), Some(empty));
}

/// A saved view is found by a store that is opened again.
pub async fn views_are_found_after_a_restart(fixture: &impl Fixture) {
    let store = fixture.store().await;
    store.save_view(&name("balances"), view(5)).await.unwrap();
    store.save_view(&name("balances"), view(6)).await.unwrap();
    store.save_view(&name("other"), view(1)).await.unwrap();
    store.close().await.unwrap();
    drop(store);
    let store = fixture.store().await;
    assert_eq!(store.view(&name("balances")).await.unwrap(), Some(view(6)));
    assert_eq!(store.view(&name("other")).await.unwrap(), Some(view(1)));
}
