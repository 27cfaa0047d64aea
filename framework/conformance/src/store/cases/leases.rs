//! Leases: members, owners, and what an owner that has lost a shard can still do.
//!
//! The cases use two instances of the store, as two nodes do. They never wait for a time: an expired lease is one that the
//! store no longer lists.

use std::sync::Arc;
use std::time::Duration;

pub use super::identity::starts_on_two_instances_are_all_recorded;

use super::super::turn_builder::{name, shard};
use super::super::{Owner, RecordingListener, SHARDS, SharedFixture, TurnBuilder};
use whizbang_core::message::ShardId;
use whizbang_core::store::{
    CommitListener, Leases, Member, MemberId, ShardLease, ShardLeases, Source, SourceKind, Store, StoreError, Watermark,
};

/// A lease that does not expire during a case.
const LONG: Duration = Duration::from_secs(600);
/// A lease that expires soon.
const SHORT: Duration = Duration::from_millis(50);
/// The pause between two readings of the leases.
const PAUSE: Duration = Duration::from_millis(5);

/// The first member, with the smallest id.
const ADA: MemberId = MemberId::from_u128(1);
/// The second member, with an id near the greatest one: members are ordered as unsigned numbers.
const BOB: MemberId = MemberId::from_u128(u128::MAX - 1);

/// Returns a member of the service of the suite.
fn member(id: MemberId) -> Member {
    Member::new(id, name("bank"), format!("node {id}"))
}

/// Returns the leases of a store, which must have them.
fn leases(store: &Arc<dyn Store>) -> Arc<dyn ShardLeases> {
    store.leases().expect("the store has leases")
}

/// Renews the lease of a member.
async fn renew(store: &Arc<dyn Store>, id: MemberId, ttl: Duration) -> Leases {
    leases(store).renew(&member(id), ttl).await.expect("the lease is renewed")
}

/// Opens a shard for a member. `None` if another member owns it, or if this one has no lease.
async fn open(store: &Arc<dyn Store>, id: MemberId, shard: &ShardId) -> Option<Owner> {
    Owner::lease(store, id, shard).await
}

/// Opens a shard that is free.
async fn owner(store: &Arc<dyn Store>, id: MemberId, shard: &ShardId) -> Owner {
    open(store, id, shard).await.expect("the shard is free")
}

/// Two instances of the store, with a member each.
async fn two(fixture: &impl SharedFixture) -> (Arc<dyn Store>, Arc<dyn Store>) {
    let (one, other) = (fixture.store().await, fixture.second().await);
    renew(&one, ADA, LONG).await;
    renew(&other, BOB, LONG).await;
    (one, other)
}

/// Lets the lease of a member expire, by the clock of the store.
async fn expire(store: &Arc<dyn Store>, id: MemberId, observer: (&Arc<dyn Store>, MemberId)) {
    renew(store, id, SHORT).await;
    while renew(observer.0, observer.1, LONG).await.members.iter().any(|member| member.id == id) {
        tokio::time::sleep(PAUSE).await;
    }
}

/// Returns a turn with one event.
fn deposit(key: &str, number: u64) -> TurnBuilder {
    TurnBuilder::new("Account", key, number).at(number, number - 1).event("Deposited", number.to_string())
}

/// Checks that an owner was fenced, by the expected later epoch.
fn assert_fenced<T: std::fmt::Debug>(outcome: Result<T, StoreError>, old: &Owner, current: u64) {
    match outcome {
        Err(StoreError::Fenced { shard, mine, current: found }) => {
            assert_eq!((shard, mine, found), (old.shard.clone(), old.writer.epoch(), current));
        }
        other => panic!("not fenced: {other:?}"),
    }
}

/// A renewal returns the live members in the order of their ids, and the owner and epoch of every shard that was opened.
///
/// Each node computes from this list which shards it should own. All must see the same order.
pub async fn renewal_returns_members_and_owners(fixture: &impl SharedFixture) {
    let (one, other) = (fixture.store().await, fixture.second().await);
    let alone = renew(&one, ADA, LONG).await;
    assert_eq!(alone, Leases::new(vec![member(ADA)], Vec::new()));
    let draining = member(BOB).draining();
    let both = leases(&other).renew(&draining, LONG).await.unwrap();
    assert_eq!(both.members, [member(ADA), draining]);
    let (first, third) = (shard("bank", 0), shard("bank", 2));
    let third_owner = owner(&one, ADA, &third).await;
    let first_owner = owner(&one, ADA, &first).await;
    let seen = renew(&other, BOB, LONG).await;
    assert_eq!(seen.members, [member(ADA), member(BOB)], "a renewal replaces the member's state");
    let lease = |owner: &Owner| ShardLease::new(owner.shard.clone(), Some(ADA), owner.writer.epoch());
    assert_eq!(seen.shards, [lease(&first_owner), lease(&third_owner)]);
    assert_eq!((seen.owner(&first), seen.owner(&shard("bank", 1))), (Some(ADA), None));
    assert!(first_owner.writer.epoch() > 0);
}

/// A member that renews its lease is listed and keeps its shards, however often its lease would have expired.
///
/// Otherwise the shards of a healthy node would move for no reason, and their actors would be read again.
pub async fn renewal_keeps_a_member_alive(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let bank = shard("bank", 0);
    let mut kept = owner(&one, ADA, &bank).await;
    renew(&one, ADA, SHORT).await;
    // The first renewal ends the short lease; the second one must not bring it back.
    renew(&one, ADA, LONG).await;
    expire(&other, MemberId::from_u128(7), (&other, BOB)).await;
    assert_eq!(renew(&other, BOB, LONG).await.owner(&bank), Some(ADA));
    assert!(open(&other, BOB, &bank).await.is_none());
    kept.try_commit(&deposit("ada", 1)).await.unwrap();
}

/// A lease that is not renewed expires; its owner is then listed without being a member.
///
/// The clocks of nodes may differ by more than a lease, so no node decides for another one.
pub async fn expired_lease_ends_by_the_clock_of_the_store(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let bank = shard("bank", 0);
    let held = owner(&one, ADA, &bank).await;
    expire(&one, ADA, (&other, BOB)).await;
    let seen = renew(&other, BOB, LONG).await;
    assert_eq!(seen.members, [member(BOB)]);
    assert_eq!(seen.shards, [ShardLease::new(bank.clone(), Some(ADA), held.writer.epoch())]);
    assert_eq!(seen.owner(&bank), None);
}

/// A member whose lease had expired is renewed. It keeps the shards that were not taken, with their epochs.
///
/// A node whose connection was interrupted continues with these shards, without reading their actors again.
pub async fn expired_member_is_renewed_with_what_it_still_owns(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let (kept, lost) = (shard("bank", 0), shard("bank", 1));
    let mut keeper = owner(&one, ADA, &kept).await;
    let old = owner(&one, ADA, &lost).await;
    expire(&one, ADA, (&other, BOB)).await;
    let taker = owner(&other, BOB, &lost).await;
    let seen = renew(&one, ADA, LONG).await;
    assert_eq!(seen.members, [member(ADA), member(BOB)]);
    assert_eq!(
        seen.shards,
        [
            ShardLease::new(kept.clone(), Some(ADA), keeper.writer.epoch()),
            ShardLease::new(lost.clone(), Some(BOB), taker.writer.epoch()),
        ]
    );
    assert!(taker.writer.epoch() > old.writer.epoch());
    assert!(open(&other, BOB, &kept).await.is_none(), "its lease counts again");
    keeper.try_commit(&deposit("ada", 1)).await.unwrap();
}

/// A shard of a live member is refused to every other member, and nothing changes.
///
/// Two nodes may disagree for a moment about the assignment of shards.
pub async fn live_owner_keeps_its_shard(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let bank = shard("bank", 0);
    let mut held = owner(&one, ADA, &bank).await;
    assert!(open(&other, BOB, &bank).await.is_none());
    assert!(open(&one, BOB, &bank).await.is_none());
    held.try_commit(&deposit("ada", 1)).await.unwrap();
    let seen = renew(&other, BOB, LONG).await;
    assert_eq!(seen.shards, [ShardLease::new(bank, Some(ADA), held.writer.epoch())]);
}

/// The next owner finds every commit of the expired one. A later commit of that one is rejected, at once or when it is
/// flushed, and nothing of it is visible.
///
/// This is the guarantee on which failover rests: one history per actor, and nothing that was acknowledged is lost.
pub async fn expired_owner_is_replaced_and_fenced(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let bank = shard("bank", 0);
    let mut old = owner(&one, ADA, &bank).await;
    old.try_commit(&deposit("ada", 1)).await.unwrap();
    expire(&one, ADA, (&other, BOB)).await;
    let mut young = owner(&other, BOB, &bank).await;
    let epoch = young.writer.epoch();
    assert!(epoch > old.writer.epoch());
    assert_eq!((young.reader.position(), young.load("Account", "ada").await.turns.len()), (1, 1));
    let refused = old.try_commit(&deposit("ada", 2)).await;
    assert_fenced(refused, &old, epoch);
    assert_eq!((young.reader.position(), young.load("Account", "ada").await.turns.len()), (1, 1));
    young.try_commit(&deposit("ada", 2)).await.unwrap();
    young.try_commit(&deposit("bob", 1)).await.unwrap();
    let refused = old.try_commit(&deposit("ada", 3)).await;
    assert_fenced(refused, &old, epoch);
    let history = young.reader.history(&name("Account"), "ada").await.unwrap();
    assert_eq!(history.len(), 2);
    let read = one.read(&bank).await.unwrap().expect("the shard is there");
    assert_eq!(read.events(0, 10).await.unwrap(), young.reader.events(0, 10).await.unwrap());
}

/// The log that the next owner finds does not change by appends that were pending: they are in that log, or they are refused.
///
/// The earlier owner may be slow and not dead, so its appends can reach the store at any moment of the takeover.
pub async fn pending_append_of_expired_owner_is_found_or_refused(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let bank = shard("bank", 0);
    let mut old = owner(&one, ADA, &bank).await;
    old.fill("Account", &["ada"], 3).await;
    expire(&one, ADA, (&other, BOB)).await;
    let pending = old.append_deposits(4..=6);
    let mut young = owner(&other, BOB, &bank).await;
    old.check_takeover(&pending, &mut young).await;
}

/// Two shards are written together: only the one that was taken is fenced, the other continues.
///
/// Stores write several shards in one batch or transaction. A store that fails the whole batch would stop a node that
/// has lost one shard of many.
pub async fn fenced_shard_does_not_stop_the_others(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let listener = Arc::new(RecordingListener::default());
    let mut owners = Vec::new();
    for number in 0..SHARDS {
        let bank = shard("bank", number);
        owners.push(Owner::lease_with(&one, ADA, &bank, Arc::clone(&listener)).await.expect("the shard is free"));
    }
    for owner in &mut owners {
        owner.try_commit(&deposit("ada", 1)).await.unwrap();
    }
    expire(&one, ADA, (&other, BOB)).await;
    let lost = 1;
    let young = owner(&other, BOB, &owners[lost].shard).await;
    renew(&one, ADA, LONG).await;
    for number in 2..20 {
        let appended: Vec<_> = owners.iter_mut().map(|owner| owner.append(&deposit("ada", number))).collect();
        for (at, (owner, appended)) in owners.iter().zip(appended).enumerate() {
            let outcome = match appended {
                Ok(appended) if !appended.committed => {
                    listener.until_settled(&owner.shard, owner.writer.epoch(), appended.ticket).await
                }
                appended => appended.map(drop),
            };
            if at == lost {
                assert_fenced(outcome, owner, young.writer.epoch());
            } else {
                outcome.unwrap();
            }
        }
    }
    assert!(listener.error().is_none(), "{:?}", listener.error());
    assert!(
        listener
            .fenced()
            .iter()
            .all(|(error, _)| { matches!(error, StoreError::Fenced { shard, .. } if *shard == owners[lost].shard) })
    );
    assert_eq!(young.reader.position(), 1);
    for (at, owner) in owners.iter().enumerate().filter(|(at, _)| *at != lost) {
        assert_eq!(owner.reader.position(), 19, "shard {at}");
    }
}

/// The parts that an owner stores beside turns do not survive its loss of the shard.
///
/// A late snapshot could describe turns that the next owner never had.
pub async fn fenced_owner_leaves_snapshots_and_watermarks_alone(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let (bank, shop) = (shard("bank", 0), shard("shop", 0));
    let mut old = owner(&one, ADA, &bank).await;
    old.try_commit(&deposit("ada", 1).send(&shop, 1)).await.unwrap();
    expire(&one, ADA, (&other, BOB)).await;
    let mut young = owner(&other, BOB, &bank).await;
    let source = Source { shard: shop.clone(), kind: SourceKind::Direct };
    let appends = [old.writer.advance(&Watermark { source, through: 5 }), old.writer.sent(&shop, 1)];
    for appended in appends {
        let outcome = match appended {
            Ok(appended) if !appended.committed => {
                old.listener.until_settled(&old.shard, old.writer.epoch(), appended.ticket).await
            }
            appended => appended.map(drop),
        };
        assert_fenced(outcome, &old, young.writer.epoch());
    }
    let refused = old.try_commit(&deposit("ada", 2).event("Deposited", "more")).await;
    assert_fenced(refused, &old, young.writer.epoch());
    old.snapshot("Account", "ada", 2, b"stale");
    young.try_commit(&deposit("ada", 2)).await.unwrap();
    assert_eq!(young.reader.watermarks(), Vec::new());
    assert_eq!(young.reader.outbox_heads(), [(shop, 0, 1)]);
    let state = young.load("Account", "ada").await;
    assert_eq!((state.snapshot, state.turns.len()), (None, 2), "the snapshot is of a turn that is not in the log");
}

/// A released shard has no owner. Another member takes it at once, with a later epoch.
///
/// A handover between live nodes takes one round trip, and not the time of a lease.
pub async fn released_shard_is_free(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let bank = shard("bank", 0);
    let mut old = owner(&one, ADA, &bank).await;
    old.try_commit(&deposit("ada", 1)).await.unwrap();
    let epoch = old.writer.epoch();
    leases(&one).release(ADA, &bank, epoch).await.unwrap();
    let seen = renew(&other, BOB, LONG).await;
    assert_eq!(seen.shards, [ShardLease::new(bank.clone(), None, epoch)]);
    assert_eq!(seen.members, [member(ADA), member(BOB)]);
    let mut young = owner(&other, BOB, &bank).await;
    assert!(young.writer.epoch() > epoch);
    assert_eq!(young.reader.position(), 1);
    young.try_commit(&deposit("ada", 2)).await.unwrap();
    assert!(open(&one, ADA, &bank).await.is_none());
}

/// A release by a member that does not own the shard, or no longer at that epoch, does nothing.
///
/// A release may arrive late, after the shard was assigned again, even to the same member.
pub async fn stale_release_does_nothing(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let bank = shard("bank", 0);
    let first = owner(&one, ADA, &bank).await;
    let again = owner(&one, ADA, &bank).await;
    leases(&one).release(ADA, &bank, first.writer.epoch()).await.unwrap();
    leases(&other).release(BOB, &bank, again.writer.epoch()).await.unwrap();
    leases(&other).release(BOB, &shard("bank", 3), 1).await.unwrap();
    assert_eq!(renew(&other, BOB, LONG).await.owner(&bank), Some(ADA));
    leases(&one).release(ADA, &bank, again.writer.epoch()).await.unwrap();
    let young = owner(&other, BOB, &bank).await;
    leases(&one).release(ADA, &bank, young.writer.epoch()).await.unwrap();
    assert_eq!(renew(&one, ADA, LONG).await.owner(&bank), Some(BOB));
}

/// A member that leaves is no longer listed, and its shards are free.
///
/// A node that stops in an orderly way leaves no shard without an owner until its lease would have expired.
pub async fn member_that_leaves_releases_everything(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let (bank, shop) = (shard("bank", 0), shard("shop", 1));
    let held = [owner(&one, ADA, &bank).await, owner(&one, ADA, &shop).await];
    let kept = owner(&other, BOB, &shard("bank", 1)).await;
    leases(&one).leave(ADA).await.unwrap();
    let seen = renew(&other, BOB, LONG).await;
    assert_eq!(seen.members, [member(BOB)]);
    assert_eq!((seen.owner(&bank), seen.owner(&shop), seen.owner(&kept.shard)), (None, None, Some(BOB)));
    for held in &held {
        let taken = owner(&other, BOB, &held.shard).await;
        assert!(taken.writer.epoch() > held.writer.epoch());
    }
    assert!(open(&one, ADA, &shard("bank", 2)).await.is_none(), "a member that has left has no lease");
}

/// A member opens a shard that it owns again, for example after a failed commit. Its earlier writer is fenced.
///
/// The new writer has a later epoch, so appends of the earlier writer that are still queued cannot mix with its own.
pub async fn member_reopens_its_shard(fixture: &impl SharedFixture) {
    let (one, _other) = two(fixture).await;
    let bank = shard("bank", 0);
    let mut first = owner(&one, ADA, &bank).await;
    first.try_commit(&deposit("ada", 1)).await.unwrap();
    let mut again = owner(&one, ADA, &bank).await;
    assert!(again.writer.epoch() > first.writer.epoch());
    let refused = first.try_commit(&deposit("ada", 2)).await;
    assert_fenced(refused, &first, again.writer.epoch());
    again.try_commit(&deposit("ada", 2)).await.unwrap();
    assert_eq!(renew(&one, ADA, LONG).await.owner(&bank), Some(ADA));
}

/// A member that never renewed a lease, or whose lease has expired, opens nothing, not even its own shards.
///
/// A node that has not noticed that its lease expired must learn of it before it handles a message.
pub async fn member_without_a_lease_opens_nothing(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let (bank, free) = (shard("bank", 0), shard("bank", 1));
    assert!(open(&one, MemberId::from_u128(99), &bank).await.is_none());
    let mut held = owner(&one, ADA, &bank).await;
    expire(&one, ADA, (&other, BOB)).await;
    assert!(open(&one, ADA, &free).await.is_none());
    assert!(open(&one, ADA, &bank).await.is_none());
    assert_eq!(renew(&other, BOB, LONG).await.shards, [ShardLease::new(bank, Some(ADA), held.writer.epoch())]);
    held.try_commit(&deposit("ada", 1)).await.expect("only a takeover fences a writer");
    renew(&one, ADA, LONG).await;
    assert!(open(&one, ADA, &free).await.is_some());
}

/// Two members open a free shard at the same time: exactly one gets it.
///
/// All nodes notice an expired owner at about the same time, so this race is the rule and not the exception.
pub async fn one_of_two_simultaneous_openings_wins(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    for number in 0..SHARDS {
        let bank = shard("bank", number);
        let (mine, theirs) = tokio::join!(open(&one, ADA, &bank), open(&other, BOB, &bank));
        let mut winner = match (mine, theirs) {
            (Some(owner), None) | (None, Some(owner)) => owner,
            (mine, theirs) => {
                panic!("{} owners of {bank}", usize::from(mine.is_some()) + usize::from(theirs.is_some()))
            }
        };
        winner.try_commit(&deposit("ada", 1)).await.unwrap();
        let seen = renew(&one, ADA, LONG).await;
        let lease = seen.shards.iter().find(|lease| lease.shard == bank).expect("the shard is listed");
        assert_eq!(lease.epoch, winner.writer.epoch());
    }
}

/// Members and shards of another service in the same store are not listed.
///
/// Services may share a database, and shards are assigned to the members of one service only.
pub async fn members_of_other_services_are_not_listed(fixture: &impl SharedFixture) {
    let (one, other) = (fixture.store().await, fixture.second().await);
    renew(&one, ADA, LONG).await;
    let shop = Member::new(BOB, name("shop"), "node of the shop");
    leases(&other).renew(&shop, LONG).await.unwrap();
    let bank = owner(&one, ADA, &shard("bank", 0)).await;
    let stock = owner(&other, BOB, &shard("stock", 0)).await;
    let seen = renew(&one, ADA, LONG).await;
    assert_eq!(seen.members, [member(ADA)]);
    assert_eq!(seen.shards, [ShardLease::new(bank.shard.clone(), Some(ADA), bank.writer.epoch())]);
    let seen = leases(&other).renew(&shop, LONG).await.unwrap();
    assert_eq!(seen.members, [shop]);
    assert_eq!(seen.shards, [ShardLease::new(stock.shard.clone(), Some(BOB), stock.writer.epoch())]);
}

/// The shards that a member refuses and yields are listed with it, until it renews its lease without them.
///
/// The other members read from them why shards stay free, and give the shards to a member that can open them.
pub async fn limits_of_members_are_listed(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let refuses = [shard("bank", 0), shard("shop", 3)].into();
    let limited = member(ADA).limited(refuses, [shard("bank", 1)].into());
    let seen = leases(&one).renew(&limited, LONG).await.unwrap();
    assert_eq!(seen.members, [limited.clone(), member(BOB)]);
    assert_eq!(renew(&other, BOB, LONG).await.members, [limited, member(BOB)]);
    renew(&one, ADA, LONG).await;
    assert_eq!(renew(&other, BOB, LONG).await.members, [member(ADA), member(BOB)]);
}

/// An opening with another number of shards is refused as without leases, and no owner changes.
///
/// A node with a wrong configuration must not take anything from the nodes that run.
pub async fn wrong_number_of_shards_changes_no_owner(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let held = owner(&one, ADA, &shard("bank", 0)).await;
    let listener = || Arc::new(RecordingListener::default()) as Arc<dyn CommitListener>;
    let free = shard("bank", 1);
    match leases(&other).open(BOB, &free, SHARDS * 2, listener()).await {
        Err(StoreError::Shards { domain, found, wanted }) => {
            assert_eq!((domain.as_str(), found, wanted), ("bank", SHARDS, SHARDS * 2));
        }
        other => panic!("{:?}", other.map(|handle| handle.is_some())),
    }
    assert!(leases(&other).open(BOB, &shard("bank", SHARDS), SHARDS, listener()).await.is_err());
    let seen = renew(&other, BOB, LONG).await;
    assert_eq!((seen.owner(&free), seen.owner(&held.shard)), (None, Some(ADA)));
}

/// A node that closes its instance of the store does not affect the others.
///
/// Only the data is shared. A connection or a background task that two instances share would end with the first of them.
pub async fn closed_instance_leaves_the_other_open(fixture: &impl SharedFixture) {
    let (one, other) = two(fixture).await;
    let (first, second) = (shard("bank", 0), shard("bank", 1));
    let mut closed = owner(&one, ADA, &first).await;
    let mut kept = owner(&other, BOB, &second).await;
    closed.try_commit(&deposit("ada", 1)).await.unwrap();
    leases(&one).leave(ADA).await.unwrap();
    one.close().await.unwrap();
    assert!(matches!(closed.append(&deposit("ada", 2)), Err(StoreError::Closed)));
    kept.try_commit(&deposit("ada", 1)).await.unwrap();
    let mut taken = owner(&other, BOB, &first).await;
    taken.try_commit(&deposit("ada", 2)).await.unwrap();
    assert_eq!(taken.reader.position(), 2);
}
