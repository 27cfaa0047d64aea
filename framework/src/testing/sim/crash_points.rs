//! What the nodes of a simulated cluster begin, for faults that wait to kill one in the middle of it.
//!
//! Told by the [disk](super::disk) and the [ways to the broker](super::link); awaited by what [brings faults about](super::fault_scheduler).

use std::sync::Arc;

use tokio::sync::Notify;

/// Something in whose middle a node can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashPoint {
    /// A turn is appended and not committed.
    Commit,
    /// A message is on its way to the broker, and it is not known to be there.
    Publication,
    /// A message that the broker has brought is being handled.
    Delivery,
    /// The effect of a message is committed, and the broker has not heard of it.
    Acknowledgement,
    /// The effect of a worker's job is done, and the job is not committed as done.
    Job,
}

impl CrashPoint {
    /// What every service does, with workers or without.
    pub(super) const COMMON: [Self; 4] = [Self::Commit, Self::Publication, Self::Delivery, Self::Acknowledgement];

    pub(super) const fn told(self) -> &'static str {
        match self {
            Self::Commit => "a commit",
            Self::Publication => "a publication",
            Self::Delivery => "the handling of a delivery",
            Self::Acknowledgement => "an acknowledgement",
            Self::Job => "a job whose effect is done",
        }
    }
}

/// What the nodes of one service begin. Clones are the same.
#[derive(Clone, Default)]
pub(super) struct CrashPoints(Arc<[Notify; 5]>);

impl CrashPoints {
    pub(super) fn tell(&self, work: CrashPoint) {
        self.of(work).notify_waiters();
    }

    /// Waits until the next work of this kind begins.
    pub(super) async fn next(&self, work: CrashPoint) {
        self.of(work).notified().await;
    }

    fn of(&self, work: CrashPoint) -> &Notify {
        let [commit, publication, delivery, acknowledgement, job] = &*self.0;
        match work {
            CrashPoint::Commit => commit,
            CrashPoint::Publication => publication,
            CrashPoint::Delivery => delivery,
            CrashPoint::Acknowledgement => acknowledgement,
            CrashPoint::Job => job,
        }
    }
}
