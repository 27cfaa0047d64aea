//! Workers: stateless async handlers that do I/O, as competing consumers.
//!
//! Called by the router with commands, events and replies; calls user code, then the [store](whizbang_core::store). The
//! mark that a job is done, its reply and the messages that it sends are committed together, after the job. So an
//! external effect happens at least once, each time with the same idempotency key, and everything else once. Jobs have
//! no order, unless the worker is exclusive by key. Start reading at `job.rs`, the path of one job; `deferred.rs` has jobs
//! that wait, `commit.rs` what is recorded about them, `outbox.rs` what they send.

mod admission_queue;
#[cfg(feature = "testing")]
mod attempts;
mod batch;
mod circuit;
mod commit;
mod dead_letters;
mod deferred;
mod deferred_queue;
mod dispatcher;
mod exclusive;
mod expiry;
mod failure;
mod job;
mod job_log;
mod layered;
mod ledger;
mod limits;
mod line;
mod open_batch;
mod options;
mod order;
mod outbox;
mod plan;
mod priority;
mod rate;
mod run;
mod waiting;

#[cfg(feature = "testing")]
#[doc(hidden)]
pub use attempts::{Attempt, AttemptEnd, JobAttempt};
pub use batch::{OnEventBatch, PerformBatch};
pub use circuit::CircuitBreaker;
pub(crate) use dispatcher::WorkerDispatcher;
pub(crate) use limits::WorkerLimits;
pub use options::{JobError, RetryDecision, WorkerOptions};
pub use outbox::SentByJob;
pub use plan::WorkerPlan;
pub use priority::Priority;

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use outbox::JobOutbox;

use crate::client::SendQuery;
use whizbang_core::message::{Command, Domain, Event, MessageId, Query, Rejection, Shard, header};

/// A pool of async handlers. Derived with `#[derive(Worker)]`, hosted with
/// [`NodeBuilder::worker`](crate::NodeBuilder::worker).
///
/// Each thread of the node runs up to [`jobs`](crate::NodeConfig::jobs) messages at once, in no order. A job that
/// fails with [`WorkError::Retry`], or panics, is retried as the node's [`Retry`](whizbang_core::retry::Retry) says, and then
/// becomes a dead letter; other jobs do not wait for it. A job in progress when its process ends is run again.
/// [`WorkerOptions`] set the retries and limits of one worker.
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

/// Context of a job, and its outbox.
///
/// A job [sends](Self::send) messages that leave in the commit that marks it as done:
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Account, Bank, Deposit};
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Payments;
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Payments)]
/// struct Collect { #[key] account: String, cents: u64 }
///
/// #[derive(Worker)]
/// #[worker(domain = Payments, performs(Collect))]
/// struct Collector;
///
/// impl Perform<Collect> for Collector {
///     async fn perform(&self, collect: Collect, job: Job) -> Result<(), WorkError> {
///         // Call the bank's gateway here. If this fails, or the process ends, nothing is sent.
///         job.send(Deposit { account: collect.account, cents: collect.cents });
///         Ok(())
///     }
/// }
///
/// # whizbang::derive::block_on(async {
/// let node = Node::builder("payments", MemoryStore::new()).aggregate::<Account>().worker(Collector).start().await?;
/// node.client().send(Collect { account: "ada".into(), cents: 500 }).await?;
/// node.wait_idle().await;
/// let balance = node.client().send(Deposit { account: "ada".into(), cents: 1 }).await?;
/// assert_eq!(balance, 501);
/// node.stop().await
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Job {
    /// Idempotency key, the same in every delivery of a message: pass it to every external service.
    pub idempotency_key: MessageId,
    /// Number of the delivery, from 1.
    pub delivery: u32,
    /// Key: for a command its target, for an event the key of the actor that recorded it, for a reply the key of the
    /// job that sent the command.
    pub key: String,
    /// The correlation id.
    pub correlation: MessageId,
    /// For a reply, the answered command, by the id that [`SentByJob::id`] returned when it was sent; otherwise `None`.
    pub replied_command: Option<MessageId>,
    /// The headers of the message, sorted by name.
    pub headers: Vec<(String, String)>,
    /// The W3C trace context of the message. Everything that the job sends continues it.
    pub traceparent: Option<String>,
    outbox: Arc<JobOutbox>,
}

impl Job {
    /// Creates the context of a first delivery, for a unit test that calls a worker's methods. Messages that it sends go
    /// nowhere; [`sent`](Self::sent) returns them.
    ///
    /// ```
    /// # use bank_fixture as bank;
    /// use bank::Deposit;
    /// use whizbang::message::MessageId;
    /// use whizbang::prelude::*;
    ///
    /// let job = Job::detached(MessageId::from_u128(7), "ada");
    /// job.send(Deposit { account: "ada".into(), cents: 500 });
    /// let sent: Vec<Deposit> = job.sent();
    /// assert_eq!(sent[0].cents, 500);
    /// ```
    pub fn detached(idempotency_key: MessageId, key: &str) -> Self {
        Self {
            idempotency_key,
            delivery: 1,
            key: key.to_owned(),
            correlation: idempotency_key,
            replied_command: None,
            headers: Vec::new(),
            traceparent: None,
            outbox: Arc::new(JobOutbox::detached(idempotency_key)),
        }
    }

    /// Returns the value of a header of the message.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// Sends a command to the owner of its domain when the job is done.
    ///
    /// The command is stored in the commit that marks the job as done, and sent until the owner has committed it; the
    /// owner handles it once. A job that fails, panics, takes too long or is rejected sends nothing. Each attempt of a
    /// job gives its commands the same ids, in the order of the calls.
    ///
    /// The worker receives the reply through [`OnJobReply`] if it lists the command in `replies(…)`; otherwise no reply
    /// is sent.
    ///
    /// A key that is empty or longer than 256 bytes, a command that cannot be encoded, more than 1,000 commands or
    /// more than 2 MiB of payloads fail the job without another attempt: its message becomes a dead letter.
    pub fn send<C: Command>(&self, command: C) -> SentByJob<'_> {
        SentByJob::new(&self.outbox, self.outbox.send(&command))
    }

    /// Publishes an event under a key when the job is done, as [`Client::publish`](crate::Client::publish) does. The owner of
    /// its domain declares it with [`NodeBuilder::publishes`](crate::NodeBuilder::publishes). Like a [sent](Self::send)
    /// command it is stored in the commit that marks the job as done, and recorded once.
    pub fn publish<E: Event>(&self, key: &str, event: E) -> SentByJob<'_> {
        SentByJob::new(&self.outbox, self.outbox.publish(key, &event))
    }

    /// Cancels a message that a job of this domain's workers has [delayed](SentByJob::after), when the job is done: it is not
    /// sent. No effect if it was sent already.
    pub fn cancel(&self, id: MessageId) {
        self.outbox.cancel(id);
    }

    /// Queries a view. Await the returned future for the answer. A query is sent at once, and again by each attempt.
    ///
    /// # Errors
    /// Like [`Client::query`](crate::Client::query); `?` retries the job.
    pub fn query<Q: Query>(&self, query: Q) -> SendQuery<Q> {
        self.outbox.client().query(query)
    }

    /// Returns the commands of type `C` that the job has sent so far, in order, for unit tests.
    pub fn sent<C: Command>(&self) -> Vec<C> {
        self.outbox.sent()
    }
}

/// Reason why a worker has not done its job.
///
/// `?` converts any error: a [`Rejection`], or a variant of an enum that derives `Rejection`, is final, and every other
/// error is retried. Where a retry does not help, use `.map_err(WorkError::permanent)`. A boxed error, for which `?`
/// finds no conversion, becomes one with `.map_err(WorkError::retry)`.
///
/// It does not implement `std::error::Error`, because `?` could then not convert other errors; it converts into a
/// `Box<dyn Error>`. Logs and dead letters contain the error with its causes, each once.
///
/// ```
/// use whizbang::prelude::*;
///
/// fn price(text: &str) -> Result<u64, WorkError> {
///     let price: u64 = text.parse()?;
///     if price == 0 {
///         return Err(Rejection::new("shop.free", "nothing to pay").into());
///     }
///     u32::try_from(price).map_err(WorkError::permanent)?;
///     Ok(price)
/// }
///
/// assert!(matches!(price("many"), Err(WorkError::Retry(_))));
/// assert!(matches!(price("0"), Err(WorkError::Rejected(_))));
/// assert!(matches!(price("4294967296"), Err(WorkError::Fail(_))));
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum WorkError {
    /// A rejection: stored as the command's reply and never retried.
    Rejected(Rejection),
    /// A transient failure: the job is retried after a wait.
    Retry(Box<dyn Error + Send + Sync>),
    /// A permanent failure: the message becomes a dead letter.
    Fail(Box<dyn Error + Send + Sync>),
}

impl WorkError {
    /// Creates a transient failure: the job is retried after a wait. A [`Rejection`] stays one.
    ///
    /// Waits and the number of attempts are those of [`Retry`](crate::Retry), see
    /// [`NodeBuilder::retry`](crate::NodeBuilder::retry). After the last attempt the message becomes a dead letter.
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::of(error.into(), Self::Retry)
    }

    /// Creates a permanent failure: the message becomes a dead letter. A [`Rejection`] stays one.
    ///
    /// No further attempt is made: an operator has to correct the cause and redrive the message, or discard it.
    pub fn permanent(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::of(error.into(), Self::Fail)
    }

    fn of(error: Box<dyn Error + Send + Sync>, other: fn(Box<dyn Error + Send + Sync>) -> Self) -> Self {
        match error.downcast::<Rejection>() {
            Ok(rejection) => Self::Rejected(*rejection),
            Err(error) => other(error),
        }
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for WorkError {
    fn from(error: E) -> Self {
        Self::retry(error)
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

/// Performs a command. [`Worker`] has a program with a node.
///
/// ```
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Mail;
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Mail)]
/// struct SendMail { #[key] to: String, text: String }
///
/// #[derive(Worker)]
/// #[worker(domain = Mail, performs(SendMail))]
/// struct Mailer;
///
/// impl Perform<SendMail> for Mailer {
///     async fn perform(&self, mail: SendMail, job: Job) -> Result<(), WorkError> {
///         // `?` retries on every error but a rejection.
///         let size: u16 = mail.text.len().try_into()?;
///         println!("{} bytes to {}, message {}", size, mail.to, job.idempotency_key);
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not perform `{C}`",
    label = "listed in `performs(…)`, but not performed",
    note = "write `impl Perform<{C}> for {Self} {{ async fn perform(&self, command: {C}, job: Job) -> Result<…, WorkError> {{ … }} }}`"
)]
pub trait Perform<C: Command>: Worker {
    /// Runs the job on the node's own thread: wait with `.await`, never block.
    fn perform(&self, command: C, job: Job) -> impl Future<Output = Result<C::Reply, WorkError>>;
}

/// Handles an event. [`Worker`] has a program with a node.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposited};
/// use whizbang::prelude::*;
///
/// #[derive(Worker)]
/// #[worker(domain = Bank, on(Deposited))]
/// struct Notifier;
///
/// impl OnEvent<Deposited> for Notifier {
///     async fn on_event(&self, deposited: Deposited, job: Job) -> Result<(), WorkError> {
///         // The key of an event is that of the actor that recorded it.
///         println!("account {} got {} cents", job.key, deposited.cents);
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does nothing on `{E}`",
    label = "listed in `on(…)`, but nothing is done",
    note = "write `impl OnEvent<{E}> for {Self} {{ async fn on_event(&self, event: {E}, job: Job) -> Result<(), WorkError> {{ … }} }}`"
)]
pub trait OnEvent<E: Event>: Worker {
    /// Runs the job on the node's own thread: wait with `.await`, never block.
    fn on_event(&self, event: E, job: Job) -> impl Future<Output = Result<(), WorkError>>;
}

/// Handles the reply to a command that a job of this worker has [sent](Job::send). Runs as a job of its own: retried,
/// and able to send.
///
/// [`Job::key`] is the key of the job that sent the command, and [`Job::replied_command`] the id of the command.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposit};
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Payments;
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Payments)]
/// struct Collect { #[key] order: String, account: String, cents: u64 }
///
/// #[derive(Worker)]
/// #[worker(domain = Payments, performs(Collect), replies(Deposit))]
/// struct Collector;
///
/// impl Perform<Collect> for Collector {
///     async fn perform(&self, collect: Collect, job: Job) -> Result<(), WorkError> {
///         job.send(Deposit { account: collect.account, cents: collect.cents });
///         Ok(())
///     }
/// }
///
/// impl OnJobReply<Deposit> for Collector {
///     async fn on_job_reply(&self, balance: Result<u64, Rejection>, job: Job) -> Result<(), WorkError> {
///         println!("order {}: {balance:?}", job.key);
///         Ok(())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not handle replies to `{C}`",
    label = "listed in `replies(…)`, but not handled",
    note = "write `impl OnJobReply<{C}> for {Self} {{ async fn on_job_reply(&self, reply: Result<…, Rejection>, job: Job) -> Result<(), WorkError> {{ … }} }}`"
)]
pub trait OnJobReply<C: Command>: Worker {
    /// Runs the job on the node's own thread: wait with `.await`, never block.
    fn on_job_reply(&self, reply: Result<C::Reply, Rejection>, job: Job)
    -> impl Future<Output = Result<(), WorkError>>;
}
