//! Workers: stateless async handlers that do I/O, as competing consumers.
//!
//! Called by the router with commands and events; calls user code, then the [store](whizbang_core::store). The mark that a
//! job is done and its reply are committed together, after the job. So an external effect happens at least once, each
//! time with the same idempotency key, and a job's reply is stored once. Jobs have no order. Start reading at
//! `job.rs`, the path of one job; `deferred.rs` has jobs that wait, `commit.rs` what is recorded about them.

#[cfg(feature = "testing")]
mod attempts;
mod commit;
mod dead_letters;
mod deferred;
mod dispatcher;
mod job;
mod ledger;
mod plan;

#[cfg(feature = "testing")]
pub use attempts::{Attempt, AttemptEnd, JobAttempt};
pub(crate) use dispatcher::WorkerDispatcher;
pub use plan::WorkerPlan;

use std::error::Error;
use std::fmt;
use std::future::Future;

use whizbang_core::message::{Command, Domain, Event, MessageId, Rejection, Shard};

/// A pool of async handlers. Derived with `#[derive(Worker)]`, hosted with
/// [`NodeBuilder::worker`](crate::NodeBuilder::worker).
///
/// Each thread of the node runs up to [`jobs`](crate::NodeConfig::jobs) messages at once, in no order. A job that
/// fails with [`WorkError::Retry`], or panics, is retried as the node's [`Retry`](whizbang_core::retry::Retry) says, and then
/// becomes a dead letter; other jobs do not wait for it. A job in progress when its process ends is run again.
///
/// ```
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Payments;
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Payments, reply = String)]
/// struct Charge { #[key] order: String, cents: u64 }
///
/// #[derive(Worker)]
/// #[worker(domain = Payments, performs(Charge))]
/// struct Charger { limit: u64 }
///
/// impl Perform<Charge> for Charger {
///     async fn perform(&self, charge: Charge, job: Job) -> Result<String, WorkError> {
///         if charge.cents > self.limit {
///             return Err(Rejection::new("payments.limit", "the amount is too large").into());
///         }
///         // Call a provider here with the key, so that it charges once however often it is called.
///         Ok(format!("receipt {}", job.idempotency_key))
///     }
/// }
///
/// # whizbang::derive::block_on(async {
/// let node = Node::builder("payments", MemoryStore::new()).worker(Charger { limit: 10_000 }).start().await?;
/// let receipt = node.client().send(Charge { order: "o1".into(), cents: 500 }).await?;
/// assert!(receipt.starts_with("receipt "));
/// node.stop().await
/// # }).unwrap();
/// ```
pub trait Worker: Send + Sync + 'static {
    /// Domain whose commands it performs.
    type Domain: Domain;
    /// Name in the store, unique in its domain.
    const NAME: &'static str;
    /// Former names.
    #[doc(hidden)]
    const FORMERLY: &'static [&'static str] = &[];

    /// Lists its commands and events.
    #[doc(hidden)]
    fn wire(plan: &mut WorkerPlan<Self>)
    where
        Self: Sized;
}

/// Returns the key of the stream that records the jobs of a worker for one shard: a turn for each job, with the id of
/// its message.
///
/// Jobs under an idempotency key of a caller from outside have their own stream.
pub fn stream_of(shard: Shard) -> String {
    format!("shard-{shard}")
}

/// Context of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Idempotency key, the same in every delivery of a message: pass it to every external service.
    pub idempotency_key: MessageId,
    /// Number of the delivery, from 1.
    pub delivery: u32,
    /// Key: for a command its target, for an event the key of the actor that recorded it.
    pub key: String,
    /// The correlation id.
    pub correlation: MessageId,
}

/// Reason why a worker has not done its job.
///
/// `?` converts any error: a [`Rejection`] is final, and every other error is retried. Where a retry does not help,
/// use `.map_err(|error| WorkError::Fail(error.into()))`.
///
/// It does not implement `std::error::Error`, because `?` could then not convert other errors; it converts into a
/// `Box<dyn Error>`.
///
/// ```
/// use whizbang::prelude::*;
///
/// fn price(text: &str) -> Result<u64, WorkError> {
///     let price: u64 = text.parse()?;
///     if price == 0 {
///         return Err(Rejection::new("shop.free", "nothing to pay").into());
///     }
///     Ok(price)
/// }
///
/// assert!(matches!(price("many"), Err(WorkError::Retry(_))));
/// assert!(matches!(price("0"), Err(WorkError::Rejected(_))));
/// ```
#[derive(Debug)]
pub enum WorkError {
    /// A rejection: stored as the command's reply and never retried.
    Rejected(Rejection),
    /// A transient failure: the job is retried after a wait.
    Retry(Box<dyn Error + Send + Sync>),
    /// A permanent failure: the message becomes a dead letter.
    Fail(Box<dyn Error + Send + Sync>),
}

impl<E: Error + Send + Sync + 'static> From<E> for WorkError {
    fn from(error: E) -> Self {
        let error: Box<dyn Error + Send + Sync> = Box::new(error);
        match error.downcast::<Rejection>() {
            Ok(rejection) => Self::Rejected(*rejection),
            Err(error) => Self::Retry(error),
        }
    }
}

impl From<WorkError> for Box<dyn Error + Send + Sync> {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Rejected(rejection) => Box::new(rejection),
            WorkError::Retry(error) | WorkError::Fail(error) => error,
        }
    }
}

impl fmt::Display for WorkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejection) => write!(f, "rejected: {rejection}"),
            Self::Retry(error) => write!(f, "failed, will be retried: {error}"),
            Self::Fail(error) => write!(f, "failed permanently: {error}"),
        }
    }
}

/// Performs a command. See [`Worker`] for an example.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not perform `{C}`",
    label = "listed in `performs(…)`, but not performed",
    note = "write `impl Perform<{C}> for {Self} {{ async fn perform(&self, command: {C}, job: Job) -> Result<…, WorkError> {{ … }} }}`"
)]
pub trait Perform<C: Command>: Worker {
    /// Runs the job on the node's own thread: wait with `.await`, never block.
    fn perform(&self, command: C, job: Job) -> impl Future<Output = Result<C::Reply, WorkError>>;
}

/// Handles an event. See [`Worker`] for a worker.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does nothing on `{E}`",
    label = "listed in `on(…)`, but nothing is done",
    note = "write `impl OnEvent<{E}> for {Self} {{ async fn on_event(&self, event: {E}, job: Job) -> Result<(), WorkError> {{ … }} }}`"
)]
pub trait OnEvent<E: Event>: Worker {
    /// Runs the job on the node's own thread: wait with `.await`, never block.
    fn on_event(&self, event: E, job: Job) -> impl Future<Output = Result<(), WorkError>>;
}
