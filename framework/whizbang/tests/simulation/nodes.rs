//! Several nodes for each service: joins, stops, crashes, pauses and cuts between nodes, stores and the broker.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::*;
use whizbang::testing::{FaultEvent, LinkDirection};

fn transfers_on_three_nodes() -> Flow<Step, impl AsyncFn(&World, Step)> {
    Flow::new("transfers-on-three-nodes", |sim| cluster(sim).nodes(3), steps(), 1..12, perform)
        .max_clock_jump(Duration::from_secs(12 * 3600))
        .at_end(money_is_conserved)
}

#[test]
fn transfers_hold_on_three_nodes_of_each_service() {
    let coverage = transfers_on_three_nodes().check(0..60);
    let needed = [
        FaultEvent::ShardHandedOver,
        FaultEvent::ShardTakenOver,
        FaultEvent::NodePaused,
        FaultEvent::PausedBeyondLease,
        FaultEvent::NodeStopped,
        FaultEvent::StoreCut,
    ];
    let seen = coverage.fault_events();
    assert!(needed.iter().all(|event| seen.contains_key(event)), "{seen:?}");
}

/// Runs transfers on three nodes with one fault, and returns what it has caused.
fn with_fault(fault: Fault) -> BTreeMap<FaultEvent, u64> {
    let caused = Rc::new(RefCell::new(BTreeMap::new()));
    let seen = Rc::clone(&caused);
    let run = cluster(Sim::new(7)).nodes(3).run(async move |world| {
        perform(world, Step::Deposit { account: 0, cents: 1000 }).await;
        // The nodes have spread the shards by then.
        world.sleep(Duration::from_secs(5)).await;
        let before = world.fault_events();
        let transfers = async {
            for step in 0..20 {
                perform(world, Step::Transfer { from: 0, to: 1 + step % 2, cents: 10 }).await;
                world.sleep(Duration::from_millis(250)).await;
            }
        };
        tokio::join!(world.inject(&fault), transfers);
        world.sleep(Duration::from_secs(5)).await;
        let count_before = |event: &FaultEvent| before.get(event).copied().unwrap_or(0);
        let gained = world.fault_events().into_iter().map(|(event, count)| (event, count - count_before(&event)));
        seen.replace(gained.filter(|(_, count)| *count > 0).collect());
    });
    if let Err(violation) = run {
        panic!("{violation}\n{}", violation.trace);
    }
    caused.take()
}

#[test]
fn paused_node_loses_its_shards_and_joins_again() {
    let events = with_fault(Fault::PauseNode { service: 0, duration: Duration::from_secs(4) });
    assert!(events.contains_key(&FaultEvent::PausedBeyondLease), "{events:?}");
    assert!(events.contains_key(&FaultEvent::ShardTakenOver), "{events:?}");
    assert!(events.contains_key(&FaultEvent::ShardHandedOver), "the node gets shards again: {events:?}");
}

#[test]
fn stopped_node_hands_its_shards_over() {
    let events = with_fault(Fault::StopNode { service: 0, down: Duration::from_secs(1) });
    assert!(events.contains_key(&FaultEvent::NodeStopped), "{events:?}");
    assert!(events.contains_key(&FaultEvent::ShardHandedOver), "{events:?}");
    assert!(!events.contains_key(&FaultEvent::ShardTakenOver), "nothing waits for a lease: {events:?}");
}

#[test]
fn node_without_its_store_loses_its_shards() {
    for direction in [LinkDirection::Inbound, LinkDirection::Outbound, LinkDirection::Both] {
        let events = with_fault(Fault::CutStore { service: 0, direction, duration: Duration::from_secs(4) });
        assert!(events.contains_key(&FaultEvent::StoreCut), "{events:?}");
        // Renewals arrive if only the replies are cut off.
        let is_lost = events.contains_key(&FaultEvent::ShardTakenOver);
        assert!(is_lost || direction == LinkDirection::Inbound, "{direction:?}: {events:?}");
    }
}
