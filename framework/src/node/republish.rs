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

use super::thread::ThreadRuntime;
use crate::bridge::Bridge;
use crate::message::ShardId;
use crate::spawn::{self, Task};
use crate::telemetry::TARGET;

/// Most events of a shard that are published again at start if the broker holds none. More than are ever in flight to
/// the broker at once.
const REPUBLISHED: u64 = 1024;
/// Time without an answer from the broker after which health reports it.
const SLOW: Duration = Duration::from_secs(5);

/// Finds, in the background, the position up to which the events of each shard of this thread are published. Shards
/// without history are known at once.
pub(super) fn ask_what_is_published(share: &Rc<ThreadRuntime>) -> Option<Task> {
    let bridge = Arc::clone(share.definition.bridge.as_ref()?);
    let mut unknown = Vec::new();
    for (id, position) in &share.history {
        let known = share.publisher.published.borrow().contains_key(id);
        match *position {
            _ if known => {}
            0 => drop(share.publisher.published.borrow_mut().insert(id.clone(), 0)),
            position => unknown.push((id.clone(), position)),
        }
    }
    share.publisher.unanswered.set(unknown.len());
    if unknown.is_empty() {
        return None;
    }
    let me = Rc::downgrade(share);
    let (standing, counted) = (Arc::clone(&share.definition.issues), unknown.len());
    let trouble = format!("published events of thread {}", share.index);
    Some(spawn::local(async move {
        let asking = join_all(unknown.into_iter().map(|(id, position)| {
            let (me, bridge) = (me.clone(), Arc::clone(&bridge));
            async move {
                let last = published_before(&*bridge, &id, position).await;
                let Some(share) = me.upgrade() else { return };
                share.publisher.published.borrow_mut().insert(id.clone(), last);
                share.publisher.unanswered.set(share.publisher.unanswered.get().saturating_sub(1));
                if let Some(cell) = share.shards.get(&id) {
                    share.publisher.look_at(cell);
                }
                share.context.idle.look();
            }
        }));
        let mut asking = std::pin::pin!(asking);
        if tokio::time::timeout(SLOW, &mut asking).await.is_err() {
            let why = format!(
                "the broker has not reported its last events of {counted} shards: \
                 their events are not published yet; check the server"
            );
            if standing.raise(&trouble, why) {
                tracing::warn!(target: TARGET, "no answer from the broker about its last events: publishing delayed");
            }
            asking.await;
            standing.resolve(&trouble);
        }
    }))
}

/// Returns the position up to which the events of a shard are published; its log reaches up to `position`.
async fn published_before(bridge: &dyn Bridge, id: &ShardId, position: u64) -> u64 {
    match bridge.last_published(id).await {
        Ok(Some(last)) => last.min(position),
        Ok(None) if bridge.keeps_events() => position.saturating_sub(REPUBLISHED),
        Ok(None) => position,
        Err(error) => {
            tracing::warn!(
                target: TARGET, shard = %id, %error,
                "failed to read the last published event: events of a crash may be missing at the broker",
            );
            position
        }
    }
}
