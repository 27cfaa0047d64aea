//! The progress bar. It is written to standard error, and only to a terminal, so that standard output holds only results.

use std::io::{IsTerminal, Write};

use shop::orders::Counts;

const WIDTH: u64 = 40;

/// A progress bar.
pub(crate) struct ProgressBar {
    /// The number of orders to place, if known.
    expected: Option<u64>,
    terminal: bool,
    shown: Option<Counts>,
}

impl ProgressBar {
    pub(crate) fn new(expected: Option<u64>) -> Self {
        Self { expected, terminal: std::io::stderr().is_terminal(), shown: None }
    }

    /// Redraws the bar if the counts have changed.
    pub(crate) fn show(&mut self, counts: Counts) {
        if !self.terminal || self.shown == Some(counts) {
            return;
        }
        self.shown = Some(counts);
        let mut out = std::io::stderr().lock();
        // A failed write to the terminal must not end the run.
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

    /// Ends the line of the bar.
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
    fn bar_fills_as_orders_end() {
        let line =
            |expected, placed, confirmed| ProgressBar::new(expected).line(Counts { placed, confirmed, cancelled: 1 });
        assert_eq!(line(Some(8), 4, 1), format!("[{}{}] 2/8 orders, 1 cancelled ", "#".repeat(10), " ".repeat(30)));
        // The number of orders in files is not known in advance.
        assert_eq!(line(None, 4, 3), format!("[{}] 4/4 orders, 1 cancelled ", "#".repeat(40)));
        assert!(ProgressBar::new(Some(0)).line(Counts::default()).contains("0/0 orders"));
    }
}
