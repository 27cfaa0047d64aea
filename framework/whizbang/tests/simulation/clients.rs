//! Clients in the simulated cluster: ids, idempotency keys, deadlines and client faults.

use std::cell::Cell;
use std::time::Duration;

use whizbang::SendError;
use whizbang::testing::sim::{PassedRun, RuleViolation};
use whizbang::testing::{Fault, FaultEvent, FaultProfile, Flow, Sim, World};

use crate::bank::{Account, deposit, transfer, withdraw};
use crate::cluster;

fn cents(world: &World, account: &str) -> u64 {
    world.state::<Account>(account).cents
}

fn holds(run: Result<PassedRun, RuleViolation>) -> PassedRun {
    run.unwrap_or_else(|violation| panic!("{violation}\n{}\n{}", violation.actor_steps, violation.trace))
}

#[test]
fn repeated_call_gets_the_first_reply() {
    holds(cluster(Sim::new(1)).run(async |world| {
        let id = world.new_id();
        assert_eq!(world.call(deposit("ada", 70)).id(id).await.unwrap(), 70);
        assert_eq!(world.send(deposit("ada", 5)).await.unwrap(), 75);
        assert_eq!(world.call(deposit("ada", 70)).id(id).await.unwrap(), 70);
        let keyed = || world.call(deposit("ada", 1)).idempotency_key("order-1");
        assert_eq!((keyed().await.unwrap(), keyed().await.unwrap()), (76, 76));
        assert_eq!(cents(world, "ada"), 76);
    }));
}

#[test]
fn id_is_valid_for_one_payload_and_target() {
    holds(cluster(Sim::new(1)).run(async |world| {
        let id = world.new_id();
        assert_eq!(world.call(deposit("ada", 70)).id(id).await.unwrap(), 70);
        let other = world.call(deposit("ada", 71)).id(id).await;
        assert!(matches!(other, Err(SendError::Conflict)), "{other:?}");
        let other = world.call(withdraw("ada", 70, "")).id(id).await;
        assert!(matches!(other, Err(SendError::Conflict)), "{other:?}");
        assert_eq!(world.call(deposit("bob", 70)).id(id).await.unwrap(), 70, "another target is another command");
        assert_eq!((cents(world, "ada"), cents(world, "bob")), (70, 70));
    }));
}

#[test]
fn call_without_reply_may_have_happened() {
    let slow =
        Fault::SlowHandlers { service: 0, per_message: Duration::from_millis(400), duration: Duration::from_secs(5) };
    holds(cluster(Sim::new(1)).fault(Duration::ZERO, slow).run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        let id = world.new_id();
        let hasty = world.call(deposit("ada", 70)).id(id).deadline(Duration::from_millis(100)).await;
        assert!(matches!(hasty, Err(SendError::NoReply { .. } | SendError::Late)), "{hasty:?}");
        assert_eq!(world.call(deposit("ada", 70)).id(id).retrying().await.unwrap(), 70);
        assert_eq!(cents(world, "ada"), 70);
    }));
}

#[test]
fn late_command_is_not_handled() {
    let behind = Fault::SkewClientClocks { millis: -3_600_000, duration: Duration::from_secs(5) };
    let run = cluster(Sim::new(1)).fault(Duration::ZERO, behind).at_end(|world| match cents(world, "ada") {
        0 => Ok(()),
        cents => Err(format!("ada has {cents}")),
    });
    holds(run.run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        let late = world.call(deposit("ada", 70)).await;
        assert!(matches!(late, Err(SendError::Late)), "{late:?}");
    }));
}

#[test]
fn posted_commands_are_handled_once() {
    holds(
        cluster(Sim::new(1))
            .at_end(|world| if cents(world, "ada") == 75 { Ok(()) } else { Err("lost".to_owned()) })
            .run(async |world| {
                let id = world.new_id();
                world.post(deposit("ada", 70)).id(id).await.unwrap();
                assert_eq!(world.state::<Account>("ada").cents, 70, "a post is acknowledged by its commit");
                world.post(deposit("ada", 70)).id(id).await.unwrap();
                world.post_to_broker(deposit("ada", 70)).id(id).await.unwrap();
                world.post_to_broker(deposit("ada", 5)).idempotency_key("note-1").await.unwrap();
            }),
    );
}

#[test]
fn handled_command_gets_reply_after_owner_clock_jumps_back() {
    let back = Fault::ClockJump { service: 0, millis: -3_600_000, duration: Duration::from_secs(60) };
    holds(cluster(Sim::new(1)).fault(Duration::from_secs(1), back).run(async |world| {
        let id = world.new_id();
        assert_eq!(world.call(deposit("ada", 70)).id(id).await.unwrap(), 70);
        world.sleep(Duration::from_secs(2)).await;
        let new = world.call(deposit("ada", 5)).await;
        assert!(matches!(new, Err(SendError::IdInFuture)), "{new:?}");
        assert_eq!(world.call(deposit("ada", 70)).id(id).await.unwrap(), 70, "it was handled, whatever the clock says");
    }));
}

#[test]
fn client_with_fast_clock_recovers_after_correction() {
    let ahead = Fault::SkewClientClocks { millis: 3_600_000, duration: Duration::from_secs(5) };
    let run = holds(cluster(Sim::new(1)).fault(Duration::ZERO, ahead).run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        let early = world.call(deposit("ada", 70)).await;
        assert!(matches!(early, Err(SendError::IdInFuture)), "{early:?}");
        assert_eq!(world.send(deposit("ada", 70)).await.unwrap(), 70);
        assert!(world.now() < Duration::from_secs(10), "{:?}", world.now());
        assert_eq!(world.call(deposit("ada", 5)).await.unwrap(), 75, "later ids are not from the future either");
        assert_eq!(world.sent::<crate::bank::Deposit>().len(), 3, "each is sent once, however often it was tried");
    }));
    assert_eq!(run.coverage.fault_events()[&FaultEvent::ClientClockSkewed], 1);
}

/// The ids of the caller that is behind are older than those that the same key has handled.
#[test]
fn commands_of_two_clocks_are_handled_once() {
    let apart = Fault::SkewOneClient { millis: -20_000, duration: Duration::from_secs(60) };
    let run = holds(cluster(Sim::new(1)).fault(Duration::from_secs(1), apart).run(async |world| {
        world.send(deposit("ada", 100)).await.unwrap();
        world.sleep(Duration::from_secs(30)).await;
        let ids: Vec<_> = (0..6).map(|_| world.new_id()).collect();
        let is_older: Vec<_> = ids.windows(2).map(|pair| pair[1] < pair[0]).collect();
        assert_eq!(is_older, [false, true, false, true, false], "{ids:?}");
        let deposit_with = |at: usize| world.call(deposit("ada", 1)).id(ids[at]).deadline(Duration::from_secs(50));
        for at in 0..6 {
            assert_eq!(deposit_with(at).await.unwrap(), 101 + at as u64);
        }
        for at in (0..6).rev() {
            assert_eq!(deposit_with(at).await.unwrap(), 101 + at as u64, "the first reply");
        }
        assert_eq!(cents(world, "ada"), 106);
        // The clock is corrected, and the same caller repeats its command.
        world.sleep(Duration::from_secs(60)).await;
        assert_eq!(deposit_with(0).await.unwrap(), 101);
        assert!(world.new_id() > ids[1] && world.new_id() > ids[0]);
    }));
    assert_eq!(run.coverage.fault_events()[&FaultEvent::ClientClocksDiffered], 3);
}

/// Runs some commands with one fault of clients.
fn during(fault: Fault) -> PassedRun {
    let rough = FaultProfile { loss: 50, duplication: 100, delay: 20, commit_delay: 5, read_delay: 5 };
    let run = cluster(Sim::new(5)).fault_profile(rough).fault(Duration::ZERO, fault).at_end(|world| {
        match (cents(world, "ada"), cents(world, "bob")) {
            (40, 30) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    holds(run.run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        world.send(deposit("ada", 70)).await.unwrap();
        world.send(transfer("t1", "ada", "bob", 30)).await.unwrap();
        world.send(withdraw("bob", 900, "")).await.expect_err("the balance is lower");
    }))
}

#[test]
fn client_faults_hit_and_change_nothing() {
    for (fault, event, kind) in [
        (Fault::DuplicateCommands { times: 3 }, FaultEvent::CommandDuplicated, "DuplicateCommands"),
        (Fault::ReuseIds { times: 3 }, FaultEvent::IdReused, "ReuseIds"),
        (Fault::OldAndFutureIds { times: 3 }, FaultEvent::IdOutsideTimeWindow, "OldAndFutureIds"),
        (
            Fault::ShortenDeadlines { deadline: Duration::ZERO, times: 3 },
            FaultEvent::DeadlineShortened,
            "ShortenDeadlines",
        ),
    ] {
        let run = during(fault);
        assert_eq!(run.coverage.fault_events().get(&event), Some(&3), "{kind}");
        assert_eq!(run.coverage.faults()[kind].fired, 3, "{kind}");
    }
}

#[test]
fn client_fault_without_commands_fails_the_run() {
    let idle = cluster(Sim::new(1)).fault(Duration::ZERO, Fault::DuplicateCommands { times: 1 }).run(async |_| {});
    let violation = idle.expect_err("there was no command");
    assert!(violation.reason.contains("no client sent a command before the faults stopped"), "{}", violation.reason);
}

#[test]
fn posts_and_duplicates_are_handled_once_under_all_faults() {
    let flow = Flow::new("posts", cluster, (0..3u8, 1..200u64), 1..12, async |world: &World, (account, cents)| {
        let account = format!("account{account}");
        world.post_to_broker(deposit(&account, cents)).retrying().await.expect("it is stored");
        world.post(deposit(&account, cents)).retrying().await.expect("it is committed");
        let key = format!("note{}", world.below(u64::MAX));
        world.call(deposit(&account, cents)).idempotency_key(&key).retrying().await.expect("these accounts are open");
        world.call(deposit(&account, cents)).idempotency_key(&key).retrying().await.expect("it is known");
    });
    let coverage = flow.no_regressions().check(0..100);
    let fired = |kind: &str| coverage.faults().get(kind).map_or(0, |count| count.fired);
    let clocks = ["SkewClientClocks", "SkewOneClient"];
    for kind in ["DuplicateCommands", "ReuseIds", "OldAndFutureIds", "ShortenDeadlines"].into_iter().chain(clocks) {
        assert!(fired(kind) > 5, "{kind}: {}", fired(kind));
    }
}

/// The checks of the cluster know what the client reported: a command of which it says that nothing was done must not be
/// in a log.
#[test]
fn retries_of_the_client_are_true_under_faults() {
    let rough = FaultProfile { loss: 300, duplication: 100, delay: 400, commit_delay: 100, read_delay: 5 };
    let down = Duration::from_millis(1500);
    let (replies, errors) = (Cell::new(0), Cell::new(0));
    for seed in 0..12 {
        let mut sim = cluster(Sim::new(seed)).fault_profile(rough);
        for at in 0..4 {
            let crash = Fault::Crash { service: (at % 2) as usize, steps: 3, down };
            sim = sim.fault(Duration::from_millis(300 + 4000 * at), crash);
        }
        holds(sim.run(async |world| {
            for number in 0..20 {
                let call = world.call(deposit("ada", 1)).client_retries();
                let call = if number % 2 == 0 { call } else { call.deadline(Duration::from_millis(300)) };
                match call.await {
                    Ok(_) => replies.set(replies.get() + 1),
                    Err(error) => {
                        assert!(error.is_transient(), "{error}");
                        errors.set(errors.get() + 1);
                    }
                }
            }
            world.post_to_broker(deposit("bob", 1)).client_retries().await.unwrap();
            if let Err(error) = world.post(deposit("bob", 1)).client_retries().await {
                assert!(error.is_transient() && error.may_have_happened(), "{error}");
            }
        }));
    }
    assert!(replies.get() > 100 && errors.get() > 0, "{replies:?} replies, {errors:?} errors");
}
