//! Faults of the simulated broker, one at a time. Each must hit.

use std::time::Duration;

use whizbang::testing::bridge::hostile::Hostile;
use whizbang::testing::sim::PassedRun;
use whizbang::testing::{CrashPoint, Fault, FaultEvent, FaultProfile, LinkDirection, Sim};

use crate::bank::*;
use crate::cluster;

/// Runs some transfers with a fault profile and a fault.
fn transfers_during(profile: FaultProfile, fault: Fault) -> PassedRun {
    transfers(cluster(Sim::new(2)).fault_profile(profile).fault(Duration::from_millis(10), fault), Duration::ZERO)
}

/// Runs some transfers, half of them this time after the others.
fn transfers(sim: Sim, pause: Duration) -> PassedRun {
    let run = sim
        .at_end(|world| match world.state::<Account>("bob").cents {
            120 => Ok(()),
            cents => Err(format!("bob has {cents} cents")),
        })
        .run(async |world| {
            world.send(deposit("ada", 200)).await.unwrap();
            world.sleep(Duration::from_millis(20)).await;
            for name in ["t1", "t2"] {
                world.send(transfer(name, "ada", "bob", 30)).await.unwrap();
            }
            if !pause.is_zero() {
                world.sleep(pause).await;
            }
            for name in ["t3", "t4"] {
                world.send(transfer(name, "ada", "bob", 30)).await.unwrap();
            }
        });
    run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.trace))
}

fn during(fault: Fault) -> PassedRun {
    transfers_during(FaultProfile::NONE, fault)
}

fn assert_hit(run: &PassedRun, event: FaultEvent) {
    assert!(run.coverage.fault_events().contains_key(&event), "nothing {event}\n{}", run.trace);
}

/// Returns the second at which a line appears in the trace.
fn at(trace: &str, line: &str) -> f64 {
    let found = trace.lines().find(|text| text.contains(line)).unwrap_or_else(|| panic!("no `{line}` in\n{trace}"));
    found.split_whitespace().next().unwrap().parse().unwrap()
}

const A_WHILE: Duration = Duration::from_secs(4);

#[test]
fn run_without_faults_causes_no_fault_events() {
    let run = during(Fault::PauseBroker { duration: Duration::ZERO });
    assert!(run.coverage.fault_events().is_empty(), "{:?}", run.coverage.fault_events());
}

#[test]
fn broker_pause_delays_messages_and_loses_none() {
    let run = during(Fault::PauseBroker { duration: A_WHILE });
    assert!(at(&run.trace, "[Withdrawn]") >= 4.0, "{}", run.trace);
    assert_hit(&run, FaultEvent::BrokerPaused);
}

#[test]
fn refused_message_is_sent_again_and_handled_once() {
    let run = during(Fault::ChangeLeader { duration: A_WHILE });
    assert!(run.trace.matches(" sends command Withdraw ").count() > 4, "{}", run.trace);
    assert_eq!(run.coverage.of::<Account>().command::<Withdraw>().count(), 4);
    assert_hit(&run, FaultEvent::RefusedWithoutLeader);
}

#[test]
fn lost_streams_are_recreated() {
    let run = during(Fault::LoseStreams);
    assert_hit(&run, FaultEvent::StreamLost);
    assert!(run.trace.contains("commands_bank is recreated for accounts"), "{}", run.trace);
}

#[test]
fn falsely_dropped_message_is_requested() {
    let run = during(Fault::FailToStore { duration: A_WHILE });
    assert_hit(&run, FaultEvent::FalseDuplicate);
}

#[test]
fn duplicate_within_window_is_dropped() {
    let profile = FaultProfile { loss: 300, ..FaultProfile::NONE };
    let minute = Duration::from_secs(60);
    let run = transfers_during(profile, Fault::DropDuplicates { window: minute, duration: minute });
    assert_hit(&run, FaultEvent::DuplicateDropped);
}

#[test]
fn unsettled_message_is_redelivered_and_handled_once() {
    let profile = FaultProfile { commit_delay: 30, read_delay: 30, ..FaultProfile::NONE };
    let wait = Duration::from_millis(5);
    let run = transfers_during(profile, Fault::ShortenAckWait { wait, duration: A_WHILE });
    assert_hit(&run, FaultEvent::AckWaitExpired);
    assert_hit(&run, FaultEvent::RedeliveredOutOfOrder);
    assert_eq!(run.coverage.of::<Account>().command::<Withdraw>().count(), 4);
}

#[test]
fn in_flight_limit_of_one_delivers_all_messages() {
    let profile = FaultProfile { commit_delay: 30, ..FaultProfile::NONE };
    let run = transfers_during(profile, Fault::LimitInFlight { limit: 1, duration: A_WHILE });
    assert_hit(&run, FaultEvent::InFlightLimitReached);
}

#[test]
fn isolated_service_catches_up() {
    for (direction, event) in [
        (LinkDirection::Inbound, FaultEvent::InboundBlocked),
        (LinkDirection::Outbound, FaultEvent::OutboundBlocked),
        (LinkDirection::Both, FaultEvent::OutboundBlocked),
    ] {
        let run = during(Fault::Isolate { service: 0, direction, duration: A_WHILE });
        assert_hit(&run, event);
        assert!(at(&run.trace, "[Withdrawn]") >= 4.0, "{}", run.trace);
    }
}

#[test]
fn hostile_client_changes_nothing_in_a_cluster() {
    let mut traces = String::new();
    for seed in 0..5 {
        let forge = |count| Fault::Forge { seed, count };
        // The second attack contradicts the first transfers, the third one is in the middle of the second.
        let attacks = [(10, forge(100)), (1900, forge(300)), (2023, forge(100))];
        let attacked =
            attacks.into_iter().fold(cluster(Sim::new(2)).fault_profile(FaultProfile::NONE), |sim, (at, attack)| {
                sim.fault(Duration::from_millis(at), attack)
            });
        let run = transfers(attacked, Duration::from_secs(2));
        assert_hit(&run, FaultEvent::PacketForged);
        // `transfers` compares the balances.
        assert_eq!(run.coverage.of::<Account>().command::<Withdraw>().count(), 4);
        traces += &run.trace;
    }
    let is_missing = |kind: &&str| !traces.contains(&format!("a hostile client writes {kind}"));
    let missing: Vec<_> = Hostile::kinds().filter(is_missing).collect();
    assert_eq!(missing, ["a query"], "no node of the cluster answers queries");
}

#[test]
fn slow_handlers_delay_messages() {
    let per_message = Duration::from_millis(700);
    let run = during(Fault::SlowHandlers { service: 0, per_message, duration: A_WHILE });
    assert_hit(&run, FaultEvent::HandlerSlow);
    assert!(at(&run.trace, "[Withdrawn]") >= 0.7, "{}", run.trace);
}

#[test]
fn replaced_node_commits_nothing() {
    let second = Duration::from_secs(1);
    let run = cluster(Sim::new(5))
        .fault_profile(FaultProfile { delay: 40, commit_delay: 10, ..FaultProfile::NONE })
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
    let run = run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.trace));
    assert_hit(&run, FaultEvent::HandedOver);
    assert_hit(&run, FaultEvent::ZombieFenced);
}

#[test]
fn crash_hits_node_at_crash_point() {
    for (point, event) in [
        (CrashPoint::Commit, FaultEvent::CrashDuringCommit),
        (CrashPoint::Publication, FaultEvent::CrashDuringPublication),
        (CrashPoint::Delivery, FaultEvent::CrashDuringDelivery),
        (CrashPoint::Acknowledgement, FaultEvent::CrashDuringAcknowledgement),
    ] {
        let run = during(Fault::CrashAt { service: 0, point, steps: 0, down: A_WHILE });
        assert_hit(&run, event);
        assert_eq!(run.coverage.crashes(), 1, "{}", run.trace);
    }
}

#[test]
fn crash_without_crash_point_does_not_happen() {
    let crash = Fault::CrashAt { service: 0, point: CrashPoint::Commit, steps: 0, down: A_WHILE };
    let sim = cluster(Sim::new(2)).allow_missed_faults().fault(Duration::from_secs(1), crash);
    let run = sim.run(async |_| {}).expect("nothing happens");
    assert_eq!(run.coverage.crashes(), 0, "{}", run.trace);
    assert!(run.elapsed >= Fault::MAX_WAIT, "{:?}", run.elapsed);
}
