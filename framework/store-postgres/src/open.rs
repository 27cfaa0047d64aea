//! Opens a shard: a new epoch, then the index from the rows.
//!
//! Called by the [store](crate::store). The order matters: what an older owner in this process has appended is written first,
//! then the epoch rises, and only then are the rows read. A commit of an older owner elsewhere either comes before the epoch,
//! and is read, or is rejected. The cost grows with the number of streams, and of the turns since the last checkpoint.

use std::collections::HashMap;

use tokio_postgres::Row;
use tokio_postgres::types::Type;
use whizbang_core::message::ShardId;
use whizbang_core::store::{Epoch, StoreError};
use whizbang_log::shard_log::ShardLog;

use crate::checkpoints::{self, Loaded};
use crate::marks;
use crate::pool::Pool;
use crate::shard::{Shard, State};
use crate::sql::Sql;
use crate::views;

/// The operation that errors of an opening name.
const OPENING: &str = "opening a shard in PostgreSQL";

/// Creates the shard's row. Domains keep their number of shards. Safe to repeat, also at the same time by several nodes.
///
/// # Errors
/// [`StoreError::Shards`] if the domain has another number of shards, or none with this number. Nothing was changed.
pub(crate) async fn create(pool: &Pool, sql: &Sql, id: &ShardId, shards: u16) -> Result<(), StoreError> {
    let (domain, number) = (id.domain.as_str(), i32::from(id.shard));
    let wanted = i32::from(shards);
    let rows = pool.query(OPENING, &sql.domain, &[(&domain, Type::TEXT), (&wanted, Type::INT4)]).await?;
    let found = match rows.first() {
        Some(row) => row.get::<_, i32>(0),
        // Another node has created the domain at this moment, so its row could not be seen yet.
        None => {
            let again = pool.query(OPENING, &sql.domain, &[(&domain, Type::TEXT), (&wanted, Type::INT4)]).await?;
            again.first().map_or(wanted, |row| row.get(0))
        }
    };
    if found != wanted || id.shard >= shards {
        let found = u16::try_from(found).unwrap_or(u16::MAX);
        return Err(StoreError::Shards { domain: domain.to_owned(), found, wanted: shards });
    }
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&domain, Type::TEXT), (&number, Type::INT4)];
    pool.query(OPENING, &sql.shard, &parameters).await.map(|_| ())
}

/// Takes the shard from any owner. Returns its row and its new epoch. Its commits are rejected from then on, because each
/// statement compares the epoch. `None` never occurs after [`create`].
///
/// # Errors
/// [`StoreError::Moved`] or [`StoreError::Unfinished`] if the store is a part of a move.
pub(crate) async fn take(pool: &Pool, sql: &Sql, id: &ShardId) -> Result<Option<(i32, Epoch)>, StoreError> {
    let (domain, number) = (id.domain.as_str(), i32::from(id.shard));
    let taken = taken(&pool.query(OPENING, &sql.open, &[(&domain, Type::TEXT), (&number, Type::INT4)]).await?);
    if taken.is_none() {
        marks::refuse(views::meta(pool, sql, marks::NAME).await?.as_deref(), sql)?;
    }
    Ok(taken)
}

/// The row and the epoch of a shard that was taken.
pub(crate) fn taken(rows: &[Row]) -> Option<(i32, Epoch)> {
    rows.first().map(|row| (row.get(0), row.get::<_, i64>(1).unsigned_abs()))
}

/// The row of a shard, if it was ever opened. Reading does not take the shard: its owner continues.
pub(crate) async fn find(pool: &Pool, sql: &Sql, id: &ShardId) -> Result<Option<i32>, StoreError> {
    let (domain, number) = (id.domain.as_str(), i32::from(id.shard));
    let rows = pool.query(OPENING, &sql.find, &[(&domain, Type::TEXT), (&number, Type::INT4)]).await?;
    Ok(rows.first().map(|row| row.get(0)))
}

/// Reads a shard's checkpoint and the rows after it. The rows are streamed, so the memory is that of the index and of one
/// row.
///
/// # Errors
/// [`StoreError::Corrupt`] if a record cannot be decoded, or if the log ends before its checkpoint: the table was restored
/// from an older copy than the checkpoint.
pub(crate) async fn rebuild(
    pool: &Pool,
    sql: &Sql,
    seed: u64,
    (id, row, epoch): (&ShardId, i32, Epoch),
) -> Result<Shard, StoreError> {
    let damaged = |location: u64, reason: &str| StoreError::Corrupt {
        file: format!("{}, shard {id}", sql.table("turns")).into(),
        offset: location,
        reason: reason.to_owned(),
    };
    let loaded = checkpoints::load(pool, sql, seed, row).await?;
    let (mut state, from, mut last_turn) = match loaded {
        Some(Loaded { state, through, last_turn }) => (state, through, last_turn),
        None => (State::new(ShardLog::new(seed)), 0, 0),
    };
    if last_turn > 0 {
        // A checkpoint contains committed turns only, so that the log must contain them as well.
        let last = last_turn as i64;
        let found = pool.query(OPENING, &sql.has_turn, &[(&row, Type::INT4), (&last, Type::INT8)]).await?;
        if found.is_empty() {
            return Err(damaged(last_turn, "the log ends before its checkpoint"));
        }
    }
    state.log.note_new_ids();
    // First how far the destinations have come: then only the entries that still wait are remembered.
    for row in pool.query(OPENING, &sql.progress, &[(&row, Type::INT4)]).await? {
        let location = row.get::<_, i64>(0).unsigned_abs();
        if location >= from {
            state.log.apply(location, row.get(1)).map_err(|reason| damaged(location, reason))?;
            state.note_record(location);
        }
    }
    let through: HashMap<ShardId, u64> =
        state.log.destinations().into_iter().map(|(to, through, _)| (to, through)).collect();
    through.iter().for_each(|(to, through)| state.confirm_outbox(to, *through));
    let before = from.saturating_sub(1) as i64;
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&row, Type::INT4), (&before, Type::INT8)];
    pool.each(OPENING, &sql.log, &parameters, |row| {
        let (location, record) = (row.get::<_, i64>(0).unsigned_abs(), row.get::<_, &[u8]>(1));
        let applied = state.log.apply(location, record).and_then(|()| {
            state.add_outbox(location, record, |to, sequence| through.get(to).is_none_or(|through| sequence > *through))
        });
        applied.map_err(|reason| damaged(location, reason))?;
        state.note_record(location);
        last_turn = location;
        Ok(())
    })
    .await?;
    let shard = Shard::new(id.clone(), row, epoch, state);
    shard.set_last_turn(last_turn);
    shard.set_checkpoint(from);
    Ok(shard)
}
