//! Configuration of a store on disk.

/// The sizes of a store on disk. The defaults suit nearly all uses.
///
/// ```
/// use whizbang::store::embedded::EmbeddedConfig;
///
/// let config = EmbeddedConfig::default().segment_bytes(16 << 20).checkpoint_bytes(128 << 20);
/// # drop(config);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedConfig {
    /// The size of the first segment; later ones grow to `segment_bytes`.
    pub(super) first_segment_bytes: u64,
    /// The size of the later segments in bytes. The first ones are smaller, so that a small store stays small.
    pub(super) segment_bytes: u64,
    /// The growth of the log after which a checkpoint is written.
    pub(super) checkpoint_bytes: u64,
}

/// Small enough to create a new store quickly, large enough for the largest turn.
const FIRST_SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// Large enough that creating segments and switching to them costs little, small enough that one spare segment does not
/// matter.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// This much log is read in a few hundredths of a second.
const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;

/// A smaller segment would consist mostly of its header.
const SMALLEST_SEGMENT_BYTES: u64 = 4 * 1024;

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            first_segment_bytes: FIRST_SEGMENT_BYTES,
            segment_bytes: SEGMENT_BYTES,
            checkpoint_bytes: CHECKPOINT_BYTES,
        }
    }
}

impl EmbeddedConfig {
    /// Sets the size of the log's files. Default 64 MiB, at least 4 KiB. The first files are smaller, from 4 MiB up,
    /// unless this size is smaller still. A turn must fit into the first file, so a small size also limits turns.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes.max(SMALLEST_SEGMENT_BYTES);
        self.first_segment_bytes = FIRST_SEGMENT_BYTES.min(self.segment_bytes);
        self
    }

    /// Sets the minimum amount of log between checkpoints, in bytes. Default 64 MiB. A larger value makes opening
    /// slower, a smaller one writes more.
    pub fn checkpoint_bytes(mut self, bytes: u64) -> Self {
        self.checkpoint_bytes = bytes.max(1);
        self
    }

    /// Returns the size of the segment with this number.
    pub(super) fn size_of_segment(&self, number: u64) -> u64 {
        let steps = u32::try_from(number.saturating_sub(1).min(16)).unwrap_or(16);
        (self.first_segment_bytes << (2 * steps)).min(self.segment_bytes)
    }
}

#[cfg(test)]
mod tests;
