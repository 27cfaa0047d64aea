//! Publisher: sends outbox entries to their owners, events to their subscribers, and confirmations to peers, over the
//! bridge.
//!
//! Woken by the relay, which has handled a shard's local destinations first. Only this task waits for the broker, so
//! a slow broker delays nothing inside the node. Nothing accumulates here while the broker hangs: only the set of
//! dirty shards; the messages stay in their logs.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use tokio::time::Instant;

use crate::actor::{OwnedShard, ThreadContext};
use crate::node::definition::REQUEST_TIMEOUT;
use crate::node::relay::republish::{PAGE, find_published};
use crate::node::thread::ThreadRuntime;
use crate::relay::{Forward, StalledWindows, envelope_of, page};
use whizbang_core::bridge::{Notification, Request, RequestError, Response};
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, ShardId};
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

/// Payload bytes gathered from the outboxes of a thread after which they are sent before more is read.
const MAX_BATCH_BYTES: usize = 8 << 20;
/// Number of shards that publish a page of events concurrently.
const MAX_PUBLISHING: usize = 16;

/// Publishes committed messages to other services, over the bridge.
pub(in crate::node) async fn run(runtime: Weak<ThreadRuntime>) {
    let mut asking: Option<whizbang_core::spawn::Task> = None;
    let mut heads = HeadAnnouncements::default();
    if let Some(runtime) = runtime.upgrade() {
        runtime.publisher.is_used.set(true);
        asking = find_published(&runtime, &runtime.shards()).map(whizbang_core::spawn::local);
        for cell in runtime.shards() {
            // Shards whose events did not all reach the broker before this task failed.
            if runtime.publisher.published.borrow().get(&cell.id).is_some_and(|last| *last < cell.opened_at) {
                runtime.publisher.mark_dirty(&cell);
            }
            if cell.opened_at > 0 {
                heads.advance(&cell.id, cell.opened_at);
            }
        }
    }
    let mut again: Option<Instant> = None;
    loop {
        let Some(publisher) = runtime.upgrade().map(|runtime| Rc::clone(&runtime.publisher)) else {
            return drop(asking);
        };
        let impatient = tokio::select! {
            biased;
            () = publisher.wake.notified() => false,
            () = until(again) => true,
        };
        let Some(runtime) = runtime.upgrade() else { return };
        publisher.is_running.set(true);
        if impatient {
            again = check_stalled(&runtime);
            runtime.store_watermarks(1024);
        }
        let next = publish_once(&runtime, &mut heads).await;
        again = earliest(earliest(again, next), heads.announce(&runtime).await);
        publisher.is_running.set(false);
        runtime.context.idle.notify();
    }
}

/// Restarts the send windows that are overdue; finding them costs the number of windows.
pub(in crate::node) fn restart_stalled(runtime: &ThreadRuntime, of: impl Fn(&ShardId) -> bool) -> Option<Instant> {
    let mut again = None;
    for (id, windows) in runtime.all_windows() {
        let (restarted, next) = windows.restart_stalled(&of, |to| runtime.report_stalled(&id, to));
        if let Some(cell) = runtime.shard(&id).filter(|_| restarted) {
            runtime.context.mark_dirty(&cell);
        }
        again = earliest(again, next);
    }
    again
}

/// Checks the send windows to other services that are overdue: entries that the bridge refused are sent again, and
/// the destinations of the others are queried.
fn check_stalled(runtime: &Rc<ThreadRuntime>) -> Option<Instant> {
    let mut again = None;
    for (id, windows) in runtime.all_windows() {
        let StalledWindows { restarted, to_query, next } =
            windows.check_stalled(|to| !runtime.is_local(to), |to| runtime.report_stalled(&id, to));
        if let Some(cell) = runtime.shard(&id).filter(|_| restarted) {
            runtime.publisher.mark_dirty(&cell);
        }
        for (to, sent) in to_query {
            query_progress(runtime, &id, &to, sent);
        }
        again = earliest(again, next);
    }
    again
}

/// Queries the owner of `to` how far it has committed messages of `from`, and reports how far they were sent.
fn query_progress(runtime: &Rc<ThreadRuntime>, from: &ShardId, to: &ShardId, sent: u64) {
    let Some(bridge) = runtime.definition.bridge.clone() else { return };
    let (me, from, to) = (Rc::downgrade(runtime), from.clone(), to.clone());
    whizbang_core::spawn::detached(&runtime.context.user_code, "query a destination", async move {
        let asked = Request::Sent { from: from.clone(), to: to.clone(), through: sent };
        let answer = bridge.request(asked, REQUEST_TIMEOUT).await;
        let Some(runtime) = me.upgrade() else { return };
        let Some(windows) = runtime.windows_of(&from) else { return };
        let through = if let Ok(Response::Watermark { through, .. }) = answer { through } else { 0 };
        if windows.answered(&to, through) {
            runtime.note_committed(&from, &to, through);
        } else if let Ok(Response::Refused(RequestError::Undecodable(_))) = answer
            && let Some(cell) = runtime.shard(&from)
        {
            // An owner of an earlier version does not know the request and fetches nothing: send everything again.
            windows.restart(&to);
            runtime.publisher.mark_dirty(&cell);
        }
    });
}

/// Delays after the last event of a shard at which its head is announced. A subscriber that lost the last events and
/// earlier announcements notices by the next one.
const ANNOUNCE_AFTER: [Duration; 8] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(15),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(300),
];

/// Log heads to be announced.
///
/// By shard: the position, the number of announcements so far, and the time of the next one.
#[derive(Default)]
struct HeadAnnouncements(BTreeMap<ShardId, (u64, usize, Option<Instant>)>);

impl HeadAnnouncements {
    /// Begins to announce a new position. The announcement of an earlier one is superseded.
    fn advance(&mut self, shard: &ShardId, position: u64) {
        self.0.insert(shard.clone(), (position, 0, ANNOUNCE_AFTER.first().map(|wait| instant() + *wait)));
    }

    /// Announces the head of a shard that was opened while the node runs, at once: its last owner may not have
    /// published the last events.
    fn begin(&mut self, shard: &OwnedShard) {
        if shard.opened_at > 0 && !self.0.contains_key(&shard.id) {
            self.0.insert(shard.id.clone(), (shard.opened_at, 0, Some(instant())));
        }
    }

    /// Sends the announcements that are due, and returns the time of the next one.
    async fn announce(&mut self, runtime: &ThreadRuntime) -> Option<Instant> {
        let bridge = runtime.definition.bridge.as_ref()?;
        self.0.retain(|shard, _| runtime.shard(shard).is_some());
        let now = instant();
        let mut next = None;
        for (shard, (position, told, at)) in &mut self.0 {
            if at.is_some_and(|at| at <= now) {
                if let Err(error) =
                    bridge.notify(Notification::Head { shard: shard.clone(), position: *position }).await
                {
                    tracing::debug!(
                        target: TARGET, error = %error_chain(&error),
                        "failed to announce a log head: announced again later",
                    );
                }
                *told += 1;
                *at = ANNOUNCE_AFTER.get(*told).map(|wait| now + *wait);
            }
            next = earliest(next, *at);
        }
        next
    }
}

/// Sends what the dirty shards have committed: outbox entries to their owners, events to their subscribers, and confirmations.
/// Messages of all shards are in flight together.
async fn publish_once(runtime: &Rc<ThreadRuntime>, heads: &mut HeadAnnouncements) -> Option<Instant> {
    let mut again = None;
    let outgoing: Rc<RefCell<Vec<Envelope>>> = Rc::default();
    let (gather, bytes) = (Rc::clone(&outgoing), Cell::new(0));
    let onward: Forward = Rc::new(move |envelope| {
        bytes.set(bytes.get() + envelope.payload.len());
        gather.borrow_mut().push(envelope);
        bytes.get() < MAX_BATCH_BYTES
    });
    let mut full = false;
    let mut grown = Vec::new();
    let cells = std::mem::take(&mut *runtime.publisher.dirty.borrow_mut());
    for (id, cell) in cells.into_iter().filter(|(_, cell)| runtime.is_current(cell)) {
        let reader = cell.reader();
        heads.begin(&cell);
        if let Some(windows) = runtime.windows_of(&id) {
            if !full {
                let forwarded = windows.forward_pending(&reader, &onward, |to| !runtime.is_local(to)).await;
                runtime.count_read(&id, "outbox to other services", &forwarded);
                match forwarded {
                    Ok(all) => full = !all,
                    Err(error) => {
                        tracing::warn!(
                            target: TARGET, shard = %id, error = %error_chain(&error),
                            "failed to read the outbox",
                        );
                        retry(&runtime.context, &cell);
                    }
                }
            }
            if full {
                // Memory is bounded: the remaining outboxes are read once this batch is with the broker.
                runtime.publisher.mark_dirty(&cell);
            }
            again = earliest(again, windows.next_retry(|to| !runtime.is_local(to)));
        }
        let position = reader.position();
        // Nothing of a shard is published until it is known what the broker holds: it would overtake the missing
        // events.
        let last = runtime.publisher.published.borrow().get(&id).copied();
        if let Some(last) = last.filter(|last| position > *last) {
            grown.push((cell, last, position));
        }
    }
    // Messages of several shards are in flight together: the broker's latency is paid once, not per shard.
    let batch = std::mem::take(&mut *outgoing.borrow_mut());
    let publishing = grown.iter().map(|(cell, last, position)| publish(runtime, cell, *last, *position));
    let publishing = stream::iter(publishing).buffered(MAX_PUBLISHING).collect::<Vec<_>>();
    let (ends, ()) = tokio::join!(publishing, send(runtime, batch));
    let grown = grown.into_iter().zip(ends).filter(|((cell, ..), _)| runtime.is_current(cell));
    for ((cell, _, position), end) in grown {
        runtime.publisher.published.borrow_mut().insert(cell.id.clone(), end);
        // Events committed since the position was read may have been published too.
        heads.advance(&cell.id, position.max(end));
        if end < position {
            retry(&runtime.context, &cell);
        }
    }
    send_confirmations(runtime).await;
    again
}

/// Waits until `at`; forever if there is none.
pub(in crate::node) async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Marks a shard dirty again after a delay.
pub(in crate::node) fn retry(context: &Rc<ThreadContext>, cell: &Rc<OwnedShard>) {
    let (context, cell) = (Rc::clone(context), Rc::clone(cell));
    whizbang_core::spawn::detached(&Arc::clone(&context.user_code), "retry a shard", async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        context.mark_dirty(&cell);
    });
}

/// Returns the earlier of two times; a missing one never comes.
pub(in crate::node) fn earliest(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Sends outbox entries. A refused entry stays in the outbox and is sent again.
async fn send(runtime: &Rc<ThreadRuntime>, batch: Vec<Envelope>) {
    let Some(bridge) = runtime.definition.bridge.as_ref().filter(|_| !batch.is_empty()) else { return };
    let sending = batch.into_iter().map(|envelope| {
        let place = envelope.origin.as_ref().map(|origin| (origin.shard.clone(), origin.sequence));
        let place = place.zip(envelope.to.clone());
        let sent = bridge.send(runtime.definition.signed(envelope));
        async move { (place, sent.await) }
    });
    for (place, result) in join_all(sending).await {
        if let Err(error) = &result {
            tracing::debug!(
                target: TARGET, error = %error_chain(error),
                "outbox entry refused by the bridge: sent again",
            );
        }
        let Some(((from, sequence), to)) = place else { continue };
        let Some(windows) = runtime.windows_of(&from) else { continue };
        if result.is_err() {
            windows.refused(&to, sequence);
        } else if windows.accepted(&to, sequence)
            && let Some(cell) = runtime.shard(&from)
        {
            runtime.publisher.mark_dirty(&cell);
        }
    }
}

/// Publishes the events above `last` up to `position`, and returns the last published position.
async fn publish(runtime: &Rc<ThreadRuntime>, cell: &Rc<OwnedShard>, mut last: u64, position: u64) -> u64 {
    let Some(bridge) = &runtime.definition.bridge else { return position };
    let (id, reader) = (&cell.id, cell.reader());
    while last < position {
        let read = page::events(&*reader, last, PAGE).await;
        runtime.count_read(id, "events to be published", &read);
        let events = match read {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(target: TARGET, shard = %id, error = %error_chain(&error), "failed to read the log");
                return last;
            }
        };
        let Some(end) = events.last().map(|event| event.position) else { return last };
        let count = events.len() as u64;
        let definition = &runtime.definition;
        let signed = |event| definition.signed(definition.shapes.mark(envelope_of(id, event)));
        if let Err(error) = bridge.publish_all(events.into_iter().map(signed).collect()).await {
            tracing::debug!(
                target: TARGET, shard = %id, error = %error_chain(&error),
                "events refused by the bridge: published again",
            );
            return last;
        }
        runtime.context.counts.sent.many(count);
        last = end;
    }
    last
}

/// Confirms to the shards of other services how far this node has committed their messages. An entry stays in the
/// list until it is sent, so a restarted task sends it.
async fn send_confirmations(runtime: &Rc<ThreadRuntime>) {
    let Some(bridge) = &runtime.definition.bridge else { return };
    loop {
        let next = runtime.confirmations.borrow().first_key_value().map(|(of, through)| (of.clone(), *through));
        let Some(((from, to), through)) = next else { return };
        let told = bridge.notify(Notification::Committed { from: from.clone(), to: to.clone(), through }).await;
        if let Err(error) = told {
            tracing::debug!(
                target: TARGET, error = %error_chain(&error),
                "failed to confirm a watermark: the next one covers it",
            );
        }
        if let Entry::Occupied(entry) = runtime.confirmations.borrow_mut().entry((from, to))
            && *entry.get() == through
        {
            entry.remove();
        }
    }
}
