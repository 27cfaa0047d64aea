//! The words of logs, spans and metrics, in one place.
//!
//! Used by every room. Spans carry `message`, `correlation` and `key` fields; a payload is never logged.

mod issues;

use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use issues::Issues;

/// The target of all spans and log lines.
pub const TARGET: &str = "whizbang";

/// A number that one thread counts up and any thread may read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Counts one more. Only the owning thread calls it, so that no locked instruction is needed.
    pub fn one(&self) {
        self.many(1);
    }

    /// Counts `n` more.
    pub fn many(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// Sets the number.
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    /// The number so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one thread of a node counts.
#[derive(Debug, Default)]
pub struct Counts {
    /// Turns in flight now.
    pub in_flight: Count,
    /// Jobs of workers in memory now.
    pub jobs: Count,
    /// Turns committed or on their way.
    pub turns: Count,
    /// Events recorded.
    pub events: Count,
    /// Rejections given.
    pub rejections: Count,
    /// Duplicates dropped.
    pub duplicates: Count,
    /// Deliveries that failed and will be tried again.
    pub retries: Count,
    /// Messages that became dead letters.
    pub dead_letters: Count,
    /// Commands from outside that failed for their caller alone.
    pub failed: Count,
    /// Steps of sagas that stay done, because the dead letter of the command that undoes them was discarded.
    pub given_up: Count,
    /// Panics in user code.
    pub panics: Count,
    /// Background tasks that ended unexpectedly.
    pub failed_tasks: Count,
    /// Snapshots that were not kept because the state could not be encoded.
    pub snapshots_skipped: Count,
    /// Messages refused because there was no room.
    pub busy: Count,
    /// Actors started.
    pub activations: Count,
    /// Actors put to rest.
    pub passivations: Count,
    /// Keys that cannot be loaded now.
    pub unloadable: Count,
    /// Messages that wait, written down, for their key or for a worker now.
    pub deferred: Count,
    /// Gaps noticed in what came in.
    pub gaps: Count,
    /// Events dropped because the log of their domain's owner does not contain them.
    pub events_dropped: Count,
    /// Commands and replies of actors dropped because the log of their sender does not contain them.
    pub commands_dropped: Count,
    /// Events and commands handed to the bridge.
    pub sent: Count,
}

/// How many bytes of what user code says about its trouble are kept.
const MOST_TEXT: usize = 4096;

/// What user code says about its trouble, short enough for a log line, a dead letter and an answer.
pub(crate) fn shortened(mut text: String) -> String {
    if text.len() > MOST_TEXT {
        text.truncate(text.floor_char_boundary(MOST_TEXT));
        text.push('…');
    }
    text
}

/// Says that a message passes a room. With these a message can be followed through the node; a test holds the architecture's
/// page against them.
macro_rules! passes {
    ($room:literal, $message:expr, $id:expr, $correlation:expr) => {
        tracing::trace!(
            target: $crate::telemetry::TARGET, room = $room, message = %$message, id = %$id, correlation = %$correlation,
            "passes",
        )
    };
}
pub(crate) use passes;
