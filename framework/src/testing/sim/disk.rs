//! A store whose commits take time: what a crash finds uncommitted is lost, or is there without anybody knowing.
//!
//! Called by simulated nodes as their [`Store`]. What is appended goes to its [ground](super::backend) at once and is committed a
//! while later; what arrives meanwhile goes with the next commit. A crash ends everything that uses it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::backend::Backend;
use super::crash_points::{CrashPoint, CrashPoints};
use super::fault_counts::{FaultCounts, FaultEvent};
use super::journal::{Journal, Waiting};
use super::reader::{Jams, Pace, SlowReader};
use super::step_log::ObservedDeliveries;
use super::trace::Trace;
use super::turn::OwnedTurn;
use crate::message::{IdSource, Name, ShardId, StoreIdentity};
use crate::store::{
    Appended, CatalogEntry, CommitListener, Epoch, ShardHandle, ShardReader, ShardWriter, Snapshot, Store, StoreError,
    Ticket, Turn, View, Watermark,
};

/// Told after each commit.
pub(super) type Watcher = Arc<dyn Fn() + Send + Sync>;

/// The store of one simulated service, as one node of it has it: its plug is pulled when that node dies.
#[derive(Clone)]
pub(super) struct Disk(Arc<Shared>, Arc<AtomicBool>);

struct Shared {
    service: String,
    ground: Backend,
    /// What was being committed when the power failed: it is there once the store is opened again, or not.
    unsure: Mutex<Vec<Waiting>>,
    power: Mutex<Power>,
    dice: Mutex<IdSource>,
    /// The longest time a commit takes, in milliseconds.
    slowest: Mutex<u16>,
    pace: Pace,
    trace: Trace,
    seen: ObservedDeliveries,
    tally: FaultCounts,
    begun: CrashPoints,
    watcher: Mutex<Option<Watcher>>,
    readers: Mutex<BTreeMap<ShardId, Arc<dyn ShardReader>>>,
}

/// Who uses the store since it was opened last.
#[derive(Default)]
struct Power {
    on: bool,
    flushing: bool,
    lives: Vec<Arc<Life>>,
}

/// One listener, as the store knows it: one life of a node. It hears of the commits.
struct Life {
    shared: Weak<Shared>,
    listener: Arc<dyn CommitListener>,
    /// Tickets of one listener keep rising, also when the store is opened anew.
    base: Ticket,
    journal: Mutex<Journal>,
}

impl Disk {
    pub(super) fn new(
        service: &str,
        dice: IdSource,
        trace: Trace,
        seen: ObservedDeliveries,
        tally: FaultCounts,
        begun: CrashPoints,
        ground: Backend,
    ) -> Self {
        let pace = Pace::new(dice.fork(), Jams::new(seen.clone(), tally.clone()));
        let shared = Shared {
            service: service.to_owned(),
            ground,
            unsure: Mutex::default(),
            power: Mutex::default(),
            dice: Mutex::new(dice),
            slowest: Mutex::new(0),
            pace,
            trace,
            seen,
            tally,
            begun,
            watcher: Mutex::new(None),
            readers: Mutex::default(),
        };
        Self(Arc::new(shared), Arc::new(AtomicBool::new(true)))
    }

    /// The same store for another node.
    pub(super) fn plugged(&self) -> Self {
        Self(Arc::clone(&self.0), Arc::new(AtomicBool::new(true)))
    }

    /// The node is dead: what is left of it opens nothing any more.
    pub(super) fn unplug(&self) {
        self.1.store(false, Ordering::Relaxed);
    }

    fn alive(&self) -> Result<(), StoreError> {
        if self.1.load(Ordering::Relaxed) { Ok(()) } else { Err(StoreError::Closed) }
    }

    /// Lets a node begin, whatever it begins with: one without shards has its views only.
    fn on(&self) -> Result<(), StoreError> {
        self.alive()?;
        self.0.switch_on(&mut self.0.power.lock())
    }

    /// What is stored, switched on.
    fn ground(&self) -> Result<&Backend, StoreError> {
        self.on()?;
        Ok(&self.0.ground)
    }

    /// Sets how long a commit and a reading take at most, in milliseconds.
    pub(super) fn set_slowest(&self, commit: u16, load: u16) {
        *self.0.slowest.lock() = commit;
        self.0.pace.set(load);
    }

    pub(super) fn jams(&self) -> &Jams {
        &self.0.pace.jams
    }

    pub(super) fn watch(&self, watcher: Watcher) {
        *self.0.watcher.lock() = Some(watcher);
    }

    /// Every shard that was ever opened; what is committed can be read.
    pub(super) fn readers(&self) -> Vec<(ShardId, Arc<dyn ShardReader>)> {
        self.0.readers.lock().iter().map(|(id, reader)| (id.clone(), Arc::clone(reader))).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.0.power.lock().waiting() == 0
    }

    /// The node has died: some of what it had not committed is in the log all the same.
    pub(super) fn crash(&self) {
        if !self.is_idle() {
            self.0.tally.one(FaultEvent::CrashInACommit);
        }
        self.0.cut();
    }

    /// Fails what waits, as a crash would, and tells the node.
    pub(super) fn fail(&self) {
        for life in self.0.cut() {
            self.0.tally.one(FaultEvent::StoreFailed);
            life.listener.failed(StoreError::io("flushing", std::io::Error::other("a simulated disk has failed")));
        }
    }
}

impl Power {
    fn waiting(&self) -> usize {
        self.lives.iter().map(|life| life.journal.lock().waiting.len()).sum()
    }
}

impl Shared {
    /// All that uses the store is cut off: nothing of what waits is reported any more. Whom that hits.
    fn cut(&self) -> Vec<Arc<Life>> {
        let lives = {
            let mut power = self.power.lock();
            if !std::mem::replace(&mut power.on, false) {
                return Vec::new();
            }
            power.lives.clone()
        };
        let mut waiting = Vec::new();
        for life in &lives {
            let mut journal = life.journal.lock();
            journal.closed = true;
            waiting.extend(journal.waiting.drain(..));
        }
        if self.ground.is_on_disk() {
            if !waiting.is_empty() {
                let count = waiting.len();
                self.trace.add(format_args!("{} was writing {count} appends when the power failed", self.service));
            }
            let changes = self.dice.lock().below(6);
            self.ground.fail(usize::MAX, changes);
            self.unsure.lock().extend(waiting);
            return lives;
        }
        let kept = self.dice.lock().below(waiting.len() as u64 + 1);
        let kept = usize::try_from(kept).unwrap_or(0);
        if !waiting.is_empty() {
            let count = waiting.len();
            self.trace.add(format_args!("{} had {count} appends uncommitted, {kept} are in the log", self.service));
        }
        self.ground.fail(kept, 0);
        self.tally.add(FaultEvent::CommittedByACrash, kept as u64);
        self.tally.add(FaultEvent::UncommittedByACrash, (waiting.len() - kept) as u64);
        for waiting in waiting.iter().take(kept) {
            self.told(waiting, waiting.position);
        }
        lives
    }

    /// Something is committed.
    fn told(&self, waiting: &Waiting, position: u64) {
        if let Some(turn) = &waiting.turn {
            turn.trace(&self.trace, &self.service, &waiting.shard);
            self.seen.committed(&waiting.shard, turn, position);
        }
    }

    /// Finds out which of the turns are there that were being written when the power failed.
    async fn find_unsure(&self, shard: &ShardId, reader: &Arc<dyn ShardReader>) {
        let unsure = std::mem::take(&mut *self.unsure.lock());
        let (mine, others): (Vec<_>, Vec<_>) = unsure.into_iter().partition(|waiting| waiting.shard == *shard);
        self.unsure.lock().extend(others);
        for waiting in mine {
            let Some(turn) = &waiting.turn else { continue };
            let Ok(history) = reader.history(&turn.actor, &turn.key).await else { continue };
            if history.iter().any(|stored| stored.number == turn.number && stored.id == turn.id) {
                self.told(&waiting, waiting.position);
                self.tally.one(FaultEvent::CommittedByACrash);
            } else {
                self.tally.one(FaultEvent::UncommittedByACrash);
            }
        }
    }

    async fn flush(self: Arc<Self>) {
        loop {
            let count = {
                let mut power = self.power.lock();
                let count = power.waiting();
                if count == 0 {
                    power.flushing = false;
                    return;
                }
                count
            };
            let slowest = u64::from(*self.slowest.lock());
            let micros = self.dice.lock().below(slowest * 1000 + 1);
            if micros > 0 {
                tokio::time::sleep(Duration::from_micros(micros)).await;
            } else {
                tokio::task::yield_now().await;
            }
            // After a crash there is nothing of what waited; what came since waits its own time.
            let count = count.min(self.power.lock().waiting());
            self.ground.commit(count);
        }
    }

    /// Opens the store anew, if it was cut off.
    fn switch_on(&self, power: &mut Power) -> Result<(), StoreError> {
        if !power.on {
            self.ground.renew()?;
            power.lives.clear();
            power.on = true;
        }
        Ok(())
    }

    /// The life of a listener: the one it has, or a new one, in a store that is opened anew if need be.
    fn life_of(self: &Arc<Self>, listener: Arc<dyn CommitListener>) -> Result<Arc<Life>, StoreError> {
        let mut power = self.power.lock();
        let known = power.lives.iter().find(|life| life.is_of(&listener)).cloned();
        let on = power.on;
        self.switch_on(&mut power)?;
        if let Some(known) = known.as_ref().filter(|_| on) {
            return Ok(Arc::clone(known));
        }
        let base = known.map_or(0, |known| known.journal.lock().last);
        let life = Life::new(Arc::downgrade(self), listener, base);
        power.lives.push(Arc::clone(&life));
        Ok(life)
    }
}

impl Life {
    fn new(shared: Weak<Shared>, listener: Arc<dyn CommitListener>, base: Ticket) -> Arc<Self> {
        let journal = Journal { last: base, ..Journal::default() };
        Arc::new(Self { shared, listener, base, journal: Mutex::new(journal) })
    }

    fn is_of(&self, listener: &Arc<dyn CommitListener>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(&self.listener), Arc::as_ptr(listener))
    }
}

impl CommitListener for Life {
    fn committed(&self, through: Ticket) {
        let through = self.base + through;
        let taken = self.journal.lock().take(through);
        let (Some(shared), Some(taken)) = (self.shared.upgrade(), taken) else { return };
        for waiting in taken {
            shared.told(&waiting, waiting.position);
        }
        self.listener.committed(through);
        let watcher = shared.watcher.lock().clone();
        if let Some(watcher) = watcher {
            watcher();
        }
    }

    fn failed(&self, error: StoreError) {
        if !self.journal.lock().closed {
            self.listener.failed(error);
        }
    }
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
            // A node may die between any two shards that it opens.
            tokio::task::yield_now().await;
            self.alive()?;
            let life = shared.life_of(listener)?;
            let handle = shared.ground.open(id, shards, Arc::clone(&life) as _).await?;
            shared.find_unsure(id, &handle.reader).await;
            shared.readers.lock().insert(id.clone(), Arc::clone(&handle.reader));
            let writer = Pen { shared: Arc::clone(shared), life, id: id.clone(), inner: handle.writer };
            let reader = SlowReader::new(id.clone(), handle.reader, shared.pace.clone());
            Ok(ShardHandle { writer: Box::new(writer), reader: Arc::new(reader) })
        })
    }

    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        Box::pin(async move { self.ground()?.read(shard).await })
    }

    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        Box::pin(async move { self.ground()?.view(projection).await })
    }

    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        Box::pin(async move { self.ground()?.take_view(projection).await })
    }

    fn save_view<'a>(&'a self, name: &'a Name, epoch: Epoch, view: View) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.ground()?.save_view(name, epoch, view).await })
    }

    fn catalog(&self) -> BoxFuture<'_, Result<Option<Vec<CatalogEntry>>, StoreError>> {
        Box::pin(async move { self.ground()?.catalog().await })
    }

    fn save_catalog(&self, entries: Vec<CatalogEntry>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.ground()?.save_catalog(entries).await })
    }

    fn identity(&self) -> BoxFuture<'_, Result<Option<StoreIdentity>, StoreError>> {
        Box::pin(async move { self.ground()?.identity().await })
    }

    fn save_identity(&self, identity: StoreIdentity) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.ground()?.save_identity(identity).await })
    }

    fn durability(&self) -> &'static str {
        "simulated: what is committed survives a crash"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            while !self.is_idle() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let mut power = self.0.power.lock();
            power.on = false;
            for life in &power.lives {
                life.journal.lock().closed = true;
            }
            Ok(())
        })
    }
}

/// Writes for one life of a node.
struct Pen {
    shared: Arc<Shared>,
    life: Arc<Life>,
    id: ShardId,
    inner: Box<dyn ShardWriter>,
}

impl Pen {
    fn append_with(
        &mut self,
        turn: Option<Box<OwnedTurn>>,
        append: impl FnOnce(&mut dyn ShardWriter) -> Result<Appended, StoreError>,
    ) -> Result<Appended, StoreError> {
        if self.life.journal.lock().closed {
            return Err(StoreError::Closed);
        }
        let appended = append(self.inner.as_mut()).inspect_err(|error| {
            if matches!(error, StoreError::Fenced { .. }) {
                self.shared.tally.one(FaultEvent::ZombieFenced);
                self.shared.trace.add(format_args!("an old node of {} is fenced: {error}", self.shared.service));
            }
        })?;
        if turn.is_some() {
            self.shared.begun.tell(CrashPoint::Commit);
        }
        let ticket = self.life.base + appended.ticket;
        let mut journal = self.life.journal.lock();
        journal.last = journal.last.max(ticket);
        let shard = self.id.clone();
        journal.waiting.push_back(Waiting { ticket, shard, turn, position: appended.position });
        drop(journal);
        if !std::mem::replace(&mut self.shared.power.lock().flushing, true) {
            crate::spawn::alone("simulated disk", Arc::clone(&self.shared).flush());
        }
        Ok(Appended { ticket, ..appended })
    }
}

impl ShardWriter for Pen {
    fn epoch(&self) -> Epoch {
        self.inner.epoch()
    }

    fn append(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        let owned = OwnedTurn::of(turn);
        self.shared.seen.appended(&owned);
        self.append_with(Some(Box::new(owned)), |inner| inner.append(turn))
    }

    fn advance(&mut self, watermark: &Watermark) -> Result<Appended, StoreError> {
        self.append_with(None, |inner| inner.advance(watermark))
    }

    fn sent(&mut self, to: &ShardId, through: u64) -> Result<Appended, StoreError> {
        self.append_with(None, |inner| inner.sent(to, through))
    }

    fn save_snapshot(&mut self, actor: &Name, key: &str, snapshot: Snapshot) {
        self.inner.save_snapshot(actor, key, snapshot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, Timestamp};
    use crate::testing::store::Fixture;

    /// A simulated store.
    struct Simulated(Disk);

    impl Simulated {
        fn on(ground: impl FnOnce(&IdSource) -> Backend) -> Self {
            let dice = IdSource::seeded(Clock::manual(Timestamp::from_millis(0)).0, 1);
            let ground = ground(&dice);
            let disk = Disk::new(
                "suite",
                dice,
                Trace::new(),
                ObservedDeliveries::new(),
                FaultCounts::default(),
                CrashPoints::default(),
                ground,
            );
            disk.set_slowest(2, 2);
            Self(disk)
        }
    }

    impl Fixture for Simulated {
        fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
            Box::pin(std::future::ready(Arc::new(self.0.clone()) as Arc<dyn Store>))
        }
    }

    mod in_memory {
        use super::*;
        crate::store_suite!(
            Simulated::on(|_| Backend::memory()),
            without { shards_on_many_threads_are_independent: "a simulated cluster runs on one thread" }
        );
    }

    #[cfg(feature = "embedded")]
    mod on_disk {
        use super::*;
        crate::store_suite!(
            Simulated::on(Backend::on_disk),
            without {
                largest_payload_is_stored: "a simulated disk has small segments, so that their ends are met often",
                shards_on_many_threads_are_independent: "a simulated cluster runs on one thread"
            }
        );
    }
}
