//! The mark of a store that is a part of a move, as a row of the store, and the nodes that prevent a move.
//!
//! Read when a store is connected and when a shard is opened; written by the [ends of a move](crate::place).

use tokio_postgres::Client;
use tokio_postgres::types::Type;
use whizbang_core::store::StoreError;
use whizbang_log::transfer::MoveMark;

use crate::failure::Failure;
use crate::sql::Sql;

/// The name of the row.
pub(crate) const NAME: &str = "move";

/// Reads the mark. The lock of a move that is under way is held until the end of its transaction.
const MARK: &str = "SELECT (SELECT value FROM {schema}.meta WHERE name = 'move'), \
    pg_try_advisory_xact_lock_shared(hashtextextended('whizbang move {schema}', 0))";

/// Waits for other moves of the same store. Held until the end of the transaction.
pub(crate) const LOCK: &str = "SELECT pg_advisory_xact_lock(hashtextextended('whizbang move {schema}', 0))";

/// Reads the members whose lease has not expired, by the clock of the server. An exclusive node has no row.
const LIVE: &str = "SELECT label FROM {schema}.members WHERE expires_at > clock_timestamp() ORDER BY label";

/// The operation that errors of reading a mark name.
const READING: &str = "reading the state of a move from PostgreSQL";

/// Reads a mark from its row.
///
/// # Errors
/// [`StoreError::Corrupt`] if it has another form: a store with it is not used.
pub(crate) fn parse(stored: &[u8], sql: &Sql) -> Result<MoveMark, StoreError> {
    let mark = std::str::from_utf8(stored).ok().and_then(MoveMark::parse);
    let file = format!("{}, `{NAME}`", sql.table("meta")).into();
    mark.ok_or_else(|| StoreError::Corrupt { file, offset: 0, reason: "it is not a mark".to_owned() })
}

/// Returns the schema, for messages.
pub(crate) fn place(sql: &Sql) -> String {
    format!("schema `{}`", sql.schema())
}

/// Rejects a store with this mark, if there is one.
///
/// # Errors
/// [`StoreError::Moved`] or [`StoreError::Unfinished`].
pub(crate) fn refuse(stored: Option<&[u8]>, sql: &Sql) -> Result<(), StoreError> {
    stored.map_or(Ok(()), |stored| Err(parse(stored, sql)?.refusal(place(sql))))
}

/// Reads the mark over a connection, and whether a move holds the store at this moment.
pub(crate) async fn read(client: &Client, sql: &Sql) -> Result<(Option<MoveMark>, bool), StoreError> {
    let no_parameters = &[] as &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)];
    let rows = client.query_typed(&sql.text(MARK), no_parameters).await;
    let rows = rows.map_err(|error| Failure::from(error).store(READING))?;
    let Some(row) = rows.first() else { return Ok((None, false)) };
    let mark = row.get::<_, Option<&[u8]>>(0).map(|stored| parse(stored, sql)).transpose()?;
    Ok((mark, !row.get::<_, bool>(1)))
}

/// Rejects a store that is a part of a move.
///
/// # Errors
/// [`StoreError::Moved`], [`StoreError::Unfinished`], and [`StoreError::InUse`] while a move reads the store.
pub(crate) async fn check(client: &Client, sql: &Sql) -> Result<(), StoreError> {
    match read(client, sql).await? {
        (Some(mark), _) => Err(mark.refusal(place(sql))),
        (None, true) => Err(StoreError::InUse { at: place(sql) }),
        (None, false) => Ok(()),
    }
}

/// Rejects a store that has members.
///
/// # Errors
/// [`StoreError::InUse`] with the labels of the nodes. After a crash of a node its lease must expire first.
pub(crate) async fn refuse_live(client: &Client, sql: &Sql, at: &str) -> Result<(), StoreError> {
    let no_parameters = &[] as &[(&(dyn tokio_postgres::types::ToSql + Sync), Type)];
    let live = client.query_typed(&sql.text(LIVE), no_parameters).await;
    let live = live.map_err(|error| Failure::from(error).store(READING))?;
    let labels: Vec<&str> = live.iter().map(|row| row.get(0)).collect();
    if labels.is_empty() {
        return Ok(());
    }
    Err(StoreError::InUse { at: format!("{at} (nodes: {})", labels.join(", ")) })
}
