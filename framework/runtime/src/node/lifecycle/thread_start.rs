//! The start of a node's threads, and their end if the start is abandoned.
//!
//! Called by the [builder](crate::node::NodeBuilder).

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::node::definition::NodeDefinition;
use crate::node::error::StartError;
use crate::node::thread::ThreadRuntime;
use crate::node::thread::Threads;
use whizbang_core::message::IdSource;
use whizbang_core::user_code::{TICK, Ticks};

/// Starts the threads' runtimes: one on this thread, or each on a thread of its own.
pub(in crate::node) async fn start_threads(
    definition: &Arc<NodeDefinition>,
    ids: Vec<IdSource>,
) -> Result<(Threads, StartGuard), StartError> {
    let (senders, receivers): (Vec<_>, Vec<_>) =
        (0..definition.thread_count()).map(|_| mpsc::unbounded_channel()).unzip();
    let threads = Threads::new(senders, definition.config.in_flight);
    let unstarted = StartGuard(Some(threads.clone()));
    let spec_threads = definition.config.threads;
    let mut ready = Vec::new();
    for (index, (jobs, ids)) in receivers.into_iter().zip(ids).enumerate() {
        let (definition, threads) = (Arc::clone(definition), threads.clone());
        let (started, wait) = oneshot::channel();
        let run = move |ids: IdSource| async move {
            match ThreadRuntime::open(definition, index, threads, ids).await {
                Ok(runtime) => {
                    let _ = started.send(Ok(()));
                    runtime.run(jobs).await;
                }
                Err(error) => drop(started.send(Err(error))),
            }
        };
        if spec_threads == 0 {
            // Ends with the node: `Node` ends it when it is dropped.
            whizbang_core::spawn::alone("thread", run(ids));
        } else {
            whizbang_core::spawn::thread(&format!("whizbang-{index}"), move || run(ids))
                .map_err(|_| StartError::Thread)?;
        }
        ready.push(wait);
    }
    let mut opened = Ok(());
    for wait in ready {
        let runtime = wait.await.map_err(|_| StartError::Thread).and_then(|started| started);
        opened = opened.and(runtime);
    }
    if opened.is_err() {
        threads.end().await;
    }
    opened.map(|()| (threads, unstarted))
}

/// Starts the clock that measures user code, on its own thread because all others may be blocked. A simulation has
/// none.
pub(in crate::node) fn ticks(seed: Option<u64>) -> Result<Arc<Ticks>, StartError> {
    let ticks = Arc::new(Ticks::default());
    if seed.is_none() {
        let node = Arc::downgrade(&ticks);
        whizbang_core::spawn::ticker("whizbang-watch", TICK, move || {
            node.upgrade().map(|ticks| ticks.tick()).is_some()
        })
        .map_err(|_| StartError::Thread)?;
    }
    Ok(ticks)
}

/// Ends the threads of a node whose start is abandoned. Without it they would keep each other and the store alive.
pub(in crate::node) struct StartGuard(Option<Threads>);

impl StartGuard {
    /// From now on the node ends the threads.
    pub(in crate::node) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for StartGuard {
    fn drop(&mut self) {
        if let Some(threads) = self.0.take() {
            threads.run_all(|runtime| runtime.end());
        }
    }
}
