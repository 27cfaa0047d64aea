//! Polling of conditions that cannot wake their waiter: other processes, their files and ports.
//!
//! Called by the black-box tests. A test waits for a condition with a deadline; it never waits for a fixed time.

use std::time::{Duration, Instant};

/// The interval of polls.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The interval of polls by tasks, which often ask a server.
const ASYNC_POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The deadline of waits by tasks.
const ASYNC_DEADLINE: Duration = Duration::from_secs(60);

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

/// Waits until `found` returns a value, and returns it. The tasks of the runtime continue in between.
///
/// # Panics
/// If there is no value within a minute; the message contains `what`.
pub async fn wait_for<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let polls = async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            poll_interval().await;
        }
    };
    tokio::time::timeout(ASYNC_DEADLINE, polls).await.unwrap_or_else(|_| panic!("waited {ASYNC_DEADLINE:?} for {what}"))
}

/// Waits until `holds`. The tasks of the runtime continue in between.
///
/// # Panics
/// If the condition does not hold within a minute; the message contains `what`.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    wait_for(what, async || holds().await.then_some(())).await;
}

/// Waits for the interval between two polls of a condition that cannot wake its waiter.
#[expect(
    clippy::disallowed_methods,
    reason = "the only polling loop of tasks, for conditions that send no notification"
)]
pub async fn poll_interval() {
    tokio::time::sleep(ASYNC_POLL_INTERVAL).await;
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

    #[tokio::test(start_paused = true)]
    async fn value_ends_the_wait_of_a_task() {
        let mut polls = 0;
        let third = async || {
            polls += 1;
            (polls == 3).then_some(polls)
        };
        assert_eq!(wait_for("the third poll", third).await, 3);
    }

    #[tokio::test(start_paused = true)]
    #[should_panic(expected = "waited 60s for a miracle")]
    async fn condition_that_never_holds_fails_with_its_name() {
        until("a miracle", async || false).await;
    }

    #[test]
    #[should_panic(expected = "waited 0ns for a miracle")]
    fn missing_value_fails_with_its_name() {
        eventually("a miracle", Duration::ZERO, || None::<()>);
    }
}
