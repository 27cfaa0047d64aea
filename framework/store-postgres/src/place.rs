//! A schema as one end of a move.
//!
//! Called by the [move of a store](whizbang_log::transfer). The tables of a source are locked by one transaction, from the first
//! read to the mark: a commit of a node that still runs waits, and is rejected after the mark, because the epochs rise with it.
//! A lost connection ends the transaction, and with it the move, before anything was marked.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, TryStreamExt as _};
use tokio_postgres::types::Type;
use tokio_postgres::{Client, RowStream};
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{CommitListener, ShardHandle, Store, StoreError};
use whizbang_log::record::Names;
use whizbang_log::transfer::{
    CopiedShard, CopiedTurn, FoundSource, MoveEnd, MoveMark, MoveSource, MoveState, MoveTarget, NewStore, StorePlace,
    TurnPages,
};

use crate::builder::{PostgresBuilder, Server};
use crate::failure::{Failure, Fate};
use crate::marks;
use crate::migrations::{self, Migrations};
use crate::open;
use crate::pool::{Parameters, Pool, bytes, payloads};
use crate::sql::Sql;
use crate::store::PostgresStore;

/// The operation that errors of a move name.
const MOVING: &str = "moving the store in PostgreSQL";

/// The first version of the tables that has one for members.
const FIRST_WITH_MEMBERS: i32 = 2;

/// A page of turns ends with the turn that reaches so many bytes.
const PAGE_BYTES: usize = 1024 * 1024;

/// Begins the transaction of a move. The wait for commits that are under way is limited; the transaction itself may take hours.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = 0;
    SET LOCAL idle_in_transaction_session_timeout = 0";
/// Begins a transaction that only reads, for hours if needed. Also behind a connection pool the setting ends with it.
const BEGIN_READING: &str = "BEGIN READ ONLY; SET LOCAL statement_timeout = 0;
    SET LOCAL idle_in_transaction_session_timeout = 0";
/// Waits for every statement that changes the store, and keeps others from beginning.
const LOCK_TABLES: &str =
    "LOCK TABLE {schema}.shards, {schema}.domains, {schema}.views, {schema}.meta, {schema}.members IN EXCLUSIVE MODE";
/// Marks the source. Every owner is behind its epoch from now on, so a node that has waited for the lock is fenced. Both are one
/// statement: there is no mark without the new epochs.
const MOVED: &str = "WITH fenced AS (UPDATE {schema}.shards SET owner = NULL,
        epoch = GREATEST(epoch + 1, (extract(epoch FROM clock_timestamp()) * 1000)::bigint))
    INSERT INTO {schema}.meta VALUES ('move', $1)";
/// Returns whether anything was ever stored. Tables that an administrator has created have three rows in `meta`, which do not
/// count.
const IS_USED: &str = "SELECT EXISTS (SELECT FROM {schema}.domains) OR EXISTS (SELECT FROM {schema}.views)
    OR EXISTS (SELECT FROM {schema}.members) OR EXISTS (SELECT FROM {schema}.meta WHERE name IN ('identity', 'catalog'))";
/// Sets a value of the store. Only for a copy that no node can open.
const PUT: &str = "INSERT INTO {schema}.meta VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value";
/// Replaces the mark of a copy, or finds it replaced by a first attempt whose answer was lost.
const COMPLETE: &str = "UPDATE {schema}.meta SET value = $1 WHERE name = 'move' AND value IN ($1, $2) RETURNING name";
/// Removes the mark of a complete copy of one move, and of no other.
const ACTIVATE: &str = "DELETE FROM {schema}.meta WHERE name = 'move' AND value = $1";
/// Reads the shards that were ever opened, in the order of their rows.
const SHARDS: &str = "SELECT s.domain, s.number, d.shards, s.epoch, s.id
    FROM {schema}.shards s JOIN {schema}.domains d ON d.name = s.domain ORDER BY s.id";
/// Reads the views that were saved. A view that was only claimed has nothing to copy.
const VIEWS: &str = "SELECT projection FROM {schema}.views WHERE schema IS NOT NULL ORDER BY projection";
/// Raises the epoch of a shard to at least that of the source.
const RAISE: &str = "UPDATE {schema}.shards SET epoch = $3 WHERE domain = $1 AND number = $2 AND epoch < $3";
/// All turns of a shard with the payloads of their events, in the order of the log. The server sends the rows while it reads
/// them.
const ALL_TURNS: &str = r#"SELECT t.location, t.record, ARRAY(
    SELECT e.payload FROM {schema}.event_data e
    WHERE e.shard = t.shard AND e.position > t.position AND e.position <= t.position + t.events ORDER BY e.position
)
FROM {schema}.turns t WHERE t.shard = $1 ORDER BY t.location"#;

/// Returns the error of a statement of a move.
fn failed(error: tokio_postgres::Error) -> StoreError {
    Failure::from(error).store(MOVING)
}

impl StorePlace for PostgresBuilder {
    fn source(&self) -> BoxFuture<'_, Result<FoundSource, StoreError>> {
        find_source(self.clone().exclusive()).boxed()
    }

    fn create(&self, new: NewStore) -> BoxFuture<'_, Result<Box<dyn MoveTarget>, StoreError>> {
        create(self.clone().exclusive(), new).boxed()
    }

    fn finish(&self, number: u128) -> BoxFuture<'_, Result<bool, StoreError>> {
        async move {
            let server = self.reach(Sql::new(self.schema_name())).await?;
            migrations::migrate(&server.client, &server.sql, Migrations::Expect, &server.at()).await?;
            let complete = MoveMark::new(number, MoveState::Complete);
            if marks::read(&server.client, &server.sql).await?.0 != Some(complete) {
                return Ok(false);
            }
            activate(&server.client, &server.sql, number).await.map(|()| true)
        }
        .boxed()
    }
}

/// Locks the store at a place. Tables that do not exist are not created, so that a wrong URL creates nothing.
///
/// # Errors
/// [`StoreError::Missing`] without tables, [`StoreError::InUse`] if a member is live, if a commit holds the tables for more than
/// 10 s, or if another move runs. [`StoreError::Unfinished`] if the place is itself the copy of an interrupted move.
async fn find_source(builder: PostgresBuilder) -> Result<FoundSource, StoreError> {
    let server = builder.reach(Sql::new(builder.schema_name())).await?;
    let at = place(&server);
    if prepare(&builder, &server, &at).await? == 0 {
        return Err(StoreError::Missing { at });
    }
    let (pool, sql) = (Arc::clone(&server.pool), Arc::clone(&server.sql));
    match marks::read(&server.client, &sql).await? {
        (Some(mark @ MoveMark { state: MoveState::Away(_), .. }), _) => return Ok(FoundSource::Moved { at, mark }),
        (Some(mark), _) => return Err(mark.refusal(at)),
        (None, true) => return Err(StoreError::InUse { at }),
        (None, false) => {}
    }
    // Before the lock, which would delay their renewals.
    marks::refuse_live(&server.client, &sql, &at).await?;
    let lock = pool.separate().await.map_err(|failure| failure.store(MOVING))?;
    lock_tables(&lock, &sql, &at).await?;
    // A node or another move may have been faster.
    marks::refuse_live(&lock, &sql, &at).await?;
    if let (Some(mark), _) = marks::read(&lock, &sql).await? {
        return Err(mark.refusal(at));
    }
    let store = builder.start(server).await?;
    Ok(FoundSource::Ready(Box::new(PostgresSource { end: End { store, pool, sql, at }, lock })))
}

/// Creates the tables and the mark of a copy, and opens its store. The mark is committed before the store is opened: a crash
/// leaves a copy that nodes refuse.
///
/// # Errors
/// [`StoreError::NotEmpty`] for tables that were ever used, also by an interrupted move. [`StoreError::InUse`] if a member is live.
/// Nothing was changed, except that missing tables may have been created.
async fn create(builder: PostgresBuilder, new: NewStore) -> Result<Box<dyn MoveTarget>, StoreError> {
    let server = builder.reach(Sql::of_copy(builder.schema_name())).await?;
    let at = place(&server);
    let (pool, sql) = (Arc::clone(&server.pool), Arc::clone(&server.sql));
    if prepare(&builder, &server, &at).await? == 0 {
        migrations::migrate(&server.client, &sql, builder.migrations_mode(), &server.at()).await?;
    }
    let client = pool.separate().await.map_err(|failure| failure.store(MOVING))?;
    lock_tables(&client, &sql, &at).await?;
    if let Some(mark) = marks::read(&client, &sql).await?.0 {
        return Err(mark.occupies(at));
    }
    let used = client.query_typed(&sql.text(IS_USED), &[]).await.map_err(failed)?;
    if used.first().is_none_or(|row| row.get(0)) {
        return Err(StoreError::NotEmpty { at });
    }
    let identity = new.identity.as_ref().map(serde_json::to_vec).transpose();
    let identity = identity.map_err(|error| Failure::new(error.to_string()).store(MOVING))?;
    let values = [
        (marks::NAME, Some(MoveMark::new(new.number, MoveState::Copying).to_string().into_bytes())),
        ("digest_key", Some(new.digest_key.to_be_bytes().to_vec())),
        ("identity", identity),
    ];
    for (name, value) in &values {
        if let Some(value) = value {
            let parameters: &Parameters<'_> = &[(name, Type::TEXT), (value, Type::BYTEA)];
            client.query_typed(&sql.text(PUT), parameters).await.map_err(failed)?;
        }
    }
    client.batch_execute("COMMIT").await.map_err(failed)?;
    drop(client);
    let store = builder.start(server).await?;
    Ok(Box::new(PostgresTarget { end: End { store, pool, sql, at }, number: new.number }))
}

/// Brings existing tables to the newest version, unless a node of an older program uses them: it would refuse them at its next
/// start. Returns the version that was found; 0 without tables, which are not created.
async fn prepare(builder: &PostgresBuilder, server: &Server, at: &str) -> Result<i32, StoreError> {
    let found = migrations::version(&server.client, &server.sql).await.map_err(failed)?;
    if found >= FIRST_WITH_MEMBERS {
        marks::refuse_live(&server.client, &server.sql, at).await?;
    }
    if found > 0 {
        migrations::migrate(&server.client, &server.sql, builder.migrations_mode(), &server.at()).await?;
    }
    Ok(found)
}

/// Returns the server, the database and the schema, for messages.
fn place(server: &Server) -> String {
    format!("{}, {}", server.at(), marks::place(&server.sql))
}

/// Begins the transaction of a move and locks the tables of the store. Statements that are under way are waited for, and new
/// ones wait until the transaction ends. Reads are not affected.
///
/// # Errors
/// [`StoreError::InUse`] if the locks are not available within 10 s. The transaction has failed then, and ends with its
/// connection.
async fn lock_tables(client: &Client, sql: &Sql, at: &str) -> Result<(), StoreError> {
    let locked = async {
        client.batch_execute(BEGIN).await?;
        client.batch_execute(&sql.text(marks::LOCK)).await?;
        client.batch_execute(&sql.text(LOCK_TABLES)).await
    };
    locked.await.map_err(|error| {
        let failure = Failure::from(error);
        match failure.fate() {
            // The lock was not available in time.
            Fate::Later => StoreError::InUse { at: at.to_owned() },
            _ => failure.store(MOVING),
        }
    })
}

/// Removes the mark of a complete copy. A node that has waited for it since before the copy has other secrets: it has a lease,
/// and as long as it is open the copy is not activated.
///
/// # Errors
/// Those of [`marks::refuse_live`]. The mark is still there then, and the move can be finished later.
async fn activate(client: &Client, sql: &Sql, number: u128) -> Result<(), StoreError> {
    let at = marks::place(sql);
    let complete = MoveMark::new(number, MoveState::Complete).to_string().into_bytes();
    lock_tables(client, sql, &at).await?;
    let removed = async {
        marks::refuse_live(client, sql, &at).await?;
        let parameters: &Parameters<'_> = &[(&complete, Type::BYTEA)];
        client.query_typed(&sql.text(ACTIVATE), parameters).await.map_err(failed)?;
        client.batch_execute("COMMIT").await.map_err(failed)
    };
    let removed = removed.await;
    if removed.is_err() {
        // The connection may be lost, which rolls back as well.
        let _ = client.batch_execute("ROLLBACK").await;
    }
    removed
}

/// An opened store of a move. The store itself answers what its readers answer; everything that only a move asks is read from the
/// tables.
struct End {
    /// Opened for one node alone, without leases.
    store: PostgresStore,
    /// The connections of the store.
    pool: Arc<Pool>,
    /// The statements for the schema.
    sql: Arc<Sql>,
    /// The server, the database and the schema, for messages.
    at: String,
}

impl End {
    /// Returns the shards with their rows.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a row has no valid name.
    async fn rows(&self) -> Result<Vec<(i32, CopiedShard)>, StoreError> {
        let rows = self.pool.query(MOVING, &self.sql.text(SHARDS), &[]).await?;
        let shards = rows.iter().map(|row| {
            let small = |column: usize| u16::try_from(row.get::<_, i32>(column)).map_err(|error| error.to_string());
            let domain = Name::new(row.get(0)).map_err(|error| error.to_string())?;
            let id = ShardId::new(domain, small(1)?);
            let epoch = row.get::<_, i64>(3).unsigned_abs();
            Ok((row.get(4), CopiedShard { id, shards: small(2)?, epoch }))
        });
        let file = self.sql.table("shards").into();
        shards.collect::<Result<_, String>>().map_err(|reason| StoreError::Corrupt { file, offset: 0, reason })
    }

    /// Returns the names of the saved views.
    async fn view_names(&self) -> Result<Vec<Name>, StoreError> {
        let rows = self.pool.query(MOVING, &self.sql.text(VIEWS), &[]).await?;
        let names = rows.iter().map(|row| Name::new(row.get(0)).map_err(|error| error.to_string()));
        let file = self.sql.table("views").into();
        names.collect::<Result<_, String>>().map_err(|reason| StoreError::Corrupt { file, offset: 0, reason })
    }
}

impl MoveEnd for End {
    fn store(&self) -> &dyn Store {
        &self.store
    }

    fn at(&self) -> String {
        self.at.clone()
    }

    fn shards(&self) -> BoxFuture<'_, Result<Vec<CopiedShard>, StoreError>> {
        async { Ok(self.rows().await?.into_iter().map(|(_, shard)| shard).collect()) }.boxed()
    }

    fn views(&self) -> BoxFuture<'_, Result<Vec<Name>, StoreError>> {
        self.view_names().boxed()
    }

    fn turns(&self) -> Box<dyn TurnPages + '_> {
        Box::new(RowPages { end: self, shards: None, rows: None, names: Names::default() })
    }
}

/// The store that is moved away, with the transaction that holds it.
struct PostgresSource {
    end: End,
    /// The connection with the transaction. Dropping it releases the tables.
    lock: Arc<Client>,
}

impl MoveEnd for PostgresSource {
    fn store(&self) -> &dyn Store {
        self.end.store()
    }

    fn at(&self) -> String {
        self.end.at()
    }

    fn shards(&self) -> BoxFuture<'_, Result<Vec<CopiedShard>, StoreError>> {
        self.end.shards()
    }

    fn views(&self) -> BoxFuture<'_, Result<Vec<Name>, StoreError>> {
        self.end.views()
    }

    fn turns(&self) -> Box<dyn TurnPages + '_> {
        self.end.turns()
    }
}

impl MoveSource for PostgresSource {
    fn mark_moved<'a>(&'a self, mark: &'a MoveMark) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let text = mark.to_string().into_bytes();
            let parameters: &Parameters<'_> = &[(&text, Type::BYTEA)];
            self.lock.query_typed(&self.end.sql.text(MOVED), parameters).await.map_err(failed)?;
            self.lock.batch_execute("COMMIT").await.map_err(failed)
        }
        .boxed()
    }
}

/// The copy that a move creates.
struct PostgresTarget {
    end: End,
    /// The number of the move, which the mark contains.
    number: u128,
}

impl MoveEnd for PostgresTarget {
    fn store(&self) -> &dyn Store {
        self.end.store()
    }

    fn at(&self) -> String {
        self.end.at()
    }

    fn shards(&self) -> BoxFuture<'_, Result<Vec<CopiedShard>, StoreError>> {
        self.end.shards()
    }

    fn views(&self) -> BoxFuture<'_, Result<Vec<Name>, StoreError>> {
        self.end.views()
    }

    fn turns(&self) -> Box<dyn TurnPages + '_> {
        self.end.turns()
    }
}

impl MoveTarget for PostgresTarget {
    fn open<'a>(
        &'a self,
        shard: &'a CopiedShard,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>> {
        async move {
            let (pool, sql) = (&self.end.pool, &self.end.sql);
            open::create(pool, sql, &shard.id, shard.shards).await?;
            let (domain, number) = (shard.id.domain.as_str(), i32::from(shard.id.shard));
            let epoch = i64::try_from(shard.epoch).unwrap_or(i64::MAX);
            let parameters: &Parameters<'_> = &[(&domain, Type::TEXT), (&number, Type::INT4), (&epoch, Type::INT8)];
            pool.query(MOVING, &sql.text(RAISE), parameters).await?;
            self.end.store.open(&shard.id, shard.shards, listener).await
        }
        .boxed()
    }

    fn complete(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        async move {
            let text = |state| MoveMark::new(self.number, state).to_string().into_bytes();
            let (complete, copying) = (text(MoveState::Complete), text(MoveState::Copying));
            let parameters: &Parameters<'_> = &[(&complete, Type::BYTEA), (&copying, Type::BYTEA)];
            let marked = self.end.pool.query(MOVING, &self.end.sql.text(COMPLETE), parameters).await?;
            // Another move has replaced the mark, or the schema was created again.
            if marked.is_empty() { Err(StoreError::Unfinished { at: self.end.at() }) } else { Ok(()) }
        }
        .boxed()
    }

    fn activate(self: Box<Self>) -> BoxFuture<'static, Result<(), StoreError>> {
        async move {
            // Closing saves the indexes, so that the first opening need not read every turn.
            let client = self.end.pool.separate().await.map_err(|failure| failure.store(MOVING))?;
            self.end.store.checkpoint().await;
            activate(&client, &self.end.sql, self.number).await?;
            self.end.store.close().await
        }
        .boxed()
    }
}

/// The turns of one shard after the other. Rows arrive as they are read, so that any number of them needs little memory.
struct RowPages<'a> {
    /// The store whose turns are read.
    end: &'a End,
    /// The shards that are left, the next one last; `None` before the first page.
    shards: Option<Vec<(i32, CopiedShard)>>,
    /// The rows of the current shard.
    rows: Option<ShardRows>,
    /// The names that records repeat.
    names: Names,
}

/// The rows of one shard, and the connection that they come from.
struct ShardRows {
    /// The shard.
    shard: ShardId,
    /// The rows that are left.
    rows: Pin<Box<RowStream>>,
    /// Kept, because the connection ends with its client.
    _client: Arc<Client>,
}

impl RowPages<'_> {
    /// Returns the next page; an empty one at the end of the last shard.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if a record is damaged, [`StoreError::Io`] if the connection is lost. It is not opened again: the
    /// caller has copied a part of the rows.
    async fn read_page(&mut self) -> Result<Vec<(ShardId, CopiedTurn)>, StoreError> {
        let (mut page, mut size) = (Vec::new(), 0);
        while size < PAGE_BYTES {
            if self.rows.is_none() && !self.begin_next().await? {
                break;
            }
            let Some(ShardRows { shard, rows, .. }) = &mut self.rows else { break };
            let Some(row) = rows.try_next().await.map_err(failed)? else {
                self.rows = None;
                continue;
            };
            let location = row.get::<_, i64>(0).unsigned_abs();
            let (record, payloads) = (bytes(&row, 1), payloads(&row, 2));
            let read = CopiedTurn::read(location, &record, Some(&payloads), &mut self.names, |_| Some(shard.clone()));
            let Some((shard, turn)) = read.map_err(|reason| self.damaged(location, reason))? else {
                return Err(self.damaged(location, "the record is not a turn"));
            };
            size += turn.bytes();
            page.push((shard, turn));
        }
        Ok(page)
    }

    /// Begins to read the next shard. Returns `false` if there is none.
    async fn begin_next(&mut self) -> Result<bool, StoreError> {
        if self.shards.is_none() {
            let mut shards = self.end.rows().await?;
            shards.reverse();
            self.shards = Some(shards);
        }
        let Some((row, shard)) = self.shards.as_mut().and_then(Vec::pop) else { return Ok(false) };
        let client = self.end.pool.separate().await.map_err(|failure| failure.store(MOVING))?;
        client.batch_execute(BEGIN_READING).await.map_err(failed)?;
        let rows = client.query_typed_raw(&self.end.sql.text(ALL_TURNS), [(row, Type::INT4)]).await.map_err(failed)?;
        self.rows = Some(ShardRows { shard: shard.id, rows: Box::pin(rows), _client: client });
        Ok(true)
    }

    /// Returns the error for a damaged row.
    fn damaged(&self, location: u64, reason: &str) -> StoreError {
        let file = self.end.sql.table("turns").into();
        StoreError::Corrupt { file, offset: location, reason: reason.to_owned() }
    }
}

impl TurnPages for RowPages<'_> {
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<(ShardId, CopiedTurn)>, StoreError>> {
        self.read_page().boxed()
    }
}
