//! The rows of shards as they are in the database.
//!
//! Called by the [writer](super) after a reconnect, when it is not known what was committed.

use std::collections::HashMap;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Row};
use whizbang_core::store::Epoch;
use whizbang_log::shard_log;

use crate::queue::Part;
use crate::shard::Shard;
use crate::sql::Sql;

/// The epoch and the last turn's location of some shards, and the epochs that wrote the last turns of a group.
#[derive(Default)]
pub(super) struct States {
    /// Epoch and last location by the row of the shard.
    shards: HashMap<i32, (Epoch, u64)>,
    /// The epoch that wrote the turn at a location of a shard.
    written: HashMap<(i32, u64), Epoch>,
}

impl States {
    /// Returns the epoch of a shard in the database.
    pub(super) fn epoch(&self, shard: &Shard) -> Option<Epoch> {
        self.shards.get(&shard.row).map(|(epoch, _)| *epoch)
    }

    /// Returns whether the turns of a part of a group are there. The epoch distinguishes them from those of another owner, which may
    /// have used the same locations.
    pub(super) fn has(&self, part: &Part) -> bool {
        let written = part.last_turn.and_then(|turn| self.written.get(&(part.shard.row, turn)));
        written.is_some_and(|epoch| *epoch == part.shard.epoch)
    }

    /// Returns whether the database is an older copy of the one this process has seen.
    pub(super) fn is_older(&self, shard: &Shard) -> bool {
        let (epoch, location) = self.shards.get(&shard.row).copied().unwrap_or_default();
        epoch < shard.epoch || location < shard.last_turn()
    }
}

/// Reads a column that counts something.
fn number(row: &Row, column: usize) -> u64 {
    row.get::<_, i64>(column).unsigned_abs()
}

/// Reads the state of shards, once no other statement holds their rows, and the records at some locations.
///
/// # Errors
/// The error of any statement. The transaction is rolled back with the connection, so the caller repeats all of it.
pub(super) async fn read(
    client: &Client,
    sql: &Sql,
    ids: &[i32],
    written: &[(i32, i64)],
) -> Result<States, tokio_postgres::Error> {
    let (shards, locations): (Vec<i32>, Vec<i64>) = written.iter().copied().unzip();
    client.batch_execute("BEGIN").await?;
    // One statement after the other: the later ones see what was committed while the first one waited.
    client.query_typed(&sql.lock, &[(&ids, Type::INT4_ARRAY)]).await?;
    let states = client.query_typed(&sql.state, &[(&ids, Type::INT4_ARRAY)]).await?;
    let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
        [(&shards, Type::INT4_ARRAY), (&locations, Type::INT8_ARRAY)];
    let records = client.query_typed(&sql.written, &parameters).await?;
    client.batch_execute("COMMIT").await?;
    let record = |row: &Row| {
        let location = number(row, 1);
        // A record that cannot be read was not written by this process.
        let epoch = shard_log::epoch(location, row.get(2)).unwrap_or(0);
        ((row.get(0), location), epoch)
    };
    Ok(States {
        shards: states.iter().map(|row| (row.get(0), (number(row, 1), number(row, 2)))).collect(),
        written: records.iter().map(record).collect(),
    })
}
