//! Supervisor of a thread's background tasks: no task ends unnoticed.
//!
//! Called by the thread's runtime when it starts. A task that ends while its node works is logged, counted in
//! [`Metrics::failed_tasks`](crate::node::Metrics) and named in the node's health. It is restarted if that loses
//! nothing.

use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::node::thread::ThreadRuntime;
use whizbang_core::clock::instant;
use whizbang_core::spawn::{FIRST_RESTART, LONGEST_RESTART, Task};
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::TARGET;
use whizbang_core::user_code::caught;

/// Uptime after which a restarted task counts as healthy again.
const HEALTHY_AFTER: Duration = Duration::from_secs(10);

/// Reaction to a task that ended unexpectedly.
#[derive(Clone, Copy)]
pub(in crate::node) enum Restart {
    /// Restarted after this cleanup has run. The node is not ready until the task has run for a while.
    After(fn(&Rc<ThreadRuntime>)),
    /// The task is not restarted, because its unfinished work is lost: the node is no longer live, and callers are told
    /// that the outcome is unknown.
    Never,
}

/// Starts and supervises a background task of a thread.
pub(in crate::node) fn supervise<F: Future<Output = ()> + 'static>(
    runtime: &Rc<ThreadRuntime>,
    name: &'static str,
    restart: Restart,
    run: fn(Weak<ThreadRuntime>) -> F,
) -> Task {
    let weak = Rc::downgrade(runtime);
    whizbang_core::spawn::local(async move {
        let mut wait = FIRST_RESTART;
        loop {
            let begun = instant();
            let mut running = Box::pin(caught(run(weak.clone())));
            let what = |runtime: &ThreadRuntime| format!("task {name} of thread {}", runtime.index);
            let ended = if wait == FIRST_RESTART {
                running.await
            } else {
                tokio::select! {
                    biased;
                    ended = &mut running => ended,
                    () = tokio::time::sleep(HEALTHY_AFTER) => {
                        if let Some(runtime) = weak.upgrade() {
                            runtime.definition.issues.resolve(&what(&runtime));
                        }
                        running.await
                    }
                }
            };
            // A node that is already broken ends its tasks itself; its first reason is kept.
            let ends = |runtime: &Rc<ThreadRuntime>| {
                runtime.has_ended.get() || runtime.context.stopped.get() || runtime.definition.broken.lock().is_some()
            };
            let Some(runtime) = weak.upgrade().filter(|runtime| !ends(runtime)) else { return };
            let error = ended.map_or_else(|panicked| panicked.to_string(), |()| "ended without an error".to_owned());
            runtime.context.counts.failed_tasks.one();
            let reason = format!("task `{name}` of thread {} failed: {error}", runtime.index);
            let Restart::After(put_in_order) = restart else {
                tracing::error!(target: TARGET, task = name, thread = runtime.index, error, "task failed: restart the node");
                *runtime.definition.broken.lock() = Some(reason);
                runtime.context.stopped.set(true);
                runtime.context.fail_pending_commits(&StoreError::Closed);
                return;
            };
            if begun.elapsed() >= HEALTHY_AFTER {
                wait = FIRST_RESTART;
            }
            tracing::error!(target: TARGET, task = name, thread = runtime.index, error, ?wait, "task failed: restarting");
            runtime.definition.issues.raise(&what(&runtime), reason);
            drop(runtime);
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_RESTART);
            let Some(runtime) = weak.upgrade() else { return };
            put_in_order(&runtime);
        }
    })
}
