//! Streams that are read page by page.

use futures_util::future::BoxFuture;

use super::{Snapshot, StoreError, StoredTurn, StreamState};

/// A stream that is read page by page, from [`ShardReader::pages`](super::ShardReader::pages).
///
/// ```
/// # use std::sync::Arc;
/// # use whizbang::message::{Name, ShardId};
/// # use whizbang::store::{CommitListener, Store, StoreError, Ticket, memory::MemoryStore};
/// # struct Unheard;
/// # impl CommitListener for Unheard {
/// #     fn committed(&self, _: Ticket) {}
/// #     fn failed(&self, _: StoreError) {}
/// # }
/// # whizbang::derive::block_on(async {
/// let (store, shard) = (MemoryStore::new(), ShardId::new(Name::from_static("bank")?, 0));
/// let reader = store.open(&shard, 16, Arc::new(Unheard)).await?.reader;
/// let mut pages = reader.pages(&Name::from_static("Account")?, "ada", true).await?;
/// let mut turns = 0;
/// loop {
///     let page = pages.next().await?;
///     if page.is_empty() {
///         break;
///     }
///     turns += page.len();
/// }
/// assert_eq!(turns, 0, "the account has no history");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub trait StreamPages: Send {
    /// Returns the newest usable snapshot. The pages hold the turns after it.
    fn snapshot(&self) -> Option<&Snapshot>;

    /// Returns the next turns, oldest first, or an empty list at the end.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<StoredTurn>, StoreError>>;
}

/// A stream whose turns were all read at once.
#[doc(hidden)]
#[derive(Debug)]
pub struct OnePage(pub StreamState);

impl StreamPages for OnePage {
    fn snapshot(&self) -> Option<&Snapshot> {
        self.0.snapshot.as_ref()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Vec<StoredTurn>, StoreError>> {
        let turns = std::mem::take(&mut self.0.turns);
        Box::pin(std::future::ready(Ok(turns)))
    }
}
