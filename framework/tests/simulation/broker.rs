//! What the simulated broker does to messages, one fault at a time. Each must have hit.

use std::time::Duration;

use whizbang::testing::sim::Run;
use whizbang::testing::{CrashPoint, Fault, FaultEvent, FaultProfile, LinkDirection, Sim};

use crate::bank::*;
use crate::cluster;

/// Some transfers, in any weather, during a fault.
fn transfers_during(weather: FaultProfile, fault: Fault) -> Run {
    let run = cluster(Sim::new(2))
        .weather(weather)
        .fault(Duration::from_millis(10), fault)
        .at_end(|world| match world.state::<Account>("bob").cents {
            120 => Ok(()),
            cents => Err(format!("bob has {cents} cents")),
        })
        .run(async |world| {
            world.send(deposit("ada", 200)).await.unwrap();
            world.sleep(Duration::from_millis(20)).await;
            for name in ["t1", "t2", "t3", "t4"] {
                world.send(transfer(name, "ada", "bob", 30)).await.unwrap();
            }
        });
    run.unwrap_or_else(|broken| panic!("{broken}\n{}", broken.trace))
}

fn during(fault: Fault) -> Run {
    transfers_during(FaultProfile::FAIR, fault)
}

fn hit(run: &Run, trouble: FaultEvent) {
    assert!(run.coverage.troubles().contains_key(&trouble), "nothing {trouble}\n{}", run.trace);
}

/// The second at which a line stands in the trace.
fn at(trace: &str, line: &str) -> f64 {
    let found = trace.lines().find(|text| text.contains(line)).unwrap_or_else(|| panic!("no `{line}` in\n{trace}"));
    found.split_whitespace().next().unwrap().parse().unwrap()
}

const A_WHILE: Duration = Duration::from_secs(4);

#[test]
fn in_fair_weather_nothing_goes_wrong() {
    let run = during(Fault::PauseBroker { lasts: Duration::ZERO });
    assert!(run.coverage.troubles().is_empty(), "{:?}", run.coverage.troubles());
}

#[test]
fn a_pause_holds_everything_up_and_loses_nothing() {
    let run = during(Fault::PauseBroker { lasts: A_WHILE });
    assert!(at(&run.trace, "[Withdrawn]") >= 4.0, "{}", run.trace);
    hit(&run, FaultEvent::BrokerStoodStill);
}

#[test]
fn what_is_refused_while_the_leader_changes_is_sent_again_and_taken_once() {
    let run = during(Fault::ChangeLeader { lasts: A_WHILE });
    assert!(run.trace.matches(" sends command Withdraw ").count() > 4, "{}", run.trace);
    assert_eq!(run.coverage.of::<Account>().command::<Withdraw>().count(), 4);
    hit(&run, FaultEvent::RefusedByTheLeader);
}

#[test]
fn streams_that_are_lost_are_made_again() {
    let run = during(Fault::LoseStreams);
    hit(&run, FaultEvent::StreamLost);
    assert!(run.trace.contains("commands_bank is back for accounts"), "{}", run.trace);
}

#[test]
fn what_is_dropped_as_a_duplicate_and_was_never_stored_is_asked_for() {
    let run = during(Fault::FailToStore { lasts: A_WHILE });
    hit(&run, FaultEvent::FalseDuplicate);
}

#[test]
fn what_is_sent_twice_within_the_window_is_dropped() {
    let weather = FaultProfile { lose: 300, ..FaultProfile::FAIR };
    let minute = Duration::from_secs(60);
    let run = transfers_during(weather, Fault::DropRepeats { window: minute, lasts: minute });
    hit(&run, FaultEvent::RepeatDropped);
}

#[test]
fn what_is_not_settled_within_the_ack_wait_comes_again_and_is_taken_once() {
    let weather = FaultProfile { disk: 30, load: 30, ..FaultProfile::FAIR };
    let wait = Duration::from_millis(5);
    let run = transfers_during(weather, Fault::HurryAcks { wait, lasts: A_WHILE });
    hit(&run, FaultEvent::AckWaitOver);
    hit(&run, FaultEvent::Overtaken);
    assert_eq!(run.coverage.of::<Account>().command::<Withdraw>().count(), 4);
}

#[test]
fn with_one_message_in_hand_at_once_all_of_them_come() {
    let weather = FaultProfile { disk: 30, ..FaultProfile::FAIR };
    let run = transfers_during(weather, Fault::FewInHand { most: 1, lasts: A_WHILE });
    hit(&run, FaultEvent::HandsFull);
}

#[test]
fn a_service_that_is_cut_off_one_way_or_both_catches_up() {
    for (way, trouble) in [
        (LinkDirection::In, FaultEvent::Unheard),
        (LinkDirection::Out, FaultEvent::Unsaid),
        (LinkDirection::Both, FaultEvent::Unsaid),
    ] {
        let run = during(Fault::Isolate { service: 0, way, lasts: A_WHILE });
        hit(&run, trouble);
        assert!(at(&run.trace, "[Withdrawn]") >= 4.0, "{}", run.trace);
    }
}

#[test]
fn hostile_client_changes_nothing_in_a_cluster() {
    for seed in 0..5 {
        let run = during(Fault::Forge { seed, count: 300 });
        hit(&run, FaultEvent::Forged);
        // `transfers_during` compares the balances.
        assert_eq!(run.coverage.of::<Account>().command::<Withdraw>().count(), 4);
    }
}

#[test]
fn slow_handlers_hold_up_what_waits_for_them() {
    let each = Duration::from_millis(700);
    let run = during(Fault::Slow { service: 0, each, lasts: A_WHILE });
    hit(&run, FaultEvent::HandlerSlow);
    assert!(at(&run.trace, "[Withdrawn]") >= 0.7, "{}", run.trace);
}

#[test]
fn an_old_node_that_was_taken_over_commits_nothing_more() {
    let second = Duration::from_secs(1);
    let run = cluster(Sim::new(5))
        .weather(FaultProfile { delay: 40, disk: 10, ..FaultProfile::FAIR })
        .fault(second, Fault::HandOver { service: 0, cut_off: second, lingers: 20 * second })
        .at_end(|world| match world.state::<Account>("ada").cents {
            40 => Ok(()),
            cents => Err(format!("ada has {cents} cents")),
        })
        .run(async |world| {
            for _ in 0..40 {
                world.send(deposit("ada", 1)).await.unwrap();
                world.sleep(Duration::from_millis(100)).await;
            }
        });
    let run = run.unwrap_or_else(|broken| panic!("{broken}\n{}", broken.trace));
    hit(&run, FaultEvent::HandedOver);
    hit(&run, FaultEvent::ZombieFenced);
}

#[test]
fn a_node_is_killed_in_the_middle_of_what_the_fault_waits_for() {
    for (work, trouble) in [
        (CrashPoint::Commit, FaultEvent::CrashInACommit),
        (CrashPoint::Publication, FaultEvent::CrashInAPublication),
        (CrashPoint::Delivery, FaultEvent::CrashInADelivery),
        (CrashPoint::Acknowledgement, FaultEvent::CrashInAnAcknowledgement),
    ] {
        let run = during(Fault::CrashIn { service: 0, work, steps: 0, down: A_WHILE });
        hit(&run, trouble);
        assert_eq!(run.coverage.crashes(), 1, "{}", run.trace);
    }
}

#[test]
fn a_crash_that_finds_nothing_to_interrupt_does_not_come() {
    let crash = Fault::CrashIn { service: 0, work: CrashPoint::Commit, steps: 0, down: A_WHILE };
    let sim = cluster(Sim::new(2)).faults_may_miss().fault(Duration::from_secs(1), crash);
    let run = sim.run(async |_| {}).expect("nothing happens");
    assert_eq!(run.coverage.crashes(), 0, "{}", run.trace);
    assert!(run.lasted >= Fault::PATIENCE, "{:?}", run.lasted);
}
