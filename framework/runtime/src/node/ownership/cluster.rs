//! The cluster as one node sees it: members, owners and moves, for operators.

use std::time::Duration;

use serde::Serialize;

use whizbang_core::store::{Epoch, MemberId};

/// The nodes of a service that share its store, as this node has last seen them.
///
/// Returned by [`Node::cluster`](crate::node::Node::cluster). A plain value that serializes, for any endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Cluster {
    /// The id of this node as a member.
    pub member: MemberId,
    /// Duration of a lease: a node that crashes is replaced after this time.
    pub lease: Duration,
    /// Time since this node has last renewed its lease, or `None` if it never did.
    pub renewed: Option<Duration>,
    /// False if the lease was not renewed in time: this node then serves nothing until it is renewed.
    pub is_serving: bool,
    /// The members whose lease has not expired, ordered by id.
    pub members: Vec<ClusterMember>,
    /// The shards that were ever opened, ordered by domain and number.
    pub shards: Vec<ClusterShard>,
}

/// One node of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ClusterMember {
    /// The id of this start of the node.
    pub id: MemberId,
    /// Its name for operators, see [`NodeBuilder::label`](crate::node::NodeBuilder::label).
    pub label: String,
    /// The node is stopping.
    pub is_draining: bool,
    /// Number of shards it owns.
    pub shards: usize,
    /// Shards that it does not take, as `domain/number`: their logs contain types that its program does not know.
    pub refuses: Vec<String>,
    /// Shards that it gives to any member that takes them: commands wait there that its program does not know.
    pub yields: Vec<String>,
}

/// One shard of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ClusterShard {
    /// Its domain.
    pub domain: String,
    /// Its number.
    pub shard: u16,
    /// The member that owns it; `None` between two owners.
    pub owner: Option<MemberId>,
    /// The number of the membership, which rises with each change.
    pub epoch: Epoch,
    /// The move of this shard on this node, if there is one.
    pub moving: Option<ShardMove>,
}

/// A move of a shard on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ShardMove {
    /// The node opens the shard.
    Opening,
    /// The node finishes the turns of the shard, to hand it over.
    HandingOver,
    /// The node closes the shard, which another member has taken.
    Closing,
}
