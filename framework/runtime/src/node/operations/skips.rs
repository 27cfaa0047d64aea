//! Skipping events: lets an operator skip an event that a projection cannot project.
//!
//! Called by users on the node and its handle.

use tokio::sync::oneshot;

use crate::node::definition::{NodeDefinition, VIEW_THREAD};
use crate::node::error::Error;
use crate::node::lifecycle::handle::NodeHandle;
use crate::node::lifecycle::node::Node;
use crate::node::thread::Threads;
use crate::projection::{SkipError, SkippedEvent, skipped};
use crate::router::SendError;
use whizbang_core::message::{Name, ShardId};

impl Node {
    /// Skips the event at which a projection is halted; the node's [health](Self::health) names projection, shard and
    /// position. The projection then continues. The skip is stored permanently, so a rebuilt view skips the event
    /// too; the event itself stays in its owner's log.
    ///
    /// # Errors
    /// [`SkipError::NotHalted`] if the projection is not halted there; nothing was changed. [`SkipError::Store`] if
    /// the skip could not be stored; the projection is still halted.
    pub async fn skip_event(&self, projection: &str, shard: &ShardId, position: u64) -> Result<(), SkipError> {
        skip(&self.definition, &self.threads, projection, shard, position).await
    }

    /// Returns the events that a projection has skipped, oldest first, even if this program no longer hosts it.
    ///
    /// # Errors
    /// [`Error::Store`] if the skips cannot be read.
    pub async fn skipped_events(&self, projection: &str) -> Result<Vec<SkippedEvent>, Error> {
        list(&self.definition, projection).await
    }
}

impl NodeHandle {
    /// Same as [`Node::skip_event`].
    ///
    /// # Errors
    /// As there; [`SkipError::NotHalted`] also if the node has ended.
    pub async fn skip_event(&self, projection: &str, shard: &ShardId, position: u64) -> Result<(), SkipError> {
        match self.definition() {
            Some(definition) => skip(&definition, &self.threads, projection, shard, position).await,
            None => Err(not_halted(projection, shard, position)),
        }
    }

    /// Same as [`Node::skipped_events`].
    ///
    /// # Errors
    /// As there; [`SendError::Stopped`] in [`Error::Send`] if the node has ended.
    pub async fn skipped_events(&self, projection: &str) -> Result<Vec<SkippedEvent>, Error> {
        list(&*self.definition().ok_or(SendError::Stopped)?, projection).await
    }
}

fn not_halted(projection: &str, shard: &ShardId, position: u64) -> SkipError {
    SkipError::NotHalted { projection: projection.to_owned(), shard: shard.to_string(), position }
}

async fn skip(
    definition: &NodeDefinition,
    threads: &Threads,
    projection: &str,
    shard: &ShardId,
    position: u64,
) -> Result<(), SkipError> {
    let is_it = |viewed: &crate::node::definition::ViewDefinition| viewed.name.as_str() == projection;
    let at = definition.views.iter().position(is_it).ok_or_else(|| not_halted(projection, shard, position))?;
    let (tell, told) = oneshot::channel();
    let its = shard.clone();
    threads.run(
        VIEW_THREAD,
        Box::new(move |runtime| {
            if let Some(view) = runtime.views.get(at) {
                let skipping = view.skip(its, position);
                whizbang_core::spawn::detached(&runtime.context.user_code, "skip an event", async move {
                    let _ = tell.send(skipping.await);
                });
            }
        }),
    );
    told.await.unwrap_or_else(|_| Err(not_halted(projection, shard, position)))
}

async fn list(definition: &NodeDefinition, projection: &str) -> Result<Vec<SkippedEvent>, Error> {
    match Name::new(projection) {
        Ok(name) => Ok(skipped(&*definition.store, &name).await?),
        Err(_) => Ok(Vec::new()),
    }
}
