//! Memory for snapshots that are not in a file yet, counted over all shards of a store.
//!
//! Reserved by the writer of a shard, held by the pending snapshot, and released when the snapshot is written, replaced or
//! dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The bytes of unwritten snapshots held in memory over all shards; further snapshots are dropped. A single snapshot
/// may be larger.
const MAX_RESERVED_BYTES: usize = 64 * 1024 * 1024;

/// The counter of reserved bytes. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct SnapshotMemory(Arc<AtomicUsize>);

impl SnapshotMemory {
    /// Reserves memory for a snapshot until it is written. Returns `None` if the limit is reached.
    pub(super) fn reserve(&self, bytes: usize) -> Option<ReservedBytes> {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        let held = ReservedBytes(Arc::clone(&self.0), bytes);
        (before == 0 || before.saturating_add(bytes) <= MAX_RESERVED_BYTES).then_some(held)
    }
}

/// Reserved memory, released on drop.
#[derive(Debug)]
pub(super) struct ReservedBytes(Arc<AtomicUsize>, usize);

impl Drop for ReservedBytes {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queued_snapshots_are_bounded_in_bytes() {
        let memory = SnapshotMemory::default();
        let alone = memory.reserve(2 * MAX_RESERVED_BYTES).expect("one alone may be larger");
        assert!(memory.reserve(1).is_none());
        drop(alone);
        let many: Vec<_> = (0..64).map(|_| memory.reserve(MAX_RESERVED_BYTES / 64).expect("there is room")).collect();
        assert!(memory.reserve(1).is_none());
        drop(many);
        assert_eq!(memory.0.load(Ordering::Relaxed), 0);
    }
}
