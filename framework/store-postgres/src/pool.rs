//! Connections for reading, and for writes that are not turns.
//!
//! Called by the [readers](crate::reader) and the [store](crate::store), from any thread. A thread of the store drives the
//! connections; requests of many callers share one connection and are answered in their order. A lost connection is opened
//! again by the next request. Statements are not prepared, so that a connection pooler may change the session. While requests
//! fail the cause is an issue of the store; it is gone once a request succeeds, or the server can be reached again.
//!
//! A request is bounded by the server: the pool has no timeout of its own. If the caller drops the future, the statement
//! still runs, and its answer is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, pin_mut};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row};
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::error_chain;

use crate::connect::{Connector, Settings};
use crate::failure::{Failure, Fate};

/// Parameters of a statement.
pub(crate) type Parameters<'a> = [(&'a (dyn ToSql + Sync), Type)];

/// A connection that was opened and checked, with the settings of its server.
type Opened = Result<(Arc<Client>, Settings), Failure>;

/// The most connections that are opened at once; more wait.
const OPENINGS: usize = 16;

/// The pause between two attempts to reach a server that requests have failed at.
const PROBE: Duration = Duration::from_millis(500);

/// A task for the thread of the connections.
enum Wanted {
    /// Open a connection, and send it with the settings of its server.
    Connection(oneshot::Sender<Opened>),
    /// Find out when the server can be reached again.
    Probe,
}

/// The reason for which requests fail, while they do.
#[derive(Default)]
struct Issue {
    /// Read without the lock, by each request that succeeds.
    is_set: AtomicBool,
    /// The error of the first request that failed.
    error: parking_lot::Mutex<Option<StoreError>>,
}

impl Issue {
    /// Returns whether it is new.
    fn set(&self, error: StoreError) -> bool {
        *self.error.lock() = Some(error);
        !self.is_set.swap(true, Ordering::AcqRel)
    }

    /// Forgets the reason. Nearly free while there is none.
    fn clear(&self) {
        if self.is_set.swap(false, Ordering::AcqRel) {
            *self.error.lock() = None;
        }
    }
}

/// The connections for reading.
pub(crate) struct Pool {
    /// The shared connections, opened when they are first needed. The lock is held while one is opened, so that a lost one is
    /// opened once.
    slots: Vec<Mutex<Option<Arc<Client>>>>,
    /// The number of the next request; requests use the connections in turn.
    next: AtomicUsize,
    /// The queue of the thread that opens and drives the connections, until it is stopped.
    openings: parking_lot::Mutex<Option<mpsc::Sender<Wanted>>>,
    /// Shared with the thread, which clears it once a server can be reached.
    issue: Arc<Issue>,
    /// Drives all connections. It ends when the pool is stopped.
    thread: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Pool {
    /// Starts the thread that drives the connections. None is opened yet. `connections` is the number of shared ones;
    /// separate ones come on top. The thread ends when the pool is [stopped](Self::stop).
    pub(crate) fn start(connector: Arc<Connector>, connections: usize) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (openings, mut wanted) = mpsc::channel::<Wanted>(OPENINGS);
        let issue = Arc::new(Issue::default());
        let shared = Arc::clone(&issue);
        let thread = std::thread::Builder::new().name("whizbang-pg-read".to_owned()).spawn(move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                // It ends with the sender. Requests under way are then dropped with the runtime.
                while let Some(wanted) = wanted.recv().await {
                    let (connector, issue) = (Arc::clone(&connector), Arc::clone(&shared));
                    drop(tokio::task::spawn_local(async move {
                        match wanted {
                            Wanted::Connection(opened) => {
                                // The request may have been dropped.
                                let _ = opened.send(open(&connector).await);
                            }
                            Wanted::Probe => probe(&connector, &issue).await,
                        }
                    }));
                }
            });
        })?;
        let slots = (0..connections.max(1)).map(|_| Mutex::default()).collect();
        let (openings, thread) = (parking_lot::Mutex::new(Some(openings)), parking_lot::Mutex::new(Some(thread)));
        Ok(Self { slots, next: AtomicUsize::new(0), openings, issue, thread })
    }

    /// Closes all connections. Requests fail afterwards.
    pub(crate) fn stop(&self) {
        *self.openings.lock() = None;
        if let Some(thread) = self.thread.lock().take() {
            // A thread that has panicked has ended as well.
            let _ = thread.join();
        }
    }

    /// Requests a connection from the thread and waits for it.
    async fn connect(&self) -> Opened {
        let closed = || Failure::new("the store is closed");
        let openings = self.openings.lock().clone().ok_or_else(closed)?;
        let (opened, opening) = oneshot::channel();
        openings.send(Wanted::Connection(opened)).await.map_err(|_| closed())?;
        drop(openings);
        opening.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Opens the first connection and returns the settings of the server.
    pub(crate) async fn open(&self) -> Result<(Arc<Client>, Settings), Failure> {
        let (client, settings) = self.connect().await?;
        if let Some(slot) = self.slots.first() {
            *slot.lock().await = Some(Arc::clone(&client));
        }
        Ok((client, settings))
    }

    /// A connection of its own, for one user. For statements that may wait for a lock, or for a transaction. It is closed
    /// when the client is dropped.
    pub(crate) async fn separate(&self) -> Result<Arc<Client>, Failure> {
        Ok(self.connect().await?.0)
    }

    /// The current reason for failing requests.
    pub(crate) fn issue(&self) -> Option<StoreError> {
        if self.issue.is_set.load(Ordering::Acquire) { self.issue.error.lock().clone() } else { None }
    }

    /// Returns the error of a request and makes it an issue of the store, unless it is one already. A failure that is not
    /// permanent also starts a probe, so that the health of the store recovers without a request.
    fn failed(&self, failure: &Failure, doing: &str) -> StoreError {
        let error = failure.store(doing);
        let openings = self.openings.lock().clone();
        if let Some(openings) = openings
            && self.issue.set(error.clone())
        {
            tracing::error!(target: crate::TARGET, error = %error_chain(&error), "requests to PostgreSQL fail");
            if failure.fate() != Fate::Never {
                // If the queue is full, connections are being opened: they clear the issue.
                let _ = openings.try_send(Wanted::Probe);
            }
        }
        error
    }

    /// Returns the connection for the next request.
    fn client_number(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len()
    }

    /// Returns a shared connection, opened again if it was lost.
    async fn client(&self, number: usize) -> Result<Arc<Client>, Failure> {
        let Some(slot) = self.slots.get(number) else { return Err(Failure::new("there is no connection")) };
        let mut slot = slot.lock().await;
        if let Some(client) = slot.as_ref().filter(|client| !client.is_closed()) {
            return Ok(Arc::clone(client));
        }
        let (client, _) = self.connect().await?;
        *slot = Some(Arc::clone(&client));
        Ok(client)
    }

    /// Runs a statement that may be run twice without harm, and returns its rows. After a lost connection it is run again on
    /// another one.
    ///
    /// # Errors
    /// [`StoreError::Io`] with the server's text, without values of the statement. The statement may have been run.
    pub(crate) async fn query(
        &self,
        doing: &str,
        sql: &str,
        parameters: &Parameters<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        self.query_on(self.client_number(), doing, sql, parameters).await
    }

    /// Like [`query`](Self::query), on the connection with this number: requests on the others do not delay it. Lease
    /// statements use this, so that a slow read delays no renewal.
    pub(crate) async fn query_on(
        &self,
        number: usize,
        doing: &str,
        sql: &str,
        parameters: &Parameters<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        let mut first = true;
        loop {
            let mut used = None;
            let asked = async {
                let client = used.insert(self.client(number).await?);
                Ok::<_, Failure>(client.query_typed(sql, parameters).await?)
            };
            match asked.await {
                Ok(rows) => {
                    self.issue.clear();
                    return Ok(rows);
                }
                // All connections may have been lost at once, so the next one in turn is no better.
                Err(failure) if failure.fate() == Fate::Unknown && first => {
                    first = false;
                    self.forget_lost(used.as_ref()).await;
                }
                Err(failure) => return Err(self.failed(&failure, doing)),
            }
        }
    }

    /// Runs a statement on a connection of its own and returns its rows: one that may wait for a lock would delay the requests
    /// behind it on a shared connection.
    ///
    /// # Errors
    /// Same as [`query`](Self::query). It is not run again.
    pub(crate) async fn query_alone(
        &self,
        doing: &str,
        sql: &str,
        parameters: &Parameters<'_>,
    ) -> Result<Vec<Row>, StoreError> {
        let asked = async { Ok(self.separate().await?.query_typed(sql, parameters).await?) };
        let rows = asked.await.map_err(|failure: Failure| self.failed(&failure, doing))?;
        self.issue.clear();
        Ok(rows)
    }

    /// Drops the connections that are lost, and the one whose request has failed: the server may have answered with the reason
    /// for ending the session, and the connection ends a moment later. The next requests open new ones.
    async fn forget_lost(&self, failed: Option<&Arc<Client>>) {
        for slot in &self.slots {
            let mut slot = slot.lock().await;
            if slot
                .as_ref()
                .is_some_and(|client| client.is_closed() || failed.is_some_and(|failed| Arc::ptr_eq(client, failed)))
            {
                *slot = None;
            }
        }
    }

    /// Runs a statement on a connection of its own and hands over its rows one by one, so that any number of them needs little
    /// memory.
    ///
    /// It is not run again after a lost connection: the caller has already handled some rows.
    pub(crate) async fn each(
        &self,
        doing: &str,
        sql: &str,
        parameters: &Parameters<'_>,
        mut each: impl FnMut(&Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let failed = |failure: Failure| self.failed(&failure, doing);
        let client = self.separate().await.map_err(failed)?;
        let given = parameters.iter().map(|(value, of)| (*value, of.clone()));
        let rows = client.query_typed_raw(sql, given).await.map_err(|error| failed(error.into()))?;
        pin_mut!(rows);
        while let Some(row) = rows.next().await {
            each(&row.map_err(|error| failed(error.into()))?)?;
        }
        Ok(())
    }
}

/// Waits until a server can be reached, or another request has succeeded.
async fn probe(connector: &Connector, issue: &Issue) {
    while issue.is_set.load(Ordering::Acquire) {
        tokio::time::sleep(PROBE).await;
        if open(connector).await.is_ok() {
            issue.clear();
        }
    }
}

/// Opens a connection to the first server that can be written to: a standby would not have the newest rows.
async fn open(connector: &Connector) -> Opened {
    let mut last = Failure::new("the URL names no host");
    for server in 0..connector.servers() {
        let (client, connection) = match connector.connect(server).await {
            Ok(connected) => connected,
            Err(failure) => {
                last = failure;
                continue;
            }
        };
        // It ends with its client, or with the runtime.
        drop(tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                tracing::debug!(target: crate::TARGET, error = %Failure::from(error), "a connection to PostgreSQL ended");
            }
        }));
        match connector.check(&client).await {
            Ok(settings) => return Ok((Arc::new(client), settings)),
            Err(failure) => last = failure,
        }
    }
    Err(last)
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Bytes of a row, without copying them more than once.
pub(crate) fn bytes(row: &Row, column: usize) -> Bytes {
    Bytes::copy_from_slice(row.get(column))
}

/// An array of bytes.
pub(crate) fn payloads(row: &Row, column: usize) -> Vec<Bytes> {
    row.get::<_, Vec<Payload<'_>>>(column).into_iter().map(|payload| Bytes::copy_from_slice(payload.0)).collect()
}

/// A `bytea` that is borrowed from its row.
struct Payload<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Payload<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(raw))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::BYTEA
    }
}
