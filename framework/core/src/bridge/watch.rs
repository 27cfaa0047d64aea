//! Watches of domains: reports that their logs have grown, for readers that start and end while a node runs.
//!
//! Called by streams of events, through the bridge. A report is a hint: the reader reads the log of the owner, so a lost, repeated
//! or false report costs a delay or a request, and never an event.

use std::fmt;

use crate::message::ShardId;

/// The receiver of the reports about one domain. Its methods may be called on any thread and never block.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use whizbang::bridge::Watcher;
/// use whizbang::message::ShardId;
///
/// /// Remembers the last reported position.
/// #[derive(Default)]
/// struct Newest(AtomicU64);
///
/// impl Watcher for Newest {
///     fn grown(&self, _shard: &ShardId, position: u64) {
///         self.0.fetch_max(position, Ordering::Relaxed);
///     }
///
///     fn interrupted(&self) {}
/// }
/// # let newest = Newest::default();
/// # newest.grown(&ShardId::new(whizbang::message::Name::from_static("bank").unwrap(), 0), 7);
/// # newest.ended();
/// # assert_eq!(newest.0.into_inner(), 7);
/// ```
pub trait Watcher: Send + Sync + 'static {
    /// Reports that the log of a shard reaches at least `position`.
    fn grown(&self, shard: &ShardId, position: u64);

    /// Reports that reports may have been lost: each log may have grown.
    fn interrupted(&self);

    /// Reports that no further reports follow. The reader drops its watch and begins another one. Default: as
    /// [`interrupted`](Self::interrupted).
    fn ended(&self) {
        self.interrupted();
    }
}

/// A watch of a domain, which ends when it is dropped.
#[must_use = "a watch ends when it is dropped"]
pub struct Watch(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Watch {
    /// Creates a watch that calls `end` when it is dropped, on the thread that drops it.
    pub fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(end)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
