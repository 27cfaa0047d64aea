//! Restoring: loads a view from the store, or starts an empty one that is rebuilt from the first event.
//!
//! Called by the [endpoint](super::endpoint) when it starts, and when a view continues after a [halt](super::halt). Calls user
//! code. A view that cannot be used costs time and loses nothing, because its events are in the logs.

use std::collections::BTreeMap;

use super::Projection;
use super::context::ViewContext;
use whizbang_core::message::{CodecError, ShardId};
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::{TARGET, shortened};
use whizbang_core::user_code::user_code;

/// A view with its positions.
pub(super) struct Restored<P> {
    pub(super) view: Box<P>,
    pub(super) positions: BTreeMap<ShardId, u64>,
    pub(super) bytes: usize,
    /// `Some` if the view is rebuilt from the first event, with the positions that it must reach before it answers queries, beside
    /// the ends of the logs: those of the stored view. Empty if none was stored, and if its positions are beyond the logs.
    pub(super) rebuilt: Option<Vec<(ShardId, u64)>>,
}

/// Loads the stored view; returns an empty one if there is none that can be used.
pub(super) async fn restore<P: Projection>(context: &ViewContext) -> Result<Restored<P>, StoreError> {
    let stored = context.store.view(&context.name).await?;
    let empty = |rebuilt: Vec<(ShardId, u64)>| {
        let label = context.code.label(P::NAME, "");
        let initial = context.code.call(label, || Box::new(P::initial()));
        let view = initial.map_err(|panicked| CodecError::Decode { reason: format!("`Default` {panicked}") })?;
        Ok(Restored { view, positions: BTreeMap::new(), bytes: 0, rebuilt: Some(rebuilt) })
    };
    let Some(stored) = stored else { return empty(Vec::new()) };
    if stored.schema != P::SCHEMA {
        tracing::info!(
            target: TARGET, projection = %context.name, stored = stored.schema, schema = P::SCHEMA,
            "view has another schema: rebuilt from the first event",
        );
        return empty(stored.checkpoint);
    }
    let bytes = stored.bytes.clone();
    let restored =
        match context.run_user_code(bytes.len(), move || user_code(|| P::restore(&bytes).map(Box::new))).await {
            Some(Ok(Ok(view))) => Ok(view),
            Some(Ok(Err(error))) => Err(error.to_string()),
            Some(Err(panicked)) => {
                context.code.counts.panics.one();
                Err(panicked.to_string())
            }
            None => Err("thread ended".to_owned()),
        };
    match restored {
        Ok(view) => {
            context.issues.clear_note(&format!("restored view {}", context.name));
            if let Some(shard) = newer_than_its_log(context, &stored.checkpoint).await? {
                tracing::warn!(
                    target: TARGET, projection = %context.name, %shard,
                    "view is newer than the log: is the store an older copy? Rebuilding the view from the first event",
                );
                return empty(Vec::new());
            }
            let positions = stored.checkpoint.into_iter().collect();
            Ok(Restored { view, positions, bytes: stored.bytes.len(), rebuilt: None })
        }
        Err(error) => {
            context.code.counts.states_unrestored.one();
            let reason = format!("view of projection `{}` not restored, each start rebuilds it: {error}", context.name);
            if context.issues.note(&format!("restored view {}", context.name), shortened(reason)) {
                tracing::error!(target: TARGET, projection = %context.name, error, "view not restored: rebuilt from the first event");
            }
            empty(stored.checkpoint)
        }
    }
}

/// Returns a shard of this store whose log ends before the view's position, if any.
async fn newer_than_its_log(
    context: &ViewContext,
    checkpoint: &[(ShardId, u64)],
) -> Result<Option<ShardId>, StoreError> {
    for (shard, position) in checkpoint {
        let log = context.store.read(shard).await?;
        if log.is_some_and(|log| log.position() < *position) {
            return Ok(Some(shard.clone()));
        }
    }
    Ok(None)
}
