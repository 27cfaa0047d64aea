//! Tests of the plan: any history of joins, leaves and crashes ends with an even spread, by the fewest moves.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use whizbang_core::store::ShardLease;

const ALL: usize = usize::MAX;

fn id(number: u64) -> MemberId {
    MemberId::from_u128(u128::from(number))
}

/// The members and owners, as a store keeps them.
#[derive(Clone, Default)]
struct World {
    shards: Vec<ShardId>,
    members: BTreeMap<MemberId, bool>,
    owners: BTreeMap<ShardId, MemberId>,
    /// The numbers of the shards that members refuse and yield.
    limits: BTreeMap<MemberId, (BTreeSet<u16>, BTreeSet<u16>)>,
}

impl World {
    fn of(domains: &[u16]) -> Self {
        let shards = domains.iter().enumerate().flat_map(|(at, count)| {
            let domain = Name::new(&format!("domain-{at}")).unwrap();
            (0..*count).map(move |shard| ShardId::new(domain.clone(), shard))
        });
        Self { shards: shards.collect(), ..Self::default() }
    }

    fn leases(&self) -> Leases {
        let member = |(id, is_draining): (&MemberId, &bool)| {
            let (refuses, yields) = self.limits.get(id).cloned().unwrap_or_default();
            let of = |numbers: BTreeSet<u16>| {
                self.shards.iter().filter(|shard| numbers.contains(&shard.shard)).cloned().collect()
            };
            let member = Member::new(*id, Name::from_static("bank").unwrap(), "").limited(of(refuses), of(yields));
            if *is_draining { member.draining() } else { member }
        };
        let lease = |(shard, owner): (&ShardId, &MemberId)| ShardLease::new(shard.clone(), Some(*owner), 1);
        Leases::new(self.members.iter().map(member).collect(), self.owners.iter().map(lease).collect())
    }

    fn join(&mut self, number: u64) {
        self.members.insert(id(number), false);
    }

    fn nth(&self, nth: usize) -> Option<MemberId> {
        self.members.keys().nth(nth % self.members.len().max(1)).copied()
    }

    fn owned(&self, member: MemberId) -> usize {
        self.owners.values().filter(|owner| **owner == member).count()
    }

    /// Lets the members in `acting` act on what all of them see. Returns the number of shards that were given away.
    fn round(&mut self, moves: usize, acting: impl Fn(usize) -> bool) -> usize {
        let seen = self.leases();
        let free = |world: &Self, shard: &ShardId| seen.owner(shard).is_none() && world.shards.contains(shard);
        let (mut given, mut opened) = (0, BTreeSet::new());
        for (_, me) in self.members.clone().into_keys().enumerate().filter(|(at, _)| acting(*at)) {
            let plan = plan(&seen, &self.shards, me, moves);
            for shard in plan.give.into_iter().chain(plan.give_soon) {
                assert_eq!(self.owners.remove(&shard), Some(me), "a member gives only what it owns");
                given += 1;
            }
            for shard in plan.open {
                assert!(free(self, &shard), "only a free shard is opened");
                assert!(opened.insert(shard.clone()), "two members plan to open {shard:?}");
                self.owners.insert(shard, me);
            }
        }
        for (leaving, _) in self.members.clone().into_iter().filter(|(_, is_draining)| *is_draining) {
            self.owners.retain(|_, owner| *owner != leaving);
            self.members.remove(&leaving);
        }
        assert!(given <= moves, "{given} shards are handed over at once");
        given
    }

    /// Lets all members act until nothing changes. Returns the number of shards that were given away.
    fn settle(&mut self, moves: usize) -> usize {
        let mut given = 0;
        for _ in 0..4 * self.shards.len() + 8 {
            let before = (self.owners.clone(), self.members.clone());
            given += self.round(moves, |_| true);
            if before == (self.owners.clone(), self.members.clone()) {
                return given;
            }
        }
        panic!("shards move for ever");
    }

    fn assert_even(&self) {
        if self.members.is_empty() {
            return;
        }
        assert_eq!(self.owners.len(), self.shards.len(), "every shard has an owner");
        let counts: Vec<usize> = self.members.keys().map(|member| self.owned(*member)).collect();
        let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
        assert!(most - least <= 1, "{counts:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Join(u64),
    Drain(usize),
    Crash(usize),
    /// A round in which some members act.
    Round(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => any::<u64>().prop_map(Step::Join),
        1 => any::<usize>().prop_map(Step::Drain),
        1 => any::<usize>().prop_map(Step::Crash),
        4 => any::<u32>().prop_map(Step::Round),
    ];
    proptest::collection::vec(step, 0..40)
}

proptest! {
    #[test]
    fn any_history_ends_with_an_even_spread(
        domains in proptest::collection::vec(1u16..20, 1..4), steps in steps(), moves in 1usize..6,
    ) {
        let mut world = World::of(&domains);
        for step in steps {
            match step {
                Step::Join(number) => world.join(number),
                Step::Drain(nth) => {
                    if let Some(member) = world.nth(nth) {
                        world.members.insert(member, true);
                    }
                }
                Step::Crash(nth) => {
                    if let Some(member) = world.nth(nth) {
                        world.members.remove(&member);
                    }
                }
                Step::Round(acting) => drop(world.round(moves, |at| acting >> (at % 32) & 1 == 1)),
            }
        }
        world.settle(moves);
        world.assert_even();
    }

    #[test]
    fn join_moves_only_the_share_of_the_new_member(members in 1u64..12, shards in 1u16..64, moves in 1usize..6) {
        let mut world = World::of(&[shards]);
        (1..=members).for_each(|member| world.join(member * 3));
        world.settle(ALL);
        let before = world.owners.clone();
        world.join(4);
        let given = world.settle(moves);
        world.assert_even();
        let moved = before.iter().filter(|(shard, owner)| world.owners[shard] != **owner).count();
        let share = usize::from(shards) / (usize::try_from(members).unwrap() + 1);
        prop_assert_eq!((given, moved, world.owned(id(4))), (share, share, share));
    }

    #[test]
    fn leave_moves_only_what_the_member_owned(members in 2u64..12, shards in 1u16..64, crashes: bool) {
        let mut world = World::of(&[shards]);
        (1..=members).for_each(|member| world.join(member));
        world.settle(ALL);
        let before = world.owners.clone();
        if crashes {
            world.members.remove(&id(1));
        } else {
            world.members.insert(id(1), true);
        }
        prop_assert_eq!(world.settle(4), 0, "nothing else is given away");
        world.assert_even();
        prop_assert!(before.iter().all(|(shard, owner)| *owner == id(1) || world.owners[shard] == *owner));
    }
}

fn limits() -> impl Strategy<Value = Vec<(BTreeSet<u16>, BTreeSet<u16>)>> {
    let numbers = || proptest::collection::btree_set(0u16..20, 0..20);
    proptest::collection::vec((numbers(), numbers()), 1..6)
}

proptest! {
    #[test]
    fn limits_of_members_come_before_an_even_spread(
        domains in proptest::collection::vec(1u16..20, 1..3), limits in limits(), leaves in 0usize..3, moves in 1usize..6,
    ) {
        let mut world = World::of(&domains);
        for (number, limits) in (1..).zip(limits) {
            world.join(number);
            world.settle(moves);
            world.limits.insert(id(number), limits);
            // A member that finds a type that it does not know releases the shard.
            let refused = world.limits.clone();
            world.owners.retain(|shard, owner| !refused.get(owner).is_some_and(|(refuses, _)| refuses.contains(&shard.shard)));
            world.settle(moves);
        }
        for _ in 0..leaves {
            if let Some(first) = world.nth(0) {
                world.members.remove(&first);
            }
            world.settle(moves);
        }
        let takes = |member: MemberId, shard: &ShardId| !world.limits[&member].0.contains(&shard.shard);
        let keeps = |member: MemberId, shard: &ShardId| takes(member, shard) && !world.limits[&member].1.contains(&shard.shard);
        for shard in &world.shards {
            let owner = world.owners.get(shard).filter(|owner| world.members.contains_key(owner)).copied();
            prop_assert_eq!(owner.is_some(), world.members.keys().any(|member| takes(*member, shard)));
            if let Some(owner) = owner {
                prop_assert!(takes(owner, shard));
                prop_assert!(keeps(owner, shard) || !world.members.keys().any(|member| keeps(*member, shard)));
            }
        }
    }
}

#[test]
fn each_domain_is_spread() {
    let mut world = World::of(&[16, 16, 8]);
    (1..=4).for_each(|member| world.join(member));
    world.settle(4);
    world.join(5);
    world.settle(4);
    world.assert_even();
    for member in 1..=5 {
        for domain in ["domain-0", "domain-1"] {
            let of = |(shard, owner): &(&ShardId, &MemberId)| **owner == id(member) && shard.domain.as_str() == domain;
            let owned = world.owners.iter().filter(of).count();
            assert!((2..=5).contains(&owned), "member {member} owns {owned} of {domain}");
        }
    }
}

#[test]
fn draining_member_gets_nothing() {
    let mut world = World::of(&[4]);
    world.join(1);
    world.members.insert(id(1), true);
    assert_eq!(plan(&world.leases(), &world.shards, id(1), 4), Plan { unowned: 4, ..Plan::default() });
    world.join(2);
    let plan = plan(&world.leases(), &world.shards, id(2), 4);
    assert_eq!((plan.open.len(), plan.expected, plan.unowned), (4, 0, 4));
}

#[test]
fn moves_in_progress_hold_back_the_next_ones() {
    let mut world = World::of(&[16]);
    world.join(1);
    world.settle(ALL);
    world.join(2);
    assert_eq!(plan(&world.leases(), &world.shards, id(1), 3).give.len(), 3);
    assert_eq!(plan(&world.leases(), &world.shards, id(2), 3).expected, 8);
    let free: Vec<ShardId> = world.owners.keys().take(2).cloned().collect();
    world.owners.retain(|shard, _| !free.contains(shard));
    let giver = plan(&world.leases(), &world.shards, id(1), 3);
    assert_eq!((giver.give.len(), giver.surplus, giver.open.len()), (1, 6, 0));
    assert_eq!(plan(&world.leases(), &world.shards, id(2), 3).open, free);
}
