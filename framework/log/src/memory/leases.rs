//! Leases on the shards of a store in memory that several nodes share.
//!
//! Called by the nodes of a service through [`ShardLeases`]. One lock orders all decisions, so of two members that open
//! a free shard one wins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;

use super::MemoryStore;
use whizbang_core::clock::{Clock, MonotonicTime, Timestamp};
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{
    CommitListener, Epoch, Leases, Member, MemberId, ShardHandle, ShardLease, ShardLeases, StoreError,
};

/// The members and owners of a shared store.
pub(super) struct LeaseTable {
    /// The store's clock. Jumps of the wall clock do not affect it.
    time: MonotonicTime,
    state: Mutex<LeaseState>,
}

#[derive(Default)]
struct LeaseState {
    members: BTreeMap<MemberId, Registered>,
    shards: BTreeMap<ShardId, Owned>,
}

struct Registered {
    member: Member,
    expires: Timestamp,
}

struct Owned {
    service: Name,
    owner: Option<MemberId>,
    epoch: Epoch,
}

impl LeaseTable {
    pub(super) fn new(clock: &Clock) -> Self {
        Self { time: MonotonicTime::of(clock), state: Mutex::default() }
    }

    fn renew(&self, member: &Member, ttl: Duration) -> Leases {
        let now = self.time.now();
        let mut state = self.state.lock();
        state.members.insert(member.id, Registered { member: member.clone(), expires: now.after(ttl) });
        state.forget_expired(now);
        let is_ours =
            |registered: &&Registered| registered.expires > now && registered.member.service == member.service;
        let members = state.members.values().filter(is_ours).map(|registered| registered.member.clone()).collect();
        let shards = state.shards.iter().filter(|(_, owned)| owned.service == member.service);
        let shards = shards.map(|(shard, owned)| ShardLease::new(shard.clone(), owned.owner, owned.epoch)).collect();
        Leases::new(members, shards)
    }

    fn release(&self, member: MemberId, shard: &ShardId, epoch: Epoch) {
        if let Some(owned) = self.state.lock().shards.get_mut(shard)
            && owned.owner == Some(member)
            && owned.epoch == epoch
        {
            owned.owner = None;
        }
    }

    fn leave(&self, member: MemberId) {
        let mut state = self.state.lock();
        state.members.remove(&member);
        for owned in state.shards.values_mut().filter(|owned| owned.owner == Some(member)) {
            owned.owner = None;
        }
    }
}

impl LeaseState {
    /// Returns whether `member` may take the shard now, and its service.
    fn admits(&self, member: MemberId, shard: &ShardId, now: Timestamp) -> Option<Name> {
        let is_live = |id: &MemberId| self.members.get(id).is_some_and(|registered| registered.expires > now);
        let service = self.members.get(&member).filter(|_| is_live(&member))?.member.service.clone();
        let owner = self.shards.get(shard).and_then(|owned| owned.owner);
        owner.is_none_or(|owner| owner == member || !is_live(&owner)).then_some(service)
    }

    /// Forgets the expired members that own nothing.
    fn forget_expired(&mut self, now: Timestamp) {
        let shards = &self.shards;
        let owns = |id: &MemberId| shards.values().any(|owned| owned.owner == Some(*id));
        self.members.retain(|id, registered| registered.expires > now || owns(id));
    }
}

/// The leases of a shared store, for the node that uses this handle of it.
pub(super) struct MemoryLeases {
    pub(super) store: MemoryStore,
    pub(super) table: Arc<LeaseTable>,
}

impl MemoryLeases {
    fn open_now(
        &self,
        member: MemberId,
        shard: &ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> Result<Option<ShardHandle>, StoreError> {
        let mut state = self.table.state.lock();
        let Some(service) = state.admits(member, shard, self.table.time.now()) else { return Ok(None) };
        let handle = self.store.claim_shard(shard, shards, listener)?;
        let epoch = handle.writer.epoch();
        state.shards.insert(shard.clone(), Owned { service, owner: Some(member), epoch });
        drop(state);
        // Outside the lock: the listener of the earlier owner is notified.
        self.store.shared.held_commits.fence(shard, epoch);
        Ok(Some(handle))
    }
}

impl ShardLeases for MemoryLeases {
    fn renew<'a>(&'a self, member: &'a Member, ttl: Duration) -> BoxFuture<'a, Result<Leases, StoreError>> {
        ready(self.store.check_open().map(|()| self.table.renew(member, ttl))).boxed()
    }

    fn open<'a>(
        &'a self,
        member: MemberId,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<Option<ShardHandle>, StoreError>> {
        ready(self.store.check_open().and_then(|()| self.open_now(member, shard, shards, listener))).boxed()
    }

    fn release<'a>(
        &'a self,
        member: MemberId,
        shard: &'a ShardId,
        epoch: Epoch,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.table.release(member, shard, epoch);
        ready(Ok(())).boxed()
    }

    fn leave(&self, member: MemberId) -> BoxFuture<'_, Result<(), StoreError>> {
        self.table.leave(member);
        ready(Ok(())).boxed()
    }
}
