//! The messages that a view takes from its endpoint and its subscriptions.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::skips::SkipError;
use crate::inbox::Done;
use crate::router::Completion;
use whizbang_core::message::{Envelope, ShardId};

/// A query on its way to its view.
pub(super) struct PendingQuery {
    pub(super) envelope: Envelope,
    pub(super) settle: Completion,
    pub(super) _permit: QueryPermit,
}

/// Permit of one waiting query.
pub(super) struct QueryPermit(pub(super) Rc<Cell<usize>>);

impl Drop for QueryPermit {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Request to save the view; the sender is notified.
pub(super) struct SaveRequest(pub(super) oneshot::Sender<()>);

/// Request to write the tables of the view now. The sender receives a number that changes with each save and each reload.
pub(super) struct FlushRequest(pub(super) oneshot::Sender<u64>);

/// Request to skip an event.
pub(super) struct SkipRequest {
    pub(super) shard: ShardId,
    pub(super) position: u64,
    pub(super) reply: oneshot::Sender<Result<(), SkipError>>,
}

/// Notifies a view of whether this node saves it.
pub(super) struct SaverNotice(pub(super) bool);

/// An event on its way to its view.
pub(super) struct DeliveredEvent {
    pub(super) source: usize,
    pub(super) round: u64,
    pub(super) event: Envelope,
    pub(super) done: Done,
    pub(super) waiting: Rc<Cell<usize>>,
}
