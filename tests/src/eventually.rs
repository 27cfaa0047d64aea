//! Polling of conditions that cannot wake their waiter: other processes, their files and ports.
//!
//! Called by the black-box tests. A test waits for a condition with a deadline; it never waits for a fixed time.

use std::time::{Duration, Instant};

/// The interval of polls.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Polls until `found` returns a value, and returns it.
///
/// # Panics
/// If there is no value before `deadline`; the message contains `what`.
#[track_caller]
#[expect(clippy::disallowed_methods, reason = "the only polling loop, for conditions that cannot wake their waiter")]
pub fn eventually<T>(what: &str, deadline: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} for {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_returned_as_soon_as_it_exists() {
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
    fn missing_value_fails_with_its_name() {
        eventually("a miracle", Duration::ZERO, || None::<()>);
    }
}
