//! Members that run another version of the program.

use super::*;

impl TestNode {
    /// Starts a node whose program lacks types in the logs of some shards.
    async fn older(store: &MemoryStore, number: u64, unknown: &[u16]) -> Self {
        let unknown = shards().into_iter().filter(|shard| unknown.contains(&shard.shard)).collect();
        Self::start_with(store, number, false, unknown).await.unwrap()
    }
}

#[test]
fn shards_with_unknown_types_are_left_to_other_members() {
    run(async {
        let store = shared();
        let new = TestNode::start(&store, 1).await;
        let old = TestNode::older(&store, 2, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]).await;
        until("the older node has what it can open", || old.open() == 6 && new.open() == 10).await;
        pass(2 * TTL).await;
        assert_eq!((old.open(), new.open()), (6, 10), "nothing moves in a circle");
        assert!(old.serves() && old.issues.reasons().is_empty());
        let cluster = new.membership.cluster();
        let refused =
            |id: u128| cluster.members.iter().find(|member| member.id.as_u128() == id).unwrap().refuses.clone();
        assert!(refused(1).is_empty());
        let number = |shard: &String| shard.strip_prefix("bank/").and_then(|number| number.parse::<u16>().ok());
        assert!(refused(2).iter().all(|shard| number(shard).is_some_and(|number| number < 10)), "{:?}", refused(2));
        assert!(!refused(2).is_empty() && refused(2).len() <= 10);
    });
}

#[test]
fn shard_that_only_a_lost_member_can_open_waits() {
    run(async {
        let store = shared();
        let new = TestNode::start(&store, 1).await;
        let old = TestNode::older(&store, 2, &[3]).await;
        new.link.is_cut.store(true, Ordering::Relaxed);
        until("the older node has all others", || old.open() == 15).await;
        until("health shows the type", || {
            old.issues.notes().iter().any(|note| note.contains("bank/3") && note.contains("`Refunded`"))
        })
        .await;
        until("health shows the shard", || old.issues.notes().iter().any(|note| note.contains("no owner"))).await;
        assert!(old.serves());
        let next = TestNode::start(&store, 3).await;
        until("the next node takes it", || next.host.open.lock().contains_key(&shards()[3])).await;
        until("health is clean", || old.issues.notes().is_empty()).await;
    });
}

#[test]
fn yielded_shard_moves_at_once() {
    run(async {
        let store = shared();
        let old = TestNode::start(&store, 1).await;
        old.membership.yield_shard(&shards()[5]);
        pass(TTL).await;
        assert_eq!(old.open(), 16, "no other member serves it");
        let new = TestNode::start(&store, 2).await;
        let took = until("the shard moves", || new.host.open.lock().contains_key(&shards()[5])).await;
        assert!(took < settling_time(), "{took:?}");
        let nodes = [old, new];
        until("an even spread", || is_even(&nodes)).await;
        assert!(nodes[1].host.open.lock().contains_key(&shards()[5]));
        let [old, new] = nodes;
        drop(new);
        until("the older node serves everything again", || old.open() == 16).await;
    });
}

fn settling_time() -> Duration {
    TTL / 4
}
