//! Background tasks of each thread: complete commits and passivate idle actors.
//!
//! Started by the thread's [runtime](crate::node::thread) under the [supervisor](crate::node::tasks::supervisor).

use std::rc::{Rc, Weak};

use crate::actor::CommitFailure;
use crate::node::error::NodeEnd;
use crate::node::thread::ThreadRuntime;
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

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
