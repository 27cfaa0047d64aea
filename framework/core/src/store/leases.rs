//! Leases: which node of a service owns which shard, for stores that several nodes share.
//!
//! Used by a node whose store returns [`Store::leases`](super::Store::leases). The store is the only arbiter: it counts
//! leases by its own clock, and a commit of an earlier owner is rejected by the shard's epoch, whatever any clock says.
//! A lease therefore decides only when a takeover is allowed and how long an owner may answer from memory; it never
//! decides what is committed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{CommitListener, Epoch, ShardHandle, StoreError};
use crate::message::{Name, ShardId};

/// The identity of one start of a node. A restarted node is a new member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(u128);

impl MemberId {
    /// Creates the id with these bits.
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }

    /// Returns the bits.
    pub const fn as_u128(self) -> u128 {
        self.0
    }
}

impl std::fmt::Display for MemberId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl serde::Serialize for MemberId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A node of a service, as the other nodes see it in the store.
///
/// ```
/// use whizbang::message::Name;
/// use whizbang::store::{Member, MemberId};
///
/// let member = Member::new(MemberId::from_u128(7), Name::from_static("bank")?, "host 3, process 4711");
/// assert!(!member.is_draining);
/// // The lease of a node that stops is renewed as this, so that the others take its shards.
/// assert!(member.draining().is_draining);
/// # Ok::<_, whizbang::message::NameError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// The identity of this start of the node.
    pub id: MemberId,
    /// The service. Only members of one service share its shards.
    pub service: Name,
    /// The name of the node for operators, for example the host and process id. At most 256 bytes.
    pub label: String,
    /// The node is stopping: it gives its shards away and takes none.
    pub is_draining: bool,
    /// Shards that the node never takes: their logs contain types that its program does not know.
    pub refuses: BTreeSet<ShardId>,
    /// Shards that the node gives to any member that takes them: commands that its program does not know wait there.
    pub yields: BTreeSet<ShardId>,
}

impl Member {
    /// Creates a member that is not draining.
    pub fn new(id: MemberId, service: Name, label: impl Into<String>) -> Self {
        let (refuses, yields) = (BTreeSet::new(), BTreeSet::new());
        Self { id, service, label: label.into(), is_draining: false, refuses, yields }
    }

    /// Returns the member with the shards that it never takes, and those that it gives to any member that takes them.
    #[must_use]
    pub fn limited(mut self, refuses: BTreeSet<ShardId>, yields: BTreeSet<ShardId>) -> Self {
        (self.refuses, self.yields) = (refuses, yields);
        self
    }

    /// Returns the member as one that is stopping.
    #[must_use]
    pub fn draining(mut self) -> Self {
        self.is_draining = true;
        self
    }
}

/// The owner of a shard, as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShardLease {
    /// The shard.
    pub shard: ShardId,
    /// The last owner that has not released the shard. It may have expired: then it is not in [`Leases::members`].
    pub owner: Option<MemberId>,
    /// The epoch of the last opening, or 0 if the shard was never opened.
    pub epoch: Epoch,
}

impl ShardLease {
    /// Creates the entry of a shard.
    pub const fn new(shard: ShardId, owner: Option<MemberId>, epoch: Epoch) -> Self {
        Self { shard, owner, epoch }
    }
}

/// The members of a service and the owners of its shards at one moment of the store's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leases {
    /// The members whose lease has not expired, ordered by id. Contains the caller of the renewal.
    pub members: Vec<Member>,
    /// All shards that were ever opened under a lease for the service, ordered by shard. A shard that is missing has no
    /// owner.
    pub shards: Vec<ShardLease>,
}

impl Leases {
    /// Creates the leases of a service.
    pub const fn new(members: Vec<Member>, shards: Vec<ShardLease>) -> Self {
        Self { members, shards }
    }

    /// Returns the live owner of a shard.
    pub fn owner(&self, shard: &ShardId) -> Option<MemberId> {
        let owner = self.shards.iter().find(|lease| lease.shard == *shard)?.owner?;
        self.members.iter().any(|member| member.id == owner).then_some(owner)
    }
}

/// Leases on the shards of a service. Implementations pass the suite in `whizbang::testing::store`.
///
/// The futures may be dropped at any time; a write that has begun may then still complete.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use futures_util::future::BoxFuture;
/// use whizbang::message::ShardId;
/// use whizbang::store::{CommitListener, Epoch, Leases, Member, MemberId, ShardHandle, ShardLeases, StoreError};
///
/// /// The leases of another store, at least a minute long.
/// struct LongLeases(Arc<dyn ShardLeases>);
///
/// impl ShardLeases for LongLeases {
///     fn renew<'a>(&'a self, member: &'a Member, ttl: Duration) -> BoxFuture<'a, Result<Leases, StoreError>> {
///         self.0.renew(member, ttl.max(Duration::from_secs(60)))
///     }
///
///     fn open<'a>(
///         &'a self,
///         member: MemberId,
///         shard: &'a ShardId,
///         shards: u16,
///         listener: Arc<dyn CommitListener>,
///     ) -> BoxFuture<'a, Result<Option<ShardHandle>, StoreError>> {
///         self.0.open(member, shard, shards, listener)
///     }
///
///     fn release<'a>(
///         &'a self,
///         member: MemberId,
///         shard: &'a ShardId,
///         epoch: Epoch,
///     ) -> BoxFuture<'a, Result<(), StoreError>> {
///         self.0.release(member, shard, epoch)
///     }
///
///     fn leave(&self, member: MemberId) -> BoxFuture<'_, Result<(), StoreError>> {
///         self.0.leave(member)
///     }
/// }
/// ```
pub trait ShardLeases: Send + Sync {
    /// Registers the member or renews its lease: for `ttl` from now, by the store's clock, no other member may take its
    /// shards. Returns the leases of the member's service after the renewal. A lease that had expired is renewed as well;
    /// shards that were taken from it in between have another owner in the result.
    ///
    /// # Errors
    /// The errors of reading and writing. Whether the lease was renewed is then unknown: count from the last success.
    fn renew<'a>(&'a self, member: &'a Member, ttl: Duration) -> BoxFuture<'a, Result<Leases, StoreError>>;

    /// Takes a shard, if it has no owner, an owner whose lease has expired, or this member as its owner: raises its
    /// epoch, which rejects every later commit of an earlier owner, and recovers it, as [`Store::open`](super::Store::open)
    /// does. Returns `None` if another member owns it, or if this member has no lease: nothing was changed then.
    ///
    /// # Errors
    /// Same as [`Store::open`](super::Store::open).
    fn open<'a>(
        &'a self,
        member: MemberId,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<Option<ShardHandle>, StoreError>>;

    /// Releases a shard, so that another member may take it at once. Call it after the last commit: dropping the writer
    /// alone does not release it. Does nothing if the member no longer owns it at `epoch`.
    ///
    /// # Errors
    /// The errors of writing. The shard is then released when the lease expires.
    fn release<'a>(
        &'a self,
        member: MemberId,
        shard: &'a ShardId,
        epoch: Epoch,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Removes the member and releases everything it owns. The last call of a node that stops.
    ///
    /// # Errors
    /// The errors of writing. The member then expires.
    fn leave(&self, member: MemberId) -> BoxFuture<'_, Result<(), StoreError>>;
}
