//! The tables, and the migrations of older databases.
//!
//! Called when a store is connected. A released migration never changes; a change of the tables is a new migration behind it.
//! All missing ones run in one transaction, under a lock that a second starting node waits for.

use tokio_postgres::Client;
use tokio_postgres::types::Type;
use whizbang_core::store::StoreError;

use crate::failure::Failure;
use crate::sql::Sql;

/// The migrations, oldest first. The version of a database is the number of those it has.
const MIGRATIONS: [&str; 5] = [
    include_str!("0001.sql"),
    include_str!("0002.sql"),
    include_str!("0003.sql"),
    include_str!("0004.sql"),
    include_str!("0005.sql"),
];

/// The newest version this program knows.
pub(crate) const KNOWN: i32 = MIGRATIONS.len() as i32;

/// A lock for the transaction, named after the schema: services in other schemas do not wait.
const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended('whizbang {schema}', 0))";
/// Creates the schema and the table that records the migrations.
const PREPARE: &str = "CREATE SCHEMA IF NOT EXISTS {schema};
CREATE TABLE IF NOT EXISTS {schema}.migrations (
    version integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);";
/// Records that a migration was applied, in the transaction that applies it.
const APPLIED: &str = "INSERT INTO {schema}.migrations (version) VALUES ({version});";
/// Returns whether the table of migrations exists, without the right to create anything.
const IS_PREPARED: &str = "SELECT to_regclass('{schema}.migrations') IS NOT NULL";
/// Reads the version; 0 before the first migration.
const VERSION: &str = "SELECT COALESCE(max(version), 0) FROM {schema}.migrations";

/// The handling of a database that lacks the tables, or has older ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Migrations {
    /// They are created or changed at start. The default. The user needs the right to create a schema in the database, or
    /// must own the schema.
    #[default]
    Apply,
    /// The start fails. A database administrator has run [the SQL](crate::PostgresStore::migrations) before; the user needs
    /// no right but to read and write the tables.
    Expect,
}

/// The SQL that creates the tables in `schema`, or changes those of version `from` to the newest.
pub(crate) fn script(sql: &Sql, from: i32) -> String {
    let mut script = sql.text(PREPARE) + "\n";
    for (version, migration) in (1..).zip(MIGRATIONS).skip(usize::try_from(from).unwrap_or(0)) {
        script += &format!("\n-- Version {version}\n{}{}\n", sql.text(migration), applied(sql, version));
    }
    script
}

/// Returns the statement that records a migration.
fn applied(sql: &Sql, version: i32) -> String {
    sql.text(APPLIED).replace("{version}", &version.to_string())
}

/// Returns the version of the tables; 0 if there are none.
pub(crate) async fn version(client: &Client, sql: &Sql) -> Result<i32, tokio_postgres::Error> {
    let is_prepared = client.query_typed(&sql.text(IS_PREPARED), &[]).await?;
    if !is_prepared.first().is_some_and(|row| row.get(0)) {
        return Ok(0);
    }
    let version = client.query_typed(&sql.text(VERSION), &[]).await?;
    Ok(version.first().map_or(0, |row| row.get(0)))
}

/// Brings the tables to the newest version. A database of the newest version costs two requests and no lock.
///
/// # Errors
/// [`StoreError::Newer`] if a newer program has changed the tables. [`StoreError::Io`] if the SQL fails or tables are missing
/// with [`Migrations::Expect`]. The transaction is rolled back, so the tables are as before.
pub(crate) async fn migrate(client: &Client, sql: &Sql, migrations: Migrations, at: &str) -> Result<(), StoreError> {
    let failed = |error: tokio_postgres::Error| Failure::from(error).store("preparing the tables in PostgreSQL");
    let check = |found: i32| match u32::try_from(found).unwrap_or(0) {
        found if found > KNOWN.unsigned_abs() => {
            Err(StoreError::Newer { at: at.to_owned(), found, known: KNOWN.unsigned_abs() })
        }
        _ => Ok(found == KNOWN),
    };
    // Most starts find everything there, and need no lock and no right to create anything.
    let found = version(client, sql).await.map_err(failed)?;
    if check(found)? {
        return Ok(());
    }
    if migrations == Migrations::Expect {
        let text = format!(
            "version {KNOWN} of the tables is needed, found {found}; run the SQL of `PostgresStore::migrations`"
        );
        return Err(Failure::new(text).store("checking the tables in PostgreSQL"));
    }
    client.batch_execute("BEGIN").await.map_err(failed)?;
    let migrated = async {
        client.query_typed(&sql.text(LOCK), &[] as &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)]).await?;
        // Another node may have been faster.
        let found = version(client, sql).await?;
        if found < KNOWN {
            client.batch_execute(&script(sql, found)).await?;
        }
        Ok(found)
    };
    match migrated.await {
        Ok(found) => {
            client.batch_execute("COMMIT").await.map_err(failed)?;
            if found < KNOWN {
                tracing::info!(target: crate::TARGET, from = found, to = KNOWN, "changed the tables in PostgreSQL");
            }
            check(found.min(KNOWN).max(found)).map(|_| ())
        }
        Err(error) => {
            // The connection may be lost, which rolls back as well.
            let _ = client.batch_execute("ROLLBACK").await;
            Err(failed(error))
        }
    }
}
