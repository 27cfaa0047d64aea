//! Capturing of the log while a test runs.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry;

/// Captures the log of this thread until it is dropped.
pub(crate) struct Log {
    lines: Lines,
    /// A second dispatcher, created first. With only one dispatcher, the first thread that reaches a callsite decides whether it is
    /// enabled, and a thread of another test without a subscriber would disable it for this one.
    _second: Dispatch,
    _listening: DefaultGuard,
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Captures `INFO` and above.
    pub(crate) fn listen() -> Self {
        Self::listen_to("info")
    }

    /// Captures the lines that pass a filter, in an operator's notation: `trace,async_nats=info`.
    pub(crate) fn listen_to(filter: &str) -> Self {
        let second = Dispatch::new(registry());
        let lines = Lines::default();
        let writes = lines.clone();
        let filter: Targets = filter.parse().expect("a filter");
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writes.clone());
        let subscriber = registry().with(layer.with_filter(filter));
        Self { lines, _second: second, _listening: tracing::subscriber::set_default(subscriber) }
    }

    /// Returns the number of lines that contain a text.
    pub(crate) fn says(&self, text: &str) -> usize {
        let lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&lines).lines().filter(|line| line.contains(text)).count()
    }

    /// Returns all lines.
    pub(crate) fn lines(&self) -> Vec<String> {
        let lines = self.lines.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&lines).lines().map(str::to_owned).collect()
    }
}
