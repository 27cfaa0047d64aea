//! The state that the handles of a connected store share, and the takeover of a shard.
//!
//! Called by the [store](crate::store) and by its [leases](crate::leases), from any thread. A takeover runs alone for its shard:
//! it waits for what an older owner in this process has appended before it raises the epoch.

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;
use whizbang_core::message::{ShardId, StoreIdentity};
use whizbang_core::store::{CatalogEntry, CommitListener, Epoch, MemberId, ShardHandle, ShardReader, StoreError};
use whizbang_core::telemetry::error_chain;

use crate::appender::Appender;
use crate::checkpoints::Checkpoints;
use crate::connect::Connector;
use crate::failure::Failure;
use crate::lease_table::LeaseTable;
use crate::pool::Pool;
use crate::reader::Reader;
use crate::shard::Shard;
use crate::sql::Sql;
use crate::statements::Session;
use crate::tickets::Tickets;
use crate::writer::Writer;
use crate::{open, views};

/// The secrets of a store, so that callers cannot make digests or hashes collide.
#[derive(Clone, Copy)]
pub(crate) struct Secrets {
    /// The key of the digests that detect a repeated id with another payload.
    pub(crate) digest_key: u128,
    /// The seed of the hashes of streams and ids in memory.
    pub(crate) seed: u64,
}

/// The parts of a store, which its leases use as well.
pub(crate) struct Inner {
    /// Opens the connections of the writers, and names the servers for people.
    pub(crate) connector: Arc<Connector>,
    /// The statements with the name of the schema.
    pub(crate) sql: Arc<Sql>,
    /// The connections for reading and for everything that is not a turn.
    pub(crate) pool: Arc<Pool>,
    /// Runs the statements of users.
    pub(crate) session: Session,
    /// The connections that commit, at least one.
    pub(crate) writers: Vec<Arc<Writer>>,
    /// The threads of the writers, which end with the store.
    pub(crate) threads: Mutex<Vec<JoinHandle<()>>>,
    /// The newest opening of each shard in this process.
    pub(crate) shards: Mutex<HashMap<ShardId, Arc<Shard>>>,
    /// One lock for each shard that was ever opened: openings of one shard come one after the other.
    pub(crate) openings: Mutex<HashMap<ShardId, Arc<tokio::sync::Mutex<()>>>>,
    /// The listeners of the threads that have opened shards.
    pub(crate) listeners: Mutex<Listeners>,
    /// The leases; `None` if one node uses the store alone.
    pub(crate) leases: Option<LeaseTable>,
    /// The thread that saves the indexes of shards.
    pub(crate) checkpoints: Arc<Checkpoints>,
    /// The least number of turns between two checkpoints of a shard.
    pub(crate) checkpoint_turns: u64,
    /// Read from the database at the start; the same for all nodes.
    pub(crate) secrets: Secrets,
    /// The identity as of the first start, until the database has a replaced one.
    pub(crate) identity: StoreIdentity,
    /// The failures that a commit survives, as a line for the log.
    pub(crate) durability: &'static str,
    /// Damage found since the start, at most 16 errors.
    pub(crate) damages: Mutex<Vec<StoreError>>,
}

/// The listeners that may open shards. Each belongs to one writer: otherwise its tickets would be committed out of order.
#[derive(Default)]
pub(crate) struct Listeners {
    /// The tickets of each listener, with its writer. Those without a listener are removed when a new one comes.
    known: Vec<(Arc<Tickets>, Arc<Writer>)>,
    /// The writer of the next new listener.
    next_writer: usize,
}

impl Inner {
    /// Returns the tickets and the writer of a listener. A new listener gets the next writer in turn.
    fn tickets(&self, listener: &Arc<dyn CommitListener>) -> Result<(Arc<Tickets>, Arc<Writer>), StoreError> {
        let mut listeners = self.listeners.lock();
        if let Some(known) = listeners.known.iter().find(|(known, _)| known.is_of(listener)) {
            return Ok(known.clone());
        }
        listeners.known.retain(|(known, _)| known.is_in_use());
        let number = listeners.next_writer % self.writers.len();
        listeners.next_writer += 1;
        let writer = self.writers.get(number).ok_or(StoreError::Closed)?;
        let new = (Arc::new(Tickets::new(Arc::clone(listener))), Arc::clone(writer));
        listeners.known.push(new.clone());
        Ok(new)
    }

    /// Opens a shard; for a member only if it is free. Returns `None` if another member has the shard. An owner in this
    /// process then continues as before.
    ///
    /// # Errors
    /// Those of the statements, and damage found while the index is rebuilt. If the epoch has risen before the error, the
    /// former owner is fenced and the shard stays without an owner until the next attempt.
    ///
    /// Cancel safe: a dropped call may leave the epoch raised, which only fences.
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
        let (tickets, writer) = self.tickets(&listener)?;
        writer.add(&shard, &tickets);
        self.shards.lock().insert(id.clone(), Arc::clone(&shard));
        let reader = Reader::new(Arc::clone(&self.pool), Arc::clone(&self.sql), Arc::clone(&shard));
        Ok(Some(ShardHandle { writer: Box::new(Appender::new(shard, tickets, writer)), reader: Arc::new(reader) }))
    }

    /// The leases, unless one node uses the store alone.
    pub(crate) fn lease_table(&self) -> Result<&LeaseTable, StoreError> {
        self.leases.as_ref().ok_or(StoreError::Closed)
    }

    /// The owner under this epoch is about to release the shard. A later opening of the shard is left alone. Appends of the
    /// closed one are rejected from now on.
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
            tracing::error!(target: crate::TARGET, error = %error_chain(error), "log damaged: restore the database from a backup");
            let mut damages = self.damages.lock();
            if damages.len() < 16 {
                damages.push(error.clone());
            }
        }
    }

    /// Returns a reader of a shard. A shard that is open here answers from its index; any other is rebuilt from the rows,
    /// which costs as much as an opening. `None` if the shard was never opened.
    pub(crate) async fn read_now(&self, id: &ShardId) -> Result<Option<Arc<dyn ShardReader>>, StoreError> {
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
    pub(crate) async fn identity_now(&self) -> Result<(StoreIdentity, Option<Bytes>), StoreError> {
        let stored = views::meta(&self.pool, &self.sql, "identity").await?;
        let identity = stored.as_ref().map(|stored| serde_json::from_slice(stored)).transpose();
        let identity = identity.map_err(|error| self.damaged_meta("identity", &error))?;
        Ok((identity.unwrap_or_else(|| self.identity.clone()), stored))
    }

    /// The catalog, and the row that it is in.
    pub(crate) async fn catalog_now(&self) -> Result<(Option<Vec<CatalogEntry>>, Option<Bytes>), StoreError> {
        let stored = views::meta(&self.pool, &self.sql, "catalog").await?;
        let catalog = stored.as_ref().map(|stored| serde_json::from_slice(stored)).transpose();
        Ok((catalog.map_err(|error| self.damaged_meta("catalog", &error))?, stored))
    }

    /// Returns the error for a value of the store that is not valid JSON.
    fn damaged_meta(&self, name: &str, error: &serde_json::Error) -> StoreError {
        let file = format!("{}, `{name}`", self.sql.table("meta")).into();
        StoreError::Corrupt { file, offset: 0, reason: error.to_string() }
    }

    /// Replaces a value if its row still contains `stored`, or is still missing. Returns false if another node has replaced
    /// it. Nothing was changed then.
    pub(crate) async fn replace_json(
        &self,
        name: &str,
        stored: Option<&[u8]>,
        value: serde_json::Result<Vec<u8>>,
    ) -> Result<bool, StoreError> {
        let value = value.map_err(|error| Failure::new(error.to_string()).store("writing to PostgreSQL"))?;
        views::replace_meta(&self.pool, &self.sql, name, stored, &value).await
    }

    /// Ends the threads. Blocks for a moment. The order matters: the writers first, because they report shards to the thread
    /// of the checkpoints, and both use the pool.
    pub(crate) fn end(&self) {
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
