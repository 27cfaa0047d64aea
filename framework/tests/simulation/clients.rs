//! Clients in the simulated cluster: ids, keys and deadlines of their own, and what they do wrong.

use std::time::Duration;

use whizbang::SendError;
use whizbang::testing::sim::{RuleViolation, Run};
use whizbang::testing::{Fault, FaultEvent, FaultProfile, Flow, Sim, World};

use crate::bank::{Account, deposit, transfer, withdraw};
use crate::cluster;

fn cents(world: &World, account: &str) -> u64 {
    world.state::<Account>(account).cents
}

fn holds(run: Result<Run, RuleViolation>) -> Run {
    run.unwrap_or_else(|broken| panic!("{broken}\n{}\n{}", broken.deeds, broken.trace))
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
fn id_counts_for_one_payload_and_one_target() {
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
fn call_without_an_answer_may_have_happened() {
    let slow = Fault::Slow { service: 0, each: Duration::from_millis(400), lasts: Duration::from_secs(5) };
    holds(cluster(Sim::new(1)).fault(Duration::ZERO, slow).run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        let id = world.new_id();
        let hasty = world.call(deposit("ada", 70)).id(id).deadline(Duration::from_millis(100)).await;
        assert!(matches!(hasty, Err(SendError::NoReply { .. } | SendError::Late)), "{hasty:?}");
        assert_eq!(world.call(deposit("ada", 70)).id(id).patient().await.unwrap(), 70);
        assert_eq!(cents(world, "ada"), 70);
    }));
}

#[test]
fn late_command_is_not_handled() {
    let behind = Fault::SkewClients { millis: -3_600_000, lasts: Duration::from_secs(5) };
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
                world.post(deposit("ada", 70)).id(id).await.unwrap();
                world.post(deposit("ada", 5)).idempotency_key("note-1").await.unwrap();
            }),
    );
}

#[test]
fn handled_command_is_answered_after_its_owner_is_set_back() {
    let back = Fault::Jump { service: 0, millis: -3_600_000, lasts: Duration::from_secs(60) };
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
fn client_whose_clock_was_ahead_goes_on_once_it_is_right() {
    let ahead = Fault::SkewClients { millis: 3_600_000, lasts: Duration::from_secs(5) };
    let run = holds(cluster(Sim::new(1)).fault(Duration::ZERO, ahead).run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        let early = world.call(deposit("ada", 70)).await;
        assert!(matches!(early, Err(SendError::IdInFuture)), "{early:?}");
        assert_eq!(world.send(deposit("ada", 70)).await.unwrap(), 70);
        assert!(world.now() < Duration::from_secs(10), "{:?}", world.now());
        assert_eq!(world.call(deposit("ada", 5)).await.unwrap(), 75, "later ids are not from the future either");
        assert_eq!(world.sent::<crate::bank::Deposit>().len(), 3, "each is sent once, however often it was tried");
    }));
    assert_eq!(run.coverage.troubles()[&FaultEvent::ClientSkewed], 1);
}

/// Some commands during one fault of clients.
fn during(fault: Fault) -> Run {
    let rough = FaultProfile { lose: 50, repeat: 100, delay: 20, disk: 5, load: 5 };
    let run = cluster(Sim::new(5)).weather(rough).fault(Duration::ZERO, fault).at_end(|world| {
        match (cents(world, "ada"), cents(world, "bob")) {
            (40, 30) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    holds(run.run(async |world| {
        world.sleep(Duration::from_millis(10)).await;
        world.send(deposit("ada", 70)).await.unwrap();
        world.send(transfer("t1", "ada", "bob", 30)).await.unwrap();
        world.send(withdraw("bob", 900, "")).await.expect_err("he has less");
    }))
}

#[test]
fn each_mischief_of_clients_strikes_and_changes_nothing() {
    for (fault, trouble, kind) in [
        (Fault::RepeatCommands { times: 3 }, FaultEvent::CommandRepeated, "RepeatCommands"),
        (Fault::ReuseIds { times: 3 }, FaultEvent::IdReused, "ReuseIds"),
        (Fault::OldAndFutureIds { times: 3 }, FaultEvent::IdOutOfTime, "OldAndFutureIds"),
        (Fault::HurryClients { deadline: Duration::ZERO, times: 3 }, FaultEvent::CallHurried, "HurryClients"),
    ] {
        let run = during(fault);
        assert_eq!(run.coverage.troubles().get(&trouble), Some(&3), "{kind}");
        assert_eq!(run.coverage.faults()[kind].fired, 3, "{kind}");
    }
}

#[test]
fn fault_of_commands_that_never_come_fails_the_run() {
    let idle = cluster(Sim::new(1)).fault(Duration::ZERO, Fault::RepeatCommands { times: 1 }).run(async |_| {});
    let broken = idle.expect_err("there was no command");
    assert!(broken.reason.contains("no client sent a command before the faults stopped"), "{}", broken.reason);
}

#[test]
fn posts_and_their_repeats_are_handled_under_all_faults() {
    let flow = Flow::new("posts", cluster, (0..3u8, 1..200u64), 1..12, async |world: &World, (account, cents)| {
        let account = format!("account{account}");
        world.post(deposit(&account, cents)).patient().await.expect("it is accepted");
        let key = format!("note{}", world.below(u64::MAX));
        world.call(deposit(&account, cents)).idempotency_key(&key).patient().await.expect("these accounts are open");
        world.call(deposit(&account, cents)).idempotency_key(&key).patient().await.expect("it is known");
    });
    let coverage = flow.no_regressions().check(0..100);
    let fired = |kind: &str| coverage.faults().get(kind).map_or(0, |count| count.fired);
    for kind in ["RepeatCommands", "ReuseIds", "OldAndFutureIds", "HurryClients", "SkewClients"] {
        assert!(fired(kind) > 5, "{kind}: {}", fired(kind));
    }
}
