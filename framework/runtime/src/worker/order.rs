//! Order of the jobs of a worker with priorities.
//!
//! Called by the path of a [job](super::job) before it waits for a slot. Asks the rule of the worker, which is user code.

use super::Worker;
use super::admission_queue::AdmissionPermit;
use super::dispatcher::WorkerDispatcher;
use super::priority::{PRIORITIES, Priority};
use crate::actor::OwnedShard;
use crate::layer::Call;
use whizbang_core::message::Envelope;

impl<W: Worker> WorkerDispatcher<W> {
    /// Returns whether the worker has priorities.
    pub(super) fn has_priorities(&self) -> bool {
        self.limits.options.priority.is_some()
    }

    /// Returns the priorities that jobs may have.
    pub(super) fn priorities(&self) -> &'static [Priority] {
        if self.has_priorities() { &PRIORITIES } else { &[Priority::Normal] }
    }

    /// Returns the priority of the job of a message. Calls user code; its panic is counted, and the job is a normal one.
    pub(super) fn priority(&self, envelope: &Envelope) -> Priority {
        let Some(decide) = &self.limits.options.priority else { return Priority::Normal };
        let now = self.context.ids.clock().now();
        let call = Call { handler: W::NAME, ..Call::of(envelope, &envelope.key, now) };
        let label = self.context.user_code.label(W::NAME, &envelope.name);
        self.context.user_code.call(label, || decide(&call)).unwrap_or_default()
    }

    /// Waits until a job may go for its slot; `None` if the worker has no priorities, or if the shard closes first.
    pub(super) async fn enter(&self, shard: &OwnedShard, priority: Priority) -> Option<AdmissionPermit> {
        if !self.has_priorities() {
            return None;
        }
        tokio::select! {
            biased;
            permit = self.pending.admissions.enter(priority) => permit,
            () = self.context.closes(shard) => None,
        }
    }
}
