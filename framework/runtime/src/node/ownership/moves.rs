//! The moves of shards, as futures that run beside the renewals: a slow move never delays a renewal.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::host::{Opening, ShardHost};
use whizbang_core::message::ShardId;
use whizbang_core::store::{Epoch, MemberId, ShardLeases, StoreError};
use whizbang_core::telemetry::{TARGET, error_chain};

/// Longest wait for the thread of a shard that is handed over, which limits its turns by itself unless it is blocked.
const DRAIN: Duration = Duration::from_secs(12);
/// Longest wait for the bridge to stop receiving. A shard that is closed refuses what still arrives.
const STOP_RECEIVING: Duration = Duration::from_secs(1);
/// Longest wait for the store to release a shard. After that it stays with its owner, which opens it again.
const RELEASE: Duration = Duration::from_secs(2);
/// Attempts to release a shard.
const RELEASES: u32 = 3;

/// A finished move.
#[derive(Debug)]
pub(super) enum Moved {
    /// An opening has ended.
    Opened(ShardId, Result<Opening, StoreError>),
    /// A shard is closed, and released if the store could be reached.
    HandedOver(ShardId),
    /// A lost shard is closed.
    Dropped(ShardId),
    /// The bridge receives for a shard, or has failed to.
    Receiving(ShardId, Epoch, Result<(), String>),
    /// It is time to try again to receive for a shard.
    ReceiveDue(ShardId, Epoch),
    /// The bridge has stopped to receive for a shard.
    Silenced,
}

pub(super) type Move = BoxFuture<'static, Moved>;

/// Opens a shard.
pub(super) fn open(host: &Arc<dyn ShardHost>, shard: ShardId) -> Move {
    let host = Arc::clone(host);
    Box::pin(async move {
        let opened = host.open(shard.clone()).await;
        Moved::Opened(shard, opened)
    })
}

/// Hands a shard over: refuses new messages, finishes what has begun, and releases the shard in the store.
pub(super) fn hand_over(
    host: &Arc<dyn ShardHost>,
    leases: &Arc<dyn ShardLeases>,
    member: MemberId,
    shard: ShardId,
    epoch: Epoch,
) -> Move {
    let (host, leases) = (Arc::clone(host), Arc::clone(leases));
    Box::pin(async move {
        silence(&host, &shard).await;
        if tokio::time::timeout(DRAIN, host.drain(shard.clone())).await.is_err() {
            tracing::warn!(target: TARGET, %shard, "turns not finished in time: handing the shard over anyway");
            host.drop_shard(shard.clone()).await;
        }
        for attempt in 1..=RELEASES {
            match tokio::time::timeout(RELEASE, leases.release(member, &shard, epoch)).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => {
                    tracing::warn!(target: TARGET, %shard, error = %error_chain(&error), attempt, "failed to release the shard")
                }
                Err(_) => {
                    tracing::warn!(target: TARGET, %shard, attempt, "failed to release the shard: no answer in time")
                }
            }
        }
        Moved::HandedOver(shard)
    })
}

/// Closes a shard that another member has taken.
pub(super) fn drop_lost(host: &Arc<dyn ShardHost>, shard: ShardId) -> Move {
    let host = Arc::clone(host);
    Box::pin(async move {
        host.drop_shard(shard.clone()).await;
        silence(&host, &shard).await;
        Moved::Dropped(shard)
    })
}

/// Receives for an open shard.
pub(super) fn receive(host: &Arc<dyn ShardHost>, shard: ShardId, epoch: Epoch) -> Move {
    let host = Arc::clone(host);
    Box::pin(async move {
        let received = host.receive(shard.clone(), epoch).await;
        Moved::Receiving(shard, epoch, received)
    })
}

/// Waits before receiving is tried again.
pub(super) fn receive_after(shard: ShardId, epoch: Epoch, wait: Duration) -> Move {
    Box::pin(async move {
        tokio::time::sleep(wait).await;
        Moved::ReceiveDue(shard, epoch)
    })
}

/// Stops receiving for a shard.
pub(super) fn stop_receiving(host: &Arc<dyn ShardHost>, shard: ShardId) -> Move {
    let host = Arc::clone(host);
    Box::pin(async move {
        silence(&host, &shard).await;
        Moved::Silenced
    })
}

async fn silence(host: &Arc<dyn ShardHost>, shard: &ShardId) {
    if tokio::time::timeout(STOP_RECEIVING, host.stop_receiving(shard.clone())).await.is_err() {
        tracing::warn!(target: TARGET, %shard, "receiving not stopped in time: refusing what still arrives");
    }
}
