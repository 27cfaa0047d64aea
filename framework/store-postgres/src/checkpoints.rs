//! Saved indexes of shards, which let an opening read only the newest turns.
//!
//! Called by the [writers](crate::writer), which report shards that are due, and by [open](crate::open). A thread of the store
//! saves one shard after another, on a connection of its own, in slices, so that neither commits nor reads wait. A checkpoint
//! is a cache, and true under any owner: it contains only what is committed, and committed turns never change.
//!
//! The ids of handled messages are saved beside it, those since the checkpoint before: they expire, while a checkpoint replaces
//! the one before it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_postgres::types::Type;
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::error_chain;
use whizbang_log::record::decode::Decoder;
use whizbang_log::record::encode;
use whizbang_log::shard_log::{Damage, ShardLog};

use crate::failure::Failure;
use crate::pool::{Parameters, Pool};
use crate::shard::{Shard, State};
use crate::sql::Sql;

/// The least number of turns and progress between two checkpoints of a shard, unless it is configured.
pub(crate) const TURNS: u64 = 20_000;

/// A store that is closed saves the shards with so many turns since the last checkpoint.
const TURNS_AT_CLOSING: u64 = 1000;

/// A checkpoint has at most so many bytes, about ten million streams. PostgreSQL's limit for a value is 1 GiB.
const LIMIT: usize = 256 * 1024 * 1024;

/// The most shards that wait to be saved. More are reported again with their next commits.
const WAITING: usize = 256;

/// Saving one shard takes at most so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The version of the encoding, in the first byte. A checkpoint with another one is skipped.
const VERSION: u8 = 1;
/// The operation that errors of a save name.
const SAVING: &str = "saving a checkpoint to PostgreSQL";
/// The operation that errors of a load name.
const LOADING: &str = "loading a checkpoint from PostgreSQL";

/// A task for the thread.
enum Task {
    /// Save the index of a shard. Its flag that a save is under way is set already.
    Save(Arc<Shard>),
    /// Report that everything before this is done.
    Done(oneshot::Sender<()>),
}

/// The thread that saves checkpoints.
pub(crate) struct Checkpoints {
    /// The bounded queue of the thread. `None` after the end.
    tasks: Mutex<Option<SyncSender<Task>>>,
    /// The thread, until it is joined.
    thread: Mutex<Option<JoinHandle<()>>>,
    /// The least number of records between two checkpoints.
    turns: u64,
}

impl std::fmt::Debug for Checkpoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoints").field("turns", &self.turns).finish_non_exhaustive()
    }
}

impl Checkpoints {
    /// Starts the thread. `turns` is the least number of turns between two checkpoints of a shard.
    ///
    /// # Errors
    /// The system has no memory or no thread left.
    pub(crate) fn start(pool: &Arc<Pool>, sql: &Arc<Sql>, turns: u64) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (tasks, received) = sync_channel(WAITING);
        let (pool, sql) = (Arc::clone(pool), Arc::clone(sql));
        let thread = std::thread::Builder::new().name("whizbang-pg-save".to_owned());
        let thread = thread.spawn(move || run(&runtime, &received, &pool, &sql, turns))?;
        Ok(Self { tasks: Mutex::new(Some(tasks)), thread: Mutex::new(Some(thread)), turns })
    }

    /// Saves a shard soon. One that is saved already, or for which there is no room, is due again later.
    pub(crate) fn save_soon(&self, shard: &Arc<Shard>) {
        if !shard.begin_checkpoint() {
            return;
        }
        let tasks = self.tasks.lock().clone();
        let sent = tasks.is_some_and(|tasks| tasks.try_send(Task::Save(Arc::clone(shard))).is_ok());
        if !sent {
            shard.end_checkpoint(shard.committed() + self.turns);
        }
    }

    /// Saves shards, and returns once that is done, or has failed.
    pub(crate) async fn save(&self, shards: Vec<Arc<Shard>>) {
        shards.iter().for_each(|shard| self.save_soon(shard));
        let (done, is_done) = oneshot::channel();
        let tasks = self.tasks.lock().clone();
        // A full queue: the shards are saved without waiting for them.
        if tasks.is_some_and(|tasks| tasks.try_send(Task::Done(done)).is_ok()) {
            let _ = is_done.await;
        }
    }

    /// Returns whether a shard is worth saving before the store closes.
    pub(crate) fn is_due_at_closing(&self, shard: &Shard) -> bool {
        shard.is_open() && shard.since_checkpoint() >= self.turns.min(TURNS_AT_CLOSING)
    }

    /// Ends the thread, after what it is doing.
    pub(crate) fn stop(&self) {
        *self.tasks.lock() = None;
        if let Some(thread) = self.thread.lock().take() {
            // A thread that has panicked has ended as well.
            let _ = thread.join();
        }
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Saves one shard after the other until the queue is closed. A failure is logged, and the shard is due again after as many
/// turns as after a success: a server in trouble is not asked more often.
fn run(runtime: &tokio::runtime::Runtime, tasks: &Receiver<Task>, pool: &Pool, sql: &Sql, turns: u64) {
    while let Ok(task) = tasks.recv() {
        let shard = match task {
            Task::Save(shard) => shard,
            Task::Done(done) => {
                // The caller may have given up.
                let _ = done.send(());
                continue;
            }
        };
        let saved = runtime.block_on(async { tokio::time::timeout(PATIENCE, save(pool, sql, &shard)).await });
        let error = match saved {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure.store(SAVING)),
            Err(_) => Some(Failure::new("the server does not answer").store(SAVING)),
        };
        if let Some(error) = error {
            shard.look(|state| state.log.abort_saving());
            tracing::warn!(target: crate::TARGET, shard = %shard.id, error = %error_chain(&error), "failed to write a checkpoint");
        }
        // Saving costs as much as there are streams, so that there are as many turns between two checkpoints.
        let streams = shard.look(|state| state.log.streams() as u64);
        shard.end_checkpoint(shard.committed() + turns.max(streams));
    }
}

/// Encodes the committed state of a shard in slices and replaces its checkpoint. The lock of the shard is released between
/// two slices, so an append waits for at most one.
///
/// # Errors
/// The checkpoint would be larger than [`LIMIT`], or the statement failed. The former checkpoint stays. Nothing is written if
/// another owner has the shard, which is not an error.
async fn save(pool: &Pool, sql: &Sql, shard: &Shard) -> Result<(), Failure> {
    let mut bytes = vec![VERSION];
    let last_turn = shard.last_turn();
    let (through, ids, expired) = shard.look(|state| {
        encode::number(&mut bytes, last_turn);
        let through = state.log.committed();
        encode_outbox(&mut bytes, state, through);
        let through = state.log.begin_saving(&mut bytes);
        (through, state.log.new_ids(through), state.forgotten)
    });
    // Appends continue between two slices.
    while shard.look(|state| state.log.save_next(&mut bytes)) {
        if bytes.len() > LIMIT {
            return Err(Failure::new(format!("it would have more than {LIMIT} bytes")));
        }
    }
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    let client = pool.separate().await?;
    let (epoch, through_row) = (shard.epoch as i64, through as i64);
    let (newest, expired) = (ids.newest.as_millis() as i64, expired.as_millis() as i64);
    let parameters: &Parameters<'_> = &[
        (&shard.row, Type::INT4),
        (&epoch, Type::INT8),
        (&through_row, Type::INT8),
        (&bytes, Type::BYTEA),
        (&newest, Type::INT8),
        (&expired, Type::INT8),
        (&ids.bytes, Type::BYTEA),
    ];
    client.query_typed(&sql.save_checkpoint, parameters).await?;
    shard.look(|state| state.log.saved_ids(through));
    shard.set_checkpoint(through);
    Ok(())
}

/// Appends the entries that wait for their destinations, of committed turns.
fn encode_outbox(into: &mut Vec<u8>, state: &State, through: u64) {
    encode::number(into, state.outbox().len() as u64);
    for (to, entries) in state.outbox() {
        encode::text(into, &to.domain);
        encode::number(into, u64::from(to.shard));
        // Locations rise.
        let count = entries.partition_point(|(_, location)| *location < through);
        encode::number(into, count as u64);
        for (sequence, location) in entries.iter().take(count) {
            encode::number(into, *sequence);
            encode::number(into, *location);
        }
    }
}

/// A checkpoint that was loaded.
pub(crate) struct Loaded {
    /// The state of the shard as of the checkpoint. The turns after it are applied by the caller.
    pub(crate) state: State,
    /// Every record before this location is included.
    pub(crate) through: u64,
    /// The location of the last turn; the log must contain it.
    pub(crate) last_turn: u64,
}

/// Loads the newest checkpoint of a shard. One that cannot be used is skipped.
pub(crate) async fn load(pool: &Pool, sql: &Sql, seed: u64, row: i32) -> Result<Option<Loaded>, StoreError> {
    let rows = pool.query(LOADING, &sql.load_checkpoint, &[(&row, Type::INT4)]).await?;
    let Some(found) = rows.first() else { return Ok(None) };
    let (through, bytes) = (found.get::<_, i64>(0).unsigned_abs(), found.get::<_, &[u8]>(1));
    let mut loaded = decode(bytes, seed, through);
    if let Ok(loaded) = &mut loaded {
        for ids in pool.query(LOADING, &sql.load_ids, &[(&row, Type::INT4)]).await? {
            if let Err(reason) = loaded.state.log.add_saved_ids(ids.get(0)) {
                return Ok(skipped(row, reason));
            }
        }
    }
    Ok(loaded.map(Some).unwrap_or_else(|reason| skipped(row, reason)))
}

/// Logs a checkpoint that cannot be used. The shard is rebuilt from all of its turns, which takes longer and loses nothing.
fn skipped(row: i32, reason: Damage) -> Option<Loaded> {
    tracing::warn!(target: crate::TARGET, row, reason, "checkpoint skipped: it cannot be read");
    None
}

/// Checks the checksum and the version and decodes the state. The order is that of `save`: last turn, outbox, index.
///
/// # Errors
/// The reason why the bytes are not a checkpoint of this version. The caller skips it.
fn decode(bytes: &[u8], seed: u64, through: u64) -> Result<Loaded, Damage> {
    let (content, sum) = bytes.split_last_chunk::<4>().ok_or("unexpected end")?;
    if crc32fast::hash(content) != u32::from_le_bytes(*sum) {
        return Err("its checksum is wrong");
    }
    let (version, rest) = content.split_first().ok_or("unexpected end")?;
    if *version != VERSION {
        return Err("a newer version has saved it");
    }
    let mut decoder = Decoder(rest);
    let number = |decoder: &mut Decoder<'_>| decoder.number().map_err(|malformed| malformed.0);
    let last_turn = number(&mut decoder)?;
    let mut outbox = Vec::new();
    for _ in 0..number(&mut decoder)? {
        let domain = decoder.text().map_err(|malformed| malformed.0)?;
        let domain = Name::new(domain).map_err(|_| "a name is invalid")?;
        let to = ShardId::new(domain, decoder.shard().map_err(|malformed| malformed.0)?);
        for _ in 0..number(&mut decoder)? {
            outbox.push((to.clone(), number(&mut decoder)?, number(&mut decoder)?));
        }
    }
    let mut state = State::new(ShardLog::restore(decoder.0, seed)?);
    for (to, sequence, location) in outbox {
        state.restore_outbox(to, sequence, location);
    }
    if through > 0 {
        state.note_record(through - 1);
    }
    Ok(Loaded { state, through, last_turn })
}
