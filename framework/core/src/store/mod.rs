//! Durable storage: the log of turns of every shard, and what is derived from it.
//!
//! Called by actors (append, load), the relay (events, outbox) and projections (views). Depends only on `message` and
//! `clock`. The shard logs are authoritative. Positions in a shard are 1, 2, 3 … without gaps, and a turn is in the log
//! either completely or not at all. This module never decodes a payload.

mod catalog;
mod error;
mod leases;
mod pages;
mod statement;
mod turn;

pub use catalog::CatalogEntry;
pub use error::StoreError;
pub use leases::{Leases, Member, MemberId, ShardLease, ShardLeases};
#[doc(hidden)]
pub use pages::OnePage;
pub use pages::StreamPages;
pub use statement::{MAX_STATEMENT_BYTES, SqlValue, Statement};
pub use turn::{
    DeadLetter, DeadLetterReason, EventWrite, MAX_TURN_BYTES, Mark, Note, OutboxEntry, OutboxWrite, SentMessage,
    Snapshot, Source, SourceKind, StoredEvent, StoredTurn, StreamState, Timer, TimerCursor, TimerPage, TimerWrite,
    Turn, View, Watermark,
};

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::clock::Timestamp;
use crate::message::{MessageId, Name, ShardId, StoreIdentity};

/// A store: opens shards and keeps views, the catalog and the store's identity.
///
/// Implementations pass the conformance suite in `whizbang::testing::store`. The futures may be dropped at any time; a
/// write that has begun may then still complete.
///
/// ```
/// use whizbang::message::Name;
/// use whizbang::store::{Store, memory::MemoryStore};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new();
/// let balances = Name::from_static("balances")?;
/// assert!(store.view(&balances).await?.is_none());
/// let first = store.claim_view(&balances).await?;
/// assert!(store.claim_view(&balances).await? > first);
/// # Ok(())
/// # }
/// ```
pub trait Store: Send + Sync + 'static {
    /// Takes ownership of a shard and recovers it. Raises the shard's epoch, so that an earlier owner can no longer
    /// commit.
    ///
    /// From then on the log changes only by appends of the new owner. A pending append of an earlier owner is in the log, or is
    /// refused with [`StoreError::Fenced`].
    ///
    /// `shards` is the domain's number of shards; the first opening fixes it. `listener` is notified of commits. All
    /// shards opened with the same listener share one monotonically increasing ticket sequence.
    ///
    /// # Errors
    /// [`StoreError::Shards`] if the domain was created with another number of shards, and the errors of reading and
    /// writing.
    fn open<'a>(
        &'a self,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>>;

    /// Opens a shard for reading without taking ownership; nothing is written. Returns `None` if the shard was never
    /// opened. For reports and checks.
    ///
    /// # Errors
    /// The errors of reading.
    fn read<'a>(&'a self, shard: &'a ShardId) -> BoxFuture<'a, Result<Option<Arc<dyn ShardReader>>, StoreError>>;

    /// Returns the stored view of a projection, or `None` if none was saved.
    fn view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Option<View>, StoreError>>;

    /// Takes ownership of a projection's view. Raises the view's epoch, so that an earlier owner can no longer save it.
    /// The view that is stored when this returns stays until the new owner saves.
    ///
    /// # Errors
    /// The errors of reading and writing.
    fn claim_view<'a>(&'a self, projection: &'a Name) -> BoxFuture<'a, Result<Epoch, StoreError>>;

    /// Replaces the view of a projection together with its checkpoint, atomically. Durable when it returns.
    ///
    /// # Errors
    /// [`StoreError::ViewTaken`] if the view has a later epoch than `epoch`, and the errors of writing. On an error
    /// nothing was replaced.
    fn save_view<'a>(&'a self, projection: &'a Name, epoch: Epoch, view: View)
    -> BoxFuture<'a, Result<(), StoreError>>;

    /// Returns whether the store runs [statements](Statement) in its transactions. The default is false; a node that hosts a
    /// projection with statements does not start on such a store.
    fn runs_statements(&self) -> bool {
        false
    }

    /// Replaces a view as [`save_view`](Self::save_view) does, and runs `statements` in order, in the same transaction: either
    /// all of it is committed or nothing. The epoch is compared before the first statement, and the view stays locked until
    /// the commit. The default runs no statement: it fails unless there are none.
    ///
    /// # Errors
    /// [`StoreError::NoStatements`], [`StoreError::Statement`], and those of [`save_view`](Self::save_view). After any other
    /// error than [`Statement`](StoreError::Statement) and [`ViewTaken`](StoreError::ViewTaken) it is unknown whether the
    /// transaction was committed: [claim](Self::claim_view) the view again, which ends a transaction that is under way, and
    /// read it.
    fn save_view_with<'a>(
        &'a self,
        projection: &'a Name,
        epoch: Epoch,
        view: View,
        statements: &'a [Statement],
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        match statements {
            [] => self.save_view(projection, epoch, view),
            _ => Box::pin(std::future::ready(Err(StoreError::NoStatements))),
        }
    }

    /// Returns the catalog of the types whose bytes are in the store, or `None` if none was ever saved.
    ///
    /// # Errors
    /// The errors of reading. A damaged catalog is [`StoreError::Corrupt`].
    fn catalog(&self) -> BoxFuture<'_, Result<Option<Vec<CatalogEntry>>, StoreError>>;

    /// Replaces the whole catalog if it is still `expected`, atomically. Durable when it returns true. Returns false, and
    /// changes nothing, if it is another one: nodes that start at the same time do not overwrite the entries of each other.
    ///
    /// # Errors
    /// The errors of reading and writing. On an error nothing was replaced.
    fn replace_catalog(
        &self,
        expected: Option<Vec<CatalogEntry>>,
        entries: Vec<CatalogEntry>,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Returns the store's identity, which is created with the store; a store of an older version gets one when it is
    /// opened. The default is `None`: the store has no identity, and nothing prevents a second node with another store
    /// from serving the same domains.
    ///
    /// # Errors
    /// The errors of reading.
    fn identity(&self) -> BoxFuture<'_, Result<Option<StoreIdentity>, StoreError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Replaces what [`identity`](Self::identity) returns if it is still `expected`, atomically. Durable when it returns
    /// true. Returns false, and changes nothing, if it is another one: a node that starts at the same time has replaced it.
    /// Called twice at each start of a node with a bridge. The default returns true.
    ///
    /// # Errors
    /// The errors of reading and writing. On an error nothing was replaced.
    fn replace_identity(
        &self,
        expected: StoreIdentity,
        identity: StoreIdentity,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        drop((expected, identity));
        Box::pin(std::future::ready(Ok(true)))
    }

    /// Returns the leases by which several nodes of one service share this store, or `None` if only one node may use it.
    /// With leases a node opens its shards through [`ShardLeases::open`], never through [`open`](Self::open). The
    /// default is `None`.
    fn leases(&self) -> Option<Arc<dyn ShardLeases>> {
        None
    }

    /// Allows the store to drop the index entries by which [`ShardReader::find_turn`] finds turns older than `before`.
    /// Called periodically with an increasing time. Older turns may or may not be found afterwards. Does nothing by
    /// default.
    fn forget_ids(&self, before: Timestamp) {
        let _ = before;
    }

    /// Returns the secret key for message digests, so that a caller cannot construct two messages with the same digest.
    /// It never changes during the life of the store. The default 0 protects against mistakes but not against an
    /// attacker.
    fn digest_key(&self) -> u128 {
        0
    }

    /// Returns the current problems of the store for health: the reason for rejected appends, damage found while
    /// reading, and panics of background work. A problem disappears once its cause is gone; damage and panics stay until the
    /// store is reopened. Empty by default.
    fn issues(&self) -> Vec<StoreError> {
        Vec::new()
    }

    /// Describes which failures a commit survives. The text is logged at start.
    fn durability(&self) -> &'static str;

    /// Makes all appends durable and releases files and locks. Later appends fail with [`StoreError::Closed`].
    fn close(&self) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// An opened shard: one writer and any number of readers.
pub struct ShardHandle {
    /// The only writer. It stays on the thread of the shard's actors.
    pub writer: Box<dyn ShardWriter>,
    /// A reader, which sees committed data only.
    pub reader: Arc<dyn ShardReader>,
}

impl std::fmt::Debug for ShardHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardHandle")
            .field("epoch", &self.writer.epoch())
            .field("position", &self.reader.position())
            .finish_non_exhaustive()
    }
}

/// The number of an append, increasing by one. [`CommitListener::committed`] reports the ticket up to which appends are
/// durable.
///
/// The tickets of a listener rise for as long as the listener exists. A store must not start again from 1 when the listener
/// opens a shard after all its shards were closed: the listener remembers the highest ticket that was reported to it.
pub type Ticket = u64;

/// The number of an ownership of a shard or a view. Commits with an older epoch are rejected.
pub type Epoch = u64;

/// Notified by the store's writer, on any thread, possibly from inside `append` before it returns. Must not block.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use whizbang::store::{CommitListener, StoreError, Ticket};
///
/// /// Remembers the last durable append.
/// #[derive(Default)]
/// struct Durable(AtomicU64);
///
/// impl CommitListener for Durable {
///     fn committed(&self, through: Ticket) {
///         self.0.fetch_max(through, Ordering::AcqRel);
///     }
///
///     fn failed(&self, error: StoreError) {
///         eprintln!("appends after {} may be lost: {error}", self.0.load(Ordering::Acquire));
///     }
/// }
/// ```
pub trait CommitListener: Send + Sync {
    /// All appends up to and including `through` are durable.
    fn committed(&self, through: Ticket);

    /// No append that was not reported as committed will be reported. Whether it reached the disk is unknown until the
    /// shard is reopened.
    ///
    /// [`StoreError::Fenced`] concerns one shard only: its appends under the epoch `mine` of that error, which were not reported as
    /// committed, are not in the log and never will be. The other shards of the listener continue. It is reported before
    /// [`committed`](Self::committed) covers the tickets of these appends. Every other error concerns all shards of the
    /// listener.
    fn failed(&self, error: StoreError);
}

/// The result of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The number of the append.
    pub ticket: Ticket,
    /// The position of the shard's last event, including this turn's events.
    pub position: u64,
    /// `true` if the append is already durable. Otherwise the listener is notified later.
    pub committed: bool,
    /// The hint for the next turn of the stream.
    pub stream: StreamHint,
}

/// An opaque hint returned by `append` that lets the next append to the same stream skip a lookup. It is valid only for
/// the writer that returned it. A store may return no hints and ignore them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamHint(u64);

impl StreamHint {
    /// Creates a hint with these bits. 0, the default, means no hint.
    pub const fn new(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the bits.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// The only writer of a shard. Not shared: appends are stored in the order of the calls.
///
/// ```
/// # use std::sync::Arc;
/// # use whizbang::message::{Name, ShardId};
/// # use whizbang::store::{CommitListener, Store, StoreError, Ticket, memory::MemoryStore};
/// # struct Unheard;
/// # impl CommitListener for Unheard {
/// #     fn committed(&self, _: Ticket) {}
/// #     fn failed(&self, _: StoreError) {}
/// # }
/// # whizbang::derive::block_on(async {
/// let (store, shard) = (MemoryStore::new(), ShardId::new(Name::from_static("bank")?, 0));
/// let mut first = store.open(&shard, 16, Arc::new(Unheard)).await?.writer;
/// let second = store.open(&shard, 16, Arc::new(Unheard)).await?.writer;
/// // The second opening took the shard over.
/// assert!(second.epoch() > first.epoch());
/// assert!(matches!(first.sent(&shard, 0), Err(StoreError::Fenced { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub trait ShardWriter: Send {
    /// Returns the epoch under which this writer commits.
    fn epoch(&self) -> Epoch;

    /// Returns whether appends are committed when they return. If so, batching turns before appending them has no
    /// benefit.
    fn commits_at_once(&self) -> bool {
        false
    }

    /// Appends a turn to the log, atomically. Assigns the next positions to its events and the next sequences to its
    /// outbox entries. Returns without waiting for durability, which is reported with the ticket.
    ///
    /// # Errors
    /// [`StoreError::Fenced`] if a later owner exists, [`StoreError::OutOfTurn`], [`StoreError::Oversize`],
    /// [`StoreError::Full`], or the error that stopped the store. On an error nothing of the turn is in the log.
    fn append(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError>;

    /// Like [`append`](Self::append), for a turn with no other turn in flight on its thread. The store may flush on the
    /// calling thread instead of waking a writer thread; [`Appended::committed`] reports whether it did.
    ///
    /// # Errors
    /// Same as [`append`](Self::append). A failed flush is not reported here but to the listener.
    fn append_alone(&mut self, turn: &Turn<'_>) -> Result<Appended, StoreError> {
        self.append(turn)
    }

    /// Records the watermark of a source without a turn.
    ///
    /// # Errors
    /// Same as [`append`](Self::append).
    fn advance(&mut self, watermark: &Watermark) -> Result<Appended, StoreError>;

    /// Records that the destination has committed all outbox entries up to and including `through`. The record may be
    /// lost in a crash: the entries are then sent again and dropped as duplicates.
    ///
    /// # Errors
    /// Same as [`append`](Self::append).
    fn sent(&mut self, to: &ShardId, through: u64) -> Result<Appended, StoreError>;

    /// Stores a snapshot of a stream. Snapshots are a cache and may be lost. A snapshot whose turn is not committed is
    /// ignored when it is read.
    fn save_snapshot(&mut self, actor: &Name, key: &str, snapshot: Snapshot);
}

/// Reads the committed data of a shard. Usable from any thread.
///
/// ```
/// # use std::sync::Arc;
/// # use whizbang::message::{Name, ShardId};
/// # use whizbang::store::{CommitListener, Store, StoreError, Ticket, memory::MemoryStore};
/// # struct Unheard;
/// # impl CommitListener for Unheard {
/// #     fn committed(&self, _: Ticket) {}
/// #     fn failed(&self, _: StoreError) {}
/// # }
/// # whizbang::derive::block_on(async {
/// let (store, shard) = (MemoryStore::new(), ShardId::new(Name::from_static("bank")?, 0));
/// let reader = store.open(&shard, 16, Arc::new(Unheard)).await?.reader;
/// assert_eq!(reader.position(), 0);
/// assert!(reader.events(0, 100).await?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
pub trait ShardReader: Send + Sync {
    /// Returns the position of the last committed event, or 0 if there is none.
    fn position(&self) -> u64;

    /// Loads a stream: its newest snapshot and the turns after it, oldest first. An unknown stream is empty, not an
    /// error.
    fn load<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<StreamState, StoreError>>;

    /// Reads the same as [`load`](Self::load) in pages, which bounds the memory and the time on the caller's thread for
    /// a long stream. Without `snapshot` the pages begin with the first turn. The default implementation reads
    /// everything at once.
    ///
    /// # Errors
    /// The errors of reading.
    fn pages<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        snapshot: bool,
    ) -> BoxFuture<'a, Result<Box<dyn StreamPages>, StoreError>> {
        Box::pin(async move {
            let state = match snapshot {
                true => self.load(actor, key).await?,
                false => StreamState { snapshot: None, turns: self.history(actor, key).await? },
            };
            Ok(Box::new(OnePage(state)) as Box<dyn StreamPages>)
        })
    }

    /// Returns all turns of a stream from the first, without using a snapshot.
    fn history<'a>(&'a self, actor: &'a Name, key: &'a str) -> BoxFuture<'a, Result<Vec<StoredTurn>, StoreError>>;

    /// Returns the newest committed turn of a stream that handled the message `id` from outside, as recorded by its
    /// [mark](Mark::Outside). Returns `None` if there is none, or if it is older than the [retained
    /// ids](Store::forget_ids).
    ///
    /// A store should find the turn without reading the stream: an actor waits for the result, and a stream may have a
    /// million turns. The default implementation reads the whole stream.
    ///
    /// # Errors
    /// The errors of reading.
    fn find_turn<'a>(
        &'a self,
        actor: &'a Name,
        key: &'a str,
        id: MessageId,
    ) -> BoxFuture<'a, Result<Option<StoredTurn>, StoreError>> {
        Box::pin(async move {
            let turns = self.history(actor, key).await?;
            Ok(turns.into_iter().rev().find(|turn| turn.id == id && turn.digest.is_some()))
        })
    }

    /// Returns up to `limit` events with positions above `after`, in order.
    fn events(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredEvent>, StoreError>>;

    /// Returns up to `limit` outbox entries for `to` with sequences above `after`, in order.
    fn outbox<'a>(
        &'a self,
        to: &'a ShardId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxEntry>, StoreError>>;

    /// Returns for each destination the sequence it has committed and the last sequence assigned.
    fn outbox_heads(&self) -> Vec<(ShardId, u64, u64)>;

    /// Returns the watermark of each source of this shard.
    fn watermarks(&self) -> Vec<Watermark>;

    /// Returns the watermark of one source, or 0 if there is none.
    fn watermark(&self, source: &Source) -> u64 {
        self.watermarks().into_iter().find(|mark| mark.source == *source).map_or(0, |mark| mark.through)
    }

    /// Returns up to `limit` timers that are due at `now`, earliest first.
    fn timers_due(&self, now: Timestamp, limit: usize) -> Vec<Timer>;

    /// Returns the time at which the next timer is due.
    fn next_timer(&self) -> Option<Timestamp>;

    /// Returns up to `limit` timers of one actor type after `after` that are due at `now`. The cost grows with `limit`,
    /// not with the number of other timers.
    fn timers_of(&self, actor: &Name, after: TimerCursor, now: Timestamp, limit: usize) -> TimerPage;

    /// Returns the number of timers by actor type; types without timers are omitted. The cost does not grow with the
    /// number of timers.
    fn timer_counts(&self) -> Vec<(Name, usize)>;

    /// Returns up to `limit` unresolved dead letters with ids above `after`, ordered by id.
    fn dead_letters(
        &self,
        after: Option<MessageId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<DeadLetter>, StoreError>>;

    /// Returns the number of unresolved dead letters, not counting [deferred](DeadLetterReason::Deferred) messages.
    /// Called at every health check, so it must not read the log.
    fn dead_letter_count(&self) -> u64;

    /// Returns actor type and key of every stream of the shard, unordered. For checks and rebuilds; the cost grows with
    /// the number of keys.
    fn streams(&self) -> BoxFuture<'_, Result<Vec<(Name, String)>, StoreError>>;
}
