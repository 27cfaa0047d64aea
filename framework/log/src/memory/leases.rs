//! Leases on the shards of a store in memory that several nodes share.
//!
//! Called by the nodes of a service through [`ShardLeases`]. One lock orders all decisions, so of two members that open
//! a free shard one wins.
//!
//! A lease that was not renewed in time does not end by itself: its shards stay with the member until another one opens them.

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
    /// Members and owners, under one lock that orders all decisions.
    state: Mutex<LeaseState>,
}

/// The rows of the table.
#[derive(Default)]
struct LeaseState {
    /// The members that were renewed, until they expire and own nothing.
    members: BTreeMap<MemberId, Registered>,
    /// The shards that were ever opened by a member.
    shards: BTreeMap<ShardId, Owned>,
}

/// A member and the end of its lease.
struct Registered {
    /// The member as of its last renewal.
    member: Member,
    /// The end of its lease, by the clock of the store.
    expires: Timestamp,
}

/// A shard and its owner.
struct Owned {
    /// The service whose member has opened it.
    service: Name,
    /// The owner, which may have expired; `None` after a release.
    owner: Option<MemberId>,
    /// The epoch under which the owner has it.
    epoch: Epoch,
}

impl LeaseTable {
    /// Returns an empty table. Jumps of the wall clock do not affect its leases.
    pub(super) fn new(clock: &Clock) -> Self {
        Self { time: MonotonicTime::of(clock), state: Mutex::default() }
    }

    /// Extends the lease of a member by `ttl` from now, and returns the live members of its service and its shards. Costs the
    /// number of members and shards of the store.
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

    /// Frees a shard at once, unless it has another owner or another epoch by now.
    fn release(&self, member: MemberId, shard: &ShardId, epoch: Epoch) {
        if let Some(owned) = self.state.lock().shards.get_mut(shard)
            && owned.owner == Some(member)
            && owned.epoch == epoch
        {
            owned.owner = None;
        }
    }

    /// Removes a member and frees all of its shards.
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
    /// The handle of the node, which can be closed without the others.
    pub(super) store: MemoryStore,
    /// The table of the store, shared by all of its handles.
    pub(super) table: Arc<LeaseTable>,
}

impl MemoryLeases {
    /// Opens a shard for a member, if the shard is free. Two members that try at once get it one after the other, so one of
    /// them is refused.
    ///
    /// # Errors
    /// [`StoreError::Shards`] if the domain has another number of shards.
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

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_conformance::store::{Owner, run};
    use whizbang_core::store::Store;

    const MS: Duration = Duration::from_millis(1);

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn shard(number: u16) -> ShardId {
        ShardId::new(name("bank"), number)
    }

    fn member(number: u128) -> Member {
        Member::new(MemberId::from_u128(number), name("bank"), "node")
    }

    #[test]
    fn lease_ends_exactly_after_its_time() {
        run(async {
            let (clock, time) = Clock::manual(Timestamp::from_millis(1_000));
            let memory = MemoryStore::shared(&clock);
            let is_known = |number| {
                let table = memory.shared.leases.as_ref().unwrap();
                table.state.lock().members.contains_key(&MemberId::from_u128(number))
            };
            let store = Arc::new(memory.clone()) as Arc<dyn Store>;
            let leases = store.leases().unwrap();
            let owner_of = |leases: &Leases| {
                leases.shards.iter().find(|lease| lease.shard == shard(0)).and_then(|lease| lease.owner)
            };
            let renew = async |number, ttl| {
                let renewed = leases.renew(&member(number), ttl).await.unwrap();
                (renewed.members.iter().map(|member| member.id.as_u128()).collect::<Vec<_>>(), owner_of(&renewed))
            };
            let open = async |number| Owner::lease(&store, MemberId::from_u128(number), &shard(0)).await;
            let owned = Some(MemberId::from_u128(1));
            assert_eq!(renew(1, 100 * MS).await, (vec![1], None));
            assert_eq!(open(1).await.unwrap().writer.epoch(), 1);
            renew(3, 100 * MS).await;
            time.advance(99 * MS);
            assert_eq!(renew(2, 1_000 * MS).await, (vec![1, 2, 3], owned));
            assert!(open(2).await.is_none(), "the owner is alive");
            assert_eq!(open(1).await.unwrap().writer.epoch(), 2, "the owner opens its shard again");
            time.advance(MS);
            assert!(open(1).await.is_none(), "the lease has ended");
            assert_eq!(renew(2, 1_000 * MS).await, (vec![2], owned));
            assert_eq!([1, 2, 3].map(is_known), [true, true, false], "an expired member is kept while it owns a shard");
            assert_eq!(open(2).await.unwrap().writer.epoch(), 3);
            assert_eq!(renew(2, 1_000 * MS).await, (vec![2], Some(MemberId::from_u128(2))));
            assert_eq!([1, 2, 3].map(is_known), [false, true, false]);
        });
    }

    #[test]
    fn shard_is_released_only_by_its_present_owner() {
        run(async {
            let store = Arc::new(MemoryStore::shared(&Clock::system())) as Arc<dyn Store>;
            let leases = store.leases().unwrap();
            let (one, two) = (MemberId::from_u128(1), MemberId::from_u128(2));
            for number in 1..=2 {
                leases.renew(&member(number), Duration::from_secs(60)).await.unwrap();
            }
            let owned = [Owner::lease(&store, one, &shard(0)).await, Owner::lease(&store, two, &shard(1)).await];
            assert_eq!(owned.map(|owner| owner.unwrap().writer.epoch()), [1, 1]);
            let owners = async || {
                let renewed = leases.renew(&member(1), Duration::from_secs(60)).await.unwrap();
                [0, 1].map(|number| renewed.owner(&shard(number)))
            };
            for (member, epoch) in [(two, 1), (one, 2), (one, 0)] {
                leases.release(member, &shard(0), epoch).await.unwrap();
                assert_eq!(owners().await, [Some(one), Some(two)], "{member:?} under {epoch}");
            }
            leases.release(one, &shard(0), 1).await.unwrap();
            assert_eq!(owners().await, [None, Some(two)]);
            Owner::lease(&store, one, &shard(0)).await.unwrap();
            leases.leave(two).await.unwrap();
            assert_eq!(owners().await, [Some(one), None]);
        });
    }
}
