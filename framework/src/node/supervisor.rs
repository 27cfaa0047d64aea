//! Supervisor of a thread's background tasks: no task ends unnoticed.
//!
//! Called by the thread's runtime when it starts. A task that ends while its node works is logged, counted in
//! [`Metrics::failed_tasks`](super::Metrics) and named in the node's health. It is restarted if that loses nothing.

use std::rc::{Rc, Weak};
use std::time::Duration;

use super::thread::ThreadRuntime;
use crate::clock::instant;
use crate::spawn::{FIRST, LONGEST, Task};
use crate::store::StoreError;
use crate::telemetry::TARGET;
use crate::user_code::caught;

/// Uptime after which a restarted task counts as healthy again.
const WELL: Duration = Duration::from_secs(10);

/// Reaction to a task that ended unexpectedly.
#[derive(Clone, Copy)]
pub(super) enum Restart {
    /// Restarted after this cleanup has run. The node is not ready until the task has run for a while.
    After(fn(&Rc<ThreadRuntime>)),
    /// Not restarted, because the task's unfinished work is lost: the node is no longer live, and callers are told
    /// that the outcome is unknown.
    Never,
}

/// Starts and supervises a background task of a thread.
pub(super) fn supervise<F: Future<Output = ()> + 'static>(
    share: &Rc<ThreadRuntime>,
    name: &'static str,
    restart: Restart,
    run: fn(Weak<ThreadRuntime>) -> F,
) -> Task {
    let weak = Rc::downgrade(share);
    crate::spawn::local(async move {
        let mut wait = FIRST;
        loop {
            let begun = instant();
            let mut running = Box::pin(caught(run(weak.clone())));
            let what = |share: &ThreadRuntime| format!("task {name} of thread {}", share.index);
            let ended = if wait == FIRST {
                running.await
            } else {
                tokio::select! {
                    biased;
                    ended = &mut running => ended,
                    () = tokio::time::sleep(WELL) => {
                        if let Some(share) = weak.upgrade() {
                            share.definition.issues.resolve(&what(&share));
                        }
                        running.await
                    }
                }
            };
            // A node that is already broken ends its tasks itself; its first reason is kept.
            let ends = |share: &Rc<ThreadRuntime>| {
                share.has_ended.get() || share.context.stopped.get() || share.definition.broken.lock().is_some()
            };
            let Some(share) = weak.upgrade().filter(|share| !ends(share)) else { return };
            let error = ended.map_or_else(|panicked| panicked.to_string(), |()| "ended without an error".to_owned());
            share.context.counts.failed_tasks.one();
            let reason = format!("task `{name}` of thread {} failed: {error}", share.index);
            let Restart::After(put_in_order) = restart else {
                tracing::error!(target: TARGET, task = name, thread = share.index, error, "task failed: restart the node");
                *share.definition.broken.lock() = Some(reason);
                share.context.stopped.set(true);
                share.context.fail_pending_commits(&StoreError::Closed);
                return;
            };
            if begun.elapsed() >= WELL {
                wait = FIRST;
            }
            tracing::error!(target: TARGET, task = name, thread = share.index, error, ?wait, "task failed: restarting");
            share.definition.issues.raise(&what(&share), reason);
            drop(share);
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST);
            let Some(share) = weak.upgrade() else { return };
            put_in_order(&share);
        }
    })
}
