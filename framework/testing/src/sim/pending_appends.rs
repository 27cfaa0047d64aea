//! Pending appends of one incarnation of a simulated node.
//!
//! Used by the [store](super::store).

use std::collections::VecDeque;

use super::owned_turn::OwnedTurn;
use whizbang_core::message::ShardId;
use whizbang_core::store::{Epoch, Ticket};

/// Appends that are not committed.
#[derive(Default)]
pub(super) struct PendingAppends {
    /// The appends in the order of their tickets.
    pub(super) pending: VecDeque<PendingAppend>,
    /// The last ticket.
    pub(super) last: Ticket,
    /// Further appends are rejected.
    pub(super) closed: bool,
}

/// One append that is not committed.
pub(super) struct PendingAppend {
    /// The ticket.
    pub(super) ticket: Ticket,
    /// The shard.
    pub(super) shard: ShardId,
    /// The epoch of the writer at the append.
    pub(super) epoch: Epoch,
    /// `None` for records that only save work, such as watermarks.
    pub(super) turn: Option<Box<OwnedTurn>>,
    /// The position of the shard after the append.
    pub(super) position: u64,
}

impl PendingAppends {
    /// Removes and returns the appends up to a ticket. Returns `None` if this incarnation has ended.
    pub(super) fn take_committed(&mut self, through: Ticket) -> Option<Vec<PendingAppend>> {
        if self.closed {
            return None;
        }
        let mut committed = Vec::new();
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.ticket <= through) {
            committed.push(pending);
        }
        Some(committed)
    }
}
