//! The leases of a store that the nodes of a service share, as the node calls them.
//!
//! Called by the node, through the trait `ShardLeases`. The [lease table](crate::lease_table) has the statements; taking and
//! releasing a shard also changes the open shards of this process.
//!
//! Only `open` waits for another owner: the commits of an owner in this process are written first. `renew` never does, so a
//! busy store does not lose its leases.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use whizbang_core::message::ShardId;
use whizbang_core::store::{CommitListener, Epoch, Leases, Member, MemberId, ShardHandle, ShardLeases, StoreError};

use crate::inner::Inner;

/// The leases of a store that its nodes share. They end with the store.
pub(crate) struct PostgresLeases(pub(crate) Weak<Inner>);

impl PostgresLeases {
    /// Returns the store, unless it was dropped.
    ///
    /// # Errors
    /// [`StoreError::Closed`] after the store was dropped.
    fn store(&self) -> Result<Arc<Inner>, StoreError> {
        self.0.upgrade().ok_or(StoreError::Closed)
    }
}

impl ShardLeases for PostgresLeases {
    fn renew<'a>(&'a self, member: &'a Member, ttl: Duration) -> BoxFuture<'a, Result<Leases, StoreError>> {
        async move { self.store()?.lease_table()?.renew(member, ttl).await }.boxed()
    }

    fn open<'a>(
        &'a self,
        member: MemberId,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<Option<ShardHandle>, StoreError>> {
        async move { self.store()?.take(shard, shards, listener, Some(member)).await }.boxed()
    }

    fn release<'a>(
        &'a self,
        member: MemberId,
        shard: &'a ShardId,
        epoch: Epoch,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let store = self.store()?;
            store.close_shard(shard, epoch);
            store.lease_table()?.release(member, shard, epoch).await
        }
        .boxed()
    }

    fn leave(&self, member: MemberId) -> BoxFuture<'_, Result<(), StoreError>> {
        async move { self.store()?.lease_table()?.leave(member).await }.boxed()
    }
}
