//! Rules that must hold always, eventually and at the end, and handlers that panic.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use whizbang::testing::{Fault, FaultProfile, Flow, Sim};

use crate::bank::*;
use crate::{Step, cluster, perform, steps};

#[test]
fn eventually_rule_may_hold_for_a_moment() {
    let run = |wanted: u64| {
        cluster(Sim::new(1))
            .eventually(move |world| match world.state::<Account>("ada").cents {
                cents if cents == wanted => Ok(()),
                cents => Err(format!("ada never had {wanted} cents but {cents}")),
            })
            .run(async |world| {
                world.send(deposit("ada", 70)).await.unwrap();
                world.send(withdraw("ada", 70, "")).await.unwrap();
            })
    };
    assert!(run(70).is_ok());
    let violation = run(71).expect_err("the balance never was 71");
    assert_eq!(violation.reason, "eventually: ada never had 71 cents but 0");
}

#[test]
fn always_rule_is_checked_after_every_commit() {
    let run = cluster(Sim::new(1))
        .always(|world| match world.state::<Account>("ada").cents {
            70 => Err("ada has 70 cents".to_owned()),
            _ => Ok(()),
        })
        .run(async |world| {
            world.send(deposit("ada", 70)).await.unwrap();
            world.send(withdraw("ada", 70, "")).await.unwrap();
        });
    assert_eq!(run.expect_err("the balance is 70 for a moment").reason, "always: ada has 70 cents");
}

#[test]
fn rules_of_a_flow_receive_its_steps() {
    let looked = Rc::new(Cell::new(0));
    let counted = Rc::clone(&looked);
    let flow = Flow::new("rules", cluster, steps(), 1..6, perform)
        .always(move |world, steps| {
            counted.set(counted.get() + 1);
            let most: u64 =
                steps.iter().map(|step| if let Step::Deposit { cents, .. } = step { (*cents).into() } else { 0 }).sum();
            let held: u64 = world.states::<Account>().iter().map(|(_, account)| account.cents).sum();
            if held <= most { Ok(()) } else { Err(format!("{held} cents are held and {most} were paid in")) }
        })
        .eventually(|world, steps| {
            let transfers = steps.iter().filter(|step| matches!(step, Step::Transfer { .. })).count();
            let known = world.states::<Transfer>().len();
            if known == transfers { Ok(()) } else { Err(format!("{known} of {transfers} transfers are known")) }
        });
    let coverage = flow.check(0..10);
    assert!(looked.get() > 50, "{} times", looked.get());
    coverage.of::<Transfer>().command::<StartTransfer>().at_least(10);
}

#[test]
fn panicking_handlers_are_retried_without_loss() {
    let run = cluster(Sim::new(5))
        .fault_profile(FaultProfile { commit_delay: 5, ..FaultProfile::NONE })
        .fault(Duration::from_millis(5), Fault::Panic { service: 0, times: 2 })
        .fault(Duration::from_millis(5), Fault::Panic { service: 1, times: 2 })
        .at_end(|world| match world.state::<Account>("bob").cents {
            30 => Ok(()),
            cents => Err(format!("bob has {cents} cents")),
        })
        .run(async |world| {
            world.sleep(Duration::from_millis(10)).await;
            world.send(deposit("ada", 100)).await.unwrap();
            world.send(transfer("t1", "ada", "bob", 30)).await.unwrap();
        });
    let run = run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.trace));
    assert_eq!(run.trace.matches("delivery 1 failed").count(), 2, "{}", run.trace);
    assert_eq!(run.trace.matches("delivery 2 failed").count(), 2, "{}", run.trace);
}

#[test]
fn panic_of_the_scenario_is_reported_with_its_trace() {
    let run = cluster(Sim::new(1)).run(async |world| {
        world.send(deposit("ada", 70)).await.unwrap();
        assert_eq!(world.state::<Account>("ada").cents, 71);
    });
    let violation = run.expect_err("70 is not 71");
    assert!(violation.reason.contains("left: 70"), "{}", violation.reason);
    assert!(violation.trace.contains("[Deposited]"), "{}", violation.trace);
    assert!(
        violation.actor_steps.contains("bank.account `ada`") && violation.actor_steps.contains("Deposited"),
        "{}",
        violation.actor_steps
    );
}

#[test]
fn livelock_is_found() {
    let run = cluster(Sim::new(1)).run(async |_| {
        loop {
            tokio::task::yield_now().await;
        }
    });
    let violation = run.expect_err("virtual time stops");
    assert!(violation.reason.contains("livelock"), "{}", violation.reason);
}
