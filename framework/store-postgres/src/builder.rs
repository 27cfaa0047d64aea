//! The settings of a store, and the steps of connecting it.
//!
//! Called by services. Changes nothing before the server is checked.

use std::path::PathBuf;
use std::sync::Arc;

use tokio_postgres::types::Type;
use whizbang_core::message::{StoreId, StoreIdentity};
use whizbang_core::store::StoreError;

use crate::checkpoints;
use crate::connect::{Connector, Durability, Password};
use crate::failure::Failure;
use crate::inner::Secrets;
use crate::marks;
use crate::migrations::{self, Migrations};
use crate::pool::Pool;
use crate::sql::{SCHEMA, Sql, is_schema};
use crate::store::PostgresStore;
use crate::views;

/// The operation that errors of this module name.
const CONNECTING: &str = "connecting to PostgreSQL";

/// Configures a [`PostgresStore`]; from [`PostgresStore::builder`].
///
/// ```no_run
/// use whizbang_store_postgres::{Migrations, PostgresStore};
///
/// # async fn connect() -> Result<PostgresStore, whizbang_core::store::StoreError> {
/// PostgresStore::builder("postgres://bank@db.example.com/bank").schema("bank").connect().await
/// # }
/// # let _ = Migrations::default();
/// ```
///
/// Every node of a service uses the same schema, and the same choice between [`exclusive`](Self::exclusive) and leases.
///
/// A service that shares its database with others, reads its password from a file, and whose tables an administrator has created:
/// ```no_run
/// use whizbang_store_postgres::{Migrations, PostgresStore};
///
/// # async fn connect() -> Result<PostgresStore, whizbang_core::store::StoreError> {
/// PostgresStore::builder("postgres://orders@db-1.example.com,db-2.example.com/shop")
///     .schema("orders")
///     .password_file("/run/secrets/orders-db")
///     .certificate_authority("/etc/ssl/company-ca.pem")
///     .migrations(Migrations::Expect)
///     .connect()
///     .await
/// # }
/// ```
#[derive(Clone)]
pub struct PostgresBuilder {
    /// One or several servers, in the form of libpq. May contain a password, so it is never printed.
    url: String,
    /// The schema of the tables. [Checked](is_schema) in `connect`, because it becomes part of statements.
    schema: String,
    /// The number of connections that commit, at least 1.
    writers: usize,
    /// The number of shared connections for reading, at least 1.
    readers: usize,
    /// The most bytes that wait for a commit on one writing connection.
    waiting_bytes: usize,
    /// The guarantee that the server must give for a commit.
    durability: Durability,
    /// The handling of missing or older tables.
    migrations: Migrations,
    /// The source of the password, read for each connection.
    password: Password,
    /// A file with certificates of authorities. `None` uses those of the system.
    authority: Option<PathBuf>,
    /// One node uses the store alone, without leases.
    is_exclusive: bool,
    /// The least number of turns between two checkpoints of a shard, at least 1.
    checkpoint_turns: u64,
}

impl std::fmt::Debug for PostgresBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may contain a password.
        f.debug_struct("PostgresBuilder")
            .field("schema", &self.schema)
            .field("writers", &self.writers)
            .field("readers", &self.readers)
            .finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Connects with the default settings.
    ///
    /// # Errors
    /// Same as [`PostgresBuilder::connect`].
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Configures a store for the database with this URL: `postgres://user@host/database`, or `key=value` pairs as libpq has
    /// them.
    pub fn builder(url: &str) -> PostgresBuilder {
        PostgresBuilder::new(url)
    }
}

impl PostgresBuilder {
    /// Returns the default settings for a URL, which is parsed in `connect`.
    pub(crate) fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            schema: SCHEMA.to_owned(),
            writers: 2,
            readers: 4,
            waiting_bytes: 64 * 1024 * 1024,
            durability: Durability::default(),
            migrations: Migrations::default(),
            password: Password::default(),
            authority: None,
            is_exclusive: false,
            checkpoint_turns: checkpoints::TURNS,
        }
    }

    /// The schema of the tables; `whizbang` by default. Services that share a database need one each. Up to 63 lower-case
    /// letters, digits and underscores.
    ///
    /// Two services must not use the same one: it has one catalog of types and one identity.
    pub fn schema(mut self, schema: &str) -> Self {
        schema.clone_into(&mut self.schema);
        self
    }

    /// One node at a time uses the store: a node that starts takes every shard from the one before, at once, and that one
    /// retires. By default the nodes of a service share the store by [leases](whizbang_core::store::ShardLeases).
    ///
    /// All nodes of a service must use the same setting: an exclusive node takes the shards from nodes that share them.
    pub fn exclusive(mut self) -> Self {
        self.is_exclusive = true;
        self
    }

    /// The number of connections that commit, each with a thread; 2 by default, at least 1. The threads of a node are spread
    /// over them. More than 2 gain little: a commit gathers the turns of all keys.
    ///
    /// A node thereby has `writers`, plus [`readers`](Self::readers), plus 2 connections for leases. Multiply by the number of
    /// nodes, and compare with `max_connections` of the server.
    pub fn writers(mut self, writers: usize) -> Self {
        self.writers = writers.max(1);
        self
    }

    /// The number of connections that read; 4 by default, at least 1. While a shard is opened one more is used.
    ///
    /// They serve activations of actors, missing events for subscribers, queries of dead letters, and views of projections. A
    /// slow statement delays only the requests behind it on the same connection.
    pub fn readers(mut self, readers: usize) -> Self {
        self.readers = readers.max(1);
        self
    }

    /// The most bytes of turns that wait for a commit on one writing connection; 64 MiB by default. While the server is gone
    /// turns wait; beyond the limit they are rejected with [`StoreError::Full`].
    ///
    /// A rejected turn has had no effect, and its message is retried. The memory is at most [`writers`](Self::writers) times as
    /// much. A single turn always fits.
    pub fn waiting_bytes(mut self, bytes: usize) -> Self {
        self.waiting_bytes = bytes;
        self
    }

    /// The least number of turns of a shard between two checkpoints of its index; 20,000 by default. A shard with more streams
    /// than that has as many turns between two checkpoints as it has streams. Opening a shard reads its checkpoint and the
    /// turns after it.
    ///
    /// A smaller number makes openings faster and costs more writes: a checkpoint has about 25 bytes for each stream of the
    /// shard.
    pub fn checkpoint_turns(mut self, turns: u64) -> Self {
        self.checkpoint_turns = turns.max(1);
        self
    }

    /// The durability that is demanded of the server; [`Durability::Required`] by default.
    ///
    /// It is checked for each connection, so that a server that was restarted with other settings is rejected as well.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The handling of missing or older tables; [`Migrations::Apply`] by default.
    ///
    /// All nodes may start at once: one of them changes the tables, and the others wait for it.
    pub fn migrations(mut self, migrations: Migrations) -> Self {
        self.migrations = migrations;
        self
    }

    /// A file with the password. It is read for each connection, so that the password can be changed without a restart. By
    /// default the password is that of the URL, or of the environment variable `PGPASSWORD`.
    ///
    /// Line breaks at its end are not part of the password. If the file is missing, `connect` fails. A running node
    /// tries again and shows it in its health.
    pub fn password_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.password = Password::File(path.into());
        self
    }

    /// A file with the certificates of the authorities that servers are verified with, in PEM form. By default those of the
    /// system.
    ///
    /// The file is read once, when the store is connected. To replace an authority, put both certificates into the file and
    /// restart the nodes.
    pub fn certificate_authority(mut self, path: impl Into<PathBuf>) -> Self {
        self.authority = Some(path.into());
        self
    }

    /// Connects, checks the server, and creates or changes the tables.
    ///
    /// # Errors
    /// [`StoreError::Io`] if no server can be reached, if the server is rejected, or if a setting is invalid; its text names
    /// the cause. [`StoreError::Newer`] if a newer version has written the tables. [`StoreError::Moved`],
    /// [`StoreError::Unfinished`] or [`StoreError::InUse`] if the store is a part of a move. Nothing was changed then.
    ///
    /// Cancel safe: a migration is rolled back.
    pub async fn connect(self) -> Result<PostgresStore, StoreError> {
        let server = self.reach(Sql::new(&self.schema)).await?;
        migrations::migrate(&server.client, &server.sql, self.migrations, &server.at()).await?;
        marks::check(&server.client, &server.sql).await?;
        self.start(server).await
    }

    /// Connects and checks the server, and nothing else. The tables may be missing.
    ///
    /// # Errors
    /// Like [`connect`](Self::connect), without those of the tables.
    pub(crate) async fn reach(&self, sql: Sql) -> Result<Server, StoreError> {
        let failed = |failure: Failure| failure.store(CONNECTING);
        if !is_schema(&self.schema) {
            return Err(failed(Failure::new(format!("`{}` is not the name of a schema", self.schema))));
        }
        let config: tokio_postgres::Config = self.url.parse().map_err(|error| failed(Failure::from(error)))?;
        let connector = Connector::new(config, self.authority.as_deref(), self.password.clone(), self.durability);
        let connector = Arc::new(connector.map_err(failed)?);
        let pool = Pool::start(Arc::clone(&connector), self.readers);
        let pool = Arc::new(pool.map_err(|error| StoreError::io("starting the store's threads", error))?);
        let (client, settings) = pool.open().await.map_err(failed)?;
        Ok(Server { connector, sql: Arc::new(sql), pool, client, durability: settings.durability() })
    }

    /// The schema.
    pub(crate) fn schema_name(&self) -> &str {
        &self.schema
    }

    /// The handling of missing tables.
    pub(crate) fn migrations_mode(&self) -> Migrations {
        self.migrations
    }

    /// Starts the store, whose tables are those of this version. The caller has looked at the mark.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a value of the store is missing, or a thread cannot be started.
    pub(crate) async fn start(self, server: Server) -> Result<PostgresStore, StoreError> {
        let failed = |failure: Failure| failure.store(CONNECTING);
        let Server { connector, sql, pool, client, durability } = server;
        let prepares = !is_pooled(&client, &pool).await.map_err(failed)?;
        if !prepares {
            tracing::info!(target: crate::TARGET, "statements not prepared: a connection pooler changes the session");
        }
        let number = async |name: &str| {
            let value = views::meta(&pool, &sql, name).await?;
            let value: Option<[u8; 16]> = value.and_then(|value| value[..].try_into().ok());
            let missing = || Failure::new(format!("`{name}` is missing in {}", sql.table("meta"))).store(CONNECTING);
            value.map(u128::from_be_bytes).ok_or_else(missing)
        };
        let secrets = Secrets { digest_key: number("digest_key").await?, seed: number("stream_seed").await? as u64 };
        let identity = StoreIdentity::new(StoreId::from_u128(number("store").await?));
        // Renewals have a thread of their own, and takeovers a connection.
        let leases = (!self.is_exclusive).then(|| Pool::start(Arc::clone(&connector), 2)).transpose();
        let leases = leases.map_err(|error| StoreError::io("starting the store's threads", error))?;
        PostgresStore::start(
            connector,
            sql,
            pool,
            (self.writers, self.waiting_bytes, prepares, self.checkpoint_turns),
            leases,
            (secrets, identity),
            durability,
        )
    }
}

/// A server that was checked, with a first connection.
pub(crate) struct Server {
    /// Opens further connections.
    connector: Arc<Connector>,
    /// The statements for the schema.
    pub(crate) sql: Arc<Sql>,
    /// The connections for reading, with the first one.
    pub(crate) pool: Arc<Pool>,
    /// The first connection. Nothing else uses it before the store is started.
    pub(crate) client: Arc<tokio_postgres::Client>,
    /// The line on durability for the log.
    durability: &'static str,
}

impl Server {
    /// The servers and the database, without credentials.
    pub(crate) fn at(&self) -> String {
        self.connector.at()
    }
}

/// Returns whether a pooler gives each statement any of its sessions: two connections share a session, or one changes it.
async fn is_pooled(client: &tokio_postgres::Client, pool: &Pool) -> Result<bool, Failure> {
    let other = pool.separate().await?;
    let session = async |client: &tokio_postgres::Client| {
        let rows =
            client.query_typed("SELECT pg_backend_pid()", &[] as &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)]);
        Ok::<_, Failure>(rows.await?.first().map_or(0, |row| row.get::<_, i32>(0)))
    };
    let (first, second, again) = (session(client).await?, session(&other).await?, session(client).await?);
    Ok(first == second || first != again)
}
