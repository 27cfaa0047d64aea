//! Snapshots on their way to the table.
//!
//! Called by the [writer](crate::writer) when nothing else is to be written. A cache: a snapshot may be dropped at any time.
//!
//! A snapshot is written only when its turn is committed. Otherwise a lost turn could be followed by another one with the
//! same number. The snapshot would then be taken for one of that turn.

use std::sync::Arc;

use tokio_postgres::Client;
use tokio_postgres::types::{ToSql, Type};
use whizbang_core::message::Name;

use crate::columns::{Column, key_text};
use crate::shard::Shard;
use crate::sql::Sql;

/// The most snapshots of one statement.
const BATCH_ROWS: usize = 64;
/// The most bytes of one statement, plus one snapshot.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// A stream with a snapshot that waits in its shard.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    /// The shard that holds the snapshot.
    pub(crate) shard: Arc<Shard>,
    /// The actor type of the stream.
    pub(crate) actor: Name,
    /// The key of the stream.
    pub(crate) key: String,
}

/// Snapshots that are written together.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The epochs of the shards: of a shard with another owner nothing is written.
    owners: [Column; 2],
    /// The columns of the table `snapshots`, in the order of the statement.
    columns: [Column; 7],
    /// The streams of the batch, each with the turn of its snapshot.
    streams: Vec<(Waiting, u64)>,
}

impl Batch {
    /// Takes those whose turns are committed. Others stay, except those of shards that have another owner. Bounded by
    /// [`BATCH_ROWS`] and [`BATCH_BYTES`], so that a commit waits for one short statement at most. `None` if no snapshot may
    /// be written yet.
    pub(crate) fn take(waiting: &mut Vec<Waiting>) -> Option<Self> {
        let mut batch = Self {
            owners: [Column::int4(), Column::int8()],
            columns: [
                Column::int4(),
                Column::text(),
                Column::text(),
                Column::int8(),
                Column::int8(),
                Column::int8(),
                Column::bytea(),
            ],
            streams: Vec::new(),
        };
        let mut bytes = 0;
        let mut shards: Vec<i32> = Vec::new();
        let mut at = 0;
        while let Some(next) = waiting.get(at) {
            if batch.streams.len() >= BATCH_ROWS || bytes >= BATCH_BYTES {
                break;
            }
            let Waiting { shard, actor, key } = next;
            let (due, is_there) = shard.look(|state| (state.due_snapshot(actor, key), state.has_fresh(actor, key)));
            let Some(snapshot) = due else {
                if is_there {
                    at += 1;
                } else {
                    drop(waiting.swap_remove(at));
                }
                continue;
            };
            if !shards.contains(&shard.row) {
                shards.push(shard.row);
                let [rows, epochs] = &mut batch.owners;
                rows.push_i32(shard.row);
                epochs.push_u64(shard.epoch);
            }
            let [rows, actors, keys, turns, versions, schemas, states] = &mut batch.columns;
            rows.push_i32(shard.row);
            actors.push_text(actor);
            keys.push_text(&key_text(key));
            turns.push_u64(snapshot.turn);
            versions.push_u64(snapshot.version);
            schemas.push_u64(u64::from(snapshot.schema));
            states.push_bytes(&snapshot.bytes);
            bytes += snapshot.bytes.len();
            batch.streams.push((waiting.swap_remove(at), snapshot.turn));
        }
        (!batch.streams.is_empty()).then_some(batch)
    }

    /// Sends the batch with one statement. A newer snapshot in the table stays.
    ///
    /// # Errors
    /// The snapshots of the batch are lost, which costs time at the next activation and no data.
    pub(crate) async fn save(&self, client: &Client, sql: &Sql) -> Result<(), tokio_postgres::Error> {
        let columns = self.owners.iter().chain(&self.columns);
        let parameters: Vec<(&(dyn ToSql + Sync), Type)> =
            columns.map(|column| (column as &(dyn ToSql + Sync), column.array_type())).collect();
        client.query_typed(&sql.snapshots, &parameters).await.map(|_| ())
    }

    /// They are written, or given up. Returns the streams that have a newer one by now.
    pub(crate) fn done(&self) -> Vec<Waiting> {
        let is_newer = |(Waiting { shard, actor, key }, turn): &&(Waiting, u64)| {
            shard.look(|state| {
                state.forget_fresh(actor, key, *turn);
                state.has_fresh(actor, key)
            })
        };
        self.streams.iter().filter(is_newer).map(|(waiting, _)| waiting.clone()).collect()
    }
}
