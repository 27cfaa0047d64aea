//! Pages of long streams, read on the store's reading thread.
//!
//! Called by the [reader](super::reader) of a shard. An actor's thread applies a page of a stream before the next one is
//! read.
//!
//! The number of pages in memory is bounded by [`LONG_READS`], whatever the number of actors that are activated at once.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::log::LogReader;
use super::log_source::LogSource;
use whizbang_core::store::{Snapshot, StoreError, StoredTurn, StreamPages};
use whizbang_log::index::Head;
use whizbang_log::traverse;

/// The number of long streams that are read concurrently; others wait. Each holds a page of about 1 MiB in memory, in
/// the reading thread's queue or at its actor.
pub(super) const LONG_READS: usize = 64;

/// A long stream that is read page by page.
pub(super) struct Pages {
    /// The log, and the thread that reads it.
    pub(super) store: Arc<dyn LogSource>,
    /// The actor type of the stream.
    pub(super) actor: Arc<str>,
    /// The key of the stream.
    pub(super) key: Arc<str>,
    /// The snapshot before the first page, if one is used.
    pub(super) snapshot: Option<Snapshot>,
    /// The ends of the unread pages, newest first.
    pub(super) ends: Vec<Head>,
    /// The last turn that was read.
    pub(super) floor: u64,
    /// Held until the whole stream is read, because a page is in memory until then.
    pub(super) _permit: Option<OwnedSemaphorePermit>,
}

impl StreamPages for Pages {
    fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<Vec<StoredTurn>, StoreError>> {
        let Some(end) = self.ends.pop() else { return ready(Ok(Vec::new())).boxed() };
        let floor = std::mem::replace(&mut self.floor, end.number);
        let (store, actor, key) = (Arc::clone(&self.store), Arc::clone(&self.actor), Arc::clone(&self.key));
        let page = move || traverse::page(&LogReader::sharing_memory(store.segments()), end, floor, &actor, &key);
        async move { run_on_reader(&self.store, page).await }.boxed()
    }
}

/// Runs `work` on the store's reading thread, or on the calling thread if there is none. Damage is reported to the store as
/// well as to the caller.
///
/// # Errors
/// The error of `work`, or [`StoreError::Closed`] if the thread has ended.
///
/// Cancel safe: the work is done and its result dropped.
pub(super) async fn run_on_reader<T: Send + 'static>(
    store: &Arc<dyn LogSource>,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let (sender, receiver) = oneshot::channel();
    let reading = Arc::clone(store);
    let job = move || {
        let read = work();
        if let Err(error) = &read {
            reading.record_damage(error);
        }
        let _ = sender.send(read);
    };
    if let Some(job) = store.spawn_read(Box::new(job)) {
        job();
    }
    receiver.await.unwrap_or(Err(StoreError::Closed))
}
