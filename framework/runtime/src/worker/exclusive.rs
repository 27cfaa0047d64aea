//! Jobs of one key, one after the other: the line of each key of a worker that is exclusive by key.
//!
//! Used by the path of a [job](super::job) on one thread. A message enters the line of its key when it is admitted, and
//! one message at a time holds the line. A message of an actor or log that waits is recorded like any other deferred
//! job, but only once those before it are: so the order of the records is the order of arrival, and a restart keeps it.
//! Messages of callers are not recorded; they wait in memory, among the recorded ones. A step costs the same however
//! long the line is, with one exception: a task that is dropped is searched for.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;

use foldhash::fast::FixedState;
use tokio::sync::Notify;

use super::deferred_queue::DeferredJobs;
use super::priority::Priority;
use crate::actor::OwnedShard;
use whizbang_core::clock::instant;
use whizbang_core::message::{MessageId, Shard};

/// One message in a line.
#[derive(Clone)]
enum Entry {
    /// Its task waits in memory.
    Task { number: u64, wake: Rc<Notify>, is_recordable: bool },
    /// Its job is recorded, and begins when it holds the line.
    Recorded(MessageId, Priority),
}

/// Line of one key. Empty lines are dropped.
struct Line {
    shard: Rc<OwnedShard>,
    holder: Entry,
    /// Waiting messages that are recorded, or that never will be.
    settled: VecDeque<Entry>,
    /// The recorded ones among them.
    recorded: HashSet<MessageId, FixedState>,
    /// Waiting messages that must be recorded, in order.
    unrecorded: VecDeque<Entry>,
}

impl Line {
    /// Returns whether the first unrecorded message may be recorded: nothing before it is unrecorded.
    fn may_record(&self) -> bool {
        !matches!(self.holder, Entry::Task { is_recordable: true, .. })
    }

    /// Adds a waiting message that is recorded, or that never will be. Returns whether it is recorded.
    fn settle(&mut self, entry: Entry) -> bool {
        let is_recorded = match &entry {
            Entry::Recorded(id, _) => self.recorded.insert(*id),
            Entry::Task { .. } => false,
        };
        self.settled.push_back(entry);
        is_recorded
    }

    /// Wakes the first unrecorded message if it may be recorded.
    fn wake_unrecorded(&self) {
        if self.may_record()
            && let Some(Entry::Task { wake, .. }) = self.unrecorded.front()
        {
            wake.notify_one();
        }
    }
}

/// Next step of a waiting message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It holds the line: its job may begin.
    Begin,
    /// It may be recorded.
    Record,
    /// The message waits until it is woken.
    Wait,
}

/// The lines of a worker on one thread.
pub(super) struct Lines {
    lines: RefCell<HashMap<String, Line, FixedState>>,
    next: Cell<u64>,
    pending: Rc<DeferredJobs>,
    /// Shards whose recorded jobs have entered their lines. Until then no other message may.
    restored: RefCell<HashSet<Shard, FixedState>>,
    has_restored: Notify,
    /// Messages of actors and logs that have arrived and have not entered a line yet, by shard, in order.
    queues: RefCell<HashMap<Shard, BTreeMap<u64, Rc<Notify>>, FixedState>>,
}

impl Lines {
    pub(super) fn new(pending: &Rc<DeferredJobs>) -> Rc<Self> {
        let (lines, next, restored) = (RefCell::default(), Cell::new(1), RefCell::default());
        let (has_restored, queues) = (Notify::new(), RefCell::default());
        Rc::new(Self { lines, next, pending: Rc::clone(pending), restored, has_restored, queues })
    }

    fn number(&self) -> u64 {
        self.next.replace(self.next.get() + 1)
    }

    /// Queues a message that has arrived for a shard.
    pub(super) fn queue(self: &Rc<Self>, shard: Shard) -> Queued {
        let (number, wake) = (self.number(), Rc::new(Notify::new()));
        self.queues.borrow_mut().entry(shard).or_default().insert(number, Rc::clone(&wake));
        Queued { lines: Rc::clone(self), shard, number, wake }
    }

    /// Waits until the recorded jobs of a shard have entered their lines.
    pub(super) async fn restored(&self, shard: Shard) {
        loop {
            let restored = self.has_restored.notified();
            if self.restored.borrow().contains(&shard) {
                return;
            }
            restored.await;
        }
    }

    /// Records that the recorded jobs of a shard have entered their lines.
    pub(super) fn set_restored(&self, shard: Shard) {
        self.restored.borrow_mut().insert(shard);
        self.has_restored.notify_waiters();
    }

    /// Adds a message that its task holds in memory.
    pub(super) fn enter(self: &Rc<Self>, key: &str, shard: &Rc<OwnedShard>, is_recordable: bool) -> Place {
        let (number, wake) = (self.number(), Rc::new(Notify::new()));
        let entry = Entry::Task { number, wake: Rc::clone(&wake), is_recordable };
        self.add(key, shard, entry, is_recordable);
        Place { lines: Rc::clone(self), key: key.to_owned(), number, wake, is_left: Cell::new(false) }
    }

    /// Lets a recorded job begin: returns true if it holds the line of its key now; otherwise it is in the line.
    pub(super) fn claim(&self, key: &str, shard: &Rc<OwnedShard>, id: MessageId, priority: Priority) -> bool {
        let is_it = |entry: &Entry| matches!(entry, Entry::Recorded(known, _) if *known == id);
        let lines = self.lines.borrow();
        let known =
            lines.get(key).map(|line| (is_it(&line.holder), is_it(&line.holder) || line.recorded.contains(&id)));
        drop(lines);
        if let Some((is_holder, true)) = known {
            return is_holder;
        }
        self.add(key, shard, Entry::Recorded(id, priority), false);
        known.is_none()
    }

    fn add(&self, key: &str, shard: &Rc<OwnedShard>, entry: Entry, is_recordable: bool) {
        let mut lines = self.lines.borrow_mut();
        match lines.get_mut(key) {
            Some(line) if is_recordable => {
                line.unrecorded.push_back(entry);
                line.wake_unrecorded();
            }
            Some(line) => {
                self.pending.count(usize::from(line.settle(entry)), 0);
            }
            None => {
                let (settled, unrecorded, recorded) = (VecDeque::new(), VecDeque::new(), HashSet::default());
                let line = Line { shard: Rc::clone(shard), holder: entry, settled, recorded, unrecorded };
                lines.insert(key.to_owned(), line);
            }
        }
    }

    /// Ends the place of a recorded job that is done or a dead letter.
    pub(super) fn leave(&self, key: &str, id: MessageId) {
        let is_holder = |line: &Line| matches!(line.holder, Entry::Recorded(holder, _) if holder == id);
        if self.lines.borrow().get(key).is_some_and(is_holder) {
            self.pass_on(key);
        }
    }

    /// Passes a line to its next message: a recorded job is queued, a task is woken.
    fn pass_on(&self, key: &str) {
        let mut lines = self.lines.borrow_mut();
        let Some(line) = lines.get_mut(key) else { return };
        match line.settled.pop_front().or_else(|| line.unrecorded.pop_front()) {
            None => drop(lines.remove(key)),
            Some(entry) => {
                match &entry {
                    Entry::Recorded(id, priority) => {
                        line.recorded.remove(id);
                        self.pending.count(0, 1);
                        self.pending.push(&line.shard, *id, *priority, instant());
                    }
                    Entry::Task { wake, .. } => wake.notify_one(),
                }
                line.holder = entry;
                line.wake_unrecorded();
            }
        }
    }

    /// Drops the lines of a shard that is closed. Its next owner reads them from the log.
    pub(super) fn remove(&self, shard: &Rc<OwnedShard>) {
        self.restored.borrow_mut().remove(&shard.id.shard);
        self.queues.borrow_mut().remove(&shard.id.shard);
        self.drop_lines(|line| Rc::ptr_eq(&line.shard, shard));
    }

    /// Drops all lines.
    pub(super) fn clear(&self) {
        self.restored.borrow_mut().clear();
        self.queues.borrow_mut().clear();
        self.drop_lines(|_| true);
    }

    fn drop_lines(&self, is_gone: impl Fn(&Line) -> bool) {
        let gone: Vec<_> = self.lines.borrow_mut().extract_if(|_, line| is_gone(line)).collect();
        self.pending.count(0, gone.iter().map(|(_, line)| line.recorded.len()).sum());
    }
}

/// Position of a message among those that have arrived for its shard and have not entered a line. The reads before a line
/// end in any order, and fail for some and not for others. Dropped, it makes way.
pub(super) struct Queued {
    lines: Rc<Lines>,
    shard: Shard,
    number: u64,
    wake: Rc<Notify>,
}

impl Queued {
    /// Waits until every message that arrived before it has entered its line or has ended.
    pub(super) async fn is_first(&self) {
        let is_behind = || {
            let queues = self.lines.queues.borrow();
            let first = queues.get(&self.shard).and_then(|queue| queue.first_key_value());
            first.is_some_and(|(first, _)| *first < self.number)
        };
        while is_behind() {
            self.wake.notified().await;
        }
    }

    /// Makes way for the messages behind it.
    pub(super) fn leave(&self) {
        let mut queues = self.lines.queues.borrow_mut();
        let Some(queue) = queues.get_mut(&self.shard) else { return };
        if queue.remove(&self.number).is_some()
            && let Some((_, wake)) = queue.first_key_value()
        {
            wake.notify_one();
        }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Place of a message in the line of its key. Dropped, it passes the line on.
pub(super) struct Place {
    lines: Rc<Lines>,
    key: String,
    number: u64,
    wake: Rc<Notify>,
    is_left: Cell<bool>,
}

impl Place {
    fn is_it(&self, entry: &Entry) -> bool {
        matches!(entry, Entry::Task { number, .. } if *number == self.number)
    }

    /// Returns what the message may do now.
    pub(super) fn turn(&self) -> Turn {
        let lines = self.lines.lines.borrow();
        match lines.get(&self.key) {
            Some(line) if self.is_it(&line.holder) => Turn::Begin,
            Some(line) if line.may_record() && line.unrecorded.front().is_some_and(|first| self.is_it(first)) => {
                Turn::Record
            }
            Some(_) => Turn::Wait,
            // The shard was closed; the task ends.
            None => Turn::Wait,
        }
    }

    /// Waits until the [turn](Self::turn) may have changed.
    pub(super) async fn changed(&self) {
        self.wake.notified().await;
    }

    /// Leaves the place to the recorded job. Returns whether the job holds the line, so that its caller begins it.
    pub(super) fn recorded(&self, id: MessageId, priority: Priority) -> bool {
        self.is_left.set(true);
        let mut lines = self.lines.lines.borrow_mut();
        let Some(line) = lines.get_mut(&self.key) else { return false };
        let is_holder = self.is_it(&line.holder);
        if is_holder {
            line.holder = Entry::Recorded(id, priority);
        } else {
            if line.unrecorded.front().is_some_and(|first| self.is_it(first)) {
                line.unrecorded.pop_front();
            }
            self.lines.pending.count(usize::from(line.settle(Entry::Recorded(id, priority))), 0);
        }
        line.wake_unrecorded();
        is_holder
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_left.get() {
            return;
        }
        let is_holder = {
            let mut lines = self.lines.lines.borrow_mut();
            let Some(line) = lines.get_mut(&self.key) else { return };
            let is_holder = self.is_it(&line.holder);
            if !is_holder {
                line.settled.retain(|entry| !self.is_it(entry));
                line.unrecorded.retain(|entry| !self.is_it(entry));
                line.wake_unrecorded();
            }
            is_holder
        };
        if is_holder {
            self.lines.pass_on(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::FutureExt as _;

    use super::*;
    use whizbang_core::message::{Name, ShardId};
    use whizbang_core::store::{CommitListener, Store as _, StoreError, Ticket};
    use whizbang_core::telemetry::Counts;
    use whizbang_log::memory::MemoryStore;

    struct Silent;

    impl CommitListener for Silent {
        fn committed(&self, _through: Ticket) {}
        fn failed(&self, _error: StoreError) {}
    }

    fn shard() -> Rc<OwnedShard> {
        let id = ShardId::new(Name::from_static("yards").unwrap(), 0);
        let opened = MemoryStore::new().open(&id, 1, Arc::new(Silent)).now_or_never();
        OwnedShard::new(id, opened.expect("opened at once").unwrap(), false)
    }

    fn lines() -> (Rc<Lines>, Arc<Counts>) {
        let counts = Arc::<Counts>::default();
        (Lines::new(&DeferredJobs::new(Arc::clone(&counts))), counts)
    }

    fn id(number: u128) -> MessageId {
        MessageId::from_u128(number)
    }

    #[test]
    fn recorded_jobs_hold_their_line_in_order() {
        let ((lines, counts), shard) = (lines(), shard());
        let claims = |number| lines.claim("t", &shard, id(number), Priority::Normal);
        assert_eq!([1, 2, 3, 2, 1].map(claims), [true, false, false, false, true], "each enters once");
        assert_eq!(counts.deferred.get(), 2);
        lines.leave("t", id(2));
        assert!(claims(1), "another job does not pass the line on");
        for next in [2, 3] {
            lines.leave("t", id(next - 1));
            assert!(claims(next));
        }
        lines.leave("t", id(3));
        assert!(claims(2), "the line was empty");
        lines.remove(&shard);
        assert_eq!(counts.deferred.get(), 2, "those that may begin are in the queue");
    }

    /// Returns the nanoseconds for which this thread has run on a CPU. Other work of the machine does not count.
    fn cpu_time() -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        stat.split(' ').next().unwrap().parse().unwrap()
    }

    /// With a cost that grows with the line, 32 times as many jobs would cost 1,024 times as much. The limit is far from both, as
    /// caches are shared with other work of the machine.
    #[test]
    fn cost_of_a_restored_line_grows_linearly() {
        let mut costs = Vec::new();
        for jobs in [4_000, 128_000] {
            let mut cheapest = u64::MAX;
            for _ in 0..2 {
                let ((lines, _counts), shard) = (lines(), shard());
                let before = cpu_time();
                let begun = (0..jobs).filter(|number| lines.claim("t", &shard, id(*number), Priority::Normal)).count();
                cheapest = cheapest.min(cpu_time() - before);
                assert_eq!(begun, 1);
            }
            costs.push(cheapest);
        }
        // The kernel advances this clock in steps of up to 4 ms. Quadratic, the large line takes many seconds.
        let small = costs[0].max(4_000_000);
        assert!(costs[1] < 256 * small, "{costs:?} ns for 4,000 and 128,000 jobs");
    }
}
