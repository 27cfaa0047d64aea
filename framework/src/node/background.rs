//! Background tasks of each thread: complete commits, relay committed messages, passivate idle actors.
//!
//! Started by the thread's [runtime](super::thread) under the [supervisor](super::supervisor).

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::NodeEnd;
use super::publisher::{self, earliest, until};
use super::thread::ThreadRuntime;
use crate::message::ShardId;
use crate::relay::Forward;
use crate::store::StoreError;
use crate::telemetry::TARGET;

/// Time-out of a request to another node for missing messages. Short: repeating the request is cheap, waiting delays
/// others.
pub(super) const ASK: Duration = Duration::from_secs(1);
/// Number of passivation sweeps per period of `passivate_after`.
const SWEEPS: u32 = 8;

/// Completes what was committed; reopens the shards when commits have failed.
pub(super) async fn release(share: Weak<ThreadRuntime>) {
    loop {
        let Some(host) = share.upgrade().map(|share| Rc::clone(&share.context)) else { return };
        let error = host.complete_commits().await;
        let Some(share) = share.upgrade() else { return };
        if let StoreError::Fenced { .. } = error {
            tracing::error!(target: TARGET, %error, "fenced: another node has taken over; shutting down");
            let reason = format!("another node has taken over: {error}");
            return share.definition.retire(&share.threads, NodeEnd::TakenOver { reason });
        }
        tracing::error!(target: TARGET, %error, "commits failed: reopening the shards");
        host.report_append_error(&error);
        let mut failures = 0;
        loop {
            match share.recover().await {
                Ok(()) => break,
                Err(error @ (StoreError::Io { .. } | StoreError::Full { .. })) if failures < 8 => {
                    failures += 1;
                    let wait = host.settings.retry.all.wait(failures, &host.ids);
                    tracing::error!(target: TARGET, %error, ?wait, "failed to reopen the shards: retrying");
                    tokio::time::sleep(wait).await;
                }
                Err(error) => {
                    tracing::error!(target: TARGET, %error, "failed to reopen the shards: restart the node");
                    *share.definition.broken.lock() = Some(format!("the store failed: {error}"));
                    host.stopped.set(true);
                    return;
                }
            }
        }
    }
}

/// Forwards committed messages to their destinations inside this node, and hands the rest to the
/// [publisher](publisher::run): a slow broker delays nothing inside the node.
pub(super) async fn relay(share: Weak<ThreadRuntime>) {
    let mut told: BTreeMap<ShardId, u64> = BTreeMap::new();
    if let Some(share) = share.upgrade() {
        // Events committed before the start are history: subscribers read them from the log.
        told.clone_from(&share.history);
    }
    let mut again: Option<Instant> = None;
    loop {
        let Some(host) = share.upgrade().map(|share| Rc::clone(&share.context)) else { return };
        let impatient = tokio::select! {
            biased;
            () = host.relay.notified() => false,
            () = until(again) => true,
        };
        let Some(share) = share.upgrade() else { return };
        share.relaying.set(true);
        if impatient {
            again = publisher::impatience(&share, |to| share.owns(to));
            share.store_floors(1024);
        }
        let next = relay_once(&share, &mut told).await;
        again = earliest(again, next);
        share.relaying.set(false);
        host.idle.look();
    }
}

async fn relay_once(share: &Rc<ThreadRuntime>, told: &mut BTreeMap<ShardId, u64>) -> Option<Instant> {
    let mut again = None;
    let onward = onward(share);
    for cell in share.context.take_dirty() {
        let (id, reader) = (&cell.id, cell.reader());
        if let Some(lanes) = share.send_windows.get(id) {
            if let Err(error) = lanes.pump(&reader, &onward, |to| share.owns(to)).await {
                tracing::warn!(target: TARGET, shard = %id, %error, "failed to read the outbox");
                publisher::retry(&share.context, &cell);
            }
            again = earliest(again, lanes.next_impatience(|to| share.owns(to)));
            if share.definition.bridge.is_none() {
                share.report_unreachable(id, &reader.outbox_heads());
            }
        }
        let position = reader.position();
        if told.insert(id.clone(), position).unwrap_or(0) < position
            && share.definition.sources.contains_key(&id.domain)
        {
            // Every thread may have subscribers; each reads the events from the log.
            share.threads.head(id, position);
        }
        if share.definition.bridge.is_some() {
            share.publisher.look_at(&cell);
        }
    }
    again
}

/// Returns the function that forwards an outbox entry to its receive window on this node.
fn onward(share: &Rc<ThreadRuntime>) -> Forward {
    let share = Rc::clone(share);
    Rc::new(move |envelope| {
        let Some(to) = &envelope.to else { return true };
        let home = share.definition.home(to.shard);
        if home == share.index {
            share.direct(envelope, Box::new(|_| {}));
        } else {
            share.threads.run(home, Box::new(move |share| share.direct(envelope, Box::new(|_| {}))));
        }
        true
    })
}

/// Passivates idle actors, and stores the watermarks of this thread.
pub(super) async fn sweep(share: Weak<ThreadRuntime>) {
    loop {
        let Some((every, cap)) = share
            .upgrade()
            .map(|share| (share.definition.config.passivate_after / SWEEPS, share.definition.config.live_actors))
        else {
            return;
        };
        tokio::time::sleep(every).await;
        let Some(share) = share.upgrade() else { return };
        share.context.sweeps.set(share.context.sweeps.get() + 1);
        for door in share.endpoints.values() {
            door.passivate_idle(u64::from(SWEEPS), cap);
        }
        share.store_floors(1);
        if share.index == 0 {
            share.definition.store.forget_ids(share.context.dedup_horizon());
        }
    }
}
