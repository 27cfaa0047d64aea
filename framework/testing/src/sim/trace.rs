//! The trace of a run, line by line. It is compared between runs and printed in failure reports.

use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::Mutex;

use whizbang_core::clock::instant;

/// The trace of a run. Clones write to the same trace.
#[derive(Clone)]
pub(super) struct Trace(Arc<Mutex<Lines>>);

/// The lines so far.
struct Lines {
    /// The virtual time at which the run began.
    started_at: tokio::time::Instant,
    /// The text of all lines.
    text: String,
    /// The number of lines.
    count: usize,
}

impl Trace {
    /// Creates an empty trace. Its times count from now.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Lines { started_at: instant(), text: String::new(), count: 0 })))
    }

    /// Adds a line with the current virtual time.
    pub(super) fn add(&self, text: std::fmt::Arguments<'_>) {
        let lines = &mut *self.0.lock();
        let micros = lines.started_at.elapsed().as_micros();
        // Writing to a string does not fail.
        let _ = writeln!(lines.text, "{:>6}.{:06} {text}", micros / 1_000_000, micros % 1_000_000);
        lines.count += 1;
    }

    /// Returns a copy of the text.
    pub(super) fn text(&self) -> String {
        self.0.lock().text.clone()
    }

    /// Returns the number of lines.
    pub(super) fn count(&self) -> usize {
        self.0.lock().count
    }
}
