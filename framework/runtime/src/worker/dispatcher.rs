//! Worker dispatcher: admits the messages of one worker on one thread and starts their jobs.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::sync::Semaphore;

use super::deferred_queue::DeferredJobs;
use super::exclusive::Lines;
use super::failure::Failure;
use super::job_log::{JobLog, JobNumber};
use super::limits::{Admitted, WorkerLimits};
use super::outbox::JobSender;
use super::{Worker, WorkerPlan};
use crate::actor::{InFlightGuard, MIN_WAIT, OwnedShard, ThreadContext};
use crate::client::Client;
use crate::inbox::QueuedKind;
use crate::router::{Action, ActorEndpoint, Completion, DedupKey, Delivery, Outcome, Remote, Unconnected};
use whizbang_core::message::{Domain, Envelope, Key, Name, Shard, ShardId, shard_of};
use whizbang_core::retry::Retries;
use whizbang_core::spawn::Task;
use whizbang_core::store::StoreError;
use whizbang_core::user_code::caught;

/// Most posts of a worker on a thread that wait for a slot. More wait in their stream.
const MAX_WAITING_POSTS: usize = 64;
/// Most bytes of the posts of a worker on a thread that are running or wait for a slot. A few wait whatever their size, so that a free
/// slot finds one.
const MAX_POST_BYTES: usize = 32 << 20;
/// The number of posts that wait whatever their size.
const MIN_WAITING_POSTS: usize = 8;

/// Endpoint of one worker on one thread.
pub(crate) struct WorkerDispatcher<W: Worker> {
    pub(super) context: Rc<ThreadContext>,
    pub(super) plan: WorkerPlan<W>,
    pub(super) worker: Arc<W>,
    pub(super) limits: Arc<WorkerLimits>,
    /// Retry policies: that of the worker or of the node, and those of message types.
    pub(super) retries: Retries,
    pub(super) domain: Name,
    pub(super) actor: Name,
    /// Shards by number; `None` for those that are not open on this thread.
    shards: Box<[RefCell<Option<Rc<OwnedShard>>>]>,
    /// One permit for each job that may run at once: on this thread, or on the node if the worker has its own limit.
    pub(super) slots: Arc<Semaphore>,
    /// Deferred jobs.
    pub(super) pending: Rc<DeferredJobs>,
    /// Lines of the keys, if the worker is exclusive by key.
    pub(super) lines: Option<Rc<Lines>>,
    /// Sender of what the jobs send.
    pub(super) sender: Arc<JobSender>,
    /// Logs by stream key.
    pub(super) logs: RefCell<HashMap<String, Rc<JobLog>, FixedState>>,
    jobs: RefCell<HashMap<JobNumber, RunningJob, FixedState>>,
    /// Number of admitted posts, and their bytes. Their completions hold them.
    posts: Rc<Cell<(usize, usize)>>,
    next: Cell<JobNumber>,
}

/// An admitted, unsettled message.
struct RunningJob {
    _task: Task,
    shard: Rc<OwnedShard>,
    /// User code has begun: from now on an external effect is possible.
    begun: bool,
    /// Completions of the first delivery and of repeated ones.
    settle: Vec<Completion>,
    _flights: Vec<InFlightGuard>,
}

impl<W: Worker> WorkerDispatcher<W> {
    pub(crate) fn new(
        context: Rc<ThreadContext>,
        worker: Arc<W>,
        limits: Arc<WorkerLimits>,
        domain: Name,
        actor: Name,
        shards: Shard,
    ) -> Rc<Self> {
        let slots = limits.slots.clone().unwrap_or_else(|| Arc::new(Semaphore::new(context.settings.jobs)));
        let retries = &context.settings.retry;
        let retries = retries.clone().with_all(limits.options.retry.unwrap_or(retries.all));
        let pending = DeferredJobs::new(Arc::clone(&context.counts));
        let lines = limits.options.is_exclusive.then(|| Lines::new(&pending));
        let plan = WorkerPlan::of();
        let (node, remote) =
            context.remote.get().cloned().unwrap_or_else(|| (0, Arc::new(Unconnected) as Arc<dyn Remote>));
        let sender = Arc::new(JobSender {
            name: format!("{}/{}", W::Domain::NAME, W::NAME),
            domain: Some((domain.clone(), W::Domain::SHARDS)),
            awaited: plan.awaited.clone(),
            shapes: Arc::clone(&context.settings.shapes),
            propagated: Arc::clone(&context.settings.propagated),
            client: Client::new(node, remote, context.ids.fork()),
        });
        Rc::new(Self {
            context,
            plan,
            sender,
            worker,
            limits,
            retries,
            domain,
            actor,
            shards: (0..shards).map(|_| RefCell::default()).collect(),
            slots,
            pending,
            lines,
            logs: RefCell::default(),
            jobs: RefCell::default(),
            posts: Rc::default(),
            next: Cell::new(1),
        })
    }

    /// Returns the outcome of a message that is not admitted.
    fn refused(&self, delivery: &Delivery) -> Option<Outcome> {
        let outside = matches!(delivery.dedup_key, DedupKey::MessageId);
        if self.context.stopped.get() || self.context.draining.get() {
            return Some(Outcome::Stopped);
        }
        // Jobs have their own bound, so that jobs waiting for slow services use up no turns. Messages of the node
        // itself (events, redrives) were bounded where they were pulled in.
        let fits = || self.context.queued.fits(QueuedKind::Jobs, delivery.envelope.payload.len());
        if outside && (self.jobs.borrow().len() >= self.context.settings.in_flight || !fits()) {
            self.context.counts.busy.one();
            return Some(Outcome::Busy);
        }
        let key = Key::from(delivery.envelope.key.as_str());
        (!key.is_valid()).then(|| Outcome::Undecodable("a key has 1 to 256 bytes".to_owned()))
    }

    /// Returns the shard of a key.
    ///
    /// # Errors
    /// The outcome of a message, if the shard accepts none here.
    fn shard(&self, key: &str) -> Result<Rc<OwnedShard>, Outcome> {
        let shards = Shard::try_from(self.shards.len()).unwrap_or(Shard::MAX);
        let shard = self.opened(shard_of(key, shards)).ok_or(Outcome::Moved)?;
        if shard.is_open() { Ok(shard) } else { Err(shard.stopped_outcome()) }
    }

    fn opened(&self, shard: Shard) -> Option<Rc<OwnedShard>> {
        self.shards.get(usize::from(shard))?.borrow().clone()
    }

    /// Ends these jobs: nothing of them is committed anymore.
    fn end_jobs(&self, jobs: impl IntoIterator<Item = RunningJob>) {
        for running in jobs {
            let outcome = running.shard.unfinished_outcome(running.begun);
            // The job is ended before its completion is called, which may send the message again.
            drop(running._task);
            for settle in running.settle {
                settle(outcome.clone());
            }
        }
    }

    /// Waits until the limits of the worker let a job begin; `None` if the shard closes first.
    pub(super) async fn admit_job(&self, shard: &Rc<OwnedShard>) -> Option<Admitted> {
        if !self.limits.delays_jobs() {
            return Some(Admitted::default());
        }
        tokio::select! {
            biased;
            admitted = self.limits.admit() => Some(admitted),
            () = Rc::clone(&self.context).sleep_unless_closing(Rc::clone(shard), Duration::MAX) => None,
        }
    }

    /// Returns the wait before the next attempt of a job that has failed this often.
    pub(super) fn wait(&self, envelope: &Envelope, failure: &Failure, failed: u32) -> Duration {
        let wait = failure.wait().unwrap_or_else(|| self.retries.of(envelope).wait(failed, &self.context.ids));
        wait.max(MIN_WAIT)
    }

    /// Records that user code begins.
    pub(super) fn begin(&self, job: JobNumber) {
        if let Some(running) = self.jobs.borrow_mut().get_mut(&job) {
            running.begun = true;
        }
    }

    /// Settles a message whose job continues, because it is deferred.
    pub(super) fn settle_early(&self, job: JobNumber, outcome: &Outcome) {
        let settle = self.jobs.borrow_mut().get_mut(&job).map(|running| std::mem::take(&mut running.settle));
        for settle in settle.into_iter().flatten() {
            settle(outcome.clone());
        }
    }

    /// Starts the task of a job. `flight` is held until the job is settled.
    pub(super) fn spawn<T: Future<Output = ()> + 'static>(
        &self,
        shard: &Rc<OwnedShard>,
        flight: InFlightGuard,
        settle: Option<Completion>,
        work: impl FnOnce(JobNumber) -> T,
    ) {
        let number = self.next.replace(self.next.get() + 1);
        let task = whizbang_core::spawn::local(work(number));
        let settle = settle.into_iter().collect();
        self.jobs.borrow_mut().insert(
            number,
            RunningJob { _task: task, shard: Rc::clone(shard), begun: false, settle, _flights: vec![flight] },
        );
    }

    /// Merges a repeated delivery into the running job of its message: it gets the same outcome.
    pub(super) fn join(&self, again: JobNumber, first: JobNumber) {
        let mut jobs = self.jobs.borrow_mut();
        let Some(mut running) = jobs.remove(&again) else { return };
        if let Some(first) = jobs.get_mut(&first) {
            first.settle.append(&mut running.settle);
            first._flights.append(&mut running._flights);
        }
        drop(jobs);
        drop(running);
    }

    /// Returns whether user code has begun for a job.
    pub(super) fn has_begun(&self, job: JobNumber) -> bool {
        self.jobs.borrow().get(&job).is_some_and(|running| running.begun)
    }

    /// Returns the task name under which failures of jobs are reported.
    pub(super) fn task(&self) -> String {
        format!("jobs of {}", self.actor)
    }

    /// Reports that a job has ended normally: its worker is no longer listed as failed.
    pub(super) fn report_recovered(&self) {
        if self.context.counts.failed_tasks.get() > 0 {
            self.context.user_code.task_recovered(&self.task());
        }
    }

    /// Runs an operator's request. A panic outside of user code is reported, and the operator gets an error.
    async fn guarded(&self, job: JobNumber, work: impl Future<Output = ()>) {
        if let Err(panicked) = caught(work).await {
            self.context.user_code.failed(&self.task(), panicked.text());
            self.settle(job, &Outcome::Unknown(StoreError::Closed));
        }
    }

    /// Settles the message of a job with its outcome.
    pub(super) fn settle(&self, job: JobNumber, outcome: &Outcome) {
        let Some(running) = self.jobs.borrow_mut().remove(&job) else { return };
        let RunningJob { _task, settle, _flights, .. } = running;
        // The in-flight guard is released first: the completion may check at once whether the node is idle.
        drop(_flights);
        for settle in settle {
            settle(outcome.clone());
        }
    }
}

impl<W: Worker> ActorEndpoint for Rc<WorkerDispatcher<W>> {
    fn deliver(&self, delivery: Delivery) {
        if let Some(outcome) = self.refused(&delivery) {
            return (delivery.completion)(outcome);
        }
        let Delivery { action: work, envelope, dedup_key: arrival, completion: settle } = delivery;
        let shard = match self.shard(&envelope.key) {
            Ok(shard) => shard,
            Err(outcome) => return settle(outcome),
        };
        let dispatcher = Rc::clone(self);
        // Before the first wait of its task: messages that arrive one after the other must enter their lines so.
        let has_order = matches!(arrival, DedupKey::Sequence { .. });
        let queued = self.lines.as_ref().filter(|_| has_order).map(|lines| lines.queue(shard.id.shard));
        let mut flight = self.context.track_job(&shard);
        if matches!(arrival, DedupKey::MessageId) {
            flight = flight.holding(QueuedKind::Jobs, envelope.payload.len());
        }
        self.spawn(&Rc::clone(&shard), flight, Some(settle), move |number| async move {
            match work {
                Action::Redrive => dispatcher.guarded(number, dispatcher.redrive(number, &shard, envelope)).await,
                Action::Discard { message } => {
                    dispatcher.guarded(number, dispatcher.discard(number, &shard, envelope, message)).await;
                }
                _ => dispatcher.take(number, shard, envelope, arrival, queued).await,
            }
        });
    }

    /// Posts wait in their stream until few are left here: a broker limits how many messages a node may have
    /// unfinished, and those of other actors need room.
    fn deliver_post(&self, mut delivery: Delivery) {
        let jobs = self.limits.options.jobs.unwrap_or(self.context.settings.jobs);
        let (posts, bytes) = self.posts.get();
        let is_large = posts >= jobs.saturating_add(MIN_WAITING_POSTS) && bytes >= MAX_POST_BYTES;
        if is_large || posts >= jobs.saturating_add(MAX_WAITING_POSTS) {
            self.context.counts.busy.one();
            return (delivery.completion)(Outcome::Busy);
        }
        let own = delivery.envelope.payload.len();
        self.posts.set((posts + 1, bytes + own));
        let (admitted, settle) = (Rc::clone(&self.posts), delivery.completion);
        delivery.completion = Box::new(move |outcome| {
            let (posts, bytes) = admitted.get();
            admitted.set((posts - 1, bytes - own));
            settle(outcome);
        });
        self.deliver(delivery);
    }

    fn key_of(&self, event: &Envelope) -> Result<Option<String>, String> {
        let taken = self.plan.on.contains_key(&(&*event.domain, &*event.name));
        Ok(event.origin.as_ref().filter(|_| taken).map(|origin| origin.key.clone()))
    }

    fn live_count(&self) -> usize {
        self.jobs.borrow().len()
    }

    fn passivate_idle(&self, _idle_sweeps: u64, _cap: usize) {
        // Logs of shards stay; those of single messages are dropped with their job.
    }

    fn open_shard(&self, shard: Shard) {
        let opened = self.context.shards.borrow().get(&ShardId::new(self.domain.clone(), shard)).cloned();
        if let Some(slot) = self.shards.get(usize::from(shard)) {
            slot.replace(opened);
        }
    }

    fn close_shard(&self, shard: Shard) {
        let Some(closed) = self.shards.get(usize::from(shard)).and_then(RefCell::take) else { return };
        let is_of = |shard: &Rc<OwnedShard>| Rc::ptr_eq(shard, &closed);
        let jobs: Vec<_> = self.jobs.borrow_mut().extract_if(|_, job| is_of(&job.shard)).map(|(_, job)| job).collect();
        self.logs.borrow_mut().retain(|_, log| !is_of(&log.shard));
        self.pending.remove(&closed);
        // Before the jobs end: the lines of this shard are not passed on.
        self.lines.iter().for_each(|lines| lines.remove(&closed));
        self.end_jobs(jobs);
    }

    fn deliver_deferred(&self, shard: Shard) {
        let Some(shard) = self.opened(shard) else { return };
        let me = Rc::clone(self);
        let begin = move || Rc::clone(&me).begin_deferred(Rc::clone(&shard));
        whizbang_core::spawn::restarting(&self.context.user_code, "schedule deferred jobs", begin);
    }

    fn is_idle(&self) -> bool {
        self.pending.is_empty() || self.context.draining.get()
    }

    fn reset(&self) {
        let jobs = std::mem::take(&mut *self.jobs.borrow_mut());
        self.logs.borrow_mut().clear();
        self.pending.clear();
        self.lines.iter().for_each(|lines| lines.clear());
        self.end_jobs(jobs.into_values());
    }
}
