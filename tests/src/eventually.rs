//! Waiting for what cannot wake its waiter: other processes, their files and ports.
//!
//! Called by the black-box tests. A test waits for a condition and has a deadline; it never waits for a span.

use std::time::{Duration, Instant};

/// The span between two looks.
const BETWEEN: Duration = Duration::from_millis(5);

/// Looks until `found` has something, and returns it.
///
/// # Panics
/// If nothing is found before `deadline`; the message says for `what` was waited.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "the one place that looks again and again at what cannot wake it")]
pub fn eventually<T>(what: &str, deadline: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} for {what}");
        std::thread::sleep(BETWEEN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_returned_and_what_comes_is_waited_for() {
        assert_eq!(eventually("a number", Duration::ZERO, || Some(7)), 7);
        let mut looks = 0;
        let third = || {
            looks += 1;
            (looks == 3).then_some(looks)
        };
        assert_eq!(eventually("the third look", Duration::from_secs(60), third), 3);
    }

    #[test]
    #[should_panic(expected = "waited 0ns for a miracle")]
    fn what_does_not_come_fails_with_its_name() {
        eventually("a miracle", Duration::ZERO, || None::<()>);
    }
}
