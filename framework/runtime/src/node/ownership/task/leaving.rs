//! The leave of a member: its shards are handed over without a long time in which they have no owner.
//!
//! A shard that is released is taken when another member looks at the leases. So the member announces that it leaves and keeps its
//! shards until every other member must have seen that. These then look often, and the shards follow, a few at a time. Nothing
//! else than the leases is needed: a notification by the database would not pass a connection pooler.

use std::time::Duration;

use super::{HAND_OVERS, Leaving, Local, OwnershipTask, interval};
use crate::node::ownership::plan::plan;
use whizbang_core::clock::instant;
use whizbang_core::store::Leases;

/// Interval of the renewals while a member leaves, its own and those of the others.
const SOON: Duration = Duration::from_millis(50);
/// Longest time for which the others look that often for the shards of one that leaves, and its shards stay the same. It may have
/// crashed.
const FOLLOWED: Duration = Duration::from_secs(10);
/// Longest time for which shards are handed over a few at a time. A node stops within 10 s; the rest of that is for turns.
const PACED: Duration = Duration::from_secs(3);
/// Number of groups in which a member hands its shards over.
const GROUPS: usize = 16;

impl OwnershipTask {
    /// Hands over the shards whose turn it is. `number` is that of the renewal that has returned `leases`.
    pub(super) fn leave_shards(&mut self, number: u64, leases: &Leases) {
        let me = self.me();
        let open = self.open_epochs();
        let has_takers = leases.members.iter().any(|member| member.id != me && !member.is_draining);
        // Without a lease or a taker, waiting would gain nothing.
        let mut next = open.len();
        if has_takers && !self.is_suspended() && self.failures == 0 {
            if !self.is_draining_in(leases) {
                return;
            }
            self.next_renewal = self.next_renewal.min(self.renewed + SOON);
            let held = open.len();
            let leaving = *self.leaving.get_or_insert_with(|| Leaving { announced: instant(), held });
            let notice = interval(self.membership.ttl) + SOON;
            let waited = leaving.announced.elapsed();
            if waited < notice {
                return;
            }
            if waited < notice + PACED {
                let group = HAND_OVERS.max(leaving.held.div_ceil(GROUPS));
                next = group.saturating_sub(self.ownerless(number, leases));
            }
        }
        for (shard, epoch) in open.into_iter().take(next) {
            self.hand_over(shard, epoch);
        }
    }

    /// Returns the number of shards that are handed over and not known to be taken.
    fn ownerless(&self, number: u64, leases: &Leases) -> usize {
        let is_left = |local: &&Local| match local {
            Local::HandingOver => true,
            // The view is older than the release.
            Local::Closed { since } => *since >= number,
            Local::Opening | Local::Open { .. } | Local::Dropping => false,
        };
        self.local.values().filter(is_left).count() + plan(leases, &self.shards, self.me(), 0).under_way
    }

    /// Renews often while another member leaves, so that its shards are taken as soon as they are released.
    pub(super) fn follow_leaving(&mut self, leases: &Leases) {
        let leaves = |owner| leases.members.iter().any(|member| member.id == owner && member.is_draining);
        let is_followed = leases.shards.iter().filter_map(|lease| lease.owner).any(leaves);
        if is_followed && self.failures == 0 && self.unchanged.elapsed() < FOLLOWED {
            self.next_renewal = self.next_renewal.min(self.renewed + SOON);
        }
    }
}
