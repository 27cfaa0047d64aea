//! Tests of the place of a store.

use super::*;
use crate::tests::test_store::{now, small, turn};
use whizbang_conformance::store::{Owner, RecordingListener, run};

fn place(folder: &Path) -> EmbeddedPlace {
    EmbeddedPlace::new(folder).config(small())
}

fn opened(folder: &Path) -> Result<EmbeddedStore, StoreError> {
    EmbeddedStore::open_with(folder, &small())
}

fn new_store(number: u128) -> NewStore {
    NewStore { number, digest_key: 77, identity: None }
}

fn bank() -> ShardId {
    ShardId::new(Name::new("bank").unwrap(), 1)
}

/// Creates a complete copy that the move with this number has made.
fn complete(folder: &Path, number: u128) {
    run(async {
        let target = place(folder).create(new_store(number)).await.unwrap();
        assert_eq!(target.at(), folder.display().to_string());
        target.complete().await.unwrap();
        drop(target);
    });
}

#[test]
fn complete_copy_is_finished_once() {
    let above = tempfile::tempdir().unwrap();
    let folder = above.path().join("copy");
    assert!(!now(place(&folder).finish(5)).unwrap() && !folder.exists(), "there is no store");
    complete(&folder, 5);
    assert!(matches!(opened(&folder), Err(StoreError::Unfinished { .. })));
    assert!(!now(place(&folder).finish(6)).unwrap(), "the copy of another move");
    assert!(matches!(opened(&folder), Err(StoreError::Unfinished { .. })));
    assert!(now(place(&folder).finish(5)).unwrap());
    assert!(!now(place(&folder).finish(5)).unwrap(), "it is a usual store now");
    let store = opened(&folder).unwrap();
    assert_eq!(store.digest_key(), 77);
    assert!(!now(place(&folder).finish(5)).unwrap());
}

#[test]
fn copy_in_use_is_not_finished() {
    let above = tempfile::tempdir().unwrap();
    complete(above.path(), 5);
    let other = Folder::at(above.path());
    assert!(other.lock().unwrap());
    assert!(matches!(now(place(above.path()).finish(5)), Err(StoreError::InUse { .. })));
    drop(other);
    assert!(now(place(above.path()).finish(5)).unwrap());
    // The lock is released, also after nothing was done.
    drop(opened(above.path()).unwrap());
}

#[test]
fn incomplete_copy_is_neither_finished_nor_replaced() {
    let above = tempfile::tempdir().unwrap();
    let target = now(place(above.path()).create(new_store(5))).unwrap();
    drop(target);
    assert!(!now(place(above.path()).finish(5)).unwrap());
    assert!(now(place(above.path()).create(new_store(6))).is_err());
    assert!(matches!(now(place(above.path()).source()), Err(StoreError::Unfinished { .. })));
    assert!(matches!(opened(above.path()), Err(StoreError::Unfinished { .. })));
}

#[test]
fn source_has_its_shards_views_and_turns() {
    let above = tempfile::tempdir().unwrap();
    let folder = above.path().join("store");
    assert!(matches!(now(place(&folder).source()), Err(StoreError::Missing { .. })));
    run(async {
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open_with(&folder, &small()).unwrap());
        drop(Owner::take(&store, &bank()).await);
        let mut owner = Owner::take(&store, &bank()).await;
        for number in 1..=40 {
            owner.commit(&turn("a", number, 300)).await;
        }
        let view = whizbang_core::store::View { schema: 1, checkpoint: Vec::new(), bytes: Bytes::new() };
        store.save_view(&Name::new("Balances").unwrap(), 1, view).await.unwrap();
        store.close().await.unwrap();
    });
    run(async {
        let FoundSource::Ready(source) = place(&folder).source().await.unwrap() else { panic!("it has not moved") };
        assert!(matches!(opened(&folder), Err(StoreError::InUse { .. })));
        assert_eq!(
            (source.at(), source.views().await.unwrap()),
            (folder.display().to_string(), vec![Name::new("Balances").unwrap()])
        );
        let shards = source.shards().await.unwrap();
        let [shard] = &shards[..] else { panic!("one shard") };
        assert_eq!((&shard.id, shard.shards, shard.epoch), (&bank(), 4, 2));
        let (mut pages, mut positions) = (source.turns(), Vec::new());
        loop {
            let page = pages.next().await.unwrap();
            if page.is_empty() {
                break;
            }
            positions.extend(page.iter().map(|(shard, turn)| (shard.clone(), turn.position())));
        }
        assert_eq!(positions.len(), 40);
        assert!(positions.iter().all(|(shard, _)| *shard == bank()));
        assert!(pages.next().await.unwrap().is_empty());
        drop(pages);
        source.mark_moved(&MoveMark::new(5, MoveState::Away("elsewhere".to_owned()))).await.unwrap();
        drop(source);
        let FoundSource::Moved { at, mark } = place(&folder).source().await.unwrap() else { panic!("it has moved") };
        assert_eq!((at, mark.number), (folder.display().to_string(), 5));
        assert!(matches!(opened(&folder), Err(StoreError::Moved { .. })));
    });
}

#[test]
fn damaged_source_is_not_copied() {
    let above = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open_with(above.path(), &small()).unwrap();
    run(async {
        let store: Arc<dyn Store> = Arc::new(store);
        let mut owner = Owner::take(&store, &bank()).await;
        for number in 1..=4 {
            owner.commit(&turn("a", number, 300)).await;
        }
        store.close().await.unwrap();
    });
    run(async {
        let FoundSource::Ready(source) = place(above.path()).source().await.unwrap() else {
            panic!("it has not moved")
        };
        let file = above.path().join("log-0000000001");
        let mut bytes = std::fs::read(&file).unwrap();
        // In the second turn.
        bytes[512 + 100 + 400] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let mut pages = source.turns();
        let read = async {
            while !pages.next().await?.is_empty() {}
            Ok::<(), StoreError>(())
        };
        assert!(matches!(read.await, Err(StoreError::Corrupt { .. })));
    });
}

#[test]
fn activated_target_is_a_usual_store() {
    let above = tempfile::tempdir().unwrap();
    let source = CopiedShard { id: bank(), shards: 4, epoch: 8 };
    run(async {
        let target = place(above.path()).create(new_store(5)).await.unwrap();
        let handle = target.open(&source, Arc::new(RecordingListener::default())).await.unwrap();
        assert_eq!(handle.writer.epoch(), 9, "after that of the source");
        drop(handle);
        target.complete().await.unwrap();
        target.activate().await.unwrap();
    });
    let store = opened(above.path()).unwrap();
    assert_eq!(store.inner.shards()[0].state.lock().epoch, 9);
}
