//! Crash points: operations in the middle of which a fault can kill a node.
//!
//! Reached by the [store](super::store) and the [links](super::link), awaited by the [fault scheduler](super::fault_scheduler).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::node_tasks::NodeTasks;

/// An operation in the middle of which a node can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashPoint {
    /// A turn is appended but not committed.
    Commit,
    /// A message was sent to the broker but is not acknowledged.
    Publication,
    /// A delivered message is being handled.
    Delivery,
    /// The effect of a message is committed, but the broker has not received the acknowledgement.
    Acknowledgement,
    /// The effect of a worker's job is done, but the job is not committed.
    Job,
}

impl CrashPoint {
    /// The crash points that every service has, with or without workers.
    pub(super) const COMMON: [Self; 4] = [Self::Commit, Self::Publication, Self::Delivery, Self::Acknowledgement];

    /// Returns the point in words, for traces.
    pub(super) const fn describe(self) -> &'static str {
        match self {
            Self::Commit => "a commit",
            Self::Publication => "a publication",
            Self::Delivery => "a delivery",
            Self::Acknowledgement => "an acknowledgement",
            Self::Job => "a job after its effect",
        }
    }
}

/// The crash points of one service. Clones refer to the same ones.
#[derive(Clone, Default)]
pub(super) struct CrashPoints(Arc<[Notify; 5]>, Arc<AtomicUsize>);

impl CrashPoints {
    /// Tells the faults that wait for this point that the node of the running task has reached it. Does nothing if none
    /// waits.
    pub(super) fn reach(&self, point: CrashPoint) {
        if let Some(node) = NodeTasks::current() {
            self.1.store(node, Ordering::Relaxed);
        }
        self.notifier(point).notify_waiters();
    }

    /// Returns the node that has reached a crash point last, in a service with several nodes.
    pub(super) fn last_node(&self) -> usize {
        self.1.load(Ordering::Relaxed)
    }

    /// Waits until a node reaches this crash point.
    pub(super) async fn wait_for(&self, point: CrashPoint) {
        self.notifier(point).notified().await;
    }

    /// Returns the notifier of a point.
    fn notifier(&self, point: CrashPoint) -> &Notify {
        let [commit, publication, delivery, acknowledgement, job] = &*self.0;
        match point {
            CrashPoint::Commit => commit,
            CrashPoint::Publication => publication,
            CrashPoint::Delivery => delivery,
            CrashPoint::Acknowledgement => acknowledgement,
            CrashPoint::Job => job,
        }
    }
}
