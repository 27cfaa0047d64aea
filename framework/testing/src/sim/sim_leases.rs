//! Leases of a simulated store that several nodes of a service share.
//!
//! Called by nodes as the leases of their [store](super::store). The leases are those of the store in memory, behind a connection
//! that can be cut; the [rules of ownership](super::ownership_rules) observe them.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::store::SimStore;
use whizbang_core::message::ShardId;
use whizbang_core::store::{CommitListener, Epoch, Leases, Member, MemberId, ShardHandle, ShardLeases, StoreError};

/// The leases, for the node with this handle of the store.
pub(super) struct SimLeases {
    /// The store of the node.
    pub(super) store: SimStore,
    /// The leases of the store in memory.
    pub(super) inner: Arc<dyn ShardLeases>,
}

impl ShardLeases for SimLeases {
    fn renew<'a>(&'a self, member: &'a Member, ttl: Duration) -> BoxFuture<'a, Result<Leases, StoreError>> {
        Box::pin(async move {
            self.store.handle().request().await?;
            self.store.check_open()?;
            self.store.handle().set_member(member.id);
            let renewed = self.inner.renew(member, ttl).await?;
            self.store.ownership().renewed(member.id, ttl);
            self.store.handle().reply().await?;
            Ok(renewed)
        })
    }

    fn open<'a>(
        &'a self,
        member: MemberId,
        shard: &'a ShardId,
        shards: u16,
        listener: Arc<dyn CommitListener>,
    ) -> BoxFuture<'a, Result<Option<ShardHandle>, StoreError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.store.handle().request().await?;
            let incarnation = self.store.incarnation_of(listener)?;
            let opened = self.inner.open(member, shard, shards, incarnation.as_listener()).await?;
            let Some(handle) = opened else {
                self.store.handle().reply().await?;
                return Ok(None);
            };
            self.store.ownership().opened(member, shard, handle.writer.epoch());
            let wrapped = self.store.wrap(shard, handle, incarnation);
            self.store.handle().reply().await?;
            Ok(Some(wrapped))
        })
    }

    fn release<'a>(
        &'a self,
        member: MemberId,
        shard: &'a ShardId,
        epoch: Epoch,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.store.handle().request().await?;
            self.inner.release(member, shard, epoch).await?;
            self.store.ownership().released(member, shard, epoch);
            self.store.handle().reply().await
        })
    }

    fn leave(&self, member: MemberId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.store.handle().request().await?;
            self.inner.leave(member).await?;
            self.store.ownership().left(member);
            self.store.handle().reply().await
        })
    }
}
