//! Declaration of workers on the [builder](crate::node::NodeBuilder).

use std::sync::Arc;

use crate::node::catalog::hosted::HostedWorker;
use crate::node::config::ConfigError;
use crate::node::lifecycle::builder::NodeBuilder;
use crate::worker::{Worker, WorkerOptions};

impl NodeBuilder {
    /// Hosts a worker: it performs commands of its domain, which the node's service owns, and reacts to events.
    ///
    /// Jobs run concurrently, beside the actors, so a worker may wait for external services. The value is shared by all
    /// jobs and by all threads of the node. [`worker_with`](Self::worker_with) sets retries and limits.
    pub fn worker<W: Worker>(self, worker: W) -> Self {
        self.worker_with(worker, WorkerOptions::new())
    }

    /// Hosts a worker with its own retries and limits. [`start`](Self::start) refuses a value that is out of its range.
    pub fn worker_with<W: Worker>(mut self, worker: W, options: WorkerOptions) -> Self {
        self.types.push(Arc::new(HostedWorker::new(worker, options)));
        self.scheduled::<W::Domain>()
    }

    /// Returns whether the node hosts a worker.
    #[doc(hidden)]
    pub fn has_worker(&self) -> bool {
        self.types.iter().any(|hosted| hosted.card().role == "worker")
    }

    /// Checks the options of the workers.
    pub(super) fn check_options(&self) -> Result<(), ConfigError> {
        match self.types.iter().find_map(|hosted| hosted.invalid_option()) {
            Some((key, range)) => Err(ConfigError::Range { key, range }),
            None => Ok(()),
        }
    }
}
