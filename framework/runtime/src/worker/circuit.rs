//! Circuit breaker of a worker: pauses its jobs while the service behind it fails.
//!
//! Closed, it counts the results of the last attempts. Open, no job begins until a pause has passed. Then one job, the
//! probe, begins; its result closes the circuit or starts another pause. Called where a [job](super::job) starts and
//! ends; read for the node's health. Never decides about a message: a job that waits has not begun, so nothing counts.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use whizbang_core::clock::instant;
use whizbang_core::telemetry::TARGET;

/// Most attempts whose results are counted.
pub(super) const MAX_ATTEMPTS: u32 = 10_000;

/// Condition under which a worker is paused because its attempts fail, see [`WorkerOptions::circuit_breaker`](super::WorkerOptions::circuit_breaker).
///
/// ```
/// use std::time::Duration;
///
/// use whizbang::{CircuitBreaker, WorkerOptions};
///
/// let options = WorkerOptions::new()
///     .circuit_breaker(CircuitBreaker::failure_ratio(50, 20).pause(Duration::from_secs(10)));
/// # drop(options);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    pub(super) percent: u8,
    pub(super) attempts: u32,
    pub(super) pause: Duration,
}

impl CircuitBreaker {
    /// Opens after this many failed attempts in a row, of all jobs of the worker on the node. 1 to 10,000.
    pub fn failures(in_a_row: u32) -> Self {
        Self::failure_ratio(100, in_a_row)
    }

    /// Opens when at least `percent` of the last `attempts` attempts have failed. 1 to 100 percent, of 1 to 10,000
    /// attempts.
    pub fn failure_ratio(percent: u8, attempts: u32) -> Self {
        Self { percent, attempts, pause: Duration::from_secs(30) }
    }

    /// Sets the time after which one job is tried again. Default 30 s. 1 ms to 24 h.
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }
}

/// Result of an attempt, as the circuit counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted<'a> {
    /// The job is done or rejected: the service answers.
    Success,
    /// An error that is retried, with its text.
    Failure(&'a str),
    /// A permanent failure says something about the message and not about the service.
    Neither,
}

/// State of the circuit of a worker on a node.
#[derive(Debug)]
pub(super) struct Circuit {
    /// Domain and name of the worker.
    worker: String,
    breaker: CircuitBreaker,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Results of the last attempts: true for a failure.
    results: VecDeque<bool>,
    failures: usize,
    phase: Phase,
    /// Number of changes of the phase: an attempt that began before the last one is not counted.
    changes: u64,
    /// Text of the last failure.
    error: String,
    opened: u64,
}

#[derive(Clone, Copy, Debug, Default)]
enum Phase {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    /// The probe is running.
    Probing,
}

impl State {
    fn change(&mut self, phase: Phase) {
        self.phase = phase;
        self.changes += 1;
        self.results.clear();
        self.failures = 0;
    }
}

/// Permission to begin one attempt. Dropped without a result, it counts as neither success nor failure.
#[derive(Debug)]
pub(super) struct Pass {
    circuit: Arc<Circuit>,
    changes: u64,
    is_probe: bool,
    is_counted: bool,
}

impl Circuit {
    pub(super) fn new(worker: String, breaker: CircuitBreaker) -> Arc<Self> {
        Arc::new(Self { worker, breaker, state: Mutex::default(), changed: Notify::new() })
    }

    /// Returns whether a job would wait now.
    pub(super) fn would_wait(&self) -> bool {
        !matches!(self.state.lock().phase, Phase::Closed)
    }

    /// Waits until a job may begin. Sets one timer for each waiting job; nothing polls.
    pub(super) async fn admit(self: &Arc<Self>) -> Pass {
        loop {
            // Created before the phase is read, so that no change in between is missed.
            let changed = self.changed.notified();
            let until = {
                let mut state = self.state.lock();
                let is_probe = match state.phase {
                    Phase::Closed => Some(false),
                    Phase::Open { until } if until <= instant() => {
                        state.change(Phase::Probing);
                        Some(true)
                    }
                    Phase::Open { .. } | Phase::Probing => None,
                };
                if let Some(is_probe) = is_probe {
                    let (circuit, changes) = (Arc::clone(self), state.changes);
                    return Pass { circuit, changes, is_probe, is_counted: false };
                }
                match state.phase {
                    Phase::Open { until } => Some(until),
                    Phase::Closed | Phase::Probing => None,
                }
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

    fn count(&self, changes: u64, is_probe: bool, result: Counted<'_>) {
        let mut state = self.state.lock();
        // Attempts that began before the circuit opened say nothing new.
        if state.changes != changes {
            return;
        }
        match (is_probe, result) {
            (true, Counted::Success) => {
                state.change(Phase::Closed);
                tracing::info!(target: TARGET, worker = self.worker, "circuit closed: the worker resumes its jobs");
            }
            (true, Counted::Failure(error)) => {
                error.clone_into(&mut state.error);
                state.change(Phase::Open { until: instant() + self.breaker.pause });
            }
            // The next job is the probe.
            (true, Counted::Neither) => state.change(Phase::Open { until: instant() }),
            (false, Counted::Neither) => return,
            (false, Counted::Success | Counted::Failure(_)) => self.add(&mut state, result),
        }
        let is_changed = state.changes != changes;
        drop(state);
        if is_changed {
            self.changed.notify_waiters();
        }
    }

    /// Adds a result of the closed circuit, and opens it at its limit.
    fn add(&self, state: &mut State, result: Counted<'_>) {
        let most = usize::try_from(self.breaker.attempts).unwrap_or(usize::MAX);
        let has_failed = matches!(result, Counted::Failure(_));
        state.results.push_back(has_failed);
        state.failures += usize::from(has_failed);
        while state.results.len() > most {
            state.failures -= usize::from(state.results.pop_front() == Some(true));
        }
        if let Counted::Failure(error) = result
            && state.results.len() == most
            && state.failures * 100 >= most * usize::from(self.breaker.percent)
        {
            error.clone_into(&mut state.error);
            let failures = state.failures;
            state.change(Phase::Open { until: instant() + self.breaker.pause });
            state.opened += 1;
            tracing::error!(
                target: TARGET, worker = self.worker, failures, of = most, error, pause = ?self.breaker.pause,
                "circuit opened: the worker pauses its jobs; check the external service",
            );
        }
    }

    /// Returns the note for the node's health while the circuit is not closed.
    pub(super) fn note(&self) -> Option<String> {
        let state = self.state.lock();
        let next = match state.phase {
            Phase::Closed => return None,
            Phase::Open { until } => format!("tries one in {:?}", until.saturating_duration_since(instant())),
            Phase::Probing => "is trying one".to_owned(),
        };
        let (worker, error) = (&self.worker, &state.error);
        Some(format!(
            "worker {worker} has paused its jobs and {next}: check the service that it calls; its last error: {error}"
        ))
    }

    /// Returns how often it has opened.
    pub(super) fn opened(&self) -> u64 {
        self.state.lock().opened
    }
}

impl Pass {
    /// Returns whether the circuit is as it was when the pass was given.
    pub(super) fn is_current(&self) -> bool {
        self.circuit.state.lock().changes == self.changes
    }

    /// Counts the result of the attempt.
    pub(super) fn ended(mut self, result: Counted<'_>) {
        self.is_counted = true;
        self.circuit.count(self.changes, self.is_probe, result);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        // The attempt was dropped: its shard was closed, or it never began. Another job must be able to probe.
        if !self.is_counted {
            self.circuit.count(self.changes, self.is_probe, Counted::Neither);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(10);

    fn circuit(breaker: CircuitBreaker) -> Arc<Circuit> {
        Circuit::new("payments/cashier".to_owned(), breaker.pause(PAUSE))
    }

    async fn attempts(circuit: &Arc<Circuit>, results: &[bool]) {
        for has_failed in results {
            let pass = circuit.admit().await;
            pass.ended(if *has_failed { Counted::Failure("no answer") } else { Counted::Success });
        }
    }

    async fn is_open(circuit: &Arc<Circuit>) -> bool {
        tokio::time::timeout(Duration::ZERO, circuit.admit()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_open_the_circuit() {
        let circuit = circuit(CircuitBreaker::failures(3));
        attempts(&circuit, &[true, true, false, true, true]).await;
        assert!(!is_open(&circuit).await && circuit.note().is_none());
        attempts(&circuit, &[true]).await;
        assert!(is_open(&circuit).await && circuit.would_wait());
        assert_eq!(
            circuit.note().unwrap(),
            "worker payments/cashier has paused its jobs and tries one in 10s: check the service that it calls; its last \
             error: no answer"
        );
        assert_eq!(circuit.opened(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn failure_ratio_opens_the_circuit() {
        let circuit = circuit(CircuitBreaker::failure_ratio(50, 4));
        attempts(&circuit, &[true, false, false, true]).await;
        assert!(is_open(&circuit).await);
        let circuit = self::circuit(CircuitBreaker::failure_ratio(50, 4));
        attempts(&circuit, &[true, false, false, false, true, false]).await;
        assert!(!is_open(&circuit).await, "one of the last four failed");
    }

    #[tokio::test(start_paused = true)]
    async fn probe_alone_begins_and_closes_the_circuit() {
        let circuit = circuit(CircuitBreaker::failures(1));
        // Begins before the circuit opens, and ends after it.
        let early = circuit.admit().await;
        attempts(&circuit, &[true]).await;
        let begun = instant();
        let probe = circuit.admit().await;
        assert_eq!(begun.elapsed(), PAUSE);
        early.ended(Counted::Success);
        assert!(is_open(&circuit).await, "the probe alone begins");
        probe.ended(Counted::Failure("still none"));
        assert!(circuit.note().unwrap().ends_with("still none"));
        let begun = instant();
        let probe = circuit.admit().await;
        assert_eq!(begun.elapsed(), PAUSE);
        let mut waiting = std::pin::pin!(circuit.admit());
        tokio::time::timeout(Duration::ZERO, &mut waiting).await.expect_err("the probe alone begins");
        probe.ended(Counted::Success);
        drop(waiting.await);
        assert_eq!((begun.elapsed(), circuit.note()), (PAUSE, None));
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_probe_lets_another_job_probe() {
        let circuit = circuit(CircuitBreaker::failures(1));
        attempts(&circuit, &[true]).await;
        drop(circuit.admit().await);
        let probe = tokio::time::timeout(Duration::ZERO, circuit.admit()).await.unwrap();
        probe.ended(Counted::Neither);
        attempts(&circuit, &[false]).await;
        assert!(!circuit.would_wait());
    }
}
