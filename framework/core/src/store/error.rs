//! Errors of stores.

use std::path::PathBuf;
use std::sync::Arc;

use crate::message::{CodecError, ShardId};
use crate::store::Epoch;

/// An error of a store. Cheap to clone, because one failed commit is reported to many turns.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A later owner has the shard. The turn was not committed and never will be by this node; the new owner decides.
    #[error("shard {shard} fenced: epoch {mine} was replaced by epoch {current}")]
    Fenced {
        /// The shard.
        shard: ShardId,
        /// The epoch of the rejected writer.
        mine: Epoch,
        /// The current epoch.
        current: Epoch,
    },
    /// A later owner has the view. The view was not saved and never will be by this node; the new owner follows the
    /// events.
    #[error("view of `{projection}` fenced: epoch {mine} was replaced by epoch {current}")]
    ViewTaken {
        /// The projection.
        projection: String,
        /// The epoch of the rejected owner.
        mine: Epoch,
        /// The current epoch.
        current: Epoch,
    },
    /// The disk is full. The turn was rejected and nothing of it is stored; reads still work. Free space, then send the
    /// message again.
    #[error("no space left in {at}")]
    Full {
        /// The folder or table.
        at: String,
    },
    /// The turn does not follow the last turn of its stream: its writer did not know the whole stream. Nothing of it is
    /// stored. Load the stream again and handle the message on the new state.
    #[error("version conflict in shard {shard}: expected turn {expected}")]
    OutOfTurn {
        /// The shard.
        shard: ShardId,
        /// The number of the stream's next turn.
        expected: u64,
    },
    /// The turn is larger than the store allows. It was rejected; record or send less in one turn.
    #[error("turn too large: {bytes} bytes, at most {limit} are allowed")]
    Oversize {
        /// The size of the turn.
        bytes: usize,
        /// The largest allowed size.
        limit: usize,
    },
    /// Reading or writing failed. Whether uncommitted appends were stored is unknown. Reopen the store, which recovers
    /// everything that was committed. A failed flush is never retried, because the state of the disk is then unknown.
    #[error("{doing} failed")]
    Io {
        /// The operation that failed.
        doing: String,
        /// The error of the operating system or the server.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Stored bytes are damaged at a place other than the unfinished end of the log. Nothing is skipped silently:
    /// restore the file from a backup or a replica.
    #[error("{file} is damaged at byte {offset}: {reason}", file = file.display())]
    Corrupt {
        /// The file.
        file: PathBuf,
        /// The byte in the file.
        offset: u64,
        /// A description of the damage.
        reason: String,
    },
    /// Another process uses the store. Stop it, or choose another folder.
    #[error("{at} is in use by another process")]
    InUse {
        /// The folder or database.
        at: String,
    },
    /// There is no store at this place. Nothing was changed; pass the folder of a store.
    #[error("no store found in {at}")]
    Missing {
        /// The folder.
        at: String,
    },
    /// The content of the store has moved to another place, and this one is not used any longer. Nothing was changed; open the
    /// store at the new place.
    #[error("{at} has moved to {to}: open the store there")]
    Moved {
        /// The old place.
        at: String,
        /// The new place.
        to: String,
    },
    /// A move to this place was interrupted, so the store in it may lack a part, or may be the only one that is left. Nothing was
    /// changed; run the move again, from its original source to this place. Do not delete this place before.
    #[error(
        "the move to {at} is not finished: run it from its original source to this place again; do not delete {at}"
    )]
    Unfinished {
        /// The folder or database.
        at: String,
    },
    /// A store cannot be moved to this place, because it has content. Nothing was changed; choose an empty folder or schema.
    #[error("{at} is not empty: choose an empty folder or schema")]
    NotEmpty {
        /// The folder or database.
        at: String,
    },
    /// The store was written by a newer version. Nothing was changed; use that version.
    #[error("{at} has format {found}, this program supports formats up to {known}")]
    Newer {
        /// The folder or database.
        at: String,
        /// The format of the store.
        found: u32,
        /// The newest format of this program.
        known: u32,
    },
    /// The domain was created with another number of shards, which can never change. Restore the old value of `shards`.
    #[error("domain `{domain}` was created with {found} shards, not {wanted}")]
    Shards {
        /// The domain.
        domain: String,
        /// The number of shards it was created with.
        found: u16,
        /// The requested number of shards.
        wanted: u16,
    },
    /// A statement of a user failed, for example by a constraint. The transaction was rolled back and nothing of it is stored.
    /// Correct the statement, the tables or the data.
    #[error("statement {number} failed: {reason}")]
    Statement {
        /// The number of the statement in its list, from 0.
        number: usize,
        /// The code and the message of the database. Values of rows are left out.
        reason: String,
        /// The same list may succeed later: a lock was not available, or a conflict with another transaction.
        is_transient: bool,
    },
    /// The store runs no statements of users. Nothing was stored; use a store that does, such as PostgreSQL.
    #[error("statements not supported by the store: use PostgreSQL")]
    NoStatements,
    /// The store is closed, or was stopped by an earlier error. Nothing was stored; restart the node.
    #[error("store closed")]
    Closed,
    /// This program cannot decode a stored message. The message stays stored; deploy a program that knows its type.
    #[error("failed to decode a stored message")]
    Codec(#[from] CodecError),
}

impl StoreError {
    /// Creates an [`Io`](Self::Io) error. `doing` names the operation as a gerund: "reading the log".
    pub fn io(doing: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Io { doing: doing.into(), source: Arc::new(source) }
    }

    /// Returns whether the same call may succeed later, for example once space is freed.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Io { .. } | Self::Statement { is_transient: true, .. })
    }
}
