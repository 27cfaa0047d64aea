//! The store: its inner parts, and the order in which they start and end.
//!
//! Called by the node, through the trait `Store`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Name, ShardId, StoreIdentity};
use whizbang_core::store::{
    CatalogEntry, CommitListener, Epoch, ShardHandle, ShardLeases, ShardReader, Statement, Store, StoreError, View,
};

use crate::checkpoints::Checkpoints;
use crate::connect::Connector;
use crate::inner::{Inner, Secrets};
use crate::lease_table::LeaseTable;
use crate::leases::PostgresLeases;
use crate::pool::Pool;
use crate::sql::{SCHEMA, Sql};
use crate::statements::Session;
use crate::writer::Writer;
use crate::{migrations, views};

/// Ids that were handled within so many milliseconds, a day, are forgotten together.
const IDS_SPAN_MS: u64 = 24 * 3600 * 1000;

/// Closing waits for the last commits for so long.
const CLOSING: Duration = Duration::from_secs(10);

/// A store in a PostgreSQL database, version 13 or newer.
///
/// The nodes of a service share it: each shard has one owner at a time, by [leases](Store::leases) that the server's clock counts.
/// With [`PostgresBuilder::exclusive`](crate::PostgresBuilder::exclusive) one node uses it alone. A commit that was reported is as durable as the server's
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
pub struct PostgresStore(Arc<Inner>);

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresStore").field("at", &self.0.connector.at()).finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// The SQL that creates the tables in the schema `whizbang`, for a database administrator; it can be run with psql in
    /// one transaction (`psql -1`).
    pub fn migrations() -> String {
        migrations::script(&Sql::new(SCHEMA), 0)
    }

    /// Saves a checkpoint of every open shard now, which makes the next openings fast. Otherwise a shard is saved when it has
    /// had [enough turns](crate::PostgresBuilder::checkpoint_turns), and when the store is closed. A failure is only logged, because
    /// a checkpoint is a cache.
    pub async fn checkpoint(&self) {
        let shards = self.0.shards.lock().values().filter(|shard| shard.is_open()).cloned().collect();
        self.0.checkpoints.save(shards).await;
    }

    /// Starts the threads of a store whose server was checked. `leases` has the connections for leases; `None` for an
    /// exclusive node.
    ///
    /// # Errors
    /// A thread could not be started. Those that were started end with the store.
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
        let inner = Arc::new(Inner {
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
        let store = Self(Arc::clone(&inner));
        for (number, writer) in inner.writers.iter().enumerate() {
            let writer = Arc::clone(writer);
            let thread = std::thread::Builder::new().name(format!("whizbang-pg-{number}"));
            // If one cannot be started the others end with the store.
            let thread = thread.spawn(move || writer.run());
            inner.threads.lock().push(thread.map_err(|error| StoreError::io("starting the store's threads", error))?);
        }
        Ok(store)
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
