//! A connection that commits: one statement, one answer, one report for all turns that have gathered.
//!
//! Called by the shards' writers. The thread that holds the lock of the [`Line`] writes: a thread of the store, for what has
//! gathered; the thread of an actor, for a turn that nothing else is in flight with. Groups are taken with that lock held, so
//! they are written in their order, and a shard is always written by the same writer.
//!
//! A connection that is lost during a commit leaves open whether the group was committed. The writer connects again, locks
//! the rows of the group's shards, which waits for the lost session to end one way or the other, and looks for the rows. If
//! they are there the group is reported; if not it is sent again. Until then appends are gathered, up to a limit.

mod answers;
mod line;
mod outcome;
mod saving;
mod states;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::oneshot;
use tokio::time::Instant;
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::error_chain;

use self::line::Line;
use self::states::States;
use crate::blocking::Driver;
use crate::checkpoints::Checkpoints;
use crate::connect::Connector;
use crate::failure::Failure;
use crate::queue::{Group, Part, Queue};
use crate::shard::Shard;
use crate::snapshots;
use crate::sql::Sql;
use crate::tickets::Tickets;

/// The thread of an actor waits at most this long for a commit. The writer's thread waits for the rest, and for the next
/// commits until one was faster.
const SLOW_COMMIT: Duration = Duration::from_millis(1);

/// An idle connection is asked for an answer after this time, so that a server that is gone is noticed without an append.
const PROBE: Duration = Duration::from_secs(5);

/// A server that has not answered for this long is reported in the health of the node.
const SILENT: Duration = Duration::from_secs(3);

/// The pause before the second attempt to connect; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two attempts to connect.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The operation that errors of a commit name.
const COMMITTING: &str = "committing to PostgreSQL";
/// The operation that errors of a new connection name.
const CONNECTING: &str = "connecting to PostgreSQL";

/// One writing connection, its queue and its thread.
pub(crate) struct Writer {
    /// Opens the connection, again after each loss.
    connector: Arc<Connector>,
    /// The statements with the name of the schema.
    sql: Arc<Sql>,
    /// The rows that wait. Locked for short times only, never during a request.
    queue: Mutex<Queue>,
    /// The thread waits here for work, and between attempts.
    work: Condvar,
    /// The connection. Its lock is the permission to write, so groups are written in their order.
    line: Mutex<Line>,
    /// The reason for which nothing is committed now.
    issue: Mutex<Option<StoreError>>,
    /// The last commit took longer than [`SLOW_COMMIT`]: threads of actors do not wait for one.
    slow: AtomicBool,
    /// The thread ends at once.
    stop: AtomicBool,
    /// The time at which the thread ends although something is still to be written.
    end: Mutex<Option<Instant>>,
    /// The open shards. They are failed if commits fail for good.
    open: Mutex<Vec<(Weak<Shard>, Weak<Tickets>)>>,
    /// The streams with a snapshot that waits in its shard. Bounded by the limit of each shard.
    snapshots: Mutex<Vec<snapshots::Waiting>>,
    /// Saves the shards whose checkpoint is due after a commit.
    checkpoints: Arc<Checkpoints>,
}

/// The next step of the writer's thread.
enum Next {
    /// There is nothing to do.
    Rest,
    /// There may be more.
    More,
    /// Something has failed: the same again after a pause.
    Again,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("connector", &self.connector).finish_non_exhaustive()
    }
}

impl Writer {
    /// Returns a writer without a connection: its thread opens it. `limit` bounds the bytes that wait. `prepares` is false if
    /// a connection pooler changes the session.
    pub(crate) fn new(
        connector: Arc<Connector>,
        sql: Arc<Sql>,
        checkpoints: Arc<Checkpoints>,
        limit: usize,
        prepares: bool,
    ) -> Self {
        Self {
            connector,
            sql,
            queue: Mutex::new(Queue::new(limit)),
            work: Condvar::new(),
            line: Mutex::new(Line::new(prepares)),
            issue: Mutex::default(),
            slow: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            end: Mutex::default(),
            open: Mutex::default(),
            snapshots: Mutex::default(),
            checkpoints,
        }
    }

    /// Locks the queue. The appender adds one row and unlocks.
    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }

    /// Wakes the thread, if it waits.
    pub(crate) fn wake(&self, mut queue: MutexGuard<'_, Queue>) {
        let idle = std::mem::take(&mut queue.idle);
        drop(queue);
        if idle {
            self.work.notify_one();
        }
    }

    /// Returns whether the last commit was too slow for the thread of an actor to wait for one.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// Returns why nothing is committed now, for the health of the node.
    pub(crate) fn issue(&self) -> Option<StoreError> {
        self.issue.lock().clone()
    }

    /// Notes a shard that appends here.
    pub(crate) fn add(&self, shard: &Arc<Shard>, tickets: &Arc<Tickets>) {
        let mut open = self.open.lock();
        open.retain(|(shard, _)| shard.strong_count() > 0);
        open.push((Arc::downgrade(shard), Arc::downgrade(tickets)));
    }

    /// Resolves once everything that was appended so far is committed, or never will be.
    pub(crate) fn flushed(&self) -> oneshot::Receiver<Result<(), StoreError>> {
        self.queue.lock().flushed()
    }

    /// Rejects further appends. Queued ones are still written, if the server commits within `patience`.
    pub(crate) fn close(&self, patience: Duration) {
        self.end.lock().get_or_insert(Instant::now() + patience);
        let mut queue = self.queue.lock();
        queue.close();
        self.wake(queue);
    }

    /// Ends the thread, whatever is still to be written.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let mut queue = self.queue.lock();
        queue.close();
        queue.idle = false;
        drop(queue);
        self.work.notify_all();
    }

    /// Returns true if the thread has to end, whatever is still to be written.
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.end.lock().is_some_and(|end| end <= Instant::now())
    }

    /// Writes until it is stopped, or closed and everything is written.
    pub(crate) fn run(&self) {
        self.write();
        let waiters = self.queue.lock().fail();
        for waiter in waiters {
            // The receiver may be gone.
            let _ = waiter.send(Err(self.issue().unwrap_or(StoreError::Closed)));
        }
    }

    /// Waits for work and writes it, until the store ends. An idle connection is probed, so that a lost server is noticed
    /// without an append.
    fn write(&self) {
        loop {
            let mut queue = self.queue.lock();
            let mut probe = false;
            while queue.is_empty() && !std::mem::take(&mut queue.unfinished) && !probe {
                if self.is_stopped() || queue.is_closed() {
                    return;
                }
                queue.idle = true;
                probe = self.work.wait_for(&mut queue, PROBE).timed_out();
                queue.idle = false;
            }
            drop(queue);
            loop {
                let mut line = self.line.lock();
                let next = if probe { self.probe(&mut line) } else { self.step(&mut line) };
                let pause = FIRST_PAUSE * 2u32.pow(line.failures.min(10));
                drop(line);
                if self.is_stopped() {
                    return;
                }
                match next {
                    Next::Rest => break,
                    Next::More => probe = false,
                    Next::Again => {
                        let mut queue = self.queue.lock();
                        if !self.is_stopped() {
                            self.work.wait_for(&mut queue, pause.min(LONGEST_PAUSE));
                        }
                    }
                }
            }
        }
    }

    /// Writes the next group on the calling thread, or leaves it to the writer's thread, which then is woken. Returns after
    /// [`SLOW_COMMIT`] at the latest. The commit then continues, and the writer's thread reports it.
    pub(crate) fn write_here(&self) {
        let mut left = true;
        // Another thread that holds the lock may have taken its group before the caller's row was in it.
        if let Some(mut line) = self.line.try_lock()
            && line.is_ready()
        {
            let group = self.queue.lock().take();
            if let Some(group) = group {
                self.start(&mut line, Arc::new(group));
                self.finish_soon(&mut line);
            }
            left = !line.is_ready();
        }
        // Before the queue is locked: the thread that looks for due snapshots locks in the other order.
        left |= !self.snapshots.lock().is_empty();
        let mut queue = self.queue.lock();
        if left || !queue.is_empty() {
            queue.unfinished = true;
            self.wake(queue);
        }
    }

    /// Asks an idle connection for an answer.
    fn probe(&self, line: &mut Line) -> Next {
        let Some(driver) = line.driver.as_mut().filter(|driver| !driver.is_ended()) else { return self.step(line) };
        let client = Arc::clone(&driver.client);
        let mut asked = Box::pin(async move { client.simple_query("").await.map(|_| ()) });
        let answer = self.wait(driver, asked.as_mut());
        if let Some(Err(error)) = answer {
            self.lost(line, &Failure::from(error));
            return Next::Again;
        }
        Next::Rest
    }

    /// Takes the next step: connects, resolves a doubt, writes a group, or writes snapshots. One step makes one request at
    /// most, so that the end of the store is noticed between two.
    fn step(&self, line: &mut Line) -> Next {
        if let Some((group, owned)) = line.rejected.take() {
            self.complete(line, &group, &owned);
            return Next::More;
        }
        if line.driver.as_ref().is_none_or(Driver::is_ended) {
            // A request that waits for an answer of the lost connection ends with it.
            if line.current.is_some() {
                return self.finish(line, || self.is_stopped());
            }
            match self.connect(line) {
                Some(Ok(())) => {}
                Some(Err(failure)) => {
                    line.driver = None;
                    self.troubled(line, &failure, CONNECTING);
                    return Next::Again;
                }
                None => return Next::Rest,
            }
        }
        if line.current.is_some() {
            return self.finish(line, || self.is_stopped());
        }
        if let Some(group) = line.doubt.take() {
            return self.resolve(line, group);
        }
        let group = self.queue.lock().take();
        match group {
            Some(group) => {
                self.start(line, Arc::new(group));
                self.finish(line, || self.is_stopped())
            }
            None if self.save_snapshots(line) => Next::More,
            None => Next::Rest,
        }
    }

    /// Waits for an answer; none if the store stops. A server that is silent for long is reported until it answers.
    fn wait<T>(&self, driver: &mut Driver, future: Pin<&mut (dyn Future<Output = T> + Send)>) -> Option<T> {
        let begun = Instant::now();
        let mut reported = false;
        let answer = driver.drive(future, || {
            reported |= self.report_silence(begun);
            self.is_stopped()
        });
        // No commit may follow that would resolve the issue. An answer that is an error becomes an issue of its own.
        if reported && answer.is_some() {
            *self.issue.lock() = None;
            tracing::info!(target: crate::TARGET, "PostgreSQL answers again");
        }
        answer
    }

    /// Makes a server that is silent for long an issue. Returns true if there was none before.
    fn report_silence(&self, begun: Instant) -> bool {
        if begun.elapsed() <= SILENT {
            return false;
        }
        let mut issue = self.issue.lock();
        let is_first = issue.is_none();
        if is_first {
            let failure = Failure::new(format!("{} does not answer", self.connector.at()));
            tracing::error!(target: crate::TARGET, error = %failure, "commits wait for PostgreSQL");
            *issue = Some(failure.store(COMMITTING));
        }
        is_first
    }

    /// The connection is lost; a group that was being written is in doubt.
    fn lost(&self, line: &mut Line, failure: &Failure) {
        line.driver = None;
        line.statements = None;
        self.troubled(line, failure, COMMITTING);
    }

    /// Counts a failure and makes it an issue. The first one is logged; the pause before the next attempt doubles with each.
    fn troubled(&self, line: &mut Line, failure: &Failure, doing: &str) {
        line.failures += 1;
        let error = failure.store(doing);
        let mut issue = self.issue.lock();
        if issue.is_none() {
            tracing::error!(target: crate::TARGET, error = %error_chain(&error), "commits wait for PostgreSQL");
        }
        // A full disk rejects all appends. After other failures appends continue to queue, up to the limit.
        self.queue.lock().refused = matches!(error, StoreError::Full { .. }).then(|| error.clone());
        *issue = Some(error);
    }

    /// The server works.
    fn recovered(&self, line: &mut Line) {
        line.failures = 0;
        let mut issue = self.issue.lock();
        if issue.take().is_some() {
            self.queue.lock().refused = None;
            tracing::info!(target: crate::TARGET, "PostgreSQL commits again");
        }
    }

    /// Opens the connection and compares what is there with what was committed; none if the store stops.
    fn connect(&self, line: &mut Line) -> Option<Result<(), Failure>> {
        let mut driver = match self.connector.connect_blocking(|| self.is_stopped())? {
            Ok(driver) => driver,
            Err(failure) => return Some(Err(failure)),
        };
        line.statements = None;
        if line.prepares {
            let (client, sql) = (Arc::clone(&driver.client), Arc::clone(&self.sql));
            let mut preparing = Box::pin(async move {
                let short = client.prepare_typed(&sql.commit, &Group::types(false)).await?;
                let long = client.prepare_typed(&sql.commit_progress, &Group::types(true)).await?;
                Ok::<_, tokio_postgres::Error>([short, long])
            });
            match self.wait(&mut driver, preparing.as_mut())? {
                Ok(statements) => line.statements = Some(statements),
                Err(error) => return Some(Err(Failure::from(error))),
            }
        }
        let open = self.open.lock().iter().filter_map(|(shard, _)| shard.upgrade()).collect::<Vec<_>>();
        let shards: Vec<_> = open.into_iter().filter(|shard| shard.is_open()).collect();
        let state = match self.state(&mut driver, shards.iter(), &[])? {
            Ok(state) => state,
            Err(failure) => return Some(Err(failure)),
        };
        line.driver = Some(driver);
        if let Some(shard) = shards.iter().find(|shard| state.is_older(shard)) {
            self.older(line, shard);
        }
        if line.doubt.is_none() {
            self.recovered(line);
        }
        Some(Ok(()))
    }

    /// The rows of shards as they are now, once no other statement holds them. Of a group in doubt its last turns, too.
    fn state<'a>(
        &self,
        driver: &mut Driver,
        shards: impl Iterator<Item = &'a Arc<Shard>>,
        group: &[Part],
    ) -> Option<Result<States, Failure>> {
        let mut ids: Vec<i32> = shards.map(|shard| shard.row).collect();
        ids.sort_unstable();
        ids.dedup();
        if ids.is_empty() {
            return Some(Ok(States::default()));
        }
        let turns = group.iter().filter_map(|part| Some((part.shard.row, part.last_turn? as i64)));
        let turns: Vec<(i32, i64)> = turns.collect();
        let (client, sql) = (Arc::clone(&driver.client), Arc::clone(&self.sql));
        let mut asked = Box::pin(async move { states::read(&client, &sql, &ids, &turns).await });
        self.wait(driver, asked.as_mut()).map(|state| state.map_err(Failure::from))
    }
}
