//! The two ends of a move.
//!
//! Implemented by the stores.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::mark::MoveMark;
use super::turn::CopiedTurn;
use whizbang_core::message::{Name, ShardId, StoreIdentity};
use whizbang_core::store::{CommitListener, Epoch, ShardHandle, Store, StoreError};

/// A place that holds a store or will hold one: a folder, or a schema of a database.
///
/// Implemented by `EmbeddedPlace` and by `PostgresBuilder`; [`move_store`](super::move_store) has an example. The methods are
/// internal and may change with any version.
pub trait StorePlace: std::fmt::Debug + Send + Sync {
    /// Opens the store at this place and keeps others from changing it, until the result is dropped.
    #[doc(hidden)]
    fn source(&self) -> BoxFuture<'_, Result<FoundSource, StoreError>>;

    /// Creates a store that no node can open. Fails with [`StoreError::NotEmpty`] if there is one already.
    #[doc(hidden)]
    fn create(&self, new: NewStore) -> BoxFuture<'_, Result<Box<dyn MoveTarget>, StoreError>>;

    /// Activates the complete copy of the move `number`: nodes can open it from then on. Returns `false` if there is none.
    #[doc(hidden)]
    fn finish(&self, number: u128) -> BoxFuture<'_, Result<bool, StoreError>>;
}

/// The store that is to be moved.
#[doc(hidden)]
pub enum FoundSource {
    /// It can be moved.
    Ready(Box<dyn MoveSource>),
    /// It has moved already.
    Moved {
        /// The location, for log lines and errors.
        at: String,
        /// The mark of that move.
        mark: MoveMark,
    },
}

impl std::fmt::Debug for FoundSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ready(source) => f.debug_tuple("Ready").field(&source.at()).finish(),
            Self::Moved { at, mark } => f.debug_struct("Moved").field("at", at).field("mark", mark).finish(),
        }
    }
}

/// The parts of a store that are not in its log.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct NewStore {
    /// The random number of the move.
    pub number: u128,
    /// The key of the digests of messages, which the turns contain.
    pub digest_key: u128,
    /// The identity; `None` if the store has none.
    pub identity: Option<StoreIdentity>,
}

/// A shard that is copied.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct CopiedShard {
    /// The shard.
    pub id: ShardId,
    /// The number of shards of its domain.
    pub shards: u16,
    /// The epoch of its last owner. The copy must use higher epochs, because names of consumers at the broker contain
    /// the epoch.
    pub epoch: Epoch,
}

/// An opened store of a move.
#[doc(hidden)]
pub trait MoveEnd: Send + Sync {
    /// Returns the opened store; the move reads events, the outbox and timers through it.
    fn store(&self) -> &dyn Store;

    /// Returns the location, for log lines and errors.
    fn at(&self) -> String;

    /// Returns the shards that were ever opened.
    fn shards(&self) -> BoxFuture<'_, Result<Vec<CopiedShard>, StoreError>>;

    /// Returns the names of the stored views.
    fn views(&self) -> BoxFuture<'_, Result<Vec<Name>, StoreError>>;

    /// Begins to read all turns of all shards.
    fn turns(&self) -> Box<dyn TurnPages + '_>;
}

/// All turns of a store, page by page. Turns of a shard come in their order.
#[doc(hidden)]
pub trait TurnPages: Send {
    /// Returns the next turns, a few MiB at most together with the last one. An empty page means that all turns were read.
    fn next(&mut self) -> BoxFuture<'_, Result<Vec<(ShardId, CopiedTurn)>, StoreError>>;
}

/// A store that is moved away. No node can change it until it is dropped.
#[doc(hidden)]
pub trait MoveSource: MoveEnd {
    /// Marks the store, durably: from then on no node opens it again.
    fn mark_moved<'a>(&'a self, mark: &'a MoveMark) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// A store that is created by a move. No node can open it before it is activated.
#[doc(hidden)]
pub trait MoveTarget: MoveEnd {
    /// Opens a shard with an epoch after that of the source.
    fn open<'a>(
        &'a self,
        shard: &'a CopiedShard,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<ShardHandle, StoreError>>;

    /// Records durably that everything is copied.
    fn complete(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Closes the store here and lets nodes open it, durably.
    fn activate(self: Box<Self>) -> BoxFuture<'static, Result<(), StoreError>>;
}
