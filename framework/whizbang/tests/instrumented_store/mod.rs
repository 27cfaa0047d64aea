//! A store that counts reads of its timers, streams and events, and that panics, fails or pauses on request.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::{BoxFuture, FutureExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
use whizbang::clock::Timestamp;
use whizbang::message::{MessageId, Name, ShardId};
use whizbang::prelude::*;
use whizbang::store::{
    Appended, CatalogEntry, CommitListener, DeadLetter, Epoch, OutboxEntry, ShardHandle, ShardLeases, ShardReader,
    ShardWriter, Snapshot, Statement, Store, StoreError, StoredEvent, StoredTurn, StreamState, Timer, TimerCursor,
    TimerPage, Turn, View, Watermark,
};

/// The faults to inject, and counters of the reads.
#[derive(Default)]
pub struct StoreProbe {
    /// The method whose next calls panic, and the number of calls.
    panics: Mutex<Option<(String, usize)>>,
    /// The actor type whose appends are refused, the key if it is only one, and the error.
    refusals: Mutex<Option<(String, Option<String>, StoreError)>>,
    /// The method whose calls fail, and the error.
    failures: Mutex<Option<(String, StoreError)>>,
    /// The number of statements of projections that were run, if the store runs them.
    pub statements: Mutex<Option<usize>>,
    /// The actor type and key of which the next load lacks the last turn.
    lacking: Mutex<Option<(String, String)>>,
    /// The error with which saves of views fail, if they do.
    pub view_error: Mutex<Option<StoreError>>,
    /// The number of pages of timers read.
    pub pages: AtomicUsize,
    /// The number of timers in them.
    pub timers: AtomicUsize,
    /// The most timers in one page.
    pub largest: AtomicUsize,
    /// The number of calls that open a shard.
    pub openings: AtomicUsize,
    /// The number of turns of streams read.
    pub turns: AtomicUsize,
    /// The number of events read.
    pub events: AtomicUsize,
    /// Pauses the next read of dead letters.
    pub letters: Hold,
    /// Pauses the next opening of a shard, after it was opened.
    pub opens: Hold,
    /// Pauses the next save of a view with statements, before it begins.
    pub saves: Hold,
}

/// A pause of one call: of a read after its data was read.
#[derive(Default)]
pub struct Hold {
    /// True if the next call is paused.
    pub next: AtomicBool,
    /// Notified when a call is paused.
    pub reads: Notify,
    /// Resumes the paused call.
    pub go: Notify,
}

impl Hold {
    /// Pauses the call if it is the next one.
    async fn pass(&self) {
        if self.next.swap(false, Ordering::Relaxed) {
            self.reads.notify_one();
            self.go.notified().await;
        }
    }
}

impl StoreProbe {
    /// Makes the next `times` calls of `method` panic. For `load` and `append`, `method` includes the name of an actor
    /// type.
    pub fn panic_in(&self, method: &str, times: usize) {
        *self.panics.lock() = Some((method.to_owned(), times));
    }

    /// Makes the calls of a reading method, of `open` or of `claim_view`, fail until [`heal`](Self::heal) is called. For `load`, `method`
    /// includes the name of an actor type.
    pub fn fail(&self, method: &str) {
        let error = StoreError::io("reading", std::io::Error::other("planned"));
        *self.failures.lock() = Some((method.to_owned(), error));
    }

    /// Ends the failures of reads.
    pub fn heal(&self) {
        *self.failures.lock() = None;
    }

    fn reads(&self, method: &str) -> Result<(), StoreError> {
        match &*self.failures.lock() {
            Some((failing, error)) if failing == method => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Returns whether all planned panics have happened.
    pub fn has_panicked(&self) -> bool {
        self.panics.lock().is_none()
    }

    /// Refuses all appends of an actor type, or of one key of it, until [`accept`](Self::accept) is called.
    pub fn refuse(&self, actor: &str, key: Option<&str>, error: StoreError) {
        *self.refusals.lock() = Some((actor.to_owned(), key.map(str::to_owned), error));
    }

    /// Accepts all appends again.
    pub fn accept(&self) {
        *self.refusals.lock() = None;
    }

    /// Hides the last turn of a stream from its next load.
    pub fn hide_last_turn(&self, actor: &str, key: &str) {
        *self.lacking.lock() = Some((actor.to_owned(), key.to_owned()));
    }

    /// Returns whether the hidden turn was looked for.
    pub fn has_hidden(&self) -> bool {
        self.lacking.lock().is_none()
    }

    fn hides(&self, actor: &Name, key: &str) -> bool {
        self.lacking.lock().take_if(|(of, hidden)| &**actor == of.as_str() && hidden == key).is_some()
    }

    fn append(&self, turn: &Turn<'_>) -> Result<(), StoreError> {
        self.called(&format!("append {}", turn.actor));
        match &*self.refusals.lock() {
            Some((actor, key, error))
                if &**turn.actor == actor.as_str() && key.as_ref().is_none_or(|key| turn.key == key) =>
            {
                Err(error.clone())
            }
            _ => Ok(()),
        }
    }

    fn read(&self, turns: usize) {
        self.turns.fetch_add(turns, Ordering::Relaxed);
    }

    fn called(&self, method: &str) {
        let mut panics = self.panics.lock();
        let Some((_, times)) = panics.as_mut().filter(|(of, _)| *of == method) else { return };
        *times -= 1;
        if *times == 0 {
            *panics = None;
        }
        drop(panics);
        panic!("planned: {method} panics");
    }
}

pub struct InstrumentedStore(pub MemoryStore, pub Arc<StoreProbe>);

struct Reader(Arc<dyn ShardReader>, Arc<StoreProbe>);
struct Writer(Box<dyn ShardWriter>, Arc<StoreProbe>);

impl Store for InstrumentedStore {
    fn open<'a>(
        &'a self,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        let opened = self.0.open(shard, shards, listener);
        async move {
            self.1.called("open");
            self.1.openings.fetch_add(1, Ordering::Relaxed);
            self.1.reads("open")?;
            let ShardHandle { writer, reader } = opened.await?;
            self.1.opens.pass().await;
            Ok(ShardHandle {
                writer: Box::new(Writer(writer, Arc::clone(&self.1))),
                reader: Arc::new(Reader(reader, Arc::clone(&self.1))),
            })
        }
        .boxed()
    }
    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        self.0.read(shard)
    }
    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        async move {
            self.1.reads("view")?;
            self.0.view(projection).await
        }
        .boxed()
    }
    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        async move {
            self.1.reads("claim_view")?;
            self.0.claim_view(projection).await
        }
        .boxed()
    }
    fn leases(&self) -> Option<Arc<dyn ShardLeases>> {
        self.0.leases()
    }
    fn save_view<'a>(
        &'a self,
        projection: &'a Name,
        epoch: Epoch,
        view: View,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.1.called("save_view");
        if let Some(error) = self.1.view_error.lock().clone() {
            return async { Err(error) }.boxed();
        }
        self.0.save_view(projection, epoch, view)
    }
    fn runs_statements(&self) -> bool {
        self.1.statements.lock().is_some() || self.0.runs_statements()
    }
    fn save_view_with<'a>(
        &'a self,
        projection: &'a Name,
        epoch: Epoch,
        view: View,
        statements: &'a [Statement],
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        if statements.is_empty() {
            return self.save_view(projection, epoch, view);
        }
        async move {
            self.1.saves.pass().await;
            let runs = self.1.statements.lock().is_some();
            if runs {
                self.save_view(projection, epoch, view).await?;
                self.1.statements.lock().iter_mut().for_each(|run| *run += statements.len());
                return Ok(());
            }
            self.0.save_view_with(projection, epoch, view, statements).await
        }
        .boxed()
    }
    fn catalog(&self) -> BoxFuture<'_, Result<Option<Vec<CatalogEntry>>, StoreError>> {
        self.0.catalog()
    }

    fn replace_catalog(
        &self,
        expected: Option<Vec<CatalogEntry>>,
        entries: Vec<CatalogEntry>,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        self.0.replace_catalog(expected, entries)
    }

    fn durability(&self) -> &'static str {
        self.0.durability()
    }
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        self.0.close()
    }
}

impl ShardWriter for Writer {
    fn epoch(&self) -> Epoch {
        self.0.epoch()
    }
    fn commits_at_once(&self) -> bool {
        self.0.commits_at_once()
    }
    fn append(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        self.1.append(turn)?;
        self.0.append(turn)
    }
    fn append_alone(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        self.1.append(turn)?;
        self.0.append_alone(turn)
    }
    fn advance(&mut self, watermark: &Watermark) -> Result<Appended, StoreError> {
        self.0.advance(watermark)
    }
    fn sent(&mut self, to: &ShardId, through: u64) -> Result<Appended, StoreError> {
        self.1.called("sent");
        self.0.sent(to, through)
    }
    fn save_snapshot(&mut self, actor: &Name, key: &str, snapshot: Snapshot) {
        self.1.called("save_snapshot");
        self.0.save_snapshot(actor, key, snapshot)
    }
}

impl ShardReader for Reader {
    fn position(&self) -> u64 {
        self.0.position()
    }
    fn load<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<StreamState, StoreError>> {
        self.1.called(&format!("load {actor}"));
        let probe = Arc::clone(&self.1);
        let (loaded, hides) = (self.0.load(actor, key), self.1.hides(actor, key));
        let read = self.1.reads(&format!("load {actor}"));
        async move {
            read?;
            let mut state = loaded.await?;
            if hides {
                state.turns.pop();
            }
            probe.read(state.turns.len());
            Ok(state)
        }
        .boxed()
    }
    fn history<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>> {
        let probe = Arc::clone(&self.1);
        let history = self.0.history(actor, key);
        async move { history.await.inspect(|turns| probe.read(turns.len())) }.boxed()
    }
    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>> {
        self.1.called("events");
        let events = self.0.events(after, limit);
        async move {
            self.1.reads("events")?;
            let events = events.await?;
            self.1.events.fetch_add(events.len(), Ordering::Relaxed);
            Ok(events)
        }
        .boxed()
    }
    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>> {
        self.1.called("outbox");
        async move {
            self.1.reads("outbox")?;
            self.0.outbox(to, after, limit).await
        }
        .boxed()
    }
    fn outbox_heads(&self) -> Vec<(ShardId, u64, u64)> {
        self.0.outbox_heads()
    }
    fn watermarks(&self) -> Vec<Watermark> {
        self.0.watermarks()
    }
    fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer> {
        self.0.timers_due(now, limit)
    }
    fn next_timer(&self) -> Option<Timestamp> {
        self.0.next_timer()
    }
    fn timers_of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage {
        self.1.called("timers_of");
        let page = self.0.timers_of(actor, after, now, limit);
        self.1.pages.fetch_add(1, Ordering::Relaxed);
        self.1.timers.fetch_add(page.due.len(), Ordering::Relaxed);
        self.1.largest.fetch_max(page.due.len(), Ordering::Relaxed);
        page
    }
    fn timer_counts(&self) -> Vec<(Name, usize)> {
        self.0.timer_counts()
    }
    fn dead_letters(
        &self,
        after: Option<MessageId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, StoreError>> {
        async move {
            self.1.reads("dead_letters")?;
            let letters = self.0.dead_letters(after, limit).await;
            self.1.letters.pass().await;
            letters
        }
        .boxed()
    }
    fn dead_letter_count(&self) -> u64 {
        self.0.dead_letter_count()
    }

    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>> {
        self.0.streams()
    }
}
