//! What happened in a simulated cluster, line by line: what is compared between runs, and what a person reads.

use std::fmt::Write as _;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::clock::instant;

/// What has happened so far. Clones write into the same trace.
#[derive(Clone)]
pub(super) struct Trace(Arc<Mutex<Lines>>);

struct Lines {
    began: tokio::time::Instant,
    text: String,
    count: usize,
}

impl Trace {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Lines { began: instant(), text: String::new(), count: 0 })))
    }

    /// Writes down what happens now.
    pub(super) fn add(&self, what: std::fmt::Arguments<'_>) {
        let lines = &mut *self.0.lock();
        let micros = lines.began.elapsed().as_micros();
        // Writing into a text does not fail.
        let _ = writeln!(lines.text, "{:>6}.{:06} {what}", micros / 1_000_000, micros % 1_000_000);
        lines.count += 1;
    }

    pub(super) fn text(&self) -> String {
        self.0.lock().text.clone()
    }

    pub(super) fn count(&self) -> usize {
        self.0.lock().count
    }
}
