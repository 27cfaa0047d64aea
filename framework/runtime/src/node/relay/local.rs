//! Relay inside the node: forwards committed messages to receive windows and subscriptions of this node.
//!
//! Runs as a background task of each thread, woken by commits. Hands the rest to the
//! [publisher](crate::node::relay::publisher).

use std::rc::{Rc, Weak};

use tokio::time::Instant;

use crate::node::relay::publisher::{self, earliest, until};
use crate::node::thread::ThreadRuntime;
use crate::relay::Forward;
use whizbang_core::telemetry::{TARGET, error_chain};

/// Forwards committed messages to their destinations inside this node, and hands the rest to the
/// [publisher](publisher::run): a slow broker delays nothing inside the node.
pub(in crate::node) async fn run(runtime: Weak<ThreadRuntime>) {
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

/// Forwards what the dirty shards have committed, and returns the time of the next check. Costs the number of dirty shards and
/// their new entries, not the number of all shards.
async fn relay_once(runtime: &Rc<ThreadRuntime>) -> Option<Instant> {
    let mut again = None;
    let onward = forwarder(runtime);
    let dirty = runtime.context.take_dirty();
    for cell in dirty.into_iter().filter(|cell| runtime.is_current(cell)) {
        let (id, reader) = (&cell.id, cell.reader());
        if let Some(windows) = runtime.windows_of(id) {
            let forwarded = windows.forward_pending(&reader, &onward, |to| runtime.is_local(to)).await;
            runtime.count_read(id, "outbox", &forwarded);
            if let Err(error) = forwarded {
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
        if cell.announced.replace(position) < position {
            runtime.definition.watches.report(id, position);
            if runtime.definition.sources.contains_key(&id.domain) {
                // Every thread may have subscribers; each reads the events from the log.
                runtime.threads.advance_head(id, position);
            }
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
