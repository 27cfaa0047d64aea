//! The host of shards: the node's threads, as the ownership task sees them.

use futures_util::future::BoxFuture;

use whizbang_core::message::ShardId;
use whizbang_core::store::{Epoch, StoreError};

/// The result of opening a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::node) enum Opening {
    /// It is open, in this epoch.
    Open(Epoch),
    /// The store has refused it: another member owns it.
    Taken,
    /// Its log contains a type that the program does not know. Holds the type.
    Unknown(String),
}

/// Opens and closes shards on the threads of a node.
pub(in crate::node) trait ShardHost: Send + Sync {
    /// Opens a shard under the member's lease and lets its actors work. Nothing is open unless it returns
    /// [`Opening::Open`].
    fn open(&self, shard: ShardId) -> BoxFuture<'static, Result<Opening, StoreError>>;

    /// Closes a shard that the member hands over: accepts nothing more for it, finishes what has begun, and stores its
    /// watermarks. All its commits are reported when this returns.
    fn drain(&self, shard: ShardId) -> BoxFuture<'static, ()>;

    /// Closes a shard at once: what has begun fails.
    fn drop_shard(&self, shard: ShardId) -> BoxFuture<'static, ()>;

    /// Starts to receive for an open shard.
    fn receive(&self, shard: ShardId, epoch: Epoch) -> BoxFuture<'static, Result<(), String>>;

    /// Stops receiving for a shard.
    fn stop_receiving(&self, shard: ShardId) -> BoxFuture<'static, ()>;

    /// Called after each renewal: the members may have changed, and with them the saver of each view. `joined` if the members
    /// that take shards have changed.
    fn members_changed(&self, joined: bool) {
        let _ = joined;
    }

    /// Returns whether the node works. A node that has ended itself must not keep its shards.
    fn is_live(&self) -> bool;
}
