//! Members that leave: the time for which their shards have no owner.

use super::*;

/// Counted in simulated time, from the end of the old owner's shard to the opening by the next one.
#[test]
fn planned_stop_leaves_few_shards_without_owner_for_short() {
    run(async {
        let store = shared();
        let nodes = three(&store).await;
        let mut left = nodes[0].membership.leave();
        let mut ownerless: BTreeMap<ShardId, tokio::time::Instant> = BTreeMap::new();
        let (mut longest, mut most, mut moved) = (Duration::ZERO, 0, 0);
        while left.try_recv() == Err(oneshot::error::TryRecvError::Empty) || !ownerless.is_empty() {
            for shard in shards() {
                if !nodes.iter().any(|node| node.host.open.lock().contains_key(&shard)) {
                    ownerless.entry(shard).or_insert_with(instant);
                } else if let Some(since) = ownerless.remove(&shard) {
                    moved += 1;
                    longest = longest.max(since.elapsed());
                }
            }
            most = most.max(ownerless.len());
            pass(Duration::from_millis(1)).await;
        }
        assert!(moved > 0, "{moved} were seen to move");
        assert!(longest <= Duration::from_millis(60), "{longest:?}");
        assert!(most <= 4, "{most} at once");
        // The first of the others to look takes a shard; they divide the shards evenly afterwards.
        let limit = instant() + Duration::from_secs(30);
        while !is_even(&nodes[1..]) {
            assert!(instant() < limit, "the shards stay where they were taken");
            pass(Duration::from_millis(100)).await;
        }
    });
}

/// A member that is the last one has nothing to wait for.
#[test]
fn last_node_leaves_at_once() {
    run(async {
        let node = TestNode::start(&shared(), 1).await;
        let begun = instant();
        drop(node.membership.leave().await);
        assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    });
}

/// Its shards are released within the limit of a stop, although the others look for them rarely.
#[test]
fn leaving_node_does_not_wait_for_members_that_are_cut_off() {
    run(async {
        let store = shared();
        let nodes = three(&store).await;
        nodes[1..].iter().for_each(|node| node.link.is_cut.store(true, Ordering::Relaxed));
        let begun = instant();
        drop(nodes[0].membership.leave().await);
        assert_eq!(nodes[0].open(), 0);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}
