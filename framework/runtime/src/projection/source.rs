//! The progress of one source shard of a view, and its halt at an event.

use std::cell::Cell;
use std::rc::Rc;

use crate::inbox::Done;
use whizbang_core::message::{MessageId, ShardId};

/// Progress of one source shard.
pub(super) struct ViewSource {
    pub(super) shard: ShardId,
    /// Last position dispatched by its subscription, including events that the view does not project.
    pub(super) dispatched: Rc<Cell<u64>>,
    /// Number of events in the mailbox.
    pub(super) waiting: Rc<Cell<usize>>,
    /// Position up to which everything is in the view.
    pub(super) projected: u64,
    /// Incremented when the subscription restarts: events dispatched earlier are delivered again.
    pub(super) round: u64,
    /// The halt, if it is halted.
    pub(super) halt: Option<Halt>,
    /// Position that the view must contain before queries are answered: no answer is older than an earlier one.
    pub(super) target: u64,
}

impl ViewSource {
    /// Returns the position up to which the view contains everything; events that it does not project count as
    /// contained.
    pub(super) fn position(&self) -> u64 {
        let is_open = self.waiting.get() == 0 && self.halt.is_none();
        if is_open { self.projected.max(self.dispatched.get()) } else { self.projected }
    }

    pub(super) fn holds(&self, position: u64) -> bool {
        self.halt.as_ref().is_some_and(|halt| halt.position == position)
    }
}

/// State of a source shard that is halted at an event. Other shards continue.
pub(super) struct Halt {
    pub(super) position: u64,
    /// No further attempt: an operator must skip the event, or another version of the program project it.
    pub(super) is_final: bool,
    pub(super) id: MessageId,
    pub(super) reason: String,
    /// Completions of the events that wait for the next attempt; unsettled, so that the subscription is not idle.
    pub(super) dones: Vec<Done>,
}

/// Reason why an event was not projected.
pub(super) struct ProjectFailure {
    pub(super) text: String,
    /// Another attempt may succeed.
    pub(super) is_transient: bool,
}
