//! Stateless async handlers that do I/O, as competing consumers.
//!
//! Called by the router's doors with commands and events; calls user code, then the [store](crate::store): the mark that a job
//! is done, and its reply, are committed together, after it. So an outside effect happens at least once, each time with the
//! same idempotency key; what a job replies is stored once. Jobs are not in any order among each other.
//! Read on in `job.rs`: the way of one job; `deferred.rs`: jobs that wait; `commit.rs`: what is written of them.

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
pub(crate) use attempts::{Attempt, AttemptEnd, JobAttempt};
pub(crate) use dispatcher::WorkerDispatcher;
pub use plan::WorkerPlan;

use std::error::Error;
use std::fmt;
use std::future::Future;

use crate::message::{Command, Domain, Event, MessageId, Rejection, Shard};

/// A pool of async handlers. Derived with `#[derive(Worker)]`, hosted with [`NodeBuilder::worker`](crate::NodeBuilder::worker).
///
/// Up to [`jobs`](crate::NodeConfig::jobs) messages are worked on at once on each of the node's threads, in no order. A job
/// that fails with [`WorkError::Retry`], or panics, is done again after a while as the node's [`Retry`](crate::Retry) says, then
/// it is a dead letter; other jobs do not wait for it. A job that was under way when its process ended is done again.
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
///         // Here a provider is called; it gets the key, and charges once however often it is called.
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
    /// The domain whose commands it performs.
    type Domain: Domain;
    /// Its name in the store, unique in its domain.
    const NAME: &'static str;
    /// The names it had before.
    #[doc(hidden)]
    const FORMERLY: &'static [&'static str] = &[];

    /// Lists what it takes.
    #[doc(hidden)]
    fn wire(plan: &mut WorkerPlan<Self>)
    where
        Self: Sized;
}

/// The key of the stream that holds what a worker has done for one shard: a turn for each job, with the id of its message.
///
/// What was done under an idempotency key of a caller from outside is not in it.
pub fn stream_of(shard: Shard) -> String {
    format!("shard-{shard}")
}

/// What a worker is told about its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The same in every delivery of the same message: hand it to whatever is called outside.
    pub idempotency_key: MessageId,
    /// Which delivery this is, from 1.
    pub delivery: u32,
    /// The key: of a command the one it was sent to, of an event that of the actor which recorded it.
    pub key: String,
    /// The correlation id.
    pub correlation: MessageId,
}

/// Why a worker has not done its job.
///
/// `?` makes one of any error: a [`Rejection`] stays the final "no", and every other error is tried again. Where trying again
/// does not help, say so: `.map_err(|error| WorkError::Fail(error.into()))`.
///
/// It is not an `std::error::Error` itself, because then `?` could not make it of any other; it becomes a
/// `Box<dyn Error>` where a caller needs one.
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
    /// The final "no": stored as the command's reply and never retried.
    Rejected(Rejection),
    /// Something that may pass: the job is done again after a while.
    Retry(Box<dyn Error + Send + Sync>),
    /// Something that will not pass: the message becomes a dead letter.
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
            Self::Retry(error) => write!(f, "failed, to be tried again: {error}"),
            Self::Fail(error) => write!(f, "failed for good: {error}"),
        }
    }
}

/// Performs a command.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not perform `{C}`",
    label = "listed in `performs(…)`, but not performed",
    note = "write `impl Perform<{C}> for {Self} {{ async fn perform(&self, command: {C}, job: Job) -> Result<…, WorkError> {{ … }} }}`"
)]
pub trait Perform<C: Command>: Worker {
    /// Does the job. Runs on the node's own thread: wait with `.await`, block never.
    fn perform(&self, command: C, job: Job) -> impl Future<Output = Result<C::Reply, WorkError>>;
}

/// Does something on an event.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does nothing on `{E}`",
    label = "listed in `on(…)`, but nothing is done",
    note = "write `impl OnEvent<{E}> for {Self} {{ async fn on_event(&self, event: {E}, job: Job) -> Result<(), WorkError> {{ … }} }}`"
)]
pub trait OnEvent<E: Event>: Worker {
    /// Does the job. Runs on the node's own thread: wait with `.await`, block never.
    fn on_event(&self, event: E, job: Job) -> impl Future<Output = Result<(), WorkError>>;
}
