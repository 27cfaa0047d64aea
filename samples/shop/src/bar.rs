//! The progress bar: on a terminal only, and on the standard error, so that the output stays clean.

use std::io::{IsTerminal, Write};

use shop::orders::Counts;

const WIDTH: u64 = 40;

/// A progress bar.
pub(crate) struct Bar {
    /// The number of orders that will come, if it is known.
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
        let mut out = std::io::stderr().lock();
        // A bar that cannot be shown does not end the run.
        let _ = write!(out, "\r{}", self.line(counts));
        let _ = out.flush();
    }

    fn line(&self, counts: Counts) -> String {
        let all = self.expected.unwrap_or(counts.placed).max(counts.placed);
        let done = counts.ended();
        let filled = usize::try_from(done * WIDTH / all.max(1)).unwrap_or(0);
        let width = usize::try_from(WIDTH).unwrap_or(0);
        format!("[{:<width$}] {done}/{all} orders, {} cancelled ", "#".repeat(filled), counts.cancelled)
    }

    /// Leaves the line.
    pub(crate) fn end(&mut self) {
        if self.shown.take().is_some() {
            eprintln!();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_filled_as_orders_end() {
        let line = |expected, placed, confirmed| Bar::new(expected).line(Counts { placed, confirmed, cancelled: 1 });
        assert_eq!(line(Some(8), 4, 1), format!("[{}{}] 2/8 orders, 1 cancelled ", "#".repeat(10), " ".repeat(30)));
        // The number of orders in files is not known beforehand.
        assert_eq!(line(None, 4, 3), format!("[{}] 4/4 orders, 1 cancelled ", "#".repeat(40)));
        assert!(Bar::new(Some(0)).line(Counts::default()).contains("0/0 orders"));
    }
}
