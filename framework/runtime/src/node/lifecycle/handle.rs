//! Node handle, for HTTP endpoints and other tasks beside a running node.
//!
//! Called by users. It does not keep the node alive: a handle may outlive its node without keeping the store open.

use std::sync::{Arc, Weak};

use tokio::sync::{Notify, watch};

use crate::client::Client;
use crate::node::definition::NodeDefinition;
use crate::node::health::{Health, Metrics};
use crate::node::lifecycle::node::Node;
use crate::node::ownership::cluster::Cluster;
use crate::node::thread::Threads;

/// Observes and stops a node from another task, for instance from an HTTP endpoint while [`Node::run`] owns the node.
/// Cheap to clone and usable on any thread. Dropping it has no effect.
///
/// ```
/// # use bank_fixture::*;
/// # whizbang::derive::block_on(async {
/// # let node = bank().await;
/// let handle = node.handle();
/// let serving = async move {
///     // As an HTTP endpoint would: the readiness and its reasons.
///     assert!(handle.health().ready);
///     handle.request_stop();
/// };
/// let (ran, ()) = tokio::join!(node.run(), serving);
/// ran?;
/// # Ok::<_, whizbang::Error>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct NodeHandle {
    definition: Weak<NodeDefinition>,
    pub(in crate::node) client: Client,
    pub(in crate::node) threads: Threads,
    stop_requested: Arc<Notify>,
    ended: watch::Receiver<()>,
}

impl Node {
    /// Returns a handle that observes the node and can ask [`run`](Self::run) to end.
    pub fn handle(&self) -> NodeHandle {
        NodeHandle {
            definition: Arc::downgrade(&self.definition),
            client: self.client.clone(),
            threads: self.threads.clone(),
            stop_requested: Arc::clone(&self.stop_requested),
            ended: self.alive.subscribe(),
        }
    }
}

impl NodeHandle {
    /// Returns the shared definition, or `None` once the node has ended, even while its threads are still ending.
    pub(in crate::node) fn definition(&self) -> Option<Arc<NodeDefinition>> {
        self.definition.upgrade().filter(|_| self.ended.has_changed().is_ok())
    }

    /// Same as [`Node::client`].
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Same as [`Node::health`]. A node that has ended is neither live nor ready.
    pub fn health(&self) -> Health {
        match self.definition() {
            Some(definition) => definition.health_with(&self.threads),
            None => Health { live: false, ready: false, reasons: vec!["the node has ended".to_owned()] },
        }
    }

    /// Like [`Node::metrics`]; `None` if the node has ended.
    pub fn metrics(&self) -> Option<Metrics> {
        self.definition().map(|definition| definition.metrics())
    }

    /// Like [`Node::cluster`]; `None` also if the node has ended.
    pub fn cluster(&self) -> Option<Cluster> {
        self.definition()?.membership.as_ref().map(|membership| membership.cluster())
    }

    /// Asks [`Node::run`] to stop the node, like SIGTERM, and returns at once. A node that is not running yet stops
    /// as soon as it runs; a node that is never run must be ended with [`Node::stop`]. Further calls have no effect.
    pub fn request_stop(&self) {
        self.stop_requested.notify_one();
    }

    /// Waits until the node has been stopped or dropped.
    ///
    /// Returns at once if it has ended. Cancel safe.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // No value is ever sent: the channel closes with its sender, which the node owns.
        while ended.changed().await.is_ok() {}
    }
}

impl std::fmt::Debug for NodeHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeHandle").field("client", &self.client).finish_non_exhaustive()
    }
}
