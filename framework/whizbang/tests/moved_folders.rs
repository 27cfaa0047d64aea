//! A store that is moved to another folder: the service continues there, and the old folder is refused. The tests with PostgreSQL are
//! in `tests/tests/moves`.
#![cfg(all(feature = "embedded", feature = "testing"))]

mod bank;

use std::sync::Arc;

use bank::{Account, deposit};
use whizbang::message::{Name, ShardId};
use whizbang::prelude::*;
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedPlace};
use whizbang::store::{MoveProgress, MoveStep, Source, SourceKind, Store, StoreError, View, Watermark, move_store};
use whizbang::testing::store::{Owner, TurnBuilder, run};
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

#[test]
fn moved_store_has_its_progress_and_its_views() {
    run(async {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        let name = |text| Name::new(text).unwrap();
        let [first, second, shop, other] = [("bank", 0), ("bank", 1), ("shop", 0), ("shop", 1)]
            .map(|(domain, number)| ShardId::new(name(domain), number));
        let source = Source { shard: shop.clone(), kind: SourceKind::Direct };
        let view = View { schema: 1, checkpoint: vec![(first.clone(), 2)], bytes: vec![7].into() };
        let store = Arc::new(EmbeddedStore::open(&old).unwrap()) as Arc<dyn Store>;
        let mut owner = Owner::take(&store, &first).await;
        let turn = |number| TurnBuilder::new("Account", "ada", number).at(number, 0);
        owner.commit(&turn(1).event("A", "1").event("A", "2").send(&shop, 1).send(&shop, 2).send(&other, 3)).await;
        owner.commit(&turn(2).at(2, 2).send(&shop, 4).from(&source, 5, 5)).await;
        owner.sent(&shop, 2).await;
        owner.advance(&Watermark { source: source.clone(), through: 7 }).await;
        Owner::take(&store, &second).await.commit(&turn(1).event("A", "3")).await;
        for (projection, is_saved) in [("balances", true), ("claimed", false)] {
            let epoch = store.claim_view(&name(projection)).await.unwrap();
            if is_saved {
                store.save_view(&name(projection), epoch, view.clone()).await.unwrap();
            }
        }
        store.close().await.unwrap();
        drop((owner, store));

        let mut steps: Vec<(MoveStep, u64, u64)> = Vec::new();
        let report = |progress: &MoveProgress| steps.push((progress.step, progress.events, progress.of));
        let moved = move_store(&EmbeddedPlace::new(&old), &EmbeddedPlace::new(&new), report).await.unwrap();
        assert_eq!((moved.shards, moved.turns, moved.events, moved.views), (2, 3, 3, 1));
        assert_eq!((steps[0], steps[1]), ((MoveStep::Create, 0, 0), (MoveStep::Copy, 0, 3)));
        let last = |step| steps.iter().rfind(|(of, ..)| *of == step).map(|(_, events, of)| (*events, *of));
        for step in [MoveStep::Copy, MoveStep::Compare, MoveStep::CopyViews, MoveStep::Complete, MoveStep::Done] {
            assert_eq!(last(step), Some((3, 3)), "{step:?}");
        }

        let store = Arc::new(EmbeddedStore::open(&new).unwrap()) as Arc<dyn Store>;
        let owner = Owner::take(&store, &first).await;
        let mut heads = owner.reader.outbox_heads();
        heads.sort();
        assert_eq!(heads, [(shop.clone(), 2, 3), (other, 0, 1)]);
        assert_eq!(owner.reader.outbox(&shop, 2, 9).await.unwrap().len(), 1);
        assert_eq!(owner.reader.watermark(&source), 7);
        assert_eq!(store.view(&name("balances")).await.unwrap(), Some(view));
        assert_eq!(store.view(&name("claimed")).await.unwrap(), None);
    });
}
