//! A store whose commits take time: what a crash finds uncommitted is lost, or is there without anybody knowing.
//!
//! Called by simulated nodes as their [`Store`]. Keeps what is committed in a [`MemoryStore`], and everything else in a journal
//! that belongs to one life of a node. One commit is under way at a time; what arrives meanwhile goes with the next.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::op::{Op, OwnedTurn};
use super::reader::{Pace, SlowReader};
use super::seen::Seen;
use super::trace::Trace;
use crate::message::{IdSource, Name, ShardId};
use crate::store::memory::MemoryStore;
use crate::store::{
    Appended, CommitListener, Epoch, ShardHandle, ShardReader, ShardWriter, Snapshot, Store, StoreError, Ticket, Turn,
    View, Watermark,
};

/// Told after each commit.
pub(super) type Watcher = Arc<dyn Fn() + Send + Sync>;

/// The store of one simulated service.
#[derive(Clone)]
pub(super) struct Disk(Arc<Shared>);

struct Shared {
    service: String,
    memory: MemoryStore,
    journal: Mutex<Arc<Mutex<Journal>>>,
    dice: Mutex<IdSource>,
    /// The longest time a commit takes, in milliseconds.
    slowest: Mutex<u16>,
    pace: Pace,
    trace: Trace,
    seen: Seen,
    watcher: Mutex<Option<Watcher>>,
    readers: Mutex<BTreeMap<ShardId, Arc<dyn ShardReader>>>,
}

/// What one life of a node has appended and not committed.
#[derive(Default)]
struct Journal {
    waiting: VecDeque<(Ticket, ShardId, Op)>,
    ticket: Ticket,
    listener: Option<Arc<dyn CommitListener>>,
    writers: BTreeMap<ShardId, Box<dyn ShardWriter>>,
    positions: BTreeMap<ShardId, u64>,
    flushing: bool,
    closed: bool,
}

/// Hears nothing: the disk itself reports commits.
struct Deaf;

impl CommitListener for Deaf {
    fn committed(&self, _through: Ticket) {}
    fn failed(&self, _error: StoreError) {}
}

impl Disk {
    pub(super) fn new(service: &str, dice: IdSource, trace: Trace, seen: Seen) -> Self {
        let reading = dice.fork();
        Self(Arc::new(Shared {
            service: service.to_owned(),
            memory: MemoryStore::new(),
            journal: Mutex::default(),
            dice: Mutex::new(dice),
            slowest: Mutex::new(0),
            pace: Pace::new(reading),
            trace,
            seen,
            watcher: Mutex::new(None),
            readers: Mutex::default(),
        }))
    }

    /// Sets how long a commit and a reading take at most, in milliseconds.
    pub(super) fn set_slowest(&self, commit: u16, load: u16) {
        *self.0.slowest.lock() = commit;
        self.0.pace.set(load);
    }

    pub(super) fn watch(&self, watcher: Watcher) {
        *self.0.watcher.lock() = Some(watcher);
    }

    /// Every shard that was ever opened; what is committed can be read.
    pub(super) fn readers(&self) -> Vec<(ShardId, Arc<dyn ShardReader>)> {
        self.0.readers.lock().iter().map(|(id, reader)| (id.clone(), Arc::clone(reader))).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.0.journal.lock().lock().waiting.is_empty()
    }

    /// The node has died: some beginning of what it had not committed is in the log all the same.
    pub(super) fn crash(&self) {
        let journal = Arc::clone(&self.0.journal.lock());
        self.0.cut(&journal);
    }

    /// Fails what waits, as a crash would, and tells the node.
    pub(super) fn fail(&self) {
        let journal = Arc::clone(&self.0.journal.lock());
        self.0.cut(&journal);
        let listener = journal.lock().listener.clone();
        if let Some(listener) = listener {
            listener.failed(StoreError::io("flushing", std::io::Error::other("a simulated disk has failed")));
        }
    }
}

impl Shared {
    fn cut(&self, journal: &Mutex<Journal>) {
        let mut journal = journal.lock();
        if std::mem::replace(&mut journal.closed, true) {
            return;
        }
        let waiting = journal.waiting.len();
        let kept = self.dice.lock().below(waiting as u64 + 1);
        let kept = usize::try_from(kept).unwrap_or(0);
        if waiting > 0 {
            self.trace.add(format_args!("{} had {waiting} appends uncommitted, {kept} are in the log", self.service));
        }
        self.apply(&mut journal, kept);
        journal.waiting.clear();
    }

    /// Moves the oldest appends into the log; the last ticket.
    fn apply(&self, journal: &mut Journal, count: usize) -> Ticket {
        let mut through = 0;
        for _ in 0..count {
            let Some((ticket, shard, op)) = journal.waiting.pop_front() else { break };
            through = ticket;
            let Some(writer) = journal.writers.get_mut(&shard) else { continue };
            op.trace(&self.trace, &self.service, &shard);
            match (op.apply(writer.as_mut()), &op) {
                (Ok(Some(appended)), Op::Turn(turn)) => self.seen.committed(&shard, turn, appended.position),
                (Ok(_), _) => {}
                (Err(error), _) => {
                    self.trace.add(format_args!("{} cannot commit to {shard}: {error}", self.service));
                }
            }
        }
        through
    }

    async fn flush(self: Arc<Self>, journal: Arc<Mutex<Journal>>) {
        loop {
            let count = {
                let mut journal = journal.lock();
                if journal.waiting.is_empty() || journal.closed {
                    journal.flushing = false;
                    return;
                }
                journal.waiting.len()
            };
            let slowest = u64::from(*self.slowest.lock());
            let micros = self.dice.lock().below(slowest * 1000 + 1);
            if micros > 0 {
                tokio::time::sleep(Duration::from_micros(micros)).await;
            } else {
                tokio::task::yield_now().await;
            }
            let (through, listener) = {
                let mut journal = journal.lock();
                if journal.closed {
                    journal.flushing = false;
                    return;
                }
                (self.apply(&mut journal, count), journal.listener.clone())
            };
            if let Some(listener) = listener {
                listener.committed(through);
            }
            let watcher = self.watcher.lock().clone();
            if let Some(watcher) = watcher {
                watcher();
            }
        }
    }
}

fn same(one: &Arc<dyn CommitListener>, other: &Arc<dyn CommitListener>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(one), Arc::as_ptr(other))
}

impl Store for Disk {
    fn open<'a>(
        &'a self,
        id: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        Box::pin(async move {
            let shared = &self.0;
            let journal = {
                let mut current = shared.journal.lock();
                let (known, closed, ticket) = {
                    let journal = current.lock();
                    let known = journal.listener.as_ref().is_some_and(|known| same(known, &listener));
                    (known, journal.closed, journal.ticket)
                };
                if !known || closed {
                    shared.cut(&current);
                    // Tickets of one listener keep rising, also over a failure.
                    let ticket = if known { ticket } else { 0 };
                    *current = Arc::new(Mutex::new(Journal { ticket, listener: Some(listener), ..Journal::default() }));
                }
                Arc::clone(&current)
            };
            let handle = shared.memory.open(id, shards, Arc::new(Deaf)).await?;
            let epoch = handle.writer.epoch();
            shared.readers.lock().insert(id.clone(), Arc::clone(&handle.reader));
            {
                let mut journal = journal.lock();
                journal.positions.insert(id.clone(), handle.reader.position());
                journal.writers.insert(id.clone(), handle.writer);
            }
            let writer = Pen { shared: Arc::clone(shared), journal, id: id.clone(), epoch };
            let reader = SlowReader::new(handle.reader, shared.pace.clone());
            Ok(ShardHandle { writer: Box::new(writer), reader: Arc::new(reader) })
        })
    }

    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        self.0.memory.read(shard)
    }

    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        self.0.memory.view(projection)
    }

    fn save_view<'a>(&'a self, projection: &'a Name, view: View) -> BoxFuture<'a, Result<(), StoreError>> {
        self.0.memory.save_view(projection, view)
    }

    fn durability(&self) -> &'static str {
        "simulated: what is committed survives a crash"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            while !self.is_idle() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(())
        })
    }
}

/// Writes into the journal of one life of a node.
struct Pen {
    shared: Arc<Shared>,
    journal: Arc<Mutex<Journal>>,
    id: ShardId,
    epoch: Epoch,
}

impl Pen {
    fn append_op(&self, op: Op) -> Result<Appended, StoreError> {
        let mut journal = self.journal.lock();
        if journal.closed {
            return Err(StoreError::Closed);
        }
        journal.ticket += 1;
        let position = journal.positions.entry(self.id.clone()).or_default();
        *position += op.events();
        let appended = Appended {
            ticket: journal.ticket,
            position: *journal.positions.entry(self.id.clone()).or_default(),
            committed: false,
        };
        journal.waiting.push_back((appended.ticket, self.id.clone(), op));
        if !std::mem::replace(&mut journal.flushing, true) {
            crate::spawn::detached(Arc::clone(&self.shared).flush(Arc::clone(&self.journal)));
        }
        Ok(appended)
    }
}

impl ShardWriter for Pen {
    fn epoch(&self) -> Epoch {
        self.epoch
    }

    fn append(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        let turn = OwnedTurn::of(turn);
        self.shared.seen.appended(&turn);
        self.append_op(Op::Turn(Box::new(turn)))
    }

    fn advance(&mut self, watermark: &Watermark) -> Result<Appended, StoreError> {
        self.append_op(Op::Advance(watermark.clone()))
    }

    fn sent(&mut self, to: &ShardId, through: u64) -> Result<Appended, StoreError> {
        self.append_op(Op::Sent(to.clone(), through))
    }

    fn save_snapshot(&mut self, actor: &Name, key: &str, snapshot: Snapshot) {
        // A cache: a store that is closed has no use for it.
        let _ = self.append_op(Op::Snapshot(actor.clone(), key.to_owned(), snapshot));
    }
}
