//! Changes of the leased shards that the consumer loop receives, and the two ends of the channel that carries them.
//!
//! [`Ownership`] is the end of the callers of [`Bridge::own`](whizbang_core::bridge::Bridge::own), on any thread. [`OwnedShards`] is
//! the end of the consumer loop, which alone changes the set of shards: no lock is needed. `owned_shards` has both procedures.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;

use async_nats::Subject;
use tokio::sync::{mpsc, oneshot};

use super::channel::ChannelSubscriber;
use super::pull_consumer::PullConsumer;
use whizbang_core::bridge::{BridgeError, NodeCard};
use whizbang_core::message::ShardId;
use whizbang_core::store::Epoch;

/// The minimum number of messages of one pull for a shard.
const MIN_SHARD_PULL: usize = 16;

/// The part of a session that prepares shards for the consumer loop.
pub(super) struct Ownership {
    /// Without a bound: each caller waits for its change, so there are at most as many as shards.
    pub(super) changes: mpsc::UnboundedSender<OwnershipChange>,
    /// The description of the node; it lists the shards that may be owned.
    pub(super) card: NodeCard,
    /// The prefix of the subjects that receive pulled messages.
    pub(super) inbox: String,
    /// The index of the next consumer. An index is not used again, so a late message of an earlier owner finds no consumer.
    pub(super) next_index: AtomicUsize,
}

/// A change of the shards that the loop receives. The sender waits until the loop has made it, so few of them wait.
pub(super) enum OwnershipChange {
    /// Requests and notifications are received from now on. The consumer follows: its creation may take the servers seconds.
    Serve { shard: ShardId, epoch: Epoch, index: usize, subscribers: Vec<ChannelSubscriber>, done: oneshot::Sender<()> },
    /// The consumer exists.
    Consume { index: usize, consumer: Box<PullConsumer>, done: oneshot::Sender<()> },
    /// A later owner has the shard.
    Supersede { index: usize, done: oneshot::Sender<()> },
    /// Returns the subject of an acknowledgement of the shard, if there was one.
    Disown { shard: ShardId, done: oneshot::Sender<Option<Subject>> },
}

/// The shards that the loop receives.
pub(super) struct OwnedShards {
    /// The changes, which the loop applies in the order of the calls.
    pub(super) changes: mpsc::UnboundedReceiver<OwnershipChange>,
    /// The epoch and the consumer of each shard.
    pub(super) owned: BTreeMap<ShardId, (Epoch, usize)>,
    /// The service shares its shards. Without leases, no change ever arrives.
    pub(super) has_leases: bool,
}

/// Creates both ends, for a node whose first consumers have the indices below `next_index`.
pub(super) fn ownership(card: &NodeCard, inbox: String, next_index: usize) -> (Ownership, OwnedShards) {
    let (sender, changes) = mpsc::unbounded_channel();
    let next_index = AtomicUsize::new(next_index);
    let owned = OwnedShards { changes, owned: BTreeMap::new(), has_leases: card.has_leased_shards };
    (Ownership { changes: sender, card: card.clone(), inbox, next_index }, owned)
}

impl Ownership {
    /// Sends a change to the loop and waits until the loop has made it. If the caller drops the future, the change is made
    /// nevertheless.
    ///
    /// # Errors
    /// [`BridgeError::Closed`] if the loop has ended.
    pub(super) async fn change(
        &self,
        change: impl FnOnce(oneshot::Sender<()>) -> OwnershipChange,
    ) -> Result<(), BridgeError> {
        let (done, made) = oneshot::channel();
        self.changes.send(change(done)).map_err(|_| BridgeError::Closed)?;
        made.await.map_err(|_| BridgeError::Closed)
    }
}

impl OwnedShards {
    /// Returns the maximum number of messages of one pull for a shard: together the shards pull no more than `most`. `None`
    /// without leases.
    pub(super) fn pull_limit(&self, most: usize) -> Option<usize> {
        self.has_leases.then(|| (most / self.owned.len().max(1)).max(MIN_SHARD_PULL))
    }
}
