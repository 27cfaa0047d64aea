//! A store that is moved to another folder: the service continues there, and the old folder is refused. The tests with PostgreSQL are
//! in `tests/tests/moves`.
#![cfg(feature = "embedded")]

mod bank;

use bank::{Account, deposit};
use whizbang::prelude::*;
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedPlace};
use whizbang::store::{MoveStep, Store as _, StoreError, move_store};
use whizbang::{EmbeddedStore, SendError};

async fn start(store: EmbeddedStore) -> Node {
    Node::builder("bank", store).threads(0).aggregate::<Account>().start().await.unwrap()
}

#[whizbang::test]
async fn moved_folder_continues_and_the_old_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    // Many small files, so that the copy crosses their ends.
    let config = EmbeddedConfig::default().segment_bytes(64 * 1024);
    let node = start(EmbeddedStore::open_with(&old, &config).unwrap()).await;
    let client = node.client();
    let id = client.new_id();
    let reply = client.send(deposit("ada", 500)).id(id).await.unwrap();
    for number in 0..500 {
        client.send(deposit(&format!("account{}", number % 50), 1)).await.unwrap();
    }
    node.stop().await.unwrap();

    let mut steps = Vec::new();
    let (from, to) = (EmbeddedPlace::new(&old).config(config.clone()), EmbeddedPlace::new(&new).config(config));
    let moved = move_store(&from, &to, |progress| steps.push(progress.step)).await.unwrap();
    steps.dedup();
    let expected = [
        MoveStep::Create,
        MoveStep::Copy,
        MoveStep::Compare,
        MoveStep::CopyViews,
        MoveStep::Complete,
        MoveStep::GiveUpSource,
        MoveStep::Activate,
        MoveStep::Done,
    ];
    assert_eq!((moved.events, moved.turns, moved.is_resumed, &steps[..]), (501, 501, false, &expected[..]));
    for refused in [EmbeddedStore::open(&old).map(drop), EmbeddedStore::read_only(&old).map(drop)] {
        let Err(StoreError::Moved { to, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(to, new.display().to_string());
    }
    let again = move_store(&from, &to, |_| {}).await;
    assert!(matches!(again, Err(StoreError::Moved { .. })), "the move has ended: {again:?}");

    let node = start(EmbeddedStore::open(&new).unwrap()).await;
    let client = node.client();
    assert_eq!(client.send(deposit("ada", 500)).id(id).await.unwrap(), reply);
    let other = client.send(deposit("ada", 501)).id(id).await;
    assert!(matches!(other, Err(SendError::Conflict)), "{other:?}");
    assert_eq!(client.send(deposit("account7", 1)).await.unwrap(), 11);
    node.stop().await.unwrap();
    // The second format is read again.
    EmbeddedStore::open(&new).unwrap().close().await.unwrap();
}
