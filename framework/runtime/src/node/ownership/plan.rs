//! The plan: the shards that a member gives away and opens next. A pure function of the leases.
//!
//! Called by the [ownership task](super::task) after each renewal. Every member computes the whole assignment from the
//! leases that it sees, and acts only on its own part. Two members that see the same leases agree; if they do not, the
//! store decides, because it gives a shard to one member only.
//!
//! The shards are spread evenly over the members that are not draining, with a difference of at most one. An owner
//! gives away only what exceeds its share, so that a member that joins moves only what it must get. Nothing is weighted
//! by load: keys are spread over shards by a hash, and a plan that follows the load moves shards for ever.

use std::collections::{BTreeMap, BTreeSet};

use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{Leases, Member, MemberId};

/// The next moves of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Shards without an owner that this member opens.
    pub(super) open: Vec<ShardId>,
    /// Shards that this member hands over now.
    pub(super) give: Vec<ShardId>,
    /// The number of shards that this member lacks until others have given them away.
    pub(super) expected: usize,
    /// The number of shards that this member still has to give away, with those in `give`.
    pub(super) surplus: usize,
    /// The number of shards without an owner.
    pub(super) unowned: usize,
}

/// One member that takes shards.
struct Taker<'a> {
    id: MemberId,
    shards: Vec<&'a ShardId>,
    quota: usize,
}

impl Taker<'_> {
    fn surplus(&self) -> usize {
        self.shards.len().saturating_sub(self.quota)
    }

    fn lacks(&self) -> usize {
        self.quota.saturating_sub(self.shards.len())
    }

    fn count_of(&self, domain: &Name) -> usize {
        self.shards.iter().filter(|shard| shard.domain == *domain).count()
    }
}

/// Computes the next moves of the member `me`. `shards` are all shards of the service, and at most `moves` of them are
/// handed over by all members at the same time. Costs shards times members.
pub(super) fn plan(leases: &Leases, shards: &[ShardId], me: MemberId, moves: usize) -> Plan {
    let members: BTreeMap<MemberId, &Member> = leases.members.iter().map(|member| (member.id, member)).collect();
    let owners: BTreeMap<&ShardId, MemberId> =
        leases.shards.iter().filter_map(|lease| Some((&lease.shard, lease.owner?))).collect();
    let takers = members.values().filter(|member| !member.is_draining);
    let mut takers: Vec<Taker<'_>> =
        takers.map(|member| Taker { id: member.id, shards: Vec::new(), quota: 0 }).collect();
    let mut unowned: Vec<&ShardId> = Vec::new();
    for shard in shards.iter().collect::<BTreeSet<_>>() {
        let owner = owners.get(shard).filter(|owner| members.contains_key(owner));
        match owner {
            None => unowned.push(shard),
            // A draining owner gives its shards away by itself.
            Some(owner) => {
                takers.iter_mut().filter(|taker| taker.id == *owner).for_each(|taker| taker.shards.push(shard));
            }
        }
    }
    let mut plan = Plan { unowned: unowned.len(), ..Plan::default() };
    share(&mut takers, shards.len());
    for (from, shard) in gifts(&takers).into_iter().take(moves.saturating_sub(unowned.len())) {
        if from == me {
            plan.give.push(shard.clone());
        }
    }
    plan.surplus = takers.iter().filter(|taker| taker.id == me).map(Taker::surplus).sum();
    // The domains alternate, so that each is spread as well.
    unowned.sort_by_key(|shard| (shard.shard, &shard.domain));
    for shard in unowned {
        let lacking = takers.iter_mut().filter(|taker| taker.lacks() > 0);
        let next =
            lacking.min_by_key(|taker| (taker.count_of(&shard.domain), std::cmp::Reverse(taker.lacks()), taker.id));
        let Some(taker) = next else { continue };
        taker.shards.push(shard);
        if taker.id == me {
            plan.open.push(shard.clone());
        }
    }
    plan.expected = takers.iter().filter(|taker| taker.id == me).map(Taker::lacks).sum();
    plan
}

/// Sets the quotas. The members with the most shards get the larger ones, which moves the least.
fn share(takers: &mut [Taker<'_>], shards: usize) {
    let members = takers.len().max(1);
    let (base, larger) = (shards / members, shards % members);
    let mut order: Vec<(usize, MemberId)> = takers.iter().map(|taker| (taker.shards.len(), taker.id)).collect();
    order.sort_by_key(|(owned, id)| (std::cmp::Reverse(*owned), *id));
    let larger: BTreeSet<MemberId> = order.into_iter().take(larger).map(|(_, id)| id).collect();
    for taker in takers {
        taker.quota = base + usize::from(larger.contains(&taker.id));
    }
}

/// Returns all shards that exceed their owners' quotas, in the order in which they are given away: one of each owner in
/// turn.
fn gifts<'a>(takers: &[Taker<'a>]) -> Vec<(MemberId, &'a ShardId)> {
    let mut gifts = Vec::new();
    for taker in takers {
        let mut kept: BTreeMap<&Name, Vec<&ShardId>> = BTreeMap::new();
        for shard in &taker.shards {
            kept.entry(&shard.domain).or_default().push(shard);
        }
        for nth in 0..taker.surplus() {
            // Of the domain of which the owner has the most, so that each domain stays spread.
            let most = kept.values_mut().max_by_key(|shards| shards.len());
            if let Some(shard) = most.and_then(Vec::pop) {
                gifts.push((nth, taker.id, shard));
            }
        }
    }
    gifts.sort_by_key(|(nth, id, _)| (*nth, *id));
    gifts.into_iter().map(|(_, id, shard)| (id, shard)).collect()
}

#[cfg(test)]
mod tests;
