//! A limit for log lines that another party can cause.
//!
//! Used where a message from outside writes a line. Without it, a flood of such messages fills the disk of the log and hides all other
//! lines. The messages themselves are counted elsewhere, without a limit.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::TARGET;

/// The interval for which lines are counted.
pub const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Limits the lines about one cause: the first ones of each [interval](LOG_INTERVAL) are written at once, and one line afterwards
/// says how many were left out.
#[derive(Debug)]
pub struct LogLimit {
    /// The cause, as the summary names it.
    cause: &'static str,
    /// The number of lines in an interval.
    lines: u32,
    /// The number of lines that no summary has reported. Changed under the lock, read without it.
    left_out: AtomicU64,
    /// The begin of the interval, and the number of lines written in it.
    interval: Mutex<Option<(Instant, u32)>>,
}

impl LogLimit {
    /// Creates a limit of `lines` for each interval.
    pub const fn new(cause: &'static str, lines: u32) -> Self {
        Self { cause, lines, left_out: AtomicU64::new(0), interval: Mutex::new(None) }
    }

    /// Returns whether the caller writes its line. Otherwise the line is counted, for the next summary.
    pub fn admits(&self, now: Instant) -> bool {
        let mut interval = self.interval.lock();
        let written = match *interval {
            Some((since, written)) if now < since + LOG_INTERVAL => written,
            _ => {
                self.summarize();
                *interval = Some((now, 0));
                0
            }
        };
        if written < self.lines {
            *interval = interval.map(|(since, _)| (since, written + 1));
            return true;
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        false
    }

    /// Writes the summary if it is due. Returns when the next one is; `None` if nothing was left out. A loop calls it, so that a flood
    /// that has ended is reported as well.
    pub fn flush(&self, now: Instant) -> Option<Instant> {
        if self.left_out.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let mut interval = self.interval.lock();
        let end = interval.map(|(since, _)| since + LOG_INTERVAL).filter(|end| *end > now);
        if end.is_none() {
            *interval = None;
            self.summarize();
        }
        end
    }

    /// Writes the number of lines that were left out, if there are some.
    fn summarize(&self) {
        let left_out = self.left_out.swap(0, Ordering::Relaxed);
        if left_out > 0 {
            tracing::warn!(target: TARGET, cause = self.cause, left_out, "similar log lines left out");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::instant;

    #[test]
    fn lines_of_an_interval_are_limited_and_counted() {
        let (limit, now) = (LogLimit::new("refused a request", 3), instant());
        let admitted = |at: Instant| (0..100).filter(|_| limit.admits(at)).count();
        assert_eq!(limit.flush(now), None);
        assert_eq!(admitted(now), 3);
        assert_eq!(limit.left_out.load(Ordering::Relaxed), 97);
        let end = now + LOG_INTERVAL;
        assert_eq!(admitted(end - Duration::from_millis(1)), 0, "the same interval");
        assert_eq!(limit.flush(now), Some(end));
        assert_eq!(limit.left_out.load(Ordering::Relaxed), 197, "not due");
        // The next line begins an interval, and reports the lines before it.
        assert_eq!(admitted(end), 3);
        assert_eq!(limit.left_out.load(Ordering::Relaxed), 97);
    }

    #[test]
    fn ended_flood_is_summarized_once() {
        let (limit, now) = (LogLimit::new("refused a request", 1), instant());
        assert!(limit.admits(now) && !limit.admits(now));
        assert_eq!(limit.flush(now + LOG_INTERVAL), None, "written");
        assert_eq!(limit.left_out.load(Ordering::Relaxed), 0);
        assert_eq!(limit.flush(now + LOG_INTERVAL), None);
        assert!(limit.admits(now + LOG_INTERVAL), "at once: nothing was written since");
    }
}
