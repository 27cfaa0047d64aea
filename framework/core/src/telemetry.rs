//! Telemetry: the target, the counters and the vocabulary of logs and spans.
//!
//! Used by every module. Spans have the fields `message`, `correlation` and `key`; a payload is never logged.

mod error_chain;
mod issues;
mod log_limit;

use std::sync::atomic::{AtomicU64, Ordering};

pub use error_chain::{ErrorChain, error_chain};
pub use issues::Issues;
pub use log_limit::{LOG_INTERVAL, LogLimit};

/// Target of all spans and log lines.
pub const TARGET: &str = "whizbang";

/// A counter that one thread writes and any thread may read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds one. Only the owning thread calls it, so that no locked instruction is needed.
    pub fn one(&self) {
        self.many(1);
    }

    /// Adds `n`.
    pub fn many(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets the value.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// Returns the value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters of one thread of a node.
#[derive(Debug, Default)]
pub struct Counts {
    /// Turns currently in flight.
    pub in_flight: Count,
    /// Jobs of workers currently in memory.
    pub jobs: Count,
    /// Turns appended, committed or not yet.
    pub turns: Count,
    /// Events recorded.
    pub events: Count,
    /// Queries answered from the state of a key.
    pub answers: Count,
    /// Rejections returned.
    pub rejections: Count,
    /// Commands that were not handled because they had expired.
    pub expired: Count,
    /// Duplicates dropped.
    pub duplicates: Count,
    /// Failed deliveries that will be retried.
    pub retries: Count,
    /// Messages that became dead letters.
    pub dead_letters: Count,
    /// Commands from outside that failed for their caller alone.
    pub failed: Count,
    /// Saga steps that stay done because the dead letter of their compensating command was discarded.
    pub given_up: Count,
    /// Panics in user code.
    pub panics: Count,
    /// Background tasks that ended unexpectedly.
    pub failed_tasks: Count,
    /// Snapshots skipped because the state could not be encoded.
    pub snapshots_skipped: Count,
    /// Snapshots and views that could not be restored.
    pub states_unrestored: Count,
    /// Messages refused for now, because a bound was reached or by a layer.
    pub busy: Count,
    /// Actors activated.
    pub activations: Count,
    /// Actors passivated.
    pub passivations: Count,
    /// Keys that currently cannot be loaded.
    pub unloadable: Count,
    /// Keys that currently fail again and again, because of the store or of a layer.
    pub stuck_keys: Count,
    /// Messages currently deferred, for their key or for a worker.
    pub deferred: Count,
    /// Gaps detected in received sequences.
    pub gaps: Count,
    /// Events dropped because their owner's log does not contain them.
    pub events_dropped: Count,
    /// Commands and replies of actors dropped because their sender's log does not contain them.
    pub commands_dropped: Count,
    /// Events and commands handed to the bridge.
    pub sent: Count,
}

/// Most bytes kept of an error text of user code.
const MOST_TEXT: usize = 4096;

/// Shortens an error text of user code for a log line, a dead letter or a response.
pub fn shortened(mut text: String) -> String {
    if text.len() > MOST_TEXT {
        text.truncate(text.floor_char_boundary(MOST_TEXT));
        text.push('…');
    }
    text
}

/// Traces that a message passes a module, so that it can be followed through the node; a test compares these with
/// ARCHITECTURE.md.
#[doc(hidden)]
#[macro_export]
macro_rules! passes {
    ($module:literal, $message:expr, $id:expr, $correlation:expr) => {
        $crate::telemetry::tracing::trace!(
            target: $crate::telemetry::TARGET, module = $module, message = %$message, id = %$id, correlation = %$correlation,
            "passes",
        )
    };
}
#[doc(hidden)]
pub use crate::passes;
/// For [`passes`], so that crates that only trace need no dependency of their own.
#[doc(hidden)]
pub use tracing;
