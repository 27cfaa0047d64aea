//! The store: its shared parts, and the order in which they start and end.
//!
//! Called by the node, through the trait `Store`.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Name, ShardId, StoreIdentity};
use whizbang_core::store::{
    CatalogEntry, CommitListener, Epoch, MemberId, ShardHandle, ShardLeases, ShardReader, Statement, Store, StoreError,
    View,
};
use whizbang_core::telemetry::error_chain;

use crate::builder::{PostgresBuilder, SCHEMA};
use crate::checkpoints::Checkpoints;
use crate::connect::Connector;
use crate::failure::Failure;
use crate::leases::{LeaseTable, PostgresLeases};
use crate::pool::Pool;
use crate::reader::Reader;
use crate::shard::{Appender, Shard};
use crate::sql::Sql;
use crate::statements::Session;
use crate::tickets::Tickets;
use crate::writer::Writer;
use crate::{migrations, open, views};

/// Ids that were handled within so many milliseconds, a day, are forgotten together.
const IDS_SPAN_MS: u64 = 24 * 3600 * 1000;

/// Closing waits for the last commits for so long.
const CLOSING: Duration = Duration::from_secs(10);

/// The secrets of a store, so that callers cannot make digests or hashes collide.
#[derive(Clone, Copy)]
pub(crate) struct Secrets {
    /// The key of the digests that detect a repeated id with another payload.
    pub(crate) digest_key: u128,
    /// The seed of the hashes of streams and ids in memory.
    pub(crate) seed: u64,
}

/// A store in a PostgreSQL database, version 13 or newer.
///
/// The nodes of a service share it: each shard has one owner at a time, by [leases](Store::leases) that the server's clock counts.
/// With [`PostgresBuilder::exclusive`] one node uses it alone. A commit that was reported is as durable as the server's
/// settings make it. In memory the store keeps the location of the newest turn of each stream, 40 to 80 bytes for each stream
/// that ever existed, and the ids of external messages until they expire.
///
/// ```no_run
/// use whizbang_store_postgres::PostgresStore;
///
/// # async fn connect() -> Result<(), whizbang::store::StoreError> {
/// let store = PostgresStore::connect("postgres://bank@db.example.com/bank").await?;
/// # Ok(())
/// # }
/// ```
///
/// The URL is that of libpq: several hosts are tried in order until one can be written to. A connection that leaves the machine
/// uses TLS and verifies the server's certificate and name, unless the URL has `sslmode=disable`.
pub struct PostgresStore(Arc<Shared>);

/// The parts of a store, which its leases use as well.
pub(crate) struct Shared {
    connector: Arc<Connector>,
    sql: Arc<Sql>,
    pool: Arc<Pool>,
    /// Runs the statements of users.
    session: Session,
    writers: Vec<Arc<Writer>>,
    /// The threads of the writers, which end with the store.
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// The newest opening of each shard in this process.
    shards: Mutex<HashMap<ShardId, Arc<Shard>>>,
    /// One lock for each shard that was ever opened: openings of one shard come one after the other.
    openings: Mutex<HashMap<ShardId, Arc<tokio::sync::Mutex<()>>>>,
    listeners: Mutex<Listeners>,
    /// None if one node uses the store alone.
    leases: Option<LeaseTable>,
    checkpoints: Arc<Checkpoints>,
    /// The least number of turns between two checkpoints of a shard.
    checkpoint_turns: u64,
    secrets: Secrets,
    identity: StoreIdentity,
    durability: &'static str,
    /// Damage found since the start, at most 16 errors.
    damages: Mutex<Vec<StoreError>>,
}

/// The listeners that may open shards; each belongs to one writer.
#[derive(Default)]
struct Listeners {
    known: Vec<Arc<Tickets>>,
    next_writer: usize,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore").field("at", &self.0.connector.at()).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects with the default settings.
    ///
    /// # Errors
    /// As [`PostgresBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Configures a store for the database with this URL: `postgres://user@host/database`, or `key=value` pairs as libpq has
    /// them.
    pub fn builder(url: &str) -> PostgresBuilder {
        PostgresBuilder::new(url)
    }

    /// The SQL that creates the tables in the schema `whizbang`, for a database administrator; it can be run with psql in
    /// one transaction (`psql -1`).
    pub fn migrations() -> String {
        migrations::script(&Sql::new(SCHEMA), 0)
    }

    /// Saves a checkpoint of every open shard now, which makes the next openings fast. Otherwise a shard is saved when it has
    /// had [enough turns](PostgresBuilder::checkpoint_turns), and when the store is closed. A failure is only logged, because
    /// a checkpoint is a cache.
    pub async fn checkpoint(&self) {
        let shards = self.0.shards.lock().values().filter(|shard| shard.is_open()).cloned().collect();
        self.0.checkpoints.save(shards).await;
    }

    pub(crate) fn start(
        connector: Arc<Connector>,
        sql: Arc<Sql>,
        pool: Arc<Pool>,
        (writers, limit, prepares, checkpoint_turns): (usize, usize, bool, u64),
        leases: Option<Pool>,
        (secrets, identity): (Secrets, StoreIdentity),
        durability: &'static str,
    ) -> Result<Self, StoreError> {
        let checkpoints = Checkpoints::start(&pool, &sql, checkpoint_turns);
        let checkpoints = Arc::new(checkpoints.map_err(|error| StoreError::io("starting the store's threads", error))?);
        let writer = |_| {
            let (connector, sql, checkpoints) = (Arc::clone(&connector), Arc::clone(&sql), Arc::clone(&checkpoints));
            Arc::new(Writer::new(connector, sql, checkpoints, limit, prepares))
        };
        let leases = leases.map(|pool| LeaseTable::new(pool, Arc::clone(&sql)));
        let shared = Arc::new(Shared {
            writers: (0..writers).map(writer).collect(),
            connector,
            sql,
            pool,
            session: Session::default(),
            threads: Mutex::default(),
            shards: Mutex::default(),
            openings: Mutex::default(),
            listeners: Mutex::default(),
            leases,
            checkpoints,
            checkpoint_turns,
            secrets,
            identity,
            durability,
            damages: Mutex::default(),
        });
        let store = Self(Arc::clone(&shared));
        for (number, writer) in shared.writers.iter().enumerate() {
            let writer = Arc::clone(writer);
            let thread = std::thread::Builder::new().name(format!("whizbang-pg-{number}"));
            // If one cannot be started the others end with the store.
            let thread = thread.spawn(move || writer.run());
            shared.threads.lock().push(thread.map_err(|error| StoreError::io("starting the store's threads", error))?);
        }
        Ok(store)
    }
}

impl Shared {
    /// Returns the tickets of a listener. A new listener gets the next writer in turn.
    fn tickets(&self, listener: &Arc<dyn CommitListener>) -> Result<Arc<Tickets>, StoreError> {
        let mut listeners = self.listeners.lock();
        if let Some(known) = listeners.known.iter().find(|known| known.is_of(listener)) {
            return Ok(Arc::clone(known));
        }
        listeners.known.retain(Tickets::is_in_use);
        let number = listeners.next_writer % self.writers.len();
        listeners.next_writer += 1;
        let writer = self.writers.get(number).ok_or(StoreError::Closed)?;
        let new = Arc::new(Tickets::new(Arc::clone(listener), Arc::clone(writer)));
        listeners.known.push(Arc::clone(&new));
        Ok(new)
    }

    /// Opens a shard; for a member only if it is free.
    pub(crate) async fn take(
        &self,
        id: &ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
        member: Option<MemberId>,
    ) -> Result<Option<ShardHandle>, StoreError> {
        let opening = Arc::clone(self.openings.lock().entry(id.clone()).or_default());
        let _one_at_a_time = opening.lock().await;
        open::create(&self.pool, &self.sql, id, shards).await?;
        let older = self.shards.lock().get(id).cloned();
        if let Some(older) = &older {
            // An owner in this process continues if the shard is refused.
            if let Some(member) = member
                && !self.lease_table()?.may_take(member, id).await?
            {
                return Ok(None);
            }
            // Its next appends are rejected, and what it has appended is written, so that the new owner finds it.
            older.hand_over();
            for writer in &self.writers {
                let flushed = writer.flushed();
                // If it cannot be written the rows decide.
                let _ = flushed.await;
            }
        }
        let taken = match member {
            Some(member) => self.lease_table()?.take(member, id).await,
            None => open::take(&self.pool, &self.sql, id).await,
        };
        let (row, epoch) = match taken {
            Ok(Some(taken)) => taken,
            refused => {
                if let Some(older) = &older {
                    older.resume();
                }
                return refused.map(|_| None);
            }
        };
        if let Some(older) = older {
            older.fence(epoch);
        }
        let shard = open::rebuild(&self.pool, &self.sql, self.secrets.seed, (id, row, epoch)).await;
        let shard = Arc::new(shard.inspect_err(|error| self.damaged(error))?);
        let streams = shard.look(|state| state.log.streams() as u64);
        shard.end_checkpoint(shard.committed() - shard.since_checkpoint() + self.checkpoint_turns.max(streams));
        let tickets = self.tickets(&listener)?;
        tickets.writer.add(&shard, &tickets);
        self.shards.lock().insert(id.clone(), Arc::clone(&shard));
        let reader = Reader::new(Arc::clone(&self.pool), Arc::clone(&self.sql), Arc::clone(&shard));
        Ok(Some(ShardHandle { writer: Box::new(Appender::new(shard, tickets)), reader: Arc::new(reader) }))
    }

    /// The leases, unless one node uses the store alone.
    pub(crate) fn lease_table(&self) -> Result<&LeaseTable, StoreError> {
        self.leases.as_ref().ok_or(StoreError::Closed)
    }

    /// The owner under this epoch is about to release the shard.
    pub(crate) fn close_shard(&self, id: &ShardId, epoch: Epoch) {
        let mut shards = self.shards.lock();
        if shards.get(id).is_some_and(|shard| shard.epoch == epoch) {
            let shard = shards.remove(id);
            drop(shards);
            shard.iter().for_each(|shard| shard.fail());
        }
    }

    /// Remembers damage for the health of the node.
    fn damaged(&self, error: &StoreError) {
        if let StoreError::Corrupt { .. } = error {
            tracing::error!(target: crate::TARGET, error = %error_chain(error), "a part of the log is damaged");
            let mut damages = self.damages.lock();
            if damages.len() < 16 {
                damages.push(error.clone());
            }
        }
    }

    async fn read_now(&self, id: &ShardId) -> Result<Option<Arc<dyn ShardReader>>, StoreError> {
        // The index of a shard that has another owner by now would be behind its rows.
        let open = self.shards.lock().get(id).filter(|shard| shard.is_open()).cloned();
        let shard = match open {
            Some(shard) => shard,
            None => match open::find(&self.pool, &self.sql, id).await? {
                // The epoch 0 was never given, so nothing can be appended with it.
                Some(row) => Arc::new(open::rebuild(&self.pool, &self.sql, self.secrets.seed, (id, row, 0)).await?),
                None => return Ok(None),
            },
        };
        Ok(Some(Arc::new(Reader::new(Arc::clone(&self.pool), Arc::clone(&self.sql), shard))))
    }

    /// The identity, and the row that it is in.
    async fn identity_now(&self) -> Result<(StoreIdentity, Option<Bytes>), StoreError> {
        let stored = views::meta(&self.pool, &self.sql, "identity").await?;
        let identity = stored.as_ref().map(|stored| serde_json::from_slice(stored)).transpose();
        let identity = identity.map_err(|error| self.damaged_meta("identity", &error))?;
        Ok((identity.unwrap_or_else(|| self.identity.clone()), stored))
    }

    /// The catalog, and the row that it is in.
    async fn catalog_now(&self) -> Result<(Option<Vec<CatalogEntry>>, Option<Bytes>), StoreError> {
        let stored = views::meta(&self.pool, &self.sql, "catalog").await?;
        let catalog = stored.as_ref().map(|stored| serde_json::from_slice(stored)).transpose();
        Ok((catalog.map_err(|error| self.damaged_meta("catalog", &error))?, stored))
    }

    /// Returns the error for a value of the store that is not valid JSON.
    fn damaged_meta(&self, name: &str, error: &serde_json::Error) -> StoreError {
        let file = format!("{}, `{name}`", self.sql.table("meta")).into();
        StoreError::Corrupt { file, offset: 0, reason: error.to_string() }
    }

    /// Replaces a value if its row still contains `stored`, or is still missing.
    async fn replace_json(
        &self,
        name: &str,
        stored: Option<&[u8]>,
        value: serde_json::Result<Vec<u8>>,
    ) -> Result<bool, StoreError> {
        let value = value.map_err(|error| Failure::new(error.to_string()).store("writing to PostgreSQL"))?;
        views::replace_meta(&self.pool, &self.sql, name, stored, &value).await
    }

    /// Ends the threads. Blocks for a moment.
    fn end(&self) {
        self.writers.iter().for_each(|writer| writer.stop());
        for thread in self.threads.lock().drain(..) {
            // A thread that has panicked has ended as well.
            let _ = thread.join();
        }
        self.checkpoints.stop();
        self.pool.stop();
        if let Some(leases) = &self.leases {
            leases.stop();
        }
    }
}

impl Store for PostgresStore {
    fn open<'a>(
        &'a self,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        async move {
            let taken = self.0.take(shard, shards, listener, None).await?;
            // Its row was created just before.
            taken.ok_or(StoreError::Closed)
        }
        .boxed()
    }

    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>> {
        self.0.read_now(shard).boxed()
    }

    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>> {
        views::load(&self.0.pool, &self.0.sql, projection).boxed()
    }

    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>> {
        views::claim(&self.0.pool, &self.0.sql, projection).boxed()
    }

    fn save_view<'a>(
        &'a self,
        projection: &'a Name,
        epoch: Epoch,
        view: View,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move { views::save(&self.0.pool, &self.0.sql, projection, epoch, &view).await }.boxed()
    }

    fn runs_statements(&self) -> bool {
        true
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
            let (pool, sql) = (&self.0.pool, &self.0.sql);
            self.0.session.save(pool, sql, (projection, epoch), &view, statements).await
        }
        .boxed()
    }

    fn catalog(&self) -> BoxFuture<'_, Result<Option<Vec<CatalogEntry>>, StoreError>> {
        async { self.0.catalog_now().await.map(|(catalog, _)| catalog) }.boxed()
    }

    fn replace_catalog(
        &self,
        expected: Option<Vec<CatalogEntry>>,
        entries: Vec<CatalogEntry>,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            let (catalog, stored) = self.0.catalog_now().await?;
            if catalog != expected {
                return Ok(false);
            }
            self.0.replace_json("catalog", stored.as_deref(), serde_json::to_vec(&entries)).await
        }
        .boxed()
    }

    fn identity(&self) -> BoxFuture<'_, Result<Option<StoreIdentity>, StoreError>> {
        async { self.0.identity_now().await.map(|(identity, _)| Some(identity)) }.boxed()
    }

    fn replace_identity(
        &self,
        expected: StoreIdentity,
        identity: StoreIdentity,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            let (found, stored) = self.0.identity_now().await?;
            if found != expected {
                return Ok(false);
            }
            self.0.replace_json("identity", stored.as_deref(), serde_json::to_vec(&identity)).await
        }
        .boxed()
    }

    fn forget_ids(&self, before: Timestamp) {
        let shards: Vec<_> = self.0.shards.lock().values().cloned().collect();
        for shard in shards {
            shard.look(|state| {
                state.forgotten = state.forgotten.max(before);
                state.log.forget_ids(before, IDS_SPAN_MS);
            });
        }
    }

    fn digest_key(&self) -> u128 {
        self.0.secrets.digest_key
    }

    fn leases(&self) -> Option<Arc<dyn ShardLeases>> {
        self.0.leases.as_ref().map(|_| Arc::new(PostgresLeases(Arc::downgrade(&self.0))) as Arc<dyn ShardLeases>)
    }

    fn issues(&self) -> Vec<StoreError> {
        let issues = self.0.writers.iter().filter_map(|writer| writer.issue());
        let leases = self.0.leases.as_ref().and_then(LeaseTable::issue);
        issues.chain(self.0.pool.issue()).chain(leases).chain(self.0.damages.lock().iter().cloned()).collect()
    }

    fn durability(&self) -> &'static str {
        self.0.durability
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async {
            self.0.writers.iter().for_each(|writer| writer.close(CLOSING));
            let mut closed = Ok(());
            for writer in &self.0.writers {
                let flushed = writer.flushed().await;
                closed = closed.and(flushed.unwrap_or(Err(StoreError::Closed)));
            }
            if closed.is_ok() {
                let shards: Vec<_> = self.0.shards.lock().values().cloned().collect();
                let due = shards.into_iter().filter(|shard| self.0.checkpoints.is_due_at_closing(shard));
                self.0.checkpoints.save(due.collect()).await;
            }
            self.0.end();
            closed
        }
        .boxed()
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        // Appended turns are written if the server answers. Only `close` guarantees and reports it.
        self.0.writers.iter().for_each(|writer| writer.close(CLOSING));
        if self.0.writers.iter().all(|writer| writer.issue().is_none()) {
            for thread in self.0.threads.lock().drain(..) {
                let _ = thread.join();
            }
        }
        self.0.end();
    }
}
