//! The sizes of a store on disk.

/// The sizes of a store on disk. The defaults are right for nearly everybody.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddedConfig {
    pub(super) first_segment_bytes: u64,
    pub(super) segment_bytes: u64,
    pub(super) checkpoint_bytes: u64,
}

/// Small enough that a new store is there at once, large enough for the largest turn.
const FIRST_SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// Large enough that making one and going over to it cost nothing, small enough that one kept in reserve does not matter.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;

/// So much log is read in a few hundredths of a second.
const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;

/// Below this a segment is mostly its own head.
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
    /// Sets how large the log's files are. Default 64 MiB, at least 4 KiB. The first ones are smaller, from 4 MiB up, unless
    /// this is smaller still; a turn must fit into the first, so a small size also limits turns.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = bytes.max(SMALLEST_SEGMENT_BYTES);
        self.first_segment_bytes = FIRST_SEGMENT_BYTES.min(self.segment_bytes);
        self
    }

    /// Sets after how many bytes of log a checkpoint is written at the earliest. Default 64 MiB. More makes opening slower,
    /// less writes more.
    pub fn checkpoint_bytes(mut self, bytes: u64) -> Self {
        self.checkpoint_bytes = bytes.max(1);
        self
    }

    /// How large the segment with this number is made.
    pub(super) fn size_of_segment(&self, number: u64) -> u64 {
        let steps = u32::try_from(number.saturating_sub(1).min(16)).unwrap_or(16);
        (self.first_segment_bytes << (2 * steps)).min(self.segment_bytes)
    }
}
