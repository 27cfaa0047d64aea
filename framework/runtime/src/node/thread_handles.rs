//! Handles to the threads of a node: send jobs there, with bounds on what may be queued.
//!
//! Called by clients, by the bridge handler and by the threads themselves. Everything queued here is bounded:
//! messages of actors by their send windows, messages and requests of the bridge by its own windows, commands of callers
//! by count and by bytes, log heads by one entry per shard, and notes of destinations by count.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use whizbang_core::message::{MAX_PAYLOAD_BYTES, ShardId};

/// Most payload bytes that callers may have queued for one thread; more is refused as `Busy`. A single job may exceed
/// it. A thread takes its jobs within microseconds unless user code blocks it, and then the queue fills up.
const MAX_CALLER_BYTES: usize = 64 << 20;
/// Queued callers from which on the size of typed commands is computed, which costs an encoding. Fewer than this hold
/// at most [`MAX_CALLER_BYTES`], whatever their size.
const CROWD: usize = MAX_CALLER_BYTES / MAX_PAYLOAD_BYTES;

/// Most notes of destinations that may be queued for one thread. A forger can name any number of destinations. A lost
/// note is replaced by the next one, or by the answer of the destination, which a sender asks for without progress.
const MAX_NOTES: usize = 8192;

/// The part of a thread's runtime that its handles use.
pub(in crate::node) trait NodeThread: 'static {
    /// Records that the log of a source reaches up to `position`.
    fn advance_head(&self, source: &ShardId, position: u64);
    /// Applies the note of a destination that it has committed messages of a shard up to `through`.
    fn note_committed(self: &Rc<Self>, from: &ShardId, to: &ShardId, through: u64);
    /// Starts filling what may be missing; `done` receives, once nothing is in flight, a number that changes with any
    /// work done here.
    fn rest(self: &Rc<Self>, done: oneshot::Sender<u64>);
    /// Stops accepting messages. `done` is notified once nothing is in flight and everything committed is forwarded.
    fn drain(self: &Rc<Self>, done: oneshot::Sender<()>);
    /// Ends at once: tasks, endpoints, actors.
    fn end(&self);
}

/// Job for a thread of the node.
pub(in crate::node) type ThreadJob<T> = Box<dyn FnOnce(&Rc<T>) + Send>;

/// Handles to all threads of a node.
pub(in crate::node) struct ThreadHandles<T> {
    threads: Vec<ThreadHandle<T>>,
    /// Most callers that may be queued for a thread.
    max_callers: usize,
}

/// Handle to one thread.
struct ThreadHandle<T> {
    sender: mpsc::UnboundedSender<ThreadJob<T>>,
    /// Jobs of callers that the thread has not taken yet.
    waiting: Arc<CallerLoad>,
    /// Known log heads that the thread has not taken yet.
    heads: Arc<Mutex<BTreeMap<ShardId, u64>>>,
    /// Notes that the thread has not taken yet, by sending and receiving shard: sequences up to which a destination has
    /// committed.
    notes: Arc<Mutex<BTreeMap<(ShardId, ShardId), u64>>>,
}

impl<T> Clone for ThreadHandles<T> {
    fn clone(&self) -> Self {
        Self { threads: self.threads.clone(), max_callers: self.max_callers }
    }
}

impl<T> Clone for ThreadHandle<T> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            waiting: Arc::clone(&self.waiting),
            heads: Arc::clone(&self.heads),
            notes: Arc::clone(&self.notes),
        }
    }
}

#[derive(Default)]
struct CallerLoad {
    callers: AtomicUsize,
    bytes: AtomicUsize,
}

/// Permit of one queued caller; released when its job is taken or dropped.
pub(in crate::node) struct CallerPermit(Arc<CallerLoad>, usize);

impl CallerLoad {
    /// Acquires a permit for a job of that many bytes, if the bounds allow it.
    fn permit(self: &Arc<Self>, max_callers: usize, bytes: usize) -> Option<CallerPermit> {
        let callers = self.callers.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let permit = CallerPermit(Arc::clone(self), bytes);
        (callers < max_callers && (before == 0 || before.saturating_add(bytes) <= MAX_CALLER_BYTES)).then_some(permit)
    }
}

impl Drop for CallerPermit {
    fn drop(&mut self) {
        self.0.callers.fetch_sub(1, Ordering::Relaxed);
        self.0.bytes.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl<T: NodeThread> ThreadHandles<T> {
    pub(in crate::node) fn new(senders: Vec<mpsc::UnboundedSender<ThreadJob<T>>>, max_callers: usize) -> Self {
        let handle =
            |sender| ThreadHandle { sender, waiting: Arc::default(), heads: Arc::default(), notes: Arc::default() };
        Self { threads: senders.into_iter().map(handle).collect(), max_callers }
    }

    /// Runs `job` on a thread; `false` if the node has ended.
    pub(in crate::node) fn run(&self, thread: usize, job: ThreadJob<T>) -> bool {
        self.threads.get(thread).is_some_and(|handle| handle.sender.send(job).is_ok())
    }

    /// Like [`run`](Self::run), for callers, whose number and payloads are not bounded otherwise. Returns `false` if
    /// the bound of queued callers or bytes is reached.
    pub(in crate::node) fn run_bounded(
        &self,
        thread: usize,
        bytes: usize,
        job: impl FnOnce(&Rc<T>) + Send + 'static,
    ) -> bool {
        let Some(permit) = self.permit(thread, bytes) else { return false };
        self.run_permitted(thread, permit, job);
        true
    }

    /// Returns whether so many callers are queued for a thread that the size of each matters.
    pub(in crate::node) fn is_crowded(&self, thread: usize) -> bool {
        self.threads.get(thread).is_some_and(|handle| handle.waiting.callers.load(Ordering::Relaxed) >= CROWD)
    }

    /// Acquires a permit to queue a job of a caller, if the bounds allow it.
    pub(in crate::node) fn permit(&self, thread: usize, bytes: usize) -> Option<CallerPermit> {
        self.threads.get(thread).and_then(|handle| handle.waiting.permit(self.max_callers, bytes))
    }

    /// Runs the job of a caller.
    pub(in crate::node) fn run_permitted(
        &self,
        thread: usize,
        permit: CallerPermit,
        job: impl FnOnce(&Rc<T>) + Send + 'static,
    ) {
        self.run(
            thread,
            Box::new(move |runtime| {
                drop(permit);
                job(runtime);
            }),
        );
    }

    /// Announces to every thread that the log of a shard reaches up to `position`. Announcements are merged until the
    /// thread takes them, so a blocked thread has at most one entry per shard.
    pub(in crate::node) fn advance_head(&self, source: &ShardId, position: u64) {
        for (thread, handle) in self.threads.iter().enumerate() {
            let mut heads = handle.heads.lock();
            let is_announced = !heads.is_empty();
            let known = heads.entry(source.clone()).or_default();
            *known = position.max(*known);
            drop(heads);
            if !is_announced {
                let heads = Arc::clone(&handle.heads);
                self.run(
                    thread,
                    Box::new(move |runtime| {
                        let heads = std::mem::take(&mut *heads.lock());
                        heads.iter().for_each(|(source, position)| runtime.advance_head(source, *position));
                    }),
                );
            }
        }
    }

    /// Passes the note of a destination to the thread of the sending shard. Notes are merged until the thread takes
    /// them.
    pub(in crate::node) fn note_committed(&self, thread: usize, from: ShardId, to: ShardId, through: u64) {
        let Some(handle) = self.threads.get(thread) else { return };
        let mut notes = handle.notes.lock();
        let is_announced = !notes.is_empty();
        if notes.len() >= MAX_NOTES && !notes.contains_key(&(from.clone(), to.clone())) {
            return;
        }
        let known = notes.entry((from, to)).or_default();
        *known = through.max(*known);
        drop(notes);
        if !is_announced {
            let notes = Arc::clone(&handle.notes);
            self.run(
                thread,
                Box::new(move |runtime| {
                    let notes = std::mem::take(&mut *notes.lock());
                    notes.iter().for_each(|((from, to), through)| runtime.note_committed(from, to, *through));
                }),
            );
        }
    }

    /// Returns a thread that has ended although the node runs, if any.
    pub(in crate::node) fn ended(&self) -> Option<usize> {
        self.threads.iter().position(|handle| handle.sender.is_closed())
    }

    /// Runs a job on every thread.
    pub(in crate::node) fn run_all(&self, job: impl Fn(&Rc<T>) + Clone + Send + 'static) {
        for thread in 0..self.threads.len() {
            let job = job.clone();
            self.run(thread, Box::new(move |runtime| job(runtime)));
        }
    }

    /// Waits until every thread is idle. Returns a number per thread that changes with any work done there.
    pub(in crate::node) async fn wait_idle(&self) -> Vec<u64> {
        let mut waits = Vec::new();
        for thread in 0..self.threads.len() {
            let (done, wait) = oneshot::channel();
            self.run(thread, Box::new(move |runtime| runtime.rest(done)));
            waits.push(wait);
        }
        let mut done = Vec::new();
        for wait in waits {
            done.push(wait.await.unwrap_or(0));
        }
        done
    }

    /// Stops accepting messages and waits until everything in progress is finished, for at most `limit`.
    pub(in crate::node) async fn drain(&self, limit: Duration) {
        let drained = async {
            let mut waits = Vec::new();
            for thread in 0..self.threads.len() {
                let (done, wait) = oneshot::channel();
                self.run(thread, Box::new(move |runtime| runtime.drain(done)));
                waits.push(wait);
            }
            for wait in waits {
                drop(wait.await);
            }
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!(target: whizbang_core::telemetry::TARGET, "turns not finished in time: stopping anyway");
        }
    }

    /// Ends every thread's runtime.
    pub(in crate::node) async fn end(&self) {
        let mut waits = Vec::new();
        for thread in 0..self.threads.len() {
            let (done, wait) = oneshot::channel::<()>();
            self.run(
                thread,
                Box::new(move |runtime| {
                    runtime.end();
                    drop(done);
                }),
            );
            waits.push(wait);
        }
        for wait in waits {
            drop(wait.await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread that takes no jobs.
    struct Blocked;

    impl NodeThread for Blocked {
        fn advance_head(&self, _source: &ShardId, _position: u64) {}
        fn note_committed(self: &Rc<Self>, _from: &ShardId, _to: &ShardId, _through: u64) {}
        fn rest(self: &Rc<Self>, _done: oneshot::Sender<u64>) {}
        fn drain(self: &Rc<Self>, _done: oneshot::Sender<()>) {}
        fn end(&self) {}
    }

    #[test]
    fn ended_thread_is_reported() {
        let (one, _runs) = mpsc::unbounded_channel();
        let (other, ended) = mpsc::unbounded_channel();
        let threads = ThreadHandles::<Blocked>::new(vec![one, other], 1);
        assert_eq!(threads.ended(), None);
        drop(ended);
        assert_eq!(threads.ended(), Some(1));
    }

    #[test]
    fn caller_jobs_are_bounded_in_bytes() {
        let (sender, mut jobs) = mpsc::unbounded_channel();
        let threads = ThreadHandles::<Blocked>::new(vec![sender], 100);
        assert!(threads.run_bounded(0, 2 * MAX_CALLER_BYTES, |_| {}), "a single job may exceed the bound");
        assert!(!threads.run_bounded(0, 1, |_| {}));
        drop(jobs.try_recv().unwrap());
        for _ in 0..64 {
            assert!(threads.run_bounded(0, MAX_CALLER_BYTES / 64, |_| {}));
        }
        assert!(!threads.run_bounded(0, 1, |_| {}) && threads.run_bounded(0, 0, |_| {}));
        while let Ok(job) = jobs.try_recv() {
            drop(job);
        }
        let waiting = &threads.threads[0].waiting;
        assert_eq!((waiting.callers.load(Ordering::Relaxed), waiting.bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn notes_are_queued_once_and_bounded() {
        let (sender, mut jobs) = mpsc::unbounded_channel();
        let threads = ThreadHandles::<Blocked>::new(vec![sender], 1);
        let shard = |n| ShardId::new(whizbang_core::message::Name::from_static("bank").unwrap(), n);
        for through in 1..=20_000 {
            threads.note_committed(0, shard(0), shard(u16::try_from(through).unwrap()), through);
            threads.note_committed(0, shard(0), shard(1), 20_001 - through);
        }
        assert!(jobs.try_recv().is_ok() && jobs.try_recv().is_err());
        let notes = threads.threads[0].notes.lock();
        assert_eq!((notes.len(), notes[&(shard(0), shard(1))]), (MAX_NOTES, 20_000));
    }

    #[test]
    fn heads_are_queued_once_per_thread() {
        let (one, mut jobs) = mpsc::unbounded_channel();
        let (other, mut others) = mpsc::unbounded_channel();
        let threads = ThreadHandles::<Blocked>::new(vec![one, other], 1);
        let shard = |n| ShardId::new(whizbang_core::message::Name::from_static("bank").unwrap(), n);
        for position in 1..=10_000 {
            threads.advance_head(&shard(0), position);
            threads.advance_head(&shard(1), 10_001 - position);
        }
        assert!(jobs.try_recv().is_ok() && jobs.try_recv().is_err());
        assert!(others.try_recv().is_ok() && others.try_recv().is_err());
        let known = threads.threads[0].heads.lock().clone();
        assert_eq!(known, [(shard(0), 10_000), (shard(1), 10_000)].into());
    }
}
