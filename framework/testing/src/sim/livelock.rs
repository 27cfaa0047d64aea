//! Livelock detection: a task that runs forever at one instant, such as a timer that fires in a loop.
//!
//! Virtual time only advances while all tasks wait. Without detection such a run would never end and never print its seed.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;

use whizbang_core::clock::instant;

/// Maximum number of runtime rounds at one instant. Each round polls up to 61 tasks. None of the 20,000 long runs in
/// docs/evidence.md reached it.
const MAX_ROUNDS: u32 = 100_000;

/// Runs a future until it completes or a livelock is detected.
///
/// # Errors
/// The error of the future, or the livelock.
pub(super) async fn fail_on_livelock<T, E: From<String>>(future: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let mut future = pin!(future);
    let started = instant();
    let mut last_instant = started;
    let mut rounds = 0;
    // A local task set polls this future in every round, woken or not.
    poll_fn(|cx| {
        let now = instant();
        rounds = if now == last_instant { rounds + 1 } else { 0 };
        last_instant = now;
        if rounds > MAX_ROUNDS {
            Poll::Ready(Err(livelock_error(last_instant, started).into()))
        } else {
            future.as_mut().poll(cx)
        }
    })
    .await
}

/// Returns the text of the failure, with the virtual time at which the run stopped.
fn livelock_error(last_instant: Instant, started: Instant) -> String {
    let after: Duration = last_instant - started;
    format!("livelock: virtual time stopped at {after:?} for {MAX_ROUNDS} rounds")
}
