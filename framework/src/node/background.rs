//! Background tasks of each thread: release commits, relay, passivate idle actors.

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

/// How long another node is waited for when something is missing. Short: asking again costs little, waiting holds things up.
pub(super) const ASK: Duration = Duration::from_secs(1);
/// How often the idle are looked for, as parts of the time they may be idle.
const SWEEPS: u32 = 8;

/// Releases what was committed; opens the shards again when commits have failed.
pub(super) async fn release(share: Weak<ThreadRuntime>) {
    loop {
        let Some(host) = share.upgrade().map(|share| Rc::clone(&share.context)) else { return };
        let error = host.complete_commits().await;
        let Some(share) = share.upgrade() else { return };
        if let StoreError::Fenced { .. } = error {
            tracing::error!(target: TARGET, %error, "another node has taken over: this one serves no more");
            let reason = format!("another node has taken over: {error}");
            return share.definition.retire(&share.threads, NodeEnd::TakenOver { reason });
        }
        tracing::error!(target: TARGET, %error, "commits have failed, opening the shards again");
        host.report_append_error(&error);
        let mut failures = 0;
        loop {
            match share.recover().await {
                Ok(()) => break,
                Err(error @ (StoreError::Io { .. } | StoreError::Full { .. })) if failures < 8 => {
                    failures += 1;
                    let wait = host.settings.retry.all.wait(failures, &host.ids);
                    tracing::error!(target: TARGET, %error, ?wait, "the shards cannot be opened again yet");
                    tokio::time::sleep(wait).await;
                }
                Err(error) => {
                    tracing::error!(target: TARGET, %error, "the node can commit no more: start it again");
                    *share.definition.broken.lock() = Some(format!("the store failed: {error}"));
                    host.stopped.set(true);
                    return;
                }
            }
        }
    }
}

/// Moves what was committed to where it belongs inside this node, and has the rest [carried](publisher::carry): a broker that
/// takes its time holds up nothing in here.
pub(super) async fn relay(share: Weak<ThreadRuntime>) {
    let mut told: BTreeMap<ShardId, u64> = BTreeMap::new();
    if let Some(share) = share.upgrade() {
        // What was committed before is history: it is read from the log.
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
                tracing::warn!(target: TARGET, shard = %id, %error, "the outbox cannot be read");
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
            // Every thread may have somebody who takes them; each reads them from the log.
            share.threads.head(id, position);
        }
        if share.definition.bridge.is_some() {
            share.publisher.look_at(&cell);
        }
    }
    again
}

/// Hands an outbox entry to its gate on this node.
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

/// Puts idle actors to rest, and tells the store how far this thread has come.
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
