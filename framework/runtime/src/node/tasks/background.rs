//! Background tasks of each thread: complete commits, relay committed messages, passivate idle actors.
//!
//! Started by the thread's [runtime](crate::node::thread) under the [supervisor](crate::node::tasks::supervisor).

use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::actor::CommitFailure;
use crate::node::error::NodeEnd;
use crate::node::relay::publisher::{self, earliest, until};
use crate::node::thread::ThreadRuntime;
use crate::relay::Forward;
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

/// Time-out of a request to another node for missing messages. Short: repeating the request is cheap, waiting delays
/// others.
pub(in crate::node) const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
/// Number of passivation sweeps per period of `passivate_after`.
const SWEEPS_PER_PERIOD: u32 = 8;

/// Completes what was committed; reopens the shards when commits have failed.
pub(in crate::node) async fn complete_commits(runtime: Weak<ThreadRuntime>) {
    loop {
        let Some(context) = runtime.upgrade().map(|runtime| Rc::clone(&runtime.context)) else { return };
        let failure = context.complete_commits().await;
        let Some(runtime) = runtime.upgrade() else { return };
        let error = match failure {
            CommitFailure::Failed(error) => error,
            CommitFailure::Fenced(fences) if runtime.definition.store.leases().is_some() => {
                fences.iter().for_each(|fence| runtime.lose_fenced(fence));
                continue;
            }
            // The store has one owner for all its shards: another process has taken over.
            CommitFailure::Fenced(fences) => {
                let Some(error) = fences.first() else { continue };
                tracing::error!(
                    target: TARGET, error = %error_chain(error),
                    "fenced: another node has taken over; shutting down",
                );
                let reason = format!("another node has taken over: {}", error_chain(error));
                return runtime.definition.end_node(&runtime.threads, NodeEnd::TakenOver { reason });
            }
        };
        tracing::error!(target: TARGET, error = %error_chain(&error), "commits failed: reopening the shards");
        context.report_append_error(&error);
        let mut failures = 0;
        loop {
            match runtime.recover().await {
                Ok(()) => break,
                Err(error @ (StoreError::Io { .. } | StoreError::Full { .. })) if failures < 8 => {
                    failures += 1;
                    let wait = context.settings.retry.all.wait(failures, &context.ids);
                    tracing::error!(
                        target: TARGET, error = %error_chain(&error), ?wait,
                        "failed to reopen the shards: retrying",
                    );
                    tokio::time::sleep(wait).await;
                }
                Err(error) => {
                    tracing::error!(
                        target: TARGET, error = %error_chain(&error),
                        "failed to reopen the shards: restart the node",
                    );
                    *runtime.definition.broken.lock() = Some(format!("the store failed: {}", error_chain(&error)));
                    context.stopped.set(true);
                    return;
                }
            }
        }
    }
}

/// Forwards committed messages to their destinations inside this node, and hands the rest to the
/// [publisher](publisher::run): a slow broker delays nothing inside the node.
pub(in crate::node) async fn relay(runtime: Weak<ThreadRuntime>) {
    let mut again: Option<Instant> = None;
    loop {
        let Some(context) = runtime.upgrade().map(|runtime| Rc::clone(&runtime.context)) else { return };
        let impatient = tokio::select! {
            biased;
            () = context.relay.notified() => false,
            () = until(again) => true,
        };
        let Some(runtime) = runtime.upgrade() else { return };
        runtime.is_relaying.set(true);
        if impatient {
            again = publisher::restart_stalled(&runtime, |to| runtime.is_local(to));
            runtime.store_watermarks(1024);
        }
        let next = relay_once(&runtime).await;
        again = earliest(again, next);
        runtime.is_relaying.set(false);
        context.idle.notify();
    }
}

async fn relay_once(runtime: &Rc<ThreadRuntime>) -> Option<Instant> {
    let mut again = None;
    let onward = forwarder(runtime);
    let dirty = runtime.context.take_dirty();
    for cell in dirty.into_iter().filter(|cell| runtime.is_current(cell)) {
        let (id, reader) = (&cell.id, cell.reader());
        if let Some(windows) = runtime.windows_of(id) {
            if let Err(error) = windows.forward_pending(&reader, &onward, |to| runtime.is_local(to)).await {
                tracing::warn!(
                    target: TARGET, shard = %id, error = %error_chain(&error),
                    "failed to read the outbox",
                );
                publisher::retry(&runtime.context, &cell);
            }
            again = earliest(again, windows.next_retry(|to| runtime.is_local(to)));
            if runtime.definition.bridge.is_none() {
                runtime.report_unreachable(id, &reader.outbox_heads());
            }
        }
        let position = reader.position();
        // Events committed before the shard was opened are history: subscribers read them from the log.
        if cell.announced.replace(position) < position && runtime.definition.sources.contains_key(&id.domain) {
            // Every thread may have subscribers; each reads the events from the log.
            runtime.threads.advance_head(id, position);
        }
        if runtime.definition.bridge.is_some() {
            runtime.publisher.mark_dirty(&cell);
        }
    }
    again
}

/// Returns the function that forwards an outbox entry to its receive window on this node.
fn forwarder(runtime: &Rc<ThreadRuntime>) -> Forward {
    let runtime = Rc::clone(runtime);
    Rc::new(move |envelope| {
        let Some(to) = &envelope.to else { return true };
        if !runtime.is_local(to) {
            // It has moved while its messages were read: they are sent over the bridge.
            runtime.reroute(&to.clone());
            return true;
        }
        let home = runtime.definition.thread_of(to.shard);
        if home == runtime.index {
            runtime.direct(envelope, Box::new(|_| {}));
        } else {
            runtime.threads.run(home, Box::new(move |runtime| runtime.direct(envelope, Box::new(|_| {}))));
        }
        true
    })
}

/// Passivates idle actors, and stores the watermarks of this thread.
pub(in crate::node) async fn passivate_idle(runtime: Weak<ThreadRuntime>) {
    loop {
        let Some((every, cap)) = runtime.upgrade().map(|runtime| {
            (runtime.definition.config.passivate_after / SWEEPS_PER_PERIOD, runtime.definition.config.live_actors)
        }) else {
            return;
        };
        tokio::time::sleep(every).await;
        let Some(runtime) = runtime.upgrade() else { return };
        runtime.context.sweeps.set(runtime.context.sweeps.get() + 1);
        for endpoint in runtime.endpoints.values() {
            endpoint.passivate_idle(u64::from(SWEEPS_PER_PERIOD), cap);
        }
        runtime.store_watermarks(1);
        if runtime.index == 0 {
            runtime.definition.store.forget_ids(runtime.context.dedup_horizon());
        }
    }
}
