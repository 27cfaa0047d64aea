//! Rate limit of a worker: at most so many jobs begin in any window of a given length.
//!
//! A window over the last starts, and not a bucket of tokens: a full bucket admits almost twice the number in one
//! window. Called where a [job](super::job) starts. Time is tokio's, so that a simulation can pause it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use whizbang_core::clock::instant;

/// Most starts in a window. Each takes 16 bytes of memory.
pub(super) const MAX_STARTS: u32 = 65_536;

/// The starts of a worker on a node in the last window.
#[derive(Debug)]
pub(super) struct RateLimit {
    count: usize,
    window: Duration,
    state: Mutex<State>,
    /// One permit: a single job waits for the window and the others wait behind it, so that they are admitted in order
    /// and one timer is set.
    turn: Semaphore,
    /// Notifies the waiting job that a reservation was used or given back.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    starts: VecDeque<Instant>,
    /// Admitted jobs that have not begun yet. Each may begin at any time, so it counts in every window.
    reserved: usize,
}

/// Permission to begin one attempt. Dropped before it has begun, it counts nothing.
#[derive(Debug)]
pub(super) struct Start {
    rate: Arc<RateLimit>,
}

impl RateLimit {
    pub(super) fn new((count, window): (u32, Duration)) -> Arc<Self> {
        let count = usize::try_from(count.clamp(1, MAX_STARTS)).unwrap_or(1);
        let (state, turn, changed) = (Mutex::default(), Semaphore::new(1), Notify::new());
        Arc::new(Self { count, window, state, turn, changed })
    }

    /// Returns whether a job would wait now.
    pub(super) fn would_wait(&self) -> bool {
        self.turn.available_permits() == 0 || !self.has_room(&mut self.state.lock())
    }

    /// Waits until one more job may begin.
    pub(super) async fn admit(self: &Arc<Self>) -> Start {
        // The semaphore is never closed.
        let _turn = self.turn.acquire().await;
        loop {
            // Created before the state is read, so that no change in between is missed.
            let changed = self.changed.notified();
            let until = {
                let mut state = self.state.lock();
                if self.has_room(&mut state) {
                    state.reserved += 1;
                    return Start { rate: Arc::clone(self) };
                }
                state.starts.front().map(|first| *first + self.window)
            };
            match until {
                Some(until) => tokio::select! {
                    biased;
                    () = changed => {}
                    () = tokio::time::sleep_until(until) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Returns whether the window has room. Removes starts before the window, each once.
    fn has_room(&self, state: &mut State) -> bool {
        let now = instant();
        while state.starts.front().is_some_and(|first| now.saturating_duration_since(*first) >= self.window) {
            state.starts.pop_front();
        }
        state.starts.len() + state.reserved < self.count
    }
}

impl Start {
    /// Counts the attempt, which begins now.
    pub(super) fn begin(self) {
        self.rate.state.lock().starts.push_back(instant());
        // Dropped: it is no longer reserved.
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        let mut state = self.rate.state.lock();
        state.reserved = state.reserved.saturating_sub(1);
        drop(state);
        self.rate.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_window_has_more_starts_than_the_limit() {
        let rate = RateLimit::new((3, Duration::from_secs(1)));
        let begun = instant();
        let starts = Mutex::new(Vec::new());
        let jobs = (0..10).map(|n| {
            let (rate, starts) = (&rate, &starts);
            async move {
                // Some come late: a window that was idle saves nothing up.
                tokio::time::sleep(Duration::from_millis(if n < 2 { 700 } else { 900 })).await;
                rate.admit().await.begin();
                starts.lock().push((n, begun.elapsed().as_millis()));
            }
        });
        futures_util::future::join_all(jobs).await;
        let starts = starts.lock().clone();
        assert_eq!(starts.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        for (first, fourth) in starts.iter().zip(starts.iter().skip(3)) {
            assert!(fourth.1 - first.1 >= 1000, "{starts:?}");
        }
        assert!(starts.last().is_some_and(|last| last.1 < 4_000), "{starts:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn cancelled_wait_counts_nothing() {
        let rate = RateLimit::new((1, Duration::from_secs(1)));
        rate.admit().await.begin();
        assert!(rate.would_wait());
        tokio::time::timeout(Duration::from_millis(500), rate.admit()).await.unwrap_err();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!rate.would_wait());
        drop(tokio::time::timeout(Duration::ZERO, rate.admit()).await.unwrap());
        tokio::time::timeout(Duration::ZERO, rate.admit()).await.unwrap().begin();
    }

    #[tokio::test(start_paused = true)]
    async fn admitted_job_that_begins_late_counts_when_it_begins() {
        let rate = RateLimit::new((1, Duration::from_secs(1)));
        let late = rate.admit().await;
        let mut next = std::pin::pin!(rate.admit());
        let waits = tokio::time::timeout(Duration::from_secs(5), &mut next).await;
        waits.expect_err("the first job may begin at any time");
        let begun = instant();
        late.begin();
        next.await.begin();
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }
}
