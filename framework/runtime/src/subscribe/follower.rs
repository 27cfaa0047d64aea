//! Follower: reads the logs of all shards of a domain, and merges them.
//!
//! Polled by a [stream](super::EventStream). It has no task: everything happens within a poll, so a stream that is not polled reads
//! nothing, and a dropped one leaves nothing behind. At most [`PAGES`] pages are in memory or being read. Reports of the owner only
//! wake it; the events come from the log, each in its order.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, Sleep};

use super::cursor::{Cursor, Mark};
use super::decode::TakenEvents;
use super::error::SubscribeError;
use super::heads::Heads;
use super::progress::{Applied, Entry, PageRequest, Progress};
use crate::client::Client;
use crate::router::{LogPage, ReadError};
use whizbang_core::bridge::{BridgeError, Watch, Watcher};
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, Name, Shard, ShardId, StoreId};
use whizbang_core::telemetry::{TARGET, error_chain};

/// Most pages in memory and being read. With two, a shard that answers late does not hold up another.
const PAGES: usize = 2;
/// Interval at which the logs are read although nothing is reported: reports may be lost, and the first ones may be missing. While a
/// watch is open it doubles up to [`LONGEST_CHECK`]. If the bridge cannot watch, it stays, because nothing else shows new events.
const FIRST_CHECK: Duration = Duration::from_secs(1);
const LONGEST_CHECK: Duration = Duration::from_secs(30);
/// Time after which a log that cannot be read is logged as a warning.
const WARN_AFTER: Duration = Duration::from_secs(5);

type PageRead = BoxFuture<'static, (usize, PageRequest, Result<LogPage, ReadError>)>;
type ShardCheck = BoxFuture<'static, (Shard, Result<LogPage, ReadError>)>;
type WatchOpening = BoxFuture<'static, Result<Option<Watch>, BridgeError>>;

/// The condition of the watch of the domain.
enum WatchState {
    /// The watch is not requested yet, or is requested again at that time.
    Closed(Option<Instant>),
    Opening(WatchOpening),
    /// `None` if the bridge reports nothing.
    Open(Option<Watch>),
}

/// Events of one shard that were read and not delivered yet.
struct Loaded {
    index: usize,
    entries: VecDeque<Entry>,
}

/// An event for the caller.
pub(super) struct Taken {
    pub(super) envelope: Box<Envelope>,
    /// The index of its shard, and the mark before it.
    pub(super) before: (usize, Mark),
}

/// The readers of the logs of a domain.
pub(super) struct Follower {
    client: Client,
    domain: Name,
    pub(super) taken: Arc<TakenEvents>,
    store: Option<StoreId>,
    logs: Vec<Progress>,
    /// Logs whose end is to be found before anything is delivered.
    starting: VecDeque<usize>,
    /// The number of logs whose end is not known.
    unstarted: usize,
    /// Logs to be read, in turn.
    due: VecDeque<usize>,
    /// Logs that are read again at that time.
    waiting: BTreeSet<(Instant, usize)>,
    reading: FuturesUnordered<PageRead>,
    loaded: VecDeque<Loaded>,
    heads: Arc<Heads>,
    /// The reading of a reported shard that the domain does not have here.
    checking: Option<ShardCheck>,
    /// The next time at which such a report is checked; `None` before the first false one.
    unknown_at: Option<Instant>,
    watching: WatchState,
    failed_watches: u32,
    /// The next time at which all logs are read without a report, and the interval after it.
    check_at: Instant,
    check_interval: Duration,
    timer: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Follower {
    /// Creates a follower of the shards of a domain. Without marks it starts at the ends of the logs.
    pub(super) fn new(
        client: Client,
        domain: Name,
        taken: Arc<TakenEvents>,
        store: Option<StoreId>,
        starts: Vec<Option<Mark>>,
    ) -> Self {
        let shards = Shard::try_from(starts.len()).unwrap_or(Shard::MAX);
        let logs: Vec<_> = starts.into_iter().map(Progress::starting_at).collect();
        let mut follower = Self {
            client,
            domain,
            taken,
            store,
            unstarted: logs.iter().filter(|log| !log.is_started()).count(),
            logs,
            starting: VecDeque::new(),
            due: VecDeque::new(),
            waiting: BTreeSet::new(),
            reading: FuturesUnordered::new(),
            loaded: VecDeque::new(),
            heads: Arc::new(Heads::new(shards)),
            checking: None,
            unknown_at: None,
            watching: WatchState::Closed(None),
            failed_watches: 0,
            check_at: instant() + FIRST_CHECK,
            check_interval: FIRST_CHECK,
            timer: None,
        };
        follower.read_all();
        follower
    }

    /// Returns the place behind what was delivered; `None` until the ends of the logs are known. `held` replaces the mark of a shard.
    pub(super) fn cursor(&self, held: Option<(usize, Mark)>) -> Option<Cursor> {
        if self.unstarted > 0 {
            return None;
        }
        let mark = |(index, log): (usize, &Progress)| match held {
            Some((at, mark)) if at == index => mark,
            _ => log.given,
        };
        let marks = self.logs.iter().enumerate().map(mark).collect();
        Some(Cursor { domain: self.domain.clone(), store: self.store, marks })
    }

    /// Waits until it is known where the stream starts.
    pub(super) fn poll_started(&mut self, context: &mut Context<'_>) -> Poll<Result<(), SubscribeError>> {
        while self.unstarted > 0 || !matches!(self.watching, WatchState::Open(_)) {
            match self.advance(context) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Returns the next event for the caller.
    pub(super) fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Result<Taken, SubscribeError>> {
        loop {
            if let Some(taken) = self.pop() {
                return Poll::Ready(Ok(taken));
            }
            match self.advance(context) {
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn pop(&mut self) -> Option<Taken> {
        loop {
            let page = self.loaded.front_mut()?;
            let index = page.index;
            let Some(entry) = page.entries.pop_front() else {
                self.loaded.pop_front();
                continue;
            };
            if page.entries.is_empty() {
                self.loaded.pop_front();
            }
            let given = &mut self.logs.get_mut(index)?.given;
            let before = std::mem::replace(given, entry.mark);
            if let Some(envelope) = entry.envelope {
                return Some(Taken { envelope, before: (index, before) });
            }
        }
    }

    /// Does what can be done now. Returns false if the task is woken once there is more to do.
    fn advance(&mut self, context: &mut Context<'_>) -> Result<bool, SubscribeError> {
        if self.client.remote().has_ended() {
            return Err(SubscribeError::Stopped);
        }
        // Watched before the first reading: an event that is recorded in between is reported.
        if !self.poll_watching(context)? {
            return Ok(self.poll_timer(context));
        }
        self.note_reports(context);
        if !matches!(self.watching, WatchState::Open(_)) {
            return Ok(true);
        }
        self.poll_checking(context)?;
        self.start_reading();
        if let Poll::Ready(Some((index, asked, page))) = self.reading.poll_next_unpin(context) {
            self.finish_reading(index, asked, page)?;
            return Ok(true);
        }
        Ok(self.poll_timer(context))
    }

    /// Returns whether reports arrive, or will not.
    fn poll_watching(&mut self, context: &mut Context<'_>) -> Result<bool, SubscribeError> {
        loop {
            match &mut self.watching {
                WatchState::Open(_) => return Ok(true),
                WatchState::Closed(Some(at)) if *at > instant() => return Ok(false),
                WatchState::Closed(_) => {
                    let watcher = Arc::clone(&self.heads) as Arc<dyn Watcher>;
                    self.watching = WatchState::Opening(self.client.remote().watch(self.domain.clone(), watcher));
                }
                WatchState::Opening(opening) => match opening.as_mut().poll(context) {
                    Poll::Pending => return Ok(false),
                    Poll::Ready(Ok(watch)) => {
                        self.check_at = instant() + FIRST_CHECK;
                        self.failed_watches = 0;
                        self.watching = WatchState::Open(watch);
                    }
                    Poll::Ready(Err(error)) => match ReadError::from(error) {
                        ReadError::Later(reason) => {
                            self.failed_watches += 1;
                            tracing::debug!(target: TARGET, domain = %self.domain, reason, "failed to watch a domain: retrying");
                            let wait = self.client.retry_wait(self.failed_watches);
                            self.watching = WatchState::Closed(Some(instant() + wait));
                        }
                        error => return Err(self.last_error(error)),
                    },
                },
            }
        }
    }

    fn note_reports(&mut self, context: &Context<'_>) {
        let reports = self.heads.take(context);
        if let Some(shard) = reports.unknown {
            self.check_unknown(shard);
        }
        for (shard, position) in reports.grown {
            let index = usize::from(shard);
            let Some(log) = self.logs.get_mut(index) else { continue };
            log.reported = position.max(log.reported);
            // A page that is being read is compared with the report once it is there.
            if log.is_behind() && !log.is_reading {
                self.enqueue(index);
            }
        }
        if reports.is_interrupted {
            // The owner may have been restored from a backup.
            self.logs.iter_mut().for_each(|log| log.verifies = true);
            self.check_interval = FIRST_CHECK;
            self.check_at = self.check_at.min(instant() + FIRST_CHECK);
            self.read_all();
        }
        if reports.has_ended {
            self.failed_watches += 1;
            self.watching = WatchState::Closed(Some(instant() + self.client.retry_wait(self.failed_watches)));
        }
    }

    /// Checks a report about a shard that the domain does not have here: it may be forged, so the log of the shard decides.
    fn check_unknown(&mut self, shard: Shard) {
        if self.checking.is_none() && self.unknown_at.is_none_or(|at| at <= instant()) {
            let (client, id) = (self.client.clone(), ShardId::new(self.domain.clone(), shard));
            self.checking = Some(Box::pin(async move { (shard, client.remote().read_log(id, u64::MAX, 0).await) }));
        }
    }

    fn poll_checking(&mut self, context: &mut Context<'_>) -> Result<(), SubscribeError> {
        let Some(checking) = &mut self.checking else { return Ok(()) };
        let Poll::Ready((shard, page)) = checking.as_mut().poll(context) else { return Ok(()) };
        self.checking = None;
        let is_foreign = |page: &LogPage| self.store.zip(page.store).is_some_and(|(store, found)| store != found);
        if page.is_ok_and(|page| !is_foreign(&page)) {
            let shards = Shard::try_from(self.logs.len()).unwrap_or(Shard::MAX);
            return Err(SubscribeError::Shards { domain: self.domain.to_string(), shards, shard });
        }
        if self.unknown_at.replace(instant() + LONGEST_CHECK).is_none() {
            let domain = &self.domain;
            tracing::warn!(target: TARGET, %domain, shard, "reports about a shard ignored: the domain does not have it, and no owner answers for it");
        }
        Ok(())
    }

    fn read_all(&mut self) {
        (0..self.logs.len()).for_each(|index| self.enqueue(index));
    }

    /// Has a log read, once.
    fn enqueue(&mut self, index: usize) {
        let Some(log) = self.logs.get_mut(index) else { return };
        log.is_due_again |= log.is_reading;
        if log.is_reading || std::mem::replace(&mut log.is_queued, true) {
            return;
        }
        if log.is_started() { self.due.push_back(index) } else { self.starting.push_back(index) }
    }

    fn start_reading(&mut self) {
        while self.reading.len() + self.loaded.len() < PAGES {
            // Pages that were read before the start is known would have to be kept.
            let next = if self.unstarted > 0 { self.starting.pop_front() } else { self.due.pop_front() };
            let Some(index) = next else { return };
            let (Some(log), Ok(shard)) = (self.logs.get_mut(index), Shard::try_from(index)) else { return };
            log.is_queued = false;
            let asked = log.begin();
            let shard = ShardId::new(self.domain.clone(), shard);
            let (client, taken) = (self.client.clone(), Arc::clone(&self.taken));
            self.reading.push(Box::pin(async move {
                let read = async {
                    let mut page = client.remote().read_log(shard, asked.after, asked.limit).await?;
                    taken.judge(&client, &mut page).await.map(|()| page)
                };
                (index, asked, read.await)
            }));
        }
    }

    fn finish_reading(
        &mut self,
        index: usize,
        asked: PageRequest,
        page: Result<LogPage, ReadError>,
    ) -> Result<(), SubscribeError> {
        let Some(log) = self.logs.get_mut(index) else { return Ok(()) };
        log.is_reading = false;
        let page = match page {
            Ok(page) => page,
            Err(ReadError::Later(reason)) => {
                // The owner may be another one afterwards, with another log.
                log.verifies = true;
                self.read_later(index, &reason);
                return Ok(());
            }
            Err(error) => return Err(self.last_error(error)),
        };
        if let (Some(store), Some(found)) = (self.store, page.store)
            && store != found
        {
            return Err(SubscribeError::OtherStore { domain: self.domain.to_string(), store, found });
        }
        self.store = self.store.or(page.store);
        let was_started = log.is_started();
        match log.apply(asked, page, |name| self.taken.includes(name)) {
            Applied::Read { entries, more } => {
                self.unstarted -= usize::from(!was_started);
                if !entries.is_empty() {
                    self.loaded.push_back(Loaded { index, entries });
                }
                self.note_success(index);
                if more {
                    self.enqueue(index);
                }
            }
            Applied::Unusable(reason) => self.read_later(index, reason),
            Applied::Diverged(position) => {
                let shard = Shard::try_from(index).unwrap_or(Shard::MAX);
                return Err(SubscribeError::Diverged { domain: self.domain.to_string(), shard, position });
            }
        }
        Ok(())
    }

    /// Has a log read again after a wait.
    fn read_later(&mut self, index: usize, reason: &str) {
        let Some(log) = self.logs.get_mut(index) else { return };
        let now = instant();
        log.failures = log.failures.saturating_add(1);
        let since = now.saturating_duration_since(*log.failing_since.get_or_insert(now));
        let (domain, shard) = (&self.domain, index);
        if since < WARN_AFTER {
            tracing::debug!(target: TARGET, %domain, shard, reason, "events not read: retrying");
        } else if !std::mem::replace(&mut log.was_reported_failing, true) {
            tracing::warn!(target: TARGET, %domain, shard, reason, ?since, "events not read: the stream waits for their owner");
        }
        let wait = self.client.retry_wait(log.failures);
        if !std::mem::replace(&mut log.is_queued, true) {
            self.waiting.insert((now + wait, index));
        }
    }

    fn note_success(&mut self, index: usize) {
        let Some(log) = self.logs.get_mut(index) else { return };
        (log.failures, log.failing_since) = (0, None);
        if std::mem::take(&mut log.was_reported_failing) {
            tracing::info!(target: TARGET, domain = %self.domain, shard = index, "events are read again");
        }
    }

    /// Returns true if the time has come for something. Otherwise the task is woken at that time.
    fn poll_timer(&mut self, context: &mut Context<'_>) -> bool {
        let watch_at = if let WatchState::Closed(at) = self.watching { at } else { None };
        let first = self.waiting.first().map(|(at, _)| *at);
        let due = first.into_iter().chain(watch_at).fold(self.check_at, Instant::min);
        if self.timer.as_ref().is_none_or(|(at, _)| *at != due) {
            self.timer = Some((due, Box::pin(tokio::time::sleep_until(due))));
        }
        let Some((_, timer)) = &mut self.timer else { return false };
        if timer.as_mut().poll(context).is_pending() {
            return false;
        }
        self.timer = None;
        let now = instant().max(due);
        while let Some((at, index)) = self.waiting.first().copied().filter(|(at, _)| *at <= now) {
            self.waiting.remove(&(at, index));
            if let Some(log) = self.logs.get_mut(index) {
                log.is_queued = false;
            }
            self.enqueue(index);
        }
        if self.check_at <= now {
            if let WatchState::Open(Some(_)) = self.watching {
                self.check_interval = (self.check_interval * 2).min(LONGEST_CHECK);
            }
            self.check_at = now + self.check_interval;
            self.read_all();
        }
        true
    }

    /// Returns the error that ends the stream.
    fn last_error(&self, error: ReadError) -> SubscribeError {
        let domain = self.domain.to_string();
        match error {
            ReadError::NoBridge => SubscribeError::NoBridge { domain },
            ReadError::Bridge(source) => {
                tracing::debug!(target: TARGET, domain, error = %error_chain(&source), "stream of events refused");
                SubscribeError::Bridge { domain, source: Box::new(source) }
            }
            ReadError::Stopped | ReadError::Later(_) => SubscribeError::Stopped,
        }
    }
}
