//! Background tasks of each thread: complete commits and passivate idle actors.
//!
//! Started by the thread's [runtime](crate::node::thread) under the [supervisor](crate::node::tasks::supervisor).

use std::rc::{Rc, Weak};
use std::time::Duration;

use tokio::time::Instant;

use crate::actor::{CommitFailure, MIN_WAIT};
use crate::node::error::NodeEnd;
use crate::node::thread::ThreadRuntime;
use whizbang_core::clock::instant;
use whizbang_core::spawn::{FIRST_RESTART, LONGEST_RESTART};
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

/// Number of passivation sweeps per period of `passivate_after`.
const SWEEPS_PER_PERIOD: u32 = 8;

/// Completes what was committed; reopens the shards when commits have failed.
pub(in crate::node) async fn complete_commits(runtime: Weak<ThreadRuntime>) {
    let mut pause = (FIRST_RESTART, None);
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
        if context.panics.take() > 0 {
            wait_after_panic(&mut pause).await;
        } else {
            context.report_append_error(&error);
        }
        let mut failures = 0_u32;
        context.reopening.set(true);
        loop {
            match runtime.recover().await {
                Ok(()) => {
                    context.panics_handled();
                    context.reopening.set(false);
                    break;
                }
                // Without a limit: a disk or a server may be away for long, and health says so.
                Err(error) if error.is_transient() => {
                    failures = failures.saturating_add(1);
                    context.report_append_error(&error);
                    let wait = context.settings.retry.all.wait(failures, &context.ids).max(MIN_WAIT);
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

/// Waits before the shards are reopened after a panic. The first time not at all. A message that panics each time it is
/// delivered must not occupy the thread, so the wait doubles while panics follow one another.
async fn wait_after_panic((wait, last): &mut (Duration, Option<Instant>)) {
    if last.is_some_and(|last| instant().saturating_duration_since(last) < LONGEST_RESTART * 2) {
        tokio::time::sleep(*wait).await;
        *wait = (*wait * 2).min(LONGEST_RESTART);
    } else {
        *wait = FIRST_RESTART;
    }
    *last = Some(instant());
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
            runtime.definition.flush_log_limits(instant());
            runtime.definition.store.forget_ids(runtime.context.dedup_horizon());
        }
    }
}

#[cfg(test)]
mod tests;
