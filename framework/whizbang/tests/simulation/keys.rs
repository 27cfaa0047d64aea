//! Parked and unreadable keys, operators that resolve dead letters, and second nodes on other stores.

use std::time::Duration;

use whizbang::testing::sim::{OperatorAction, PassedRun, RuleViolation, SentOutcome};
use whizbang::testing::{Fault, FaultEvent, Flow, Sim, World};

use crate::bank::{Account, Deposit, Withdraw, deposit, transfer};
use crate::bank_transfers::{Step, money_is_conserved, perform, steps};
use crate::cluster;

fn holds(run: Result<PassedRun, RuleViolation>) -> PassedRun {
    run.unwrap_or_else(|violation| panic!("{violation}\n{}\n{}", violation.actor_steps, violation.trace))
}

fn cents(world: &World, account: &str) -> u64 {
    world.state::<Account>(account).cents
}

/// Transfers 30 of ada's 70 cents. The first message to an account is poisoned.
fn poisoned(action: OperatorAction) -> (PassedRun, Vec<SentOutcome>) {
    let outcomes = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let seen = std::rc::Rc::clone(&outcomes);
    let sim = cluster(Sim::new(1)).at_end(move |world| {
        *seen.borrow_mut() = world.sent::<Withdraw>().into_iter().map(|sent| sent.outcome).collect();
        match (action, cents(world, "ada"), cents(world, "bob")) {
            (OperatorAction::Redrive, 40, 30) | (OperatorAction::Discard, 70, 0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let run = holds(sim.run(async |world| {
        world.send(deposit("ada", 70)).await.unwrap();
        let poison = Fault::Poison { service: 0, after: Duration::from_secs(2), action };
        let injected = world.inject(&poison);
        let sent = async { world.send(transfer("t1", "ada", "bob", 30)).await.unwrap() };
        tokio::join!(injected, sent);
    }));
    (run, outcomes.take())
}

#[test]
fn redriven_dead_letter_is_handled_once() {
    let (run, outcomes) = poisoned(OperatorAction::Redrive);
    assert_eq!(run.coverage.fault_events()[&FaultEvent::MessagePoisoned], 1);
    assert_eq!(outcomes, [SentOutcome::Accepted]);
}

#[test]
fn discarded_dead_letter_rejects_sender_and_saga_ends() {
    let (run, outcomes) = poisoned(OperatorAction::Discard);
    assert_eq!(run.coverage.fault_events()[&FaultEvent::MessagePoisoned], 1);
    assert_eq!(outcomes, [SentOutcome::Rejected("command.discarded".to_owned())]);
}

#[test]
fn poison_without_a_message_hits_nothing() {
    let poison = Fault::Poison { service: 0, after: Duration::ZERO, action: OperatorAction::Redrive };
    let run = cluster(Sim::new(1)).fault(Duration::ZERO, poison).run(async |world| {
        world.send(deposit("ada", 70)).await.unwrap();
    });
    let violation = run.expect_err("commands of clients are not messages of actors");
    assert!(
        violation.reason.contains("no message of an actor reached the service within 10 s"),
        "{}",
        violation.reason
    );
}

#[test]
fn unreadable_key_delays_no_other_key() {
    let block = Fault::BlockKey { service: 0, duration: Duration::from_secs(60) };
    let run = holds(cluster(Sim::new(1)).run(async |world| {
        world.send(deposit("ada", 70)).await.unwrap();
        // Actors are passivated after some seconds, so that the next message loads its key.
        world.sleep(Duration::from_secs(20)).await;
        let scenario = async {
            world.sleep(Duration::from_millis(10)).await;
            let (begun, stuck) = (world.now(), world.send(transfer("t1", "ada", "bob", 30)));
            stuck.await.unwrap();
            world.sleep(Duration::from_secs(1)).await;
            for account in ["bob", "cid"] {
                world.send(deposit(account, 5)).await.unwrap();
            }
            assert!(world.now() - begun < Duration::from_secs(2), "{:?}", world.now() - begun);
            assert_eq!((cents(world, "ada"), cents(world, "bob")), (70, 5), "ada is stuck");
        };
        tokio::join!(world.inject(&block), scenario);
        world.wait_idle().await;
        assert_eq!((cents(world, "ada"), cents(world, "bob")), (40, 35));
    }));
    assert_eq!(run.coverage.fault_events()[&FaultEvent::KeyBlocked], 1);
    assert!(run.coverage.wait_times().beside_stuck > 0, "{:?}", run.coverage.wait_times());
}

#[test]
fn node_on_an_empty_store_is_refused_and_changes_nothing() {
    let run = holds(cluster(Sim::new(1)).fault(Duration::from_millis(500), Fault::SecondNode { service: 0 }).run(
        async |world| {
            world.send(deposit("ada", 70)).await.unwrap();
            world.sleep(Duration::from_secs(1)).await;
            world.kill(0);
            world.inject(&Fault::SecondNode { service: 0 }).await;
            world.restart(0).await;
            assert_eq!(world.send(deposit("ada", 5)).await.unwrap(), 75, "the service itself continues");
            assert_eq!(world.sent::<Deposit>().len(), 2);
        },
    ));
    assert_eq!(run.coverage.fault_events()[&FaultEvent::SecondNodeRefused], 2);
}

/// A discard loses or repeats at most the money of the transfer whose message it is.
#[test]
fn drawn_discards_change_one_transfer_at_most() {
    let discarded = std::rc::Rc::new(std::cell::Cell::new(0));
    let seen = std::rc::Rc::clone(&discarded);
    let flow = Flow::new("discards", cluster, steps(), 1..12, perform).discards().no_regressions();
    let flow = flow.at_end(move |world, steps| {
        let is_discard = |fault: &Fault| matches!(fault, Fault::Poison { action: OperatorAction::Discard, .. });
        if !world.faults().iter().any(|injected| is_discard(&injected.fault) && injected.times > 0) {
            return money_is_conserved(world, steps);
        }
        seen.set(seen.get() + 1);
        let (mut given, mut largest) = (0, 0);
        for step in steps {
            match step {
                Step::Deposit { cents, .. } => given += u64::from(*cents),
                Step::Transfer { cents, .. } => largest = largest.max(u64::from(*cents)),
                Step::Close => {}
            }
        }
        let held: u64 = world.states::<Account>().iter().map(|(_, account)| account.cents).sum();
        let differs = format!("{given} cents were paid in and {held} are held");
        if held.abs_diff(given) <= largest { Ok(()) } else { Err(differs) }
    });
    flow.check(0..100);
    assert!(discarded.get() > 3, "{} runs with a discard", discarded.get());
}

#[test]
fn transfers_hold_while_keys_are_stuck_and_parked() {
    let flow = Flow::new("keys", cluster, steps(), 1..12, perform).at_end(money_is_conserved).no_regressions();
    let coverage = flow.check(0..100);
    for kind in ["Poison", "BlockKey", "SecondNode"] {
        let count = coverage.faults()[kind];
        assert!(count.fired > 3, "{kind}: {count:?}");
    }
    assert!(coverage.wait_times().beside_stuck > 0, "{:?}", coverage.wait_times());
}
