//! Skipped events of a projection, stored permanently.
//!
//! Called by the view's actor. Stored beside the view and outliving it: a rebuilt view skips them too.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Coded as _, MessageId, Name, ShardId};
use whizbang_core::store::{Store, StoreError, View};

/// An event that a projection skips on an operator's request. It stays in its owner's log; the projection's view does
/// not contain it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SkippedEvent {
    /// The domain that owns the event.
    pub domain: String,
    /// The shard of the domain.
    pub shard: u16,
    /// The event's position in the shard's log.
    pub position: u64,
    /// The event's id.
    pub id: MessageId,
    /// Reason why it could not be projected.
    pub reason: String,
    /// Time of the skip.
    pub time: Timestamp,
}

impl SkippedEvent {
    pub(super) fn is_at(&self, shard: &ShardId, position: u64) -> bool {
        self.position == position && self.shard == shard.shard && self.domain == shard.domain.as_str()
    }
}

/// Reason why an event was not skipped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SkipError {
    /// The projection is not halted at that position of that shard. Nothing was changed.
    #[error("projection `{projection}` is not halted at position {position} of {shard}")]
    NotHalted {
        /// The projection.
        projection: String,
        /// The shard.
        shard: String,
        /// The position.
        position: u64,
    },
    /// The skip could not be stored. The projection is still halted; try again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Returns the name under which the skips of a projection are stored; no derived name has an upper-case letter.
fn name_of(projection: &Name) -> Name {
    let whole = format!("SKIPS-{projection}");
    let hashed = || Name::new(&format!("SKIPS-{:08x}", whizbang_core::message::stable_hash(projection))).ok();
    Name::new(&whole).ok().or_else(hashed).unwrap_or_else(|| projection.clone())
}

/// Returns the skips of a projection, oldest first.
pub(crate) async fn skipped(store: &dyn Store, projection: &Name) -> Result<Vec<SkippedEvent>, StoreError> {
    match store.view(&name_of(projection)).await? {
        Some(stored) => Ok(Vec::restore(&stored.bytes)?),
        None => Ok(Vec::new()),
    }
}

/// Replaces the skips of a projection durably.
pub(super) async fn save(store: &dyn Store, projection: &Name, skips: &Vec<SkippedEvent>) -> Result<(), StoreError> {
    let name = name_of(projection);
    let bytes = Bytes::from(skips.save()?);
    let epoch = store.claim_view(&name).await?;
    store.save_view(&name, epoch, View { schema: 1, checkpoint: Vec::new(), bytes }).await
}
