//! The outcome of a group, and its consequences for shards, listeners and waiters.
//!
//! Called by the [writer](super) with the lock of its line. Shards change before listeners are notified: a reader that follows a
//! report finds what was reported.

use std::collections::HashSet;
use std::sync::Arc;

use whizbang_core::store::{StoreError, Ticket};
use whizbang_core::telemetry::error_chain;

use super::{COMMITTING, Line, Writer};
use crate::failure::Failure;
use crate::queue::{Group, Part};
use crate::shard::Shard;
use crate::tickets::Tickets;

impl Writer {
    /// A group is committed for the shards whose rows are `owned`, and rejected for the others. Every ticket of the group is
    /// reported, also those of rejected shards: their listeners have heard of the loss before.
    pub(super) fn complete(&self, line: &mut Line, group: &Group, owned: &[i32]) {
        let owned: HashSet<i32> = owned.iter().copied().collect();
        let (kept, lost): (Vec<&Part>, Vec<&Part>) =
            group.parts.iter().partition(|part| owned.contains(&part.shard.row));
        for part in &kept {
            part.shard.commit(part.last, part.last_turn);
            if part.shard.is_due() {
                self.checkpoints.save_soon(&part.shard);
            }
        }
        let errors = self.fence(line, &lost);
        let waiters = self.queue.lock().written(group);
        self.recovered(line);
        // A listener learns which of its shards are lost before the tickets of the group count as done.
        for (part, error) in lost.iter().zip(errors) {
            part.tickets.listener.failed(error);
        }
        let mut reports: Vec<(&Arc<Tickets>, Ticket)> = Vec::new();
        for part in &group.parts {
            match reports.iter_mut().find(|(tickets, _)| Arc::ptr_eq(tickets, &part.tickets)) {
                Some((_, last)) => *last = part.ticket.max(*last),
                None => reports.push((&part.tickets, part.ticket)),
            }
        }
        for (tickets, through) in reports {
            tickets.listener.committed(through);
        }
        for waiter in waiters {
            // The receiver may be gone.
            let _ = waiter.send(Ok(()));
        }
    }

    /// Closes the shards that were rejected, and only those. Returns the error of each.
    fn fence(&self, line: &mut Line, lost: &[&Part]) -> Vec<StoreError> {
        if lost.is_empty() {
            return Vec::new();
        }
        let state =
            line.driver.as_mut().and_then(|driver| self.state(driver, lost.iter().map(|part| &part.shard), &[]));
        let fenced = lost.iter().map(|part| {
            let epoch = match &state {
                Some(Ok(state)) => state.epoch(&part.shard),
                _ => None,
            };
            let current = epoch.unwrap_or(part.shard.epoch + 1);
            let (shard, mine) = (part.shard.id.clone(), part.shard.epoch);
            tracing::error!(target: crate::TARGET, %shard, mine, current, "another owner has the shard");
            part.shard.fence(current);
            StoreError::Fenced { shard, mine, current }
        });
        fenced.collect()
    }

    /// Calls a function with each shard that appends here and was not dropped, outside of the lock of the list.
    fn each_open(&self, mut each: impl FnMut(&Arc<Shard>, &Arc<Tickets>)) {
        let open: Vec<_> = self.open.lock().clone();
        for (shard, tickets) in open {
            if let (Some(shard), Some(tickets)) = (shard.upgrade(), tickets.upgrade()) {
                each(&shard, &tickets);
            }
        }
    }

    /// The database lacks turns that were reported as committed, or an opening. What is appended would be written behind a gap, so
    /// all shards of this writer fail. Their node opens them again, finds that the log is shorter than it knows, and ends.
    pub(super) fn older(&self, line: &mut Line, shard: &Shard) {
        let text = format!(
            "the database lacks committed turns of shard {}: it was restored from a backup, or a standby without them was promoted",
            shard.id
        );
        line.doubt = None;
        self.fail(&Failure::new(text).store(COMMITTING));
    }

    /// The appended turns will not be committed: all shards have to be opened again.
    pub(super) fn fail(&self, error: &StoreError) {
        tracing::error!(target: crate::TARGET, error = %error_chain(error), "commits failed: the shards must be opened again");
        // First the shards: what they append behind this would be written with a gap before it.
        let mut all: Vec<Arc<Tickets>> = Vec::new();
        self.each_open(|shard, tickets| {
            shard.fail();
            if !all.iter().any(|known| Arc::ptr_eq(known, tickets)) {
                all.push(Arc::clone(tickets));
            }
        });
        let waiters = self.queue.lock().fail();
        all.iter().for_each(|tickets| tickets.listener.failed(error.clone()));
        for waiter in waiters {
            let _ = waiter.send(Err(error.clone()));
        }
    }
}
