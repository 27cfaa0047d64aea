//! The errors of streams of events.

use whizbang_core::bridge::BridgeError;
use whizbang_core::message::{CodecError, Shard, StoreId};

/// An error of a stream of events. All except [`Unreadable`](Self::Unreadable) are its last item. Nothing is lost: the events stay
/// in their log, and a stream that starts at the last cursor continues behind the last event.
///
/// An owner that is busy, restarts or cannot be reached is not an error: the stream waits and continues.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// An event cannot be decoded: its type has another version or another shape here. The stream continues with the next event.
    /// Deploy a program that knows the type, and start at a cursor from before the event to read it.
    #[error("failed to decode event `{name}` at position {position} of shard {shard} of domain `{domain}`")]
    Unreadable {
        /// The domain.
        domain: String,
        /// The shard.
        shard: Shard,
        /// The position in its log.
        position: u64,
        /// The name of the event.
        name: String,
        /// The defect.
        source: CodecError,
    },
    /// The cursor belongs to another domain, or to a domain with another number of shards. Nothing was read. Use a cursor of this
    /// domain.
    #[error(
        "cursor of domain `{found}` with {found_shards} shards does not fit domain `{domain}` with {shards} shards"
    )]
    Cursor {
        /// The domain of the stream.
        domain: String,
        /// Its number of shards.
        shards: u16,
        /// The domain of the cursor.
        found: String,
        /// Its number of shards.
        found_shards: usize,
    },
    /// The owner of the domain has another store than the one that the cursor or an earlier event belongs to. Positions mean
    /// nothing there. Decide what to do with the events of the new store, then start a stream without the cursor.
    #[error("domain `{domain}` has store {found}, but the events read so far are those of store {store}")]
    OtherStore {
        /// The domain.
        domain: String,
        /// The store of the cursor or of earlier events.
        store: StoreId,
        /// The store that answers now.
        found: StoreId,
    },
    /// The log of a shard does not contain the last event that was read: it was restored from an older backup. Later events would be
    /// those of a different history. Decide what to do, then start a stream without the cursor.
    #[error(
        "log of shard {shard} of domain `{domain}` does not contain the event that was read at position {position}"
    )]
    Diverged {
        /// The domain.
        domain: String,
        /// The shard.
        shard: Shard,
        /// The position of the missing event.
        position: u64,
    },
    /// The owner has more shards than this program knows, so that events would be missing. Deploy the same number of shards.
    #[error("domain `{domain}` has {shards} shards in this program, but its owner has shard {shard}")]
    Shards {
        /// The domain.
        domain: String,
        /// The number of shards in this program.
        shards: u16,
        /// A shard of the owner.
        shard: Shard,
    },
    /// The node does not own the domain and has no bridge to its owner. Nothing was read. Configure a bridge.
    #[error("domain `{domain}` is not hosted here and the node has no bridge")]
    NoBridge {
        /// The domain.
        domain: String,
    },
    /// The broker refuses to let this process read the events of the domain. Grant the permissions of its card, see
    /// [`NodeCard::following`](whizbang_core::bridge::NodeCard::following).
    #[error("failed to read events of domain `{domain}`")]
    Bridge {
        /// The domain.
        domain: String,
        /// The error of the bridge.
        source: Box<BridgeError>,
    },
    /// The node of the client has ended, or the client was disconnected. Continue with another client.
    #[error("node or connection of the client has ended")]
    Stopped,
}

impl SubscribeError {
    /// Returns whether the error is the last item of its stream.
    pub fn is_last(&self) -> bool {
        !matches!(self, Self::Unreadable { .. })
    }
}
