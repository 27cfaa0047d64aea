//! Access to the records behind the index of a shard: of a store that is open here, or of one that is only read.
//!
//! Called by the [reader](super::reader) of a shard. Implemented by the [open store](super::inner) and by the
//! [read-only store](super::read_only).

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::segment::Segments;
use super::snapshots::SnapshotLocation;
use whizbang_core::store::StoreError;
use whizbang_log::index::IdHash;
use whizbang_log::record::Location;
use whizbang_log::traverse::Located;

/// A job for the reading thread.
pub(super) type ReadJob = Box<dyn FnOnce() + Send>;

/// Access to the records behind an index.
pub(super) trait LogSource: Send + Sync {
    /// Returns the files of the log.
    fn segments(&self) -> &Segments;
    /// Returns the location before which every record is committed.
    fn committed(&self) -> Location;
    /// Runs a job on the reading thread. Returns the job if there is no such thread.
    fn spawn_read(&self, job: ReadJob) -> Option<ReadJob>;
    /// Reports damage that was found.
    fn record_damage(&self, error: &StoreError);
    /// Returns the locations of turns with an id beyond the shard's index, newest first; `None` if unknown.
    fn older_turns(&self, id: IdHash) -> Option<Vec<Location>>;
    /// Reads a stored snapshot, or returns `None` if it cannot be used.
    fn snapshot(&self, stored: SnapshotLocation, actor: &str, key: &str) -> Option<Located>;
    /// Returns a semaphore with one permit for each long stream that may be read concurrently, if there is a limit.
    fn long_reads(&self) -> Option<Arc<Semaphore>> {
        None
    }
}
