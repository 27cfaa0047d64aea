//! The start and the end of a node's ownership task.

use std::sync::Arc;

use tokio::sync::oneshot;

use crate::node::definition::NodeDefinition;
use crate::node::error::StartError;
use crate::node::ownership::host::ShardHost;
use crate::node::ownership::task::OwnershipTask;
use whizbang_core::message::ShardId;
use whizbang_core::telemetry::TARGET;
use whizbang_core::user_code::caught;

/// Keeps the ownership task running. Dropping it ends the task without leaving, as a crash would.
pub(in crate::node) struct OwnershipGuard {
    _alive: oneshot::Sender<()>,
}

/// Starts the ownership task, if several nodes share the store, and waits for its first round: every free shard that
/// the plan gives to this node is open then.
pub(in crate::node) async fn start(
    definition: &Arc<NodeDefinition>,
    host: Arc<dyn ShardHost>,
) -> Result<Option<OwnershipGuard>, StartError> {
    let (Some(membership), Some(leases)) = (&definition.membership, definition.store.leases()) else {
        return Ok(None);
    };
    let shards = definition.domains.iter();
    let shards = shards.flat_map(|(domain, count)| (0..*count).map(|shard| ShardId::new(domain.clone(), shard)));
    let (alive, dropped) = oneshot::channel();
    let (first, started) = oneshot::channel();
    let task = OwnershipTask::new(
        Arc::clone(membership),
        leases,
        host,
        Arc::clone(&definition.issues),
        shards.collect(),
        definition.bridge.is_some(),
        first,
    );
    let running = run(Arc::clone(definition), task, dropped);
    if definition.config.threads == 0 {
        // A simulation has no threads.
        whizbang_core::spawn::alone("ownership", running);
    } else {
        // A thread of its own: a blocked actor must not cost the node its shards.
        whizbang_core::spawn::thread("whizbang-leases", move || running).map_err(|_| StartError::Thread)?;
    }
    match started.await {
        Ok(started) => started?,
        Err(_) => return Err(StartError::Thread),
    }
    Ok(Some(OwnershipGuard { _alive: alive }))
}

async fn run(definition: Arc<NodeDefinition>, task: OwnershipTask, dropped: oneshot::Receiver<()>) {
    if let Err(panicked) = caught(task.run(dropped)).await {
        // Not restarted: it does not know which shards were moving. Others take the shards when the lease ends.
        let error = panicked.text();
        tracing::error!(target: TARGET, task = "ownership", error, "task failed: restart the node");
        definition.broken.lock().get_or_insert(format!("task `ownership` failed: {error}"));
    }
}
