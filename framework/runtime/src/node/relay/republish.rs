//! Republishing: finds events that were committed but not published before the node ended, by asking the broker what
//! it holds.
//!
//! Called by the publisher when it starts. Asks in the background, shard by shard: a hanging broker delays the events
//! of the shards that it has not answered for, and nothing else, and health reports it.
//!
//! A crash between a commit and its publication leaves events in the log that the broker never received. Nodes of
//! this framework read them from the log; other subscribers have only the broker, so these events are published now.
//! The broker's last event of a shard decides. If it holds none, because it was emptied or all events exceed its
//! retention, the last [`MAX_REPUBLISHED`] events are published: more would flood it with history, and subscribers
//! drop duplicates by position.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::actor::OwnedShard;
use crate::node::thread::ThreadRuntime;
use whizbang_core::bridge::Bridge;
use whizbang_core::message::ShardId;
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

/// Most events of a shard that are published again at start if the broker holds none. More than are ever in flight to
/// the broker at once.
const MAX_REPUBLISHED: u64 = 1024;
/// Time without an answer from the broker after which health reports it.
const REPORT_AFTER: Duration = Duration::from_secs(5);

/// Begins to publish the events of a shard that was opened while the node runs.
pub(in crate::node) fn start_publishing(runtime: &Rc<ThreadRuntime>, shard: &Rc<OwnedShard>) {
    if let Some(asking) = find_published(runtime, std::slice::from_ref(shard)) {
        whizbang_core::spawn::detached(&runtime.context.user_code, "find published events", asking);
    }
}

/// Returns the task that finds the position up to which the events of these shards are published. Shards without
/// history are known at once; `None` if all are.
pub(in crate::node) fn find_published(
    runtime: &Rc<ThreadRuntime>,
    shards: &[Rc<OwnedShard>],
) -> Option<impl Future<Output = ()> + use<>> {
    let bridge = Arc::clone(runtime.definition.bridge.as_ref()?);
    let mut unknown = Vec::new();
    for shard in shards {
        let known = runtime.publisher.published.borrow().contains_key(&shard.id);
        match shard.opened_at {
            _ if known => {}
            0 => drop(runtime.publisher.published.borrow_mut().insert(shard.id.clone(), 0)),
            _ => unknown.push(Rc::clone(shard)),
        }
    }
    if unknown.is_empty() {
        return None;
    }
    runtime.publisher.unanswered.borrow_mut().extend(unknown.iter().map(|shard| shard.id.clone()));
    let me = Rc::downgrade(runtime);
    let issues = Arc::clone(&runtime.definition.issues);
    let trouble = format!("published events of thread {}", runtime.index);
    Some(async move {
        let counted = unknown.len();
        let asking = join_all(unknown.into_iter().map(|shard| {
            let (me, bridge) = (me.clone(), Arc::clone(&bridge));
            async move {
                let last = last_published(&*bridge, &shard.id, shard.opened_at).await;
                if let Some(runtime) = me.upgrade() {
                    note_published(&runtime, &shard, last);
                }
            }
        }));
        let mut asking = std::pin::pin!(asking);
        if tokio::time::timeout(REPORT_AFTER, &mut asking).await.is_err() {
            let why = format!(
                "the broker has not reported its last events of {counted} shards: \
                 their events are not published yet; check the server"
            );
            if issues.raise(&trouble, why) {
                tracing::warn!(target: TARGET, "no answer from the broker about its last events: publishing delayed");
            }
            asking.await;
            issues.resolve(&trouble);
        }
    })
}

/// Records up to which position the events of a shard are published. The later ones are published now.
fn note_published(runtime: &Rc<ThreadRuntime>, shard: &Rc<OwnedShard>, last: u64) {
    if !runtime.is_current(shard) {
        return;
    }
    let publisher = &runtime.publisher;
    publisher.published.borrow_mut().insert(shard.id.clone(), last);
    publisher.unanswered.borrow_mut().remove(&shard.id);
    publisher.mark_dirty(shard);
    runtime.context.idle.notify();
}

/// Returns the position up to which the events of a shard are published; its log reaches up to `position`.
async fn last_published(bridge: &dyn Bridge, id: &ShardId, position: u64) -> u64 {
    match bridge.last_published(id).await {
        Ok(Some(last)) => last.min(position),
        Ok(None) if bridge.keeps_events() => position.saturating_sub(MAX_REPUBLISHED),
        Ok(None) => position,
        Err(error) => {
            tracing::warn!(
                target: TARGET, shard = %id, error = %error_chain(&error),
                "failed to read the last published event: events of a crash may be missing at the broker",
            );
            position
        }
    }
}
