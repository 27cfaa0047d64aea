//! What can go wrong with a store.

use std::path::PathBuf;
use std::sync::Arc;

use crate::message::{CodecError, ShardId};
use crate::store::Epoch;

/// A store that could not do what it was asked. Cheap to clone: one failed commit is many turns' error.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A younger owner has the shard. The turn was not committed and never will be by this node; the new owner decides.
    #[error("shard {shard} belongs to epoch {current}, not to {mine} any more")]
    Fenced {
        /// The shard.
        shard: ShardId,
        /// The epoch that tried.
        mine: Epoch,
        /// The epoch that owns.
        current: Epoch,
    },
    /// A younger owner has the view. What was to be saved was not, and never will be by this node; the new owner follows the
    /// events itself.
    #[error("the view of `{projection}` belongs to epoch {current}, not to {mine} any more")]
    ViewTaken {
        /// The projection.
        projection: String,
        /// The epoch that tried.
        mine: Epoch,
        /// The epoch that owns.
        current: Epoch,
    },
    /// The disk is full. The turn was refused and nothing of it is stored; reads go on. Make room, then send again.
    #[error("no room left in {at}")]
    Full {
        /// The folder or table.
        at: String,
    },
    /// The turn does not follow the last one of its stream: whoever wrote it did not know all of the stream. Nothing of it is
    /// stored. Load the stream again and handle the message on what is there.
    #[error("a turn of a stream in shard {shard} is out of turn: number {expected} comes next")]
    OutOfTurn {
        /// The shard.
        shard: ShardId,
        /// The number the stream's next turn has.
        expected: u64,
    },
    /// The turn is larger than a store takes. It was refused; record or send less in one turn.
    #[error("the turn has {bytes} bytes, more than the {limit} allowed")]
    Oversize {
        /// How many bytes it has.
        bytes: usize,
        /// How many it may have.
        limit: usize,
    },
    /// Reading or writing failed. What was appended and not committed has an unknown fate: the store must be opened again,
    /// which recovers all that was committed. A failed flush is never tried again.
    #[error("{doing} failed: {source}")]
    Io {
        /// What the store was doing.
        doing: String,
        /// What the operating system or the server said.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Stored bytes are damaged somewhere else than in the unfinished end of the log. Nothing is skipped silently: restore
    /// the file from a backup or a replica.
    #[error("{file} is damaged at byte {offset}: {reason}", file = file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// Another process uses the store. Stop it, or choose another folder.
    #[error("{at} is in use by another process")]
    InUse {
        /// The folder or database.
        at: String,
    },
    /// There is no store to be read. Nothing was changed; name the folder of one.
    #[error("there is no store in {at}")]
    Missing {
        /// The folder.
        at: String,
    },
    /// The store was written by a newer version. Nothing was changed; use that version.
    #[error("{at} has format {found}, this program knows up to {known}")]
    Newer {
        /// The folder or database.
        at: String,
        /// The format found.
        found: u32,
        /// The newest format this program knows.
        known: u32,
    },
    /// The domain was created with another number of shards, which can never change. Set `shards` back.
    #[error("domain `{domain}` was created with {found} shards, not {wanted}")]
    Shards {
        /// The domain.
        domain: String,
        /// The number it was created with.
        found: u16,
        /// The number asked for.
        wanted: u16,
    },
    /// The store is closed, or stopped by an earlier error. Nothing was stored; start the node again.
    #[error("the store is closed")]
    Closed,
    /// A stored message cannot be read by this program. It stays stored; deploy a program that knows it.
    #[error("a stored message cannot be read: {0}")]
    Codec(#[from] CodecError),
}

impl StoreError {
    /// An error of reading or writing.
    pub fn io(doing: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Io { doing: doing.into(), source: Arc::new(source) }
    }

    /// Whether the same call may succeed later without anybody's help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Io { .. })
    }
}
