//! Polling of conditions of nodes that run on the thread of the test.
//!
//! A yield lets the tasks of the node run and moves no clock, so tests with paused time use these functions too.

#![allow(dead_code, unreachable_pub, reason = "each test uses some of these")]

use std::panic::Location;
use std::time::Duration;

/// Waits until `holds`, a minute at most.
///
/// # Panics
/// If the condition did not hold in time; the message names the caller's line.
#[track_caller]
pub fn eventually(holds: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    eventually_within(60, holds)
}

/// Like [`eventually`], at most the given number of seconds.
#[track_caller]
pub fn eventually_within(seconds: u64, mut holds: impl AsyncFnMut() -> bool) -> impl Future<Output = ()> {
    let caller = Location::caller();
    async move {
        let begun = tokio::time::Instant::now();
        while !holds().await {
            assert!(begun.elapsed() < Duration::from_secs(seconds), "{caller}: did not hold within {seconds} s");
            tokio::task::yield_now().await;
        }
    }
}
