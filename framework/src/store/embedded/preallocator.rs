//! Makes the next segment before it is needed, on a thread of its own: filling a file with zeros takes as long as it takes.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::EmbeddedConfig;
use super::disk::is_full;
use super::segment::Segments;
use super::write_buffer::{NextSegment, WriteBuffer};
use crate::message::IdSource;
use crate::store::StoreError;

/// After a failure it is tried again when an append asks for it, but not more often than this.
const PAUSE: Duration = Duration::from_millis(250);

pub(super) struct Preallocator {
    write_buffer: Arc<WriteBuffer>,
    segments: Arc<Segments>,
    config: EmbeddedConfig,
    salts: Mutex<IdSource>,
}

impl Preallocator {
    pub(super) fn new(
        journal: Arc<WriteBuffer>,
        segments: Arc<Segments>,
        config: EmbeddedConfig,
        salts: IdSource,
    ) -> Self {
        Self { write_buffer: journal, segments, config, salts: Mutex::new(salts) }
    }

    /// Makes segments until the journal is closed.
    pub(super) fn run(&self) {
        while self.write_buffer.wait_for_request() {
            if !self.preallocate() {
                self.write_buffer.pause(PAUSE);
            }
        }
    }

    /// Makes the next segment unless it is there; whether it is there now.
    pub(super) fn preallocate(&self) -> bool {
        if self.write_buffer.has_spare() {
            return true;
        }
        let salt = self.salts.lock().next_u64();
        match self.segments.preallocate(self.write_buffer.segment(), &self.config, salt) {
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
                tracing::warn!(target: crate::telemetry::TARGET, %error, "no room could be prepared for what comes");
                self.write_buffer.set_spare(NextSegment::Failed(error));
                false
            }
        }
    }
}
