//! The store on disk: the conformance suite of all stores, and what only a store with a folder can do.
#![cfg(all(feature = "testing", feature = "embedded"))]

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, ready};
use tempfile::TempDir;
use whizbang::message::{Name, ShardId};
use whizbang::store::Store;
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedStore};
use whizbang::testing::store::{Fixture, Owner, TurnBuilder, run};

struct Folder(TempDir, EmbeddedConfig);

impl Folder {
    fn new(config: EmbeddedConfig) -> Self {
        Self(tempfile::tempdir().unwrap(), config)
    }
}

impl Fixture for Folder {
    fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        let store = EmbeddedStore::open_with(self.0.path(), &self.1).unwrap();
        ready(Arc::new(store) as Arc<dyn Store>).boxed()
    }
}

mod as_it_is {
    use super::{EmbeddedConfig, Folder};

    whizbang::store_suite!(Folder::new(EmbeddedConfig::default()));
}

mod with_small_files_and_many_checkpoints {
    use super::{EmbeddedConfig, Folder};

    whizbang::store_suite!(Folder::new(EmbeddedConfig::default().segment_bytes(3 << 20).checkpoint_bytes(16 << 10)));
}

#[test]
fn concurrent_reads_of_long_streams_are_bounded() {
    run(async {
        let folder = Folder::new(EmbeddedConfig::default());
        let store = folder.store().await;
        let mut owner = Owner::take(&store, &ShardId::new(Name::new("bank").unwrap(), 0)).await;
        for number in 1..=300 {
            owner
                .commit(&TurnBuilder::new("Account", "ada", number).at(number, number - 1).event("Happened", "1"))
                .await;
        }
        let actor = Name::new("Account").unwrap();
        let mut open = Vec::new();
        for _ in 0..64 {
            open.push(owner.reader.pages(&actor, "ada", true).await.unwrap());
        }
        // One more reader waits until one of these is finished.
        let mut waits = owner.reader.pages(&actor, "ada", true);
        assert!(futures_util::poll!(&mut waits).is_pending());
        open.pop();
        let mut pages = waits.await.unwrap();
        assert_eq!(pages.next().await.unwrap().len() + pages.next().await.unwrap().len(), 300);
    });
}
