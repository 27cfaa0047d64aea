//! The catalog of stored types.

use super::super::Fixture;
use whizbang_core::store::CatalogEntry;

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
pub async fn catalog_is_replaced_as_a_whole(fixture: &impl Fixture) {
    let store = fixture.store().await;
    assert_eq!(store.catalog().await.unwrap(), None);
    let large = "a shape of a large type; ".repeat(10_000);
    let both = vec![entry("Paid", 1, "\"u64\""), entry("Größe \n \" \\", u32::MAX, &large)];
    store.save_catalog(both.clone()).await.unwrap();
    assert_eq!(store.catalog().await.unwrap(), Some(both));
    let other = vec![entry("Paid", 2, "")];
    store.save_catalog(other.clone()).await.unwrap();
    assert_eq!(store.catalog().await.unwrap(), Some(other));
    store.save_catalog(Vec::new()).await.unwrap();
    assert_eq!(store.catalog().await.unwrap(), Some(Vec::new()));
}

/// A reopened store returns the saved catalog, whether it was closed or not.
pub async fn catalog_survives_a_restart(fixture: &impl Fixture) {
    let saved = vec![entry("Paid", 1, "\"u64\""), entry("Refunded", 3, "")];
    let store = fixture.store().await;
    store.save_catalog(saved.clone()).await.unwrap();
    drop(store);
    let store = fixture.store().await;
    assert_eq!(store.catalog().await.unwrap(), Some(saved.clone()));
    store.close().await.unwrap();
    drop(store);
    assert_eq!(fixture.store().await.catalog().await.unwrap(), Some(saved));
}
