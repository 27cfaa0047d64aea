//! The logs of the services for reading: in the data folder, or in PostgreSQL. Writes nothing.

use std::sync::Arc;

use whizbang::PostgresStore;
use whizbang::message::{Name, ShardId};
use whizbang::store::embedded::ReadOnlyStore;
use whizbang::store::{ShardReader, Store, StoreError, View};

/// The logs of one service.
pub enum Logs {
    /// An embedded store, at one moment.
    Folder(ReadOnlyStore),
    /// Tables in PostgreSQL.
    Postgres(PostgresStore),
}

impl Logs {
    /// Returns the log of a shard; `None` if nothing was ever written to it.
    ///
    /// # Errors
    /// The errors of reading.
    pub async fn read(&self, shard: &ShardId) -> Result<Option<Arc<dyn ShardReader>>, StoreError> {
        match self {
            Self::Folder(store) => Ok(store.read(shard)),
            Self::Postgres(store) => store.read(shard).await,
        }
    }

    /// Returns the saved view of a projection, if there is one.
    ///
    /// # Errors
    /// The errors of reading.
    pub async fn view(&self, projection: &Name) -> Result<Option<View>, StoreError> {
        match self {
            Self::Folder(store) => store.view(projection),
            Self::Postgres(store) => store.view(projection).await,
        }
    }

    /// Returns true if a process used the store while it was read. Unknown, and false, in PostgreSQL.
    pub fn was_in_use(&self) -> bool {
        matches!(self, Self::Folder(store) if store.was_in_use())
    }
}
