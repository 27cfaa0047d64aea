//! The plan: the shards that a member gives away and opens next. A pure function of the leases.
//!
//! Called by the [ownership task](super::task) after each renewal. Every member computes the whole assignment from the
//! leases that it sees, and acts only on its own part. Two members that see the same leases agree; if they do not, the
//! store decides, because it gives a shard to one member only.
//!
//! The shards are spread evenly over the members that are not draining, with a difference of at most one. An owner
//! gives away only what exceeds its share, so that a member that joins moves only what it must get. Nothing is weighted
//! by load: keys are spread over shards by a hash, and a plan that follows the load moves shards for ever.
//!
//! While two versions of the program run, a member may refuse shards, and yield others to any member that does not.
//! These limits come before the even spread. A shard is given away only if another member takes it, so none moves in a
//! circle.

use std::collections::{BTreeMap, BTreeSet};

use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{Leases, Member, MemberId};

/// The next moves of one member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Shards without an owner that this member opens.
    pub(super) open: Vec<ShardId>,
    /// Shards that this member hands over now, to spread them evenly.
    pub(super) give: Vec<ShardId>,
    /// Shards that this member hands over now because messages wait there for another member.
    pub(super) give_soon: Vec<ShardId>,
    /// The number of shards that this member lacks until others have given them away.
    pub(super) expected: usize,
    /// The number of shards that this member still has to give away, with those in `give`.
    pub(super) surplus: usize,
    /// The number of shards without an owner.
    pub(super) unowned: usize,
    /// The number of those that a member will open.
    pub(super) under_way: usize,
}

/// One member that takes shards.
struct Taker<'a> {
    id: MemberId,
    member: &'a Member,
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

    /// Returns whether the member opens a shard.
    fn may_take(&self, shard: &ShardId) -> bool {
        !self.member.refuses.contains(shard)
    }

    /// Returns whether the member keeps a shard.
    fn keeps(&self, shard: &ShardId) -> bool {
        self.may_take(shard) && !self.member.yields.contains(shard)
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
        takers.map(|member| Taker { id: member.id, member, shards: Vec::new(), quota: 0 }).collect();
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
    let handovers = handovers(&takers);
    plan.surplus = handovers.iter().filter(|handover| handover.from == me).count();
    // Shards that every member refuses are not under way, and hold nothing back.
    let is_taken = |shard: &&&ShardId| takers.iter().any(|taker| taker.may_take(shard));
    plan.under_way = unowned.iter().filter(is_taken).count();
    for handover in
        handovers.into_iter().take(moves.saturating_sub(plan.under_way)).filter(|handover| handover.from == me)
    {
        let list = if handover.is_yielded { &mut plan.give_soon } else { &mut plan.give };
        list.push(handover.shard.clone());
    }
    // The domains alternate, so that each is spread as well.
    unowned.sort_by_key(|shard| (shard.shard, &shard.domain));
    for shard in unowned {
        let Some(taker) = taker_of(&mut takers, shard) else { continue };
        taker.shards.push(shard);
        if taker.id == me {
            plan.open.push(shard.clone());
        }
    }
    plan.expected = takers.iter().filter(|taker| taker.id == me).map(Taker::lacks).sum();
    plan
}

/// Returns the member that opens a free shard: one that keeps it and lacks shards; then one that keeps it; then any that may
/// take it.
fn taker_of<'t, 'a>(takers: &'t mut [Taker<'a>], shard: &ShardId) -> Option<&'t mut Taker<'a>> {
    takers.iter_mut().filter(|taker| taker.may_take(shard)).min_by_key(|taker| {
        let lacks = taker.lacks();
        // Beyond the quotas, the one with the fewest shards.
        let beyond = if lacks > 0 { 0 } else { taker.shards.len() };
        let of_domain = if lacks > 0 { taker.count_of(&shard.domain) } else { 0 };
        (!taker.keeps(shard), lacks == 0, of_domain, beyond, std::cmp::Reverse(lacks), taker.id)
    })
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

/// A shard that its owner gives away.
struct Handover<'a> {
    from: MemberId,
    shard: &'a ShardId,
    is_yielded: bool,
}

/// Returns all shards that are given away, in order: those that are yielded, then those that exceed their owners' quotas, one
/// of each owner in turn. A shard without a member that would take it stays.
fn handovers<'a>(takers: &[Taker<'a>]) -> Vec<Handover<'a>> {
    let mut handovers = Vec::new();
    let mut room: BTreeMap<MemberId, usize> = takers.iter().map(|taker| (taker.id, taker.lacks())).collect();
    let mut excess = Vec::new();
    for taker in takers {
        let mut kept: BTreeMap<&Name, Vec<&ShardId>> = BTreeMap::new();
        let mut surplus = taker.surplus();
        for shard in &taker.shards {
            let is_wanted = || takers.iter().any(|other| other.id != taker.id && other.keeps(shard));
            if !taker.keeps(shard) && is_wanted() {
                handovers.push(Handover { from: taker.id, shard, is_yielded: true });
                surplus = surplus.saturating_sub(1);
            } else {
                kept.entry(&shard.domain).or_default().push(shard);
            }
        }
        excess.push((taker.id, surplus, kept));
    }
    let turns = excess.iter().map(|(_, surplus, _)| *surplus).max().unwrap_or(0);
    for _ in 0..turns {
        for (id, surplus, kept) in excess.iter_mut().filter(|(_, surplus, _)| *surplus > 0) {
            *surplus -= 1;
            if let Some(shard) = excess_of(*id, kept, takers, &mut room) {
                handovers.push(Handover { from: *id, shard, is_yielded: false });
            }
        }
    }
    handovers
}

/// Returns the next shard that an owner gives away, of the domain of which it has the most, so that each domain stays spread.
/// Counts it for the member that has the most room for it.
fn excess_of<'a>(
    owner: MemberId,
    kept: &mut BTreeMap<&Name, Vec<&'a ShardId>>,
    takers: &[Taker<'a>],
    room: &mut BTreeMap<MemberId, usize>,
) -> Option<&'a ShardId> {
    loop {
        let shard = kept.values_mut().max_by_key(|shards| shards.len()).and_then(Vec::pop)?;
        let others = takers.iter().filter(|other| other.id != owner && other.keeps(shard));
        let rooms = others.filter_map(|other| room.get(&other.id).map(|room| (*room, other.id)));
        if let Some((_, to)) = rooms.filter(|(room, _)| *room > 0).max() {
            room.entry(to).and_modify(|room| *room -= 1);
            return Some(shard);
        }
    }
}

#[cfg(test)]
mod tests;
