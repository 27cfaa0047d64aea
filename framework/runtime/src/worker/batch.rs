//! Batch handlers: traits of workers that handle several messages of one type in one call.
//!
//! Implemented by users, listed by the derive in the [plan](super::plan). [Open batches](super::open_batch) collect the
//! messages of a call. Every message stays a job of its own: with its attempts, its outbox and its commit.

use std::future::Future;

use super::{Job, WorkError, Worker};
use whizbang_core::message::{Command, Event};

/// Performs several commands of one type in one call, for services that are cheaper to call with many: a bulk insert, a
/// batch request. Listed in `performs_batch(…)`.
///
/// A call has up to [`WorkerOptions::batch`](crate::WorkerOptions::batch) jobs, and starts when they are complete or the time
/// has passed. Each command stays a job of its own, which is retried, becomes a dead letter and is committed alone, with
/// its own result and what its [`Job`] sends. Layers and limits apply to each job. With
/// [`exclusive_by_key`](crate::WorkerOptions::exclusive_by_key) a call has at most one job of a key.
///
/// ```
/// use std::time::Duration;
///
/// use whizbang::prelude::*;
/// use whizbang::WorkerOptions;
///
/// #[derive(Domain)]
/// struct Search;
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Search, reply = usize)]
/// struct Index { #[key] page: String, text: String }
///
/// #[derive(Worker)]
/// #[worker(domain = Search, performs_batch(Index))]
/// struct Indexer;
///
/// impl PerformBatch<Index> for Indexer {
///     async fn perform_batch(&self, pages: Vec<(Index, Job)>) -> Result<Vec<Result<usize, WorkError>>, WorkError> {
///         // Call the service once here. With `?` its error is that of every job.
///         let size = pages.len();
///         let each = pages.into_iter().map(|(index, _job)| match index.text.is_empty() {
///             true => Err(Rejection::new("search.empty", "the page is empty").into()),
///             false => Ok(size),
///         });
///         Ok(each.collect())
///     }
/// }
///
/// # whizbang::derive::block_on(async {
/// let options = WorkerOptions::new().batch(50, Duration::from_millis(20));
/// let node = Node::builder("search", MemoryStore::new()).worker_with(Indexer, options).start().await?;
/// let client = node.client();
/// let (page, empty) = tokio::join!(
///     client.send(Index { page: "a".into(), text: "whizbang".into() }),
///     client.send(Index { page: "b".into(), text: String::new() }),
/// );
/// assert!(page? >= 1 && empty.is_err());
/// node.stop().await
/// # }).unwrap();
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not perform batches of `{C}`",
    label = "listed in `performs_batch(…)`, but not performed",
    note = "write `impl PerformBatch<{C}> for {Self} {{ async fn perform_batch(&self, batch: Vec<({C}, Job)>) -> Result<Vec<Result<…, WorkError>>, WorkError> {{ … }} }}`"
)]
pub trait PerformBatch<C: Command>: Worker {
    /// Performs the commands, and returns the result of each, in the order of the commands. Runs on the node's own
    /// thread: wait with `.await`, never block.
    ///
    /// # Errors
    /// An error of the whole call, also a rejection, a panic, the time limit and a wrong number of results, is a failed
    /// attempt of each of its jobs. As it may be caused by one of them, each is attempted again in a call of its own, and
    /// so is a job whose own result is an error. In a call with one command it is the result of the job.
    fn perform_batch(
        &self,
        batch: Vec<(C, Job)>,
    ) -> impl Future<Output = Result<Vec<Result<C::Reply, WorkError>>, WorkError>>;
}

/// Handles several events of one type in one call, as [`PerformBatch`] performs commands. Listed in `on_batch(…)`.
///
/// The events of a call come from any number of actors, in the order in which they have arrived.
///
/// ```
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposited};
/// use whizbang::prelude::*;
///
/// #[derive(Worker)]
/// #[worker(domain = Bank, on_batch(Deposited))]
/// struct Exporter;
///
/// impl OnEventBatch<Deposited> for Exporter {
///     async fn on_event_batch(&self, batch: Vec<(Deposited, Job)>) -> Result<Vec<Result<(), WorkError>>, WorkError> {
///         // Write all rows in one request here, each under its `job.idempotency_key`.
///         let rows = batch.iter().map(|(deposited, job)| format!("{},{}", job.key, deposited.cents));
///         println!("{}", rows.collect::<Vec<_>>().join("\n"));
///         Ok(batch.iter().map(|_| Ok(())).collect())
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does nothing on batches of `{E}`",
    label = "listed in `on_batch(…)`, but nothing is done",
    note = "write `impl OnEventBatch<{E}> for {Self} {{ async fn on_event_batch(&self, batch: Vec<({E}, Job)>) -> Result<Vec<Result<(), WorkError>>, WorkError> {{ … }} }}`"
)]
pub trait OnEventBatch<E: Event>: Worker {
    /// Handles the events, and returns the result of each, in the order of the events. Runs on the node's own thread:
    /// wait with `.await`, never block.
    ///
    /// # Errors
    /// Same as [`PerformBatch::perform_batch`].
    fn on_event_batch(
        &self,
        batch: Vec<(E, Job)>,
    ) -> impl Future<Output = Result<Vec<Result<(), WorkError>>, WorkError>>;
}
