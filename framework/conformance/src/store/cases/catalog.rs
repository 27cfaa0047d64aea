//! The catalog of stored types.
//!
//! The store treats a catalog as one value with a version of its own. It compares and replaces it atomically, and does not
//! read it.

use super::super::Fixture;
use whizbang_core::store::CatalogEntry;

/// Returns the entry of an event type.
fn entry(name: &str, version: u32, shape: &str) -> CatalogEntry {
    CatalogEntry {
        owner: "bank/account".to_owned(),
        kind: "event".to_owned(),
        name: name.to_owned(),
        version,
        codec: 1,
        shape: shape.to_owned(),
    }
}

/// A store has no catalog until one is saved, and then returns the last saved one.
///
/// The catalog lists the versions and shapes of all types that the store contains. At its start a node compares them
/// with its own types, and refuses to start if it could misread stored data.
pub async fn catalog_is_replaced_as_a_whole(fixture: &impl Fixture) {
    let store = fixture.store().await;
    assert_eq!(store.catalog().await.unwrap(), None);
    let large = "a shape of a large type; ".repeat(10_000);
    let both = vec![entry("Paid", 1, "\"u64\""), entry("Größe \n \" \\", u32::MAX, &large)];
    assert!(store.replace_catalog(None, both.clone()).await.unwrap());
    assert_eq!(store.catalog().await.unwrap(), Some(both.clone()));
    let other = vec![entry("Paid", 2, "")];
    assert!(store.replace_catalog(Some(both), other.clone()).await.unwrap());
    assert_eq!(store.catalog().await.unwrap(), Some(other.clone()));
    assert!(store.replace_catalog(Some(other), Vec::new()).await.unwrap());
    assert_eq!(store.catalog().await.unwrap(), Some(Vec::new()));
}

/// A catalog that was replaced in between is not overwritten.
///
/// Two nodes with different types may start at the same time. The second one gets the new catalog and compares again.
pub async fn changed_catalog_is_not_replaced(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let (first, second) = (vec![entry("Paid", 1, "")], vec![entry("Refunded", 1, "")]);
    assert!(!store.replace_catalog(Some(second.clone()), first.clone()).await.unwrap(), "there is none yet");
    assert_eq!(store.catalog().await.unwrap(), None);
    assert!(store.replace_catalog(None, first.clone()).await.unwrap());
    for expected in [None, Some(second.clone()), Some(Vec::new())] {
        assert!(!store.replace_catalog(expected, second.clone()).await.unwrap());
        assert_eq!(store.catalog().await.unwrap(), Some(first.clone()));
    }
    drop(store);
    let store = fixture.store().await;
    assert!(!store.replace_catalog(None, second.clone()).await.unwrap());
    assert!(store.replace_catalog(Some(first), second).await.unwrap());
}

/// A reopened store returns the saved catalog, whether it was closed or not.
///
/// Without it, a node whose types have changed incompatibly would notice only when it reads the first such turn.
pub async fn catalog_survives_a_restart(fixture: &impl Fixture) {
    let saved = vec![entry("Paid", 1, "\"u64\""), entry("Refunded", 3, "")];
    let store = fixture.store().await;
    assert!(store.replace_catalog(None, saved.clone()).await.unwrap());
    drop(store);
    let store = fixture.store().await;
    assert_eq!(store.catalog().await.unwrap(), Some(saved.clone()));
    store.close().await.unwrap();
    drop(store);
    assert_eq!(fixture.store().await.catalog().await.unwrap(), Some(saved));
}
