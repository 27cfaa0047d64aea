//! The ways onto the threads of a node, and what may wait on them.
//!
//! Called by clients, by the bridge's door and by the threads themselves. Calls nothing but the jobs. What goes by here is bounded:
//! messages of actors by the windows of their lanes, what the bridge brings by its own windows, what callers ask by count and by
//! bytes, and what only says how far a log reaches is one entry for each shard.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::definition::NodeDefinition;
use super::thread::ThreadRuntime;
use crate::message::ShardId;

/// How many payload bytes of what callers ask may wait for a thread before more is answered `Busy`. One that is asked alone may have
/// more. A thread takes what waits within microseconds unless user code blocks it, and then this is what piles up.
const ASKED_BYTES: usize = 64 << 20;

/// Something to be done on a thread of the node.
pub(super) type ThreadJob = Box<dyn FnOnce(&std::rc::Rc<ThreadRuntime>) + Send>;

/// The ways onto the threads of a node.
#[derive(Clone)]
pub(super) struct ThreadHandles {
    threads: Vec<Link>,
    /// How many callers may wait for a thread.
    room: usize,
}

/// The way onto one thread.
#[derive(Clone)]
struct Link {
    sender: mpsc::UnboundedSender<ThreadJob>,
    /// What callers wait for the thread to look at.
    waiting: Arc<Waiting>,
    /// How far logs are known to reach, until the thread looks.
    heads: Arc<Mutex<BTreeMap<ShardId, u64>>>,
}

#[derive(Default)]
struct Waiting {
    asked: AtomicUsize,
    bytes: AtomicUsize,
}

/// The place of one caller among those that wait; given back whatever becomes of its job.
struct Place(Arc<Waiting>, usize);

impl Waiting {
    /// A place for so many bytes, if there is room.
    fn place(self: &Arc<Self>, room: usize, bytes: usize) -> Option<Place> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let place = Place(Arc::clone(self), bytes);
        (asked < room && (before == 0 || before.saturating_add(bytes) <= ASKED_BYTES)).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.asked.fetch_sub(1, Ordering::Relaxed);
        self.0.bytes.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl ThreadHandles {
    pub(super) fn new(senders: Vec<mpsc::UnboundedSender<ThreadJob>>, room: usize) -> Self {
        let link = |sender| Link { sender, waiting: Arc::default(), heads: Arc::default() };
        Self { threads: senders.into_iter().map(link).collect(), room }
    }

    /// Does `job` on a thread; `false` if the node has ended.
    pub(super) fn run(&self, share: usize, job: ThreadJob) -> bool {
        self.threads.get(share).is_some_and(|link| link.sender.send(job).is_ok())
    }

    /// The same for callers, of whom nobody says how many there are and how much they ask; `false` if as many as may, or as many
    /// bytes, wait for the thread already.
    pub(super) fn ask(
        &self,
        share: usize,
        bytes: usize,
        job: impl FnOnce(&std::rc::Rc<ThreadRuntime>) + Send + 'static,
    ) -> bool {
        let Some(place) = self.threads.get(share).and_then(|link| link.waiting.place(self.room, bytes)) else {
            return false;
        };
        self.run(
            share,
            Box::new(move |share| {
                drop(place);
                job(share);
            }),
        );
        true
    }

    /// Tells every thread that the log of a shard reaches up to `position`. A thread that has not looked since it was last told looks
    /// once at all of it.
    pub(super) fn head(&self, source: &ShardId, position: u64) {
        for (share, link) in self.threads.iter().enumerate() {
            let mut heads = link.heads.lock();
            let is_told = !heads.is_empty();
            let known = heads.entry(source.clone()).or_default();
            *known = position.max(*known);
            drop(heads);
            if !is_told {
                let heads = Arc::clone(&link.heads);
                self.run(
                    share,
                    Box::new(move |share| {
                        let heads = std::mem::take(&mut *heads.lock());
                        heads.iter().for_each(|(source, position)| share.head(source, *position));
                    }),
                );
            }
        }
    }

    /// A thread that does nothing any more though the node goes on, if there is one.
    pub(super) fn ended(&self) -> Option<usize> {
        self.threads.iter().position(|link| link.sender.is_closed())
    }

    /// Does the same on every thread.
    pub(super) fn run_all(&self, job: impl Fn(&std::rc::Rc<ThreadRuntime>) + Clone + Send + 'static) {
        for share in 0..self.threads.len() {
            let job = job.clone();
            self.run(share, Box::new(move |share| job(share)));
        }
    }

    /// Waits until every thread is at rest: a number for each that changes with whatever is done there.
    pub(super) async fn at_rest(&self) -> Vec<u64> {
        let mut waits = Vec::new();
        for share in 0..self.threads.len() {
            let (done, wait) = oneshot::channel();
            self.run(share, Box::new(move |share| share.rest(done)));
            waits.push(wait);
        }
        let mut done = Vec::new();
        for wait in waits {
            done.push(wait.await.unwrap_or(0));
        }
        done
    }

    /// Takes nothing new in and waits until what was begun is finished, `limit` at most.
    pub(super) async fn drain(&self, spec: &NodeDefinition, limit: Duration) {
        spec.draining.store(true, Ordering::Relaxed);
        let drained = async {
            let mut waits = Vec::new();
            for share in 0..self.threads.len() {
                let (done, wait) = oneshot::channel();
                self.run(share, Box::new(move |share| share.drain(done)));
                waits.push(wait);
            }
            for wait in waits {
                drop(wait.await);
            }
        };
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!(target: crate::telemetry::TARGET, "the node did not finish its turns in time");
        }
    }

    /// Ends every thread's share.
    pub(super) async fn end(&self) {
        let mut waits = Vec::new();
        for share in 0..self.threads.len() {
            let (done, wait) = oneshot::channel::<()>();
            self.run(
                share,
                Box::new(move |share| {
                    share.end();
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

    #[test]
    fn a_thread_that_has_ended_is_known() {
        let (one, _runs) = mpsc::unbounded_channel();
        let (other, ended) = mpsc::unbounded_channel();
        let links = ThreadHandles::new(vec![one, other], 1);
        assert_eq!(links.ended(), None);
        drop(ended);
        assert_eq!(links.ended(), Some(1));
    }

    #[test]
    fn what_callers_ask_is_bounded_in_bytes() {
        let (sender, mut jobs) = mpsc::unbounded_channel();
        let links = ThreadHandles::new(vec![sender], 100);
        assert!(links.ask(0, 2 * ASKED_BYTES, |_| {}), "one alone may be larger");
        assert!(!links.ask(0, 1, |_| {}));
        drop(jobs.try_recv().unwrap());
        for _ in 0..64 {
            assert!(links.ask(0, ASKED_BYTES / 64, |_| {}));
        }
        assert!(!links.ask(0, 1, |_| {}) && links.ask(0, 0, |_| {}));
        while let Ok(job) = jobs.try_recv() {
            drop(job);
        }
        let waiting = &links.threads[0].waiting;
        assert_eq!((waiting.asked.load(Ordering::Relaxed), waiting.bytes.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn heads_of_logs_wait_once_for_each_thread() {
        let (one, mut jobs) = mpsc::unbounded_channel();
        let (other, mut others) = mpsc::unbounded_channel();
        let links = ThreadHandles::new(vec![one, other], 1);
        let shard = |n| ShardId::new(crate::message::Name::from_static("bank").unwrap(), n);
        for position in 1..=10_000 {
            links.head(&shard(0), position);
            links.head(&shard(1), 10_001 - position);
        }
        assert!(jobs.try_recv().is_ok() && jobs.try_recv().is_err());
        assert!(others.try_recv().is_ok() && others.try_recv().is_err());
        let known = links.threads[0].heads.lock().clone();
        assert_eq!(known, [(shard(0), 10_000), (shard(1), 10_000)].into());
    }
}
