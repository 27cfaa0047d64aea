//! Views of projections, the catalog, and the store's identity: rows that are replaced as a whole.
//!
//! Called by the [store](crate::store).

use bytes::Bytes;
use tokio_postgres::types::{ToSql, Type};
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{Epoch, StoreError, View};

use crate::failure::Failure;
use crate::pool::{Parameters, Pool, bytes};
use crate::sql::Sql;

/// The operation that errors name when a view is read.
const READING: &str = "reading a view from PostgreSQL";
/// The operation that errors name when a view is claimed or saved.
pub(crate) const SAVING: &str = "saving a view to PostgreSQL";

/// Loads the view of a projection with its checkpoint. None before the first save.
pub(crate) async fn load(pool: &Pool, sql: &Sql, projection: &Name) -> Result<Option<View>, StoreError> {
    let rows = pool.query(READING, &sql.view, &[(&projection.as_str(), Type::TEXT)]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let damaged = |reason: String| StoreError::Corrupt {
        file: format!("{}, `{projection}`", sql.table("views")).into(),
        offset: 0,
        reason,
    };
    let checkpoint: Vec<(String, u16, u64)> =
        serde_json::from_str(row.get(1)).map_err(|error| damaged(format!("its checkpoint: {error}")))?;
    let checkpoint = checkpoint.into_iter().map(|(domain, shard, position)| {
        let domain = Name::new(&domain).map_err(|error| damaged(format!("its checkpoint: {error}")))?;
        Ok::<_, StoreError>((ShardId::new(domain, shard), position))
    });
    let schema = u32::try_from(row.get::<_, i64>(0)).unwrap_or(u32::MAX);
    Ok(Some(View { schema, checkpoint: checkpoint.collect::<Result<_, _>>()?, bytes: bytes(row, 2) }))
}

/// Takes the view from any earlier owner, whose saves are rejected from now on. Waits for a transaction of that owner, while
/// reads continue. Sent on a connection of its own, because it may wait for a transaction of the earlier owner.
pub(crate) async fn claim(pool: &Pool, sql: &Sql, projection: &Name) -> Result<Epoch, StoreError> {
    let rows = pool.query_alone(SAVING, &sql.claim_view, &[(&projection.as_str(), Type::TEXT)]).await?;
    Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0).unsigned_abs()))
}

/// Saves a view with its checkpoint in one statement.
///
/// # Errors
/// [`StoreError::ViewTaken`] if a later owner has claimed the view. The stored view is unchanged.
pub(crate) async fn save(
    pool: &Pool,
    sql: &Sql,
    projection: &Name,
    epoch: Epoch,
    view: &View,
) -> Result<(), StoreError> {
    let row = ViewRow::new(projection, epoch, view)?;
    let saved = pool.query(SAVING, &sql.save_view, &row.parameters()).await?;
    if saved.is_empty() { Err(taken(pool, sql, projection, epoch).await?) } else { Ok(()) }
}

/// A view as the values of its row.
pub(crate) struct ViewRow<'a> {
    /// The name of the projection, which is the key of the row.
    projection: &'a str,
    /// The epoch of the owner. A row with another one is not changed.
    epoch: i64,
    /// The schema of the view. A projection with another one rebuilds it.
    schema: i64,
    /// In JSON.
    checkpoint: String,
    /// The encoded view.
    bytes: &'a [u8],
}

impl<'a> ViewRow<'a> {
    /// Converts a view. The checkpoint becomes JSON, so that it can be read with plain SQL.
    ///
    /// # Errors
    /// The checkpoint cannot be encoded, which does not happen for valid names.
    pub(crate) fn new(projection: &'a Name, epoch: Epoch, view: &'a View) -> Result<Self, StoreError> {
        let checkpoint: Vec<(&str, u16, u64)> =
            view.checkpoint.iter().map(|(shard, position)| (shard.domain.as_str(), shard.shard, *position)).collect();
        let checkpoint =
            serde_json::to_string(&checkpoint).map_err(|error| Failure::new(error.to_string()).store(SAVING))?;
        let (epoch, schema) = (epoch as i64, i64::from(view.schema));
        Ok(Self { projection: projection.as_str(), epoch, schema, checkpoint, bytes: &view.bytes })
    }

    /// The parameters of the statement that saves a view.
    pub(crate) fn parameters(&self) -> [(&(dyn ToSql + Sync), Type); 5] {
        [
            (&self.projection, Type::TEXT),
            (&self.epoch, Type::INT8),
            (&self.schema, Type::INT8),
            (&self.checkpoint, Type::TEXT),
            (&self.bytes, Type::BYTEA),
        ]
    }
}

/// The error of a view that has another epoch.
pub(crate) async fn taken(pool: &Pool, sql: &Sql, projection: &Name, mine: Epoch) -> Result<StoreError, StoreError> {
    let current = pool.query(SAVING, &sql.view_epoch, &[(&projection.as_str(), Type::TEXT)]).await?;
    let current = current.first().map_or(0, |row| row.get::<_, i64>(0).unsigned_abs());
    Ok(StoreError::ViewTaken { projection: projection.to_string(), mine, current })
}

/// A value that the store keeps about itself.
pub(crate) async fn meta(pool: &Pool, sql: &Sql, name: &str) -> Result<Option<Bytes>, StoreError> {
    let rows = pool.query("reading from PostgreSQL", &sql.meta, &[(&name, Type::TEXT)]).await?;
    Ok(rows.first().map(|row| bytes(row, 0)))
}

/// Replaces a value if it still is `stored`, and adds it if `stored` is `None` and there is none. Returns false otherwise.
pub(crate) async fn replace_meta(
    pool: &Pool,
    sql: &Sql,
    name: &str,
    stored: Option<&[u8]>,
    value: &[u8],
) -> Result<bool, StoreError> {
    let values: &Parameters<'_> = &[(&name, Type::TEXT), (&value, Type::BYTEA), (&stored, Type::BYTEA)];
    let rows = pool.query("writing to PostgreSQL", &sql.replace_meta, values).await?;
    Ok(!rows.is_empty())
}
