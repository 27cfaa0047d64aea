//! The progress bar: on a terminal only, and on the standard error, so that the output stays clean.

use std::io::{IsTerminal, Write};

use shop::orders::Counts;

const WIDTH: u64 = 40;

/// A progress bar.
pub(crate) struct Bar {
    /// How many orders will come, if that is known.
    expected: Option<u64>,
    terminal: bool,
    shown: Option<Counts>,
}

impl Bar {
    pub(crate) fn new(expected: Option<u64>) -> Self {
        Self { expected, terminal: std::io::stderr().is_terminal(), shown: None }
    }

    /// Shows how far the orders are.
    pub(crate) fn show(&mut self, counts: Counts) {
        if !self.terminal || self.shown == Some(counts) {
            return;
        }
        self.shown = Some(counts);
        let all = self.expected.unwrap_or(counts.placed).max(counts.placed).max(1);
        let done = counts.ended();
        let filled = usize::try_from(done * WIDTH / all).unwrap_or(0);
        let width = usize::try_from(WIDTH).unwrap_or(0);
        let mut out = std::io::stderr().lock();
        // A bar that cannot be shown is no reason to stop.
        let _ = write!(out, "\r[{:<width$}] {done}/{all} orders, {} cancelled ", "#".repeat(filled), counts.cancelled);
        let _ = out.flush();
    }

    /// Leaves the line.
    pub(crate) fn end(&mut self) {
        if self.shown.take().is_some() {
            eprintln!();
        }
    }
}
