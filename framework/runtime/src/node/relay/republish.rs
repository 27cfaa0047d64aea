//! Republishing: finds events that were committed but not published before the node ended, by asking the broker what
//! it holds.
//!
//! Called by the publisher when it starts. Asks in the background, shard by shard: a broker that does not answer delays the events
//! of the shards that it has not answered for, and nothing else, and health reports it.
//!
//! A crash between a commit and its publication leaves events in the log that the broker never received. Nodes of
//! this framework read them from the log; other subscribers have only the broker, so these events are published now.
//! The broker's last event of a shard decides. If it holds none, because it was emptied or all events exceed its
//! retention, the last [`MAX_REPUBLISHED`] events are published: more would flood it with history, and subscribers
//! drop duplicates by position. Of a JSON domain, the last page of events is published again: one of them may be missing.
//!
//! If the broker's last event is of this store and later than its log, the store is an older copy of itself: the node ends
//! before it publishes other events under known positions. A running node also ends if its store loses committed events.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::actor::OwnedShard;
use crate::inbox::HealthIssues;
use crate::node::error::NodeEnd;
use crate::node::thread::ThreadRuntime;
use crate::relay::page;
use whizbang_core::bridge::{Bridge, BridgeError, LastPublished};
use whizbang_core::message::{Codec, ShardId};
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

/// Number of events read and published at a time.
pub(super) const PAGE: usize = 256;
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
    let (mut unknown, mut empty) = (Vec::new(), Vec::new());
    for shard in shards {
        let known = runtime.publisher.published.borrow().contains_key(&shard.id);
        match shard.opened_at {
            _ if known => {}
            0 => {
                runtime.publisher.published.borrow_mut().insert(shard.id.clone(), 0);
                empty.push(Rc::clone(shard));
            }
            _ => unknown.push(Rc::clone(shard)),
        }
    }
    if unknown.is_empty() && empty.is_empty() {
        return None;
    }
    runtime.publisher.unanswered.borrow_mut().extend(unknown.iter().map(|shard| shard.id.clone()));
    let me = Rc::downgrade(runtime);
    let issues = Arc::clone(&runtime.definition.issues);
    let issue = format!("published events of thread {}", runtime.index);
    Some(async move {
        let counted = unknown.len();
        let asking = join_all(unknown.into_iter().map(|shard| {
            let (me, bridge) = (me.clone(), Arc::clone(&bridge));
            async move {
                let found = bridge.last_published(&shard.id).await;
                if let Some(runtime) = me.upgrade().filter(|runtime| !runtime.end_if_older_log(&shard, &found)) {
                    let last = last_published(&*bridge, &shard, found).await;
                    note_published(&runtime, &shard, last);
                }
            }
        }));
        // Nothing waits for the shards without history: the first event of a new one is published at once.
        let checking = join_all(empty.into_iter().map(|shard| {
            let (me, bridge) = (me.clone(), Arc::clone(&bridge));
            async move {
                let found = bridge.last_published(&shard.id).await;
                if let Some(runtime) = me.upgrade() {
                    runtime.end_if_older_log(&shard, &found);
                }
            }
        }));
        let asking = async {
            if counted > 0 {
                report_silence(asking, counted, &issues, &issue).await;
            }
        };
        tokio::join!(asking, checking);
    })
}

/// Waits for the broker's answers, and reports in health if they take long.
async fn report_silence(asking: impl Future, counted: usize, issues: &HealthIssues, issue: &str) {
    let mut asking = std::pin::pin!(asking);
    if tokio::time::timeout(REPORT_AFTER, &mut asking).await.is_err() {
        let why = format!(
            "the broker has not reported its last events of {counted} shards: \
             their events are not published yet; check the server"
        );
        if issues.raise(issue, why) {
            tracing::warn!(target: TARGET, "no answer from the broker about its last events: publishing delayed");
        }
        asking.await;
        issues.resolve(issue);
    }
}

impl ThreadRuntime {
    /// Ends the node if the broker's last event of a shard is of this node's store and later than its log. An operator may
    /// configure the node to continue.
    fn end_if_older_log(&self, shard: &OwnedShard, found: &Result<Option<LastPublished>, BridgeError>) -> bool {
        let (Ok(Some(last)), Some(own)) = (found, self.definition.identity.get()) else { return false };
        // Nothing of a shard with history is published before the answer, but the first events of one without history are.
        let here = if shard.opened_at > 0 { shard.opened_at } else { shard.reader().position() };
        if last.store != Some(own.store) || last.position <= here {
            return false;
        }
        if own.in_place_of_other {
            tracing::warn!(
                target: TARGET, shard = %shard.id, published = last.position, here,
                "store older than its events at the broker: other events are published under their positions, as configured",
            );
            return false;
        }
        self.end_older_log(&shard.id, last.position, here);
        true
    }

    /// Ends the node if a shard was opened before a position that this node knows to be committed: a standby without the last
    /// commits was promoted, or a backup restored, while the node ran. What an operator has permitted counts at the next start
    /// only, because views and subscriptions in memory contain the lost events.
    pub(in crate::node) fn end_if_shorter_log(&self, shard: &ShardId, here: u64) -> bool {
        let known = self.known_positions.of(shard);
        if here >= known {
            return false;
        }
        // Nothing more is published until the threads have ended.
        self.publisher.closed(shard);
        self.end_older_log(shard, known, here);
        true
    }

    fn end_older_log(&self, shard: &ShardId, published: u64, here: u64) {
        let end = NodeEnd::OlderLog { shard: shard.to_string(), published, here };
        tracing::error!(target: TARGET, %end, "store is an older copy: shutting down; end the process");
        self.definition.end_node(&self.threads, end);
    }
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

/// Returns the position up to which the events of a shard are published, given the broker's answer.
async fn last_published(
    bridge: &dyn Bridge,
    shard: &OwnedShard,
    found: Result<Option<LastPublished>, BridgeError>,
) -> u64 {
    let (id, position) = (&shard.id, shard.opened_at);
    match found {
        Ok(Some(last)) => before_gaps(shard, last.position.min(position)).await,
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

/// Returns the position behind which an event may be missing at the broker although it holds `last`.
///
/// The events of a page are in flight together. One may have failed and a later one may have arrived before the node was killed.
/// Nodes find it in the log. A program in another language has only the broker, so JSON events, which it can read, are published
/// again from the beginning of the page. Subscribers drop duplicates by position.
async fn before_gaps(shard: &OwnedShard, last: u64) -> u64 {
    let from = last.saturating_sub(PAGE as u64);
    match page::events(&*shard.reader(), from, PAGE).await {
        Ok(events) if events.iter().any(|event| event.codec == Codec::Json) => from,
        // What cannot be read cannot be published either: the publisher reports it.
        Ok(_) | Err(_) => last,
    }
}
