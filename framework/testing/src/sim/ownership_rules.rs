//! The rules of leased shards: one owner at a time, and nothing after the end of an ownership.
//!
//! Called by the simulated [store](super::store) and its [leases](super::sim_leases), which see every opening, renewal, append and
//! commit, and by the [links](super::link), which see every answer. The rules are checked against a model of their own, so that a
//! fault in the leases of the store is found, too.
//!
//! The rules: no member opens a shard while the lease of its owner lasts. An owner appends nothing after its release. Only
//! the last owner commits. A node without a lease answers nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::fault_counts::{FaultCounts, FaultEvent};
use super::step_log::StepLog;
use whizbang_core::clock::instant;
use whizbang_core::message::ShardId;
use whizbang_core::store::{Epoch, MemberId};

/// The store counts leases in milliseconds.
const SLACK: Duration = Duration::from_millis(2);

/// The leases of one service, as they must be.
pub(super) struct OwnershipRules {
    /// The name of the service, for violations.
    service: String,
    /// The owners as the rules understand them.
    model: Mutex<LeaseModel>,
    /// The step log, to which violations are reported.
    step_log: StepLog,
    /// The counters of what the rules have seen, such as refused appends.
    fault_counts: FaultCounts,
}

/// A model of the leases of one service. It follows the calls, and does not ask the store.
#[derive(Default)]
struct LeaseModel {
    /// The ends of all leases.
    ends: BTreeMap<MemberId, Instant>,
    /// The last owner of each shard.
    owners: BTreeMap<ShardId, ShardOwner>,
}

/// The owner of one shard.
struct ShardOwner {
    /// The member that opened the shard.
    member: MemberId,
    /// The epoch of that opening.
    epoch: Epoch,
    /// The owner has released the shard itself.
    is_released: bool,
}

impl OwnershipRules {
    /// Creates the rules of a store without owners.
    pub(super) fn new(service: &str, step_log: StepLog, fault_counts: FaultCounts) -> Self {
        Self { service: service.to_owned(), model: Mutex::default(), step_log, fault_counts }
    }

    /// Records a renewal that has reached the store.
    pub(super) fn renewed(&self, member: MemberId, ttl: Duration) {
        self.model.lock().ends.insert(member, instant() + ttl);
    }

    /// Records that a member has left.
    pub(super) fn left(&self, member: MemberId) {
        let mut model = self.model.lock();
        model.ends.remove(&member);
        for owner in model.owners.values_mut().filter(|owner| owner.member == member) {
            owner.is_released = true;
        }
    }

    /// Records that a member has opened a shard. Until it is released or its owner's lease ends, no other member may do that.
    pub(super) fn opened(&self, member: MemberId, shard: &ShardId, epoch: Epoch) {
        let mut model = self.model.lock();
        let before = model.owners.insert(shard.clone(), ShardOwner { member, epoch, is_released: false });
        let Some(before) = before.filter(|before| before.member != member) else { return };
        let lease_end = model.ends.get(&before.member).copied().filter(|_| !before.is_released);
        drop(model);
        if let Some(end) = lease_end
            && end > instant() + SLACK
        {
            let left = end - instant();
            self.violated(&format!(
                "{shard} has two owners: it was taken {left:?} before the end of its owner's lease"
            ));
        }
        let event = if before.is_released { FaultEvent::ShardHandedOver } else { FaultEvent::ShardTakenOver };
        self.fault_counts.one(event);
    }

    /// Records a release. The owner must not append any longer.
    pub(super) fn released(&self, member: MemberId, shard: &ShardId, epoch: Epoch) {
        if let Some(owner) = self.model.lock().owners.get_mut(shard)
            && (owner.member, owner.epoch) == (member, epoch)
        {
            owner.is_released = true;
        }
    }

    /// Checks an append.
    pub(super) fn appended(&self, shard: &ShardId, epoch: Epoch) {
        let is_released =
            self.model.lock().owners.get(shard).is_some_and(|owner| owner.epoch == epoch && owner.is_released);
        if is_released {
            self.violated(&format!("an append to {shard} under epoch {epoch} after its release"));
        }
    }

    /// Checks a commit: only the last owner commits.
    pub(super) fn committed(&self, shard: &ShardId, epoch: Epoch) {
        let last = self.model.lock().owners.get(shard).map(|owner| owner.epoch);
        if let Some(last) = last.filter(|last| *last > epoch) {
            self.violated(&format!("{shard} was committed under epoch {epoch} after its opening in epoch {last}"));
        }
    }

    /// Checks an answer from what a member has read: its lease must not have ended.
    pub(super) fn answered(&self, member: MemberId, what: &str) {
        let end = self.model.lock().ends.get(&member).copied();
        if end.is_none_or(|end| end + SLACK < instant()) {
            self.violated(&format!("{what} was answered by a node without a lease"));
        }
    }

    /// Checks the answer to the query of a key: a renewal does not give back a shard that another member has taken.
    pub(super) fn answered_for(&self, member: MemberId, shard: &ShardId, what: &str) {
        if self.model.lock().owners.get(shard).is_some_and(|owner| owner.member != member) {
            self.violated(&format!("{what} was answered by a node that no longer owns {shard}"));
        }
    }

    /// Reports a violation. The run continues, and fails at its end with the first one.
    fn violated(&self, what: &str) {
        self.step_log.report(format!("ownership: {}: {what}", self.service));
    }
}
