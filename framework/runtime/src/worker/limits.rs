//! Limits of one worker on a node, shared by its threads.
//!
//! Created with the hosted worker; read where a [job](super::job) starts. A worker without limits pays two checks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::circuit::{Circuit, Pass};
use super::options::{DEFAULT_BATCH, WorkerOptions};
use super::rate::{RateLimit, Start};

/// The options of a worker, and the state of its limits.
pub(crate) struct WorkerLimits {
    pub(super) options: WorkerOptions,
    /// One permit for each job that may run at once on the node, if the worker has such a limit.
    pub(super) slots: Option<Arc<Semaphore>>,
    rate: Option<Arc<RateLimit>>,
    circuit: Option<Arc<Circuit>>,
}

/// Permission to begin one attempt under the limits of its worker; empty if it has none.
#[derive(Debug, Default)]
pub(super) struct Admitted {
    pub(super) pass: Option<Pass>,
    pub(super) start: Option<Start>,
}

impl WorkerLimits {
    /// Creates the limits of a worker with a domain and a name.
    pub(crate) fn new(domain: &str, worker: &str, options: WorkerOptions) -> Arc<Self> {
        // The builder refuses what is out of range when the node starts; until then nothing may panic.
        let slots = options.jobs.map(|jobs| Arc::new(Semaphore::new(jobs.min(Semaphore::MAX_PERMITS))));
        let rate = options.rate.map(RateLimit::new);
        let circuit = options.breaker.map(|breaker| Circuit::new(format!("{domain}/{worker}"), breaker));
        Arc::new(Self { options, slots, rate, circuit })
    }

    /// Returns an option that is out of its range, with the range.
    pub(crate) fn invalid_option(&self) -> Option<(&'static str, &'static str)> {
        self.options.invalid()
    }

    /// Returns the number of jobs of a batch, of those that may run at once, and the time for which it is open.
    pub(super) fn batch(&self, of_thread: usize) -> (usize, Duration) {
        let (jobs, wait) = self.options.batch.unwrap_or(DEFAULT_BATCH);
        (jobs.min(self.options.jobs.unwrap_or(of_thread)), wait)
    }

    /// Returns whether a job may have to wait for more than a slot.
    pub(super) fn delays_jobs(&self) -> bool {
        self.rate.is_some() || self.circuit.is_some()
    }

    /// Returns whether a job would wait now, although a slot is free.
    pub(super) fn would_wait(&self) -> bool {
        self.circuit.as_ref().is_some_and(|circuit| circuit.would_wait())
            || self.rate.as_ref().is_some_and(|rate| rate.would_wait())
    }

    /// Waits until the circuit is closed and the rate allows one more attempt. Cancelled while it waits, it uses up
    /// nothing.
    pub(super) async fn admit(&self) -> Admitted {
        loop {
            // The circuit first: a paused worker uses up none of its rate.
            let pass = match &self.circuit {
                Some(circuit) => Some(circuit.admit().await),
                None => None,
            };
            let start = match &self.rate {
                Some(rate) => Some(rate.admit().await),
                None => None,
            };
            // The circuit may have opened while the job waited for its rate. Both permissions are given back then.
            if pass.as_ref().is_none_or(Pass::is_current) {
                return Admitted { pass, start };
            }
        }
    }

    /// Returns the note for health if the worker is paused, and how often it has been.
    pub(crate) fn pauses(&self) -> (Option<String>, u64) {
        self.circuit.as_ref().map_or((None, 0), |circuit| (circuit.note(), circuit.opened()))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::time::Duration;

    use super::*;
    use crate::worker::CircuitBreaker;
    use crate::worker::circuit::Counted;
    use whizbang_core::clock::instant;

    #[tokio::test(start_paused = true)]
    async fn job_behind_the_rate_waits_for_the_opened_circuit() {
        let pause = Duration::from_secs(60);
        let breaker = CircuitBreaker::failures(1).pause(pause);
        let options = WorkerOptions::new().rate(1, Duration::from_secs(1)).circuit_breaker(breaker);
        let limits = WorkerLimits::new("payments", "cashier", options);
        let Admitted { pass, start } = limits.admit().await;
        start.unwrap().begin();
        let mut next = pin!(limits.admit());
        tokio::time::timeout(Duration::ZERO, &mut next).await.expect_err("the rate allows one");
        let opened = instant();
        pass.unwrap().ended(Counted::Failure("no answer"));
        let Admitted { pass, start } = next.await;
        assert_eq!(opened.elapsed(), pause);
        start.unwrap().begin();
        pass.unwrap().ended(Counted::Success);
        assert!(limits.pauses().0.is_none(), "it was the probe");
    }
}
