//! Creates the next segment before it is needed, on a thread of its own, because filling a file with zeros takes a long
//! time.
//!
//! The append that needs a segment finds it ready, so it never waits for the zeros. A failure shows in the next append that
//! needs one, before anything is accepted that could not be written.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::EmbeddedConfig;
use super::disk::is_full;
use super::segment::{NextSegment, Segments};
use super::write_buffer::WriteBuffer;
use whizbang_core::message::IdSource;
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::error_chain;
use whizbang_core::user_code::user_code;

/// The minimum time between two attempts after a failure.
const PAUSE: Duration = Duration::from_millis(250);

/// The thread that has the next segment ready. While it fails, appends that need the segment are rejected as `Full`.
pub(super) struct Preallocator {
    /// Requests segments and receives them.
    write_buffer: Arc<WriteBuffer>,
    /// Creates the files.
    segments: Arc<Segments>,
    /// The sizes of segments.
    config: EmbeddedConfig,
    /// The source of the salts: a segment that reuses the space of another one cannot be taken for it.
    salts: Mutex<IdSource>,
}

impl Preallocator {
    /// Returns a preallocator without a thread. [`run`](Self::run) is called on one, or [`preallocate`](Self::preallocate) by
    /// a simulation.
    pub(super) fn new(
        write_buffer: Arc<WriteBuffer>,
        segments: Arc<Segments>,
        config: EmbeddedConfig,
        salts: IdSource,
    ) -> Self {
        Self { write_buffer, segments, config, salts: Mutex::new(salts) }
    }

    /// Creates segments until the buffer is closed.
    pub(super) fn run(&self) {
        while self.write_buffer.wait_for_request() {
            if !self.preallocate() {
                self.write_buffer.pause(PAUSE);
            }
        }
    }

    /// Creates the next segment unless it exists. Returns whether it exists now.
    pub(super) fn preallocate(&self) -> bool {
        if self.write_buffer.has_spare() {
            return true;
        }
        let salt = self.salts.lock().next_u64();
        let after = self.write_buffer.segment();
        // The thread continues after a panic: without it, appends would wait for a segment for ever.
        let created = user_code(|| self.segments.preallocate(after, &self.config, salt));
        match created.unwrap_or_else(|panicked| Err(io::Error::other(panicked.to_string()))) {
            Ok(segment) => {
                self.write_buffer.set_spare(NextSegment::Ready(segment));
                true
            }
            Err(error) => {
                let error = if is_full(&error) {
                    StoreError::Full { at: self.write_buffer.at().to_owned() }
                } else {
                    StoreError::io("preparing the next segment", error)
                };
                tracing::warn!(
                    target: whizbang_core::telemetry::TARGET, error = %error_chain(&error),
                    "failed to preallocate the next segment: free space on the disk",
                );
                self.write_buffer.set_spare(NextSegment::Failed(error));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests;
