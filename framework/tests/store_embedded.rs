//! The store on disk: the suite every store passes, and what only a store with a folder can do.
#![cfg(all(feature = "testing", feature = "embedded"))]

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt, ready};
use tempfile::TempDir;
use whizbang::store::Store;
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedStore};
use whizbang::testing::store::Fixture;

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
