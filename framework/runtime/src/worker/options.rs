//! Options of a worker: its retries and its limits.
//!
//! Written by users, checked by the builder of the node, and read by the path of a [job](super::job).

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::circuit::{CircuitBreaker, MAX_ATTEMPTS};
use super::priority::Priority;
use super::rate::MAX_STARTS;
use crate::layer::Call;
use whizbang_core::retry::Retry;

/// Longest wait that a rule may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Jobs of a batch, and the time for which it is open.
pub(super) const DEFAULT_BATCH: (usize, Duration) = (32, Duration::from_millis(10));
/// Most jobs of a batch. They are held in memory until the call ends.
const MAX_BATCH: usize = 10_000;

/// Decision about a failed attempt of a job, see [`WorkerOptions::retry_error`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RetryDecision {
    /// Follows the [`Retry`] of the job: retries it after its wait, or gives up after the last attempt.
    #[default]
    Policy,
    /// Retries the job after this wait, at most 30 days. The attempt counts: after the last one its message is a dead
    /// letter. The wait ends early if the node is restarted or hands over the shard.
    After(Duration),
    /// Makes the message a dead letter without another attempt, as [`WorkError::permanent`](super::WorkError::permanent).
    GiveUp,
}

/// Failure of an attempt that its worker did not report itself.
///
/// The attempt counts, and the job is retried. [`WorkerOptions::retry_error`] may decide otherwise.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// The attempt took longer than the limit of a job; its future was dropped. The external effect may have happened.
    /// Set a shorter limit on each external call, or raise [`WorkerOptions::job_limit`].
    #[error("job took longer than {limit:?}")]
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// The worker panicked. The external effect may have happened.
    #[error("job panicked: {text}")]
    Panicked {
        /// Text of the panic, shortened.
        text: String,
    },
}

/// A rule: returns its decision if the error is of its type.
type Rule = Arc<dyn Fn(&(dyn Error + 'static), u32) -> Option<RetryDecision> + Send + Sync>;

/// Decides about the priority of a message.
type Prioritize = Arc<dyn Fn(&Call<'_>) -> Priority + Send + Sync>;

/// Options of one worker, for [`NodeBuilder::worker_with`](crate::NodeBuilder::worker_with). Each default is the setting of
/// the node.
///
/// ```
/// use std::time::Duration;
///
/// use whizbang::{CircuitBreaker, JobError, Retry, RetryDecision, WorkerOptions};
///
/// #[derive(Debug, thiserror::Error)]
/// enum ProviderError {
///     #[error("too many requests")]
///     TooMany { retry_after: Duration },
///     #[error("the account is closed")]
///     Closed,
///     #[error("no answer")]
///     NoAnswer,
/// }
///
/// let options = WorkerOptions::new()
///     .retry(Retry { attempts: 10, ..Retry::default() })
///     .retry_error(|error: &ProviderError, _attempt| match error {
///         ProviderError::TooMany { retry_after } => RetryDecision::After(*retry_after),
///         ProviderError::Closed => RetryDecision::GiveUp,
///         ProviderError::NoAnswer => RetryDecision::Policy,
///     })
///     .retry_error(|_: &JobError, attempt| if attempt < 3 { RetryDecision::Policy } else { RetryDecision::GiveUp })
///     .jobs(4)
///     .job_limit(Duration::from_secs(30))
///     .rate(50, Duration::from_secs(1))
///     .circuit_breaker(CircuitBreaker::failures(5));
/// # drop(options);
/// ```
#[derive(Clone, Default)]
pub struct WorkerOptions {
    pub(super) retry: Option<Retry>,
    rules: Vec<Rule>,
    pub(super) jobs: Option<usize>,
    pub(super) job_limit: Option<Duration>,
    pub(super) rate: Option<(u32, Duration)>,
    pub(super) breaker: Option<CircuitBreaker>,
    pub(super) batch: Option<(usize, Duration)>,
    pub(super) priority: Option<Prioritize>,
    pub(super) is_exclusive: bool,
    /// True if expired commands become dead letters.
    pub(super) keeps_expired: bool,
}

impl WorkerOptions {
    /// Creates options that change nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of attempts and the waits between them. Default: [`NodeConfig::retry`](crate::NodeConfig::retry).
    /// [`NodeBuilder::retry_of`](crate::NodeBuilder::retry_of) takes precedence for its message type.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// Decides about attempts that fail with an error of type `E`, or with an error that has one among its
    /// [sources](Error::source). Default: every error is retried.
    ///
    /// `decide` gets the error and the number of failed attempts, from 1. Of several rules the first one whose type
    /// is found decides. It is asked about errors that would be retried: [`WorkError::Retry`](super::WorkError::Retry), which
    /// `?` creates, and [`JobError`]. A rejection and a permanent failure are final without it. It must not block; its
    /// panic counts as a panic of the worker.
    pub fn retry_error<E: Error + 'static>(
        mut self,
        decide: impl Fn(&E, u32) -> RetryDecision + Send + Sync + 'static,
    ) -> Self {
        self.rules.push(Arc::new(move |error, attempt| {
            let mut chain = std::iter::successors(Some(error), |error| (**error).source());
            chain.find_map(|error| error.downcast_ref::<E>()).map(|error| decide(error, attempt))
        }));
        self
    }

    /// Limits the jobs of this worker that run at once on the node, on all its threads together. Default: up to
    /// [`NodeConfig::jobs`](crate::NodeConfig::jobs) on each thread. 1 to 1,048,576.
    ///
    /// Other jobs wait; commands of actors are recorded while they wait, so they survive a restart and delay no other
    /// message. Of several nodes of a service each has its own limit.
    pub fn jobs(mut self, jobs: usize) -> Self {
        self.jobs = Some(jobs);
        self
    }

    /// Limits the time of one attempt. Default: [`NodeConfig::job_limit`](crate::NodeConfig::job_limit). At least 1 ms.
    ///
    /// An attempt over the limit is dropped, fails with [`JobError::TimedOut`] and counts.
    pub fn job_limit(mut self, limit: Duration) -> Self {
        self.job_limit = Some(limit);
        self
    }

    /// Limits how many attempts begin in any window of this length, on all threads of the node together. Default: no
    /// limit. 1 to 65,536 attempts, 1 ms to 24 h.
    ///
    /// Other jobs wait, as with [`jobs`](Self::jobs). A window that was idle saves nothing up. Of several nodes of a
    /// service each has its own limit, and a start of the node begins an empty window.
    pub fn rate(mut self, attempts: u32, window: Duration) -> Self {
        self.rate = Some((attempts, window));
        self
    }

    /// Pauses the worker while its attempts fail. Default: never.
    ///
    /// A job that waits has not begun: its attempts are not used up. After the pause one job is tried. If it is done
    /// or rejected, the worker resumes; if it fails, another pause begins. Errors that are retried count as failures;
    /// permanent failures, and errors for which a rule has given up, do not count. While it is paused, health names
    /// the worker and [`Metrics::open_circuits`](crate::Metrics::open_circuits) counts it.
    ///
    /// Callers wait until their time limit. Of several nodes of a service each has its own circuit.
    pub fn circuit_breaker(mut self, breaker: CircuitBreaker) -> Self {
        self.breaker = Some(breaker);
        self
    }

    /// Limits the calls of [batch handlers](crate::PerformBatch): a call starts with this many jobs, or when `wait` has passed
    /// since its first job. Default: 32 jobs, 10 ms. 1 to 10,000 jobs, 1 ms to 10 s.
    ///
    /// Each message type has its own calls on each thread, and each job of a call counts for the other limits. So a call has at
    /// most [`jobs`](Self::jobs) jobs, or [`NodeConfig::jobs`](crate::NodeConfig::jobs) without that limit; twice as many let a call
    /// fill while another runs. A job that is started again after a failed attempt has a call of its own, which starts at once.
    /// The time limit of an attempt holds for the call. Above 100 ms, waiting jobs are recorded like long ones, at the cost of a
    /// commit each.
    pub fn batch(mut self, jobs: usize, wait: Duration) -> Self {
        self.batch = Some((jobs, wait));
        self
    }

    /// Gives jobs priorities: of those that wait for a place or a limit of the worker, an urgent one begins first. Default:
    /// all begin in the order of arrival.
    ///
    /// `decide` sees the message as a [layer](crate::layer::Layer) does. It must return the same for the same message, and not
    /// block; its panic counts, and the job is a [normal](Priority::Normal) one.
    ///
    /// A lower priority does not starve: of 17 jobs that begin on a thread at least one is of [low](Priority::Low) priority while
    /// one waits, and of 6 at least one is [normal](Priority::Normal). A job does not overtake those of its key if the worker
    /// is [exclusive](Self::exclusive_by_key), nor does it end a job that runs.
    /// A start of the node reads each job that was recorded while it waited once.
    ///
    /// ```
    /// use whizbang::{Priority, WorkerOptions};
    ///
    /// let options = WorkerOptions::new().priority(|call| match call.header("priority") {
    ///     Some("urgent") => Priority::Urgent,
    ///     Some("low") => Priority::Low,
    ///     _ => Priority::Normal,
    /// });
    /// # drop(options);
    /// ```
    pub fn priority(mut self, decide: impl Fn(&Call<'_>) -> Priority + Send + Sync + 'static) -> Self {
        self.priority = Some(Arc::new(decide));
        self
    }

    /// Runs the jobs of one key one after the other, across restarts. Default: at the same time.
    ///
    /// The messages of one actor or log are handled in the order in which they were sent; a job that is retried holds up
    /// those behind it. A dead letter makes way. A node that was killed or has lost the shard may have left an attempt at
    /// an external service unfinished there. Commands of callers take their turn among them. The key is
    /// [`Job::key`](super::Job::key). Messages that wait are recorded like those of a busy worker, also events, at the cost of a
    /// commit; a start reads each of them once.
    pub fn exclusive_by_key(mut self) -> Self {
        self.is_exclusive = true;
        self
    }

    /// Makes a dead letter of a command that has [expired](crate::client::SendCommand::expires_in) before its job began. Default: it
    /// is rejected with [`Rejection::EXPIRED`](whizbang_core::message::Rejection::EXPIRED).
    ///
    /// Redriving the dead letter runs the job, discarding it answers the sender. Until then the sender has no reply.
    pub fn dead_letter_expired(mut self) -> Self {
        self.keeps_expired = true;
        self
    }

    /// Returns whether a rule may decide about errors.
    pub(super) fn has_rules(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Returns the decision about an error. Calls user code. Costs the number of rules and of sources.
    pub(super) fn decide(&self, error: &(dyn Error + 'static), attempt: u32) -> RetryDecision {
        let decision = self.rules.iter().find_map(|rule| rule(error, attempt)).unwrap_or_default();
        match decision {
            RetryDecision::After(wait) => RetryDecision::After(wait.min(LONGEST_WAIT)),
            RetryDecision::Policy | RetryDecision::GiveUp => decision,
        }
    }

    /// Checks the ranges. Returns the first option that is out of its range, with the range.
    pub(crate) fn invalid(&self) -> Option<(&'static str, &'static str)> {
        let retry = self.retry.unwrap_or_default();
        let breaker = self.breaker.unwrap_or_else(|| CircuitBreaker::failures(1));
        let day = Duration::from_secs(24 * 3600);
        let is_time = |time: Duration| (Duration::from_millis(1)..=day).contains(&time);
        let (starts, window) = self.rate.unwrap_or((1, day));
        let (batch, wait) = self.batch.unwrap_or(DEFAULT_BATCH);
        let checks = [
            ("WorkerOptions::retry attempts", retry.attempts >= 1, "at least 1"),
            ("WorkerOptions::retry longest", retry.longest >= retry.first, "at least first"),
            ("WorkerOptions::jobs", self.jobs.is_none_or(|jobs| (1..=1_048_576).contains(&jobs)), "1 to 1,048,576"),
            (
                "WorkerOptions::job_limit",
                self.job_limit.is_none_or(|limit| limit >= Duration::from_millis(1)),
                "at least 1 ms",
            ),
            ("WorkerOptions::rate attempts", (1..=MAX_STARTS).contains(&starts), "1 to 65,536"),
            ("WorkerOptions::rate window", is_time(window), "1 ms to 24 h"),
            ("WorkerOptions::batch jobs", (1..=MAX_BATCH).contains(&batch), "1 to 10,000"),
            (
                "WorkerOptions::batch wait",
                (Duration::from_millis(1)..=Duration::from_secs(10)).contains(&wait),
                "1 ms to 10 s",
            ),
            ("CircuitBreaker percent", (1..=100).contains(&breaker.percent), "1 to 100"),
            ("CircuitBreaker attempts", (1..=MAX_ATTEMPTS).contains(&breaker.attempts), "1 to 10,000"),
            ("CircuitBreaker pause", is_time(breaker.pause), "1 ms to 24 h"),
        ];
        checks.into_iter().find(|(_, holds, _)| !holds).map(|(key, _, range)| (key, range))
    }
}

impl fmt::Debug for WorkerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerOptions")
            .field("retry", &self.retry)
            .field("rules", &self.rules.len())
            .field("jobs", &self.jobs)
            .field("job_limit", &self.job_limit)
            .field("rate", &self.rate)
            .field("breaker", &self.breaker)
            .field("batch", &self.batch)
            .field("has_priorities", &self.priority.is_some())
            .field("is_exclusive", &self.is_exclusive)
            .field("keeps_expired", &self.keeps_expired)
            .finish()
    }
}
