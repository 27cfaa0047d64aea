//! Stateless async handlers that do I/O, as competing consumers.
//!
//! Called by the node with commands and events; call whatever user code calls.
//! Outside effects are at-least-once: each job carries an idempotency key that is the same in every delivery.

use std::future::Future;

use crate::message::{Command, Domain, Event, MessageId, Of, Rejection};

/// A pool of async handlers. Derived with `#[derive(Worker)]`.
pub trait Worker: Send + Sync + 'static {
    /// The domain whose commands it performs.
    type Domain: Domain;
    /// Its name in the store, unique in its domain.
    const NAME: &'static str;

    /// Lists what it takes.
    #[doc(hidden)]
    fn wire(plan: &mut WorkerPlan<Self>)
    where
        Self: Sized;
}

/// What a worker is told about its job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The same in every delivery of the same message: hand it to whatever is called outside.
    pub idempotency_key: MessageId,
    /// Which delivery this is, from 1.
    pub delivery: u32,
    /// The correlation id.
    pub correlation: MessageId,
}

/// Why a worker has not done its job.
#[derive(Debug)]
pub enum WorkError {
    /// The final "no": stored as the command's reply and never retried.
    Rejected(Rejection),
    /// Something that may pass: the job is done again after a while.
    Retry(Box<dyn std::error::Error + Send + Sync>),
    /// Something that will not pass: the message becomes a dead letter.
    Fail(Box<dyn std::error::Error + Send + Sync>),
}

impl From<Rejection> for WorkError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
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
    note = "write `impl On<{E}> for {Self} {{ async fn on(&self, event: {E}, job: Job) -> Result<(), WorkError> {{ … }} }}`"
)]
pub trait On<E: Event>: Worker {
    /// Does the job. Runs on the node's own thread: wait with `.await`, block never.
    fn on(&self, event: E, job: Job) -> impl Future<Output = Result<(), WorkError>>;
}

/// The list that [`Worker::wire`] fills.
#[doc(hidden)]
pub struct WorkerPlan<W: ?Sized>(std::marker::PhantomData<W>);

impl<W: Worker> WorkerPlan<W> {
    /// Lists a command that is performed.
    pub fn performs<C: Command + Of<W::Domain>>(&mut self)
    where
        W: Perform<C>,
    {
    }

    /// Lists an event that something is done on.
    pub fn on<E: Event>(&mut self)
    where
        W: On<E>,
    {
    }
}
