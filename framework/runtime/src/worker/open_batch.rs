//! Open batches: collect the jobs of one message type on a thread, and call their handler once.
//!
//! Called by the attempt of each [job](super::run), which waits for its own result. A batch begins when it is complete,
//! when its time has passed or when a shard of its jobs closes. It runs in a task that its jobs own: when the last of
//! them has ended, the call is dropped. Never decides what follows from a result: each job does that alone.

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::failure::JobFailure;
use super::options::JobError;
use super::{Job, WorkError};
use crate::actor::{OwnedShard, ThreadContext};
use whizbang_core::clock::instant;
use whizbang_core::spawn::Task;
use whizbang_core::telemetry::TARGET;
use whizbang_core::user_code::{Label, caught};

/// Time by which the limit of a batch ends before that of its jobs, so that no job is retried while the call still runs.
const GRACE: Duration = Duration::from_secs(1);
/// Wait in place of one that a clock cannot represent: 30 years.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// The handler: returns the result of each message.
pub(super) type BatchHandler<W, T, R> =
    fn(Arc<W>, Vec<(T, Job)>) -> LocalBoxFuture<'static, Result<Vec<Result<R, WorkError>>, WorkError>>;

/// The results of the messages of one job, or the error of the whole call.
type Results<R> = Result<Vec<Result<R, WorkError>>, JobFailure>;

/// Conditions under which one attempt of a job joins a batch.
pub(crate) struct JoinBatch {
    /// The attempt shares its call with no other.
    pub(super) is_alone: bool,
    /// Most jobs of a batch, and the time for which it is open.
    pub(super) size: usize,
    pub(super) wait: Duration,
    /// Time limit of the call.
    pub(super) limit: Duration,
    /// Time at which the attempt fails, which moves when it joins.
    pub(super) deadline: Rc<Cell<Instant>>,
    pub(super) context: Rc<ThreadContext>,
    pub(super) shard: Rc<OwnedShard>,
    pub(super) label: Label,
}

/// Batches of one message type of a worker on a thread.
pub(super) struct Batches<W, T, R> {
    handler: BatchHandler<W, T, R>,
    /// The batch that still accepts jobs.
    open: RefCell<Option<Open<T, R>>>,
}

struct Open<T, R> {
    batch: Rc<Batch<T, R>>,
    /// Owned by the jobs of the batch.
    task: Weak<Task>,
}

struct Batch<T, R> {
    jobs: RefCell<Vec<BatchedJob<T, R>>>,
    /// Notified when the call may begin.
    begins: Notify,
}

struct BatchedJob<T, R> {
    /// Several, if a stored event was split.
    messages: Vec<(T, Job)>,
    result: oneshot::Sender<Results<R>>,
}

/// A handler that has returned a wrong number of results. The attempts of its jobs have failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("batch handler returned {results} results for {messages} messages")]
struct ResultCount {
    results: usize,
    messages: usize,
}

impl<W: 'static, T: 'static, R: 'static> Batches<W, T, R> {
    pub(super) fn new(handler: BatchHandler<W, T, R>) -> Rc<Self> {
        Rc::new(Self { handler, open: RefCell::default() })
    }

    /// Adds a job to the open batch, and waits for the results of its messages.
    pub(super) async fn join(self: &Rc<Self>, worker: Arc<W>, messages: Vec<(T, Job)>, join: JoinBatch) -> Results<R> {
        // The time until here, in layers, is limited by the deadline so far; the call has a limit of its own.
        join.deadline.set(later(join.limit.saturating_add(join.wait).saturating_add(GRACE)));
        let (result, mut told) = oneshot::channel();
        let (batch, task) = self.place(worker, &join);
        let jobs = {
            let mut jobs = batch.jobs.borrow_mut();
            jobs.push(BatchedJob { messages, result });
            jobs.len()
        };
        if join.is_alone || jobs >= join.size {
            self.begin(&batch);
        }
        let ended = tokio::select! {
            biased;
            ended = &mut told => ended,
            () = join.context.closes(&join.shard) => {
                self.begin(&batch);
                told.await
            }
        };
        drop(task);
        // Without a result, the task has panicked outside of user code.
        ended.unwrap_or_else(|_| Err(JobFailure::Retry("the batch ended without a result".into())))
    }

    /// Returns the batch that a job joins, and its task.
    fn place(self: &Rc<Self>, worker: Arc<W>, join: &JoinBatch) -> (Rc<Batch<T, R>>, Rc<Task>) {
        if !join.is_alone
            && let Some(open) = &*self.open.borrow()
            && let Some(task) = open.task.upgrade()
        {
            return (Rc::clone(&open.batch), task);
        }
        let batch = Rc::new(Batch { jobs: RefCell::default(), begins: Notify::new() });
        let task = Rc::new(whizbang_core::spawn::local(self.run(worker, join, Rc::clone(&batch))));
        if !join.is_alone {
            self.open.replace(Some(Open { batch: Rc::clone(&batch), task: Rc::downgrade(&task) }));
        }
        (batch, task)
    }

    /// Lets the call of a batch begin, which accepts no further jobs.
    fn begin(&self, batch: &Rc<Batch<T, R>>) {
        self.open.borrow_mut().take_if(|open| Rc::ptr_eq(&open.batch, batch));
        batch.begins.notify_one();
    }

    /// Waits until a batch is complete or its time has passed, and calls the handler.
    fn run(
        self: &Rc<Self>,
        worker: Arc<W>,
        join: &JoinBatch,
        batch: Rc<Batch<T, R>>,
    ) -> impl Future<Output = ()> + 'static {
        let (batches, code) = (Rc::clone(self), Arc::clone(&join.context.user_code));
        let (wait, limit, label) = (join.wait, join.limit, join.label);
        let run = async move {
            tokio::select! {
                biased;
                () = batch.begins.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            batches.begin(&batch);
            let (mut messages, mut jobs) = (Vec::new(), Vec::new());
            for job in batch.jobs.take() {
                // A job that has ended, because its shard was closed, is not part of the call.
                if !job.result.is_closed() {
                    jobs.push((job.messages.len(), job.result));
                    messages.extend(job.messages);
                }
            }
            if jobs.is_empty() {
                return;
            }
            tracing::debug!(target: TARGET, jobs = jobs.len(), messages = messages.len(), "batch started");
            let (handler, expected) = (batches.handler, messages.len());
            let call = async move { handler(worker, messages).await };
            let failure = match tokio::time::timeout(limit, code.run(label, call)).await {
                Ok(Ok(Ok(results))) if results.len() == expected => {
                    let mut results = results.into_iter();
                    for (count, job) in jobs {
                        drop(job.send(Ok(results.by_ref().take(count).collect())));
                    }
                    return;
                }
                Ok(Ok(Ok(results))) => {
                    WorkError::Retry(ResultCount { results: results.len(), messages: expected }.into())
                }
                Ok(Ok(Err(error))) => error,
                Ok(Err(panicked)) => JobError::Panicked { text: panicked.text().to_owned() }.into(),
                Err(_) => JobError::TimedOut { limit }.into(),
            };
            fail(jobs.into_iter().map(|(_, job)| job).collect(), failure);
        };
        async move {
            // Its jobs see a panic of other code as a batch without a result.
            drop(caught(run).await);
        }
    }
}

/// Fails the jobs of a call. One of several may have caused the error, so it is final for none of them.
fn fail<R>(mut jobs: Vec<oneshot::Sender<Results<R>>>, error: WorkError) {
    if jobs.len() <= 1 {
        if let Some(job) = jobs.pop() {
            drop(job.send(Ok(vec![Err(error)])));
        }
        return;
    }
    let error = Arc::from(Box::<dyn Error + Send + Sync>::from(error));
    for job in jobs {
        drop(job.send(Err(JobFailure::Batch(Arc::clone(&error)))));
    }
}

/// Returns the time after `wait`, or one that is never reached.
pub(super) fn later(wait: Duration) -> Instant {
    let now = instant();
    now.checked_add(wait).unwrap_or_else(|| now + NEVER)
}

/// Waits for an attempt until its deadline, which moves when the attempt joins a batch. Returns `None` after it.
pub(super) async fn within<T>(deadline: &Cell<Instant>, attempt: impl Future<Output = T>) -> Option<T> {
    let mut attempt = pin!(attempt);
    loop {
        let until = deadline.get();
        match tokio::time::timeout_at(until, &mut attempt).await {
            Ok(ended) => return Some(ended),
            Err(_) if deadline.get() > until => {}
            Err(_) => return None,
        }
    }
}
