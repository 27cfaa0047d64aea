//! What one life of a simulated node has appended and not committed.

use std::collections::VecDeque;

use super::turn::OwnedTurn;
use crate::message::ShardId;
use crate::store::Ticket;

/// What a life has appended and not committed.
#[derive(Default)]
pub(super) struct Journal {
    pub(super) waiting: VecDeque<Waiting>,
    pub(super) last: Ticket,
    pub(super) closed: bool,
}

/// One append that is not committed.
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    pub(super) shard: ShardId,
    /// Nothing, if it is no turn but something that only saves work.
    pub(super) turn: Option<Box<OwnedTurn>>,
    pub(super) position: u64,
}

impl Journal {
    /// Takes what is committed up to a ticket, unless this life is over.
    pub(super) fn take(&mut self, through: Ticket) -> Option<Vec<Waiting>> {
        if self.closed {
            return None;
        }
        let mut taken = Vec::new();
        while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.ticket <= through) {
            taken.push(waiting);
        }
        Some(taken)
    }
}
