//! Queries of a run for rules: the time, faults, sent commands, and random numbers for fakes.

use std::time::Duration;

use whizbang::testing::sim::{Sender, SentOutcome};
use whizbang::testing::{Fault, FaultProfile, Flow, Random, Sim};

use crate::bank::*;
use crate::{cluster, perform, steps};

#[test]
fn rules_see_sent_commands_and_outcomes() {
    let run = cluster(Sim::new(1))
        .at_end(|world| {
            let sent = world.sent::<Withdraw>();
            let result: Vec<_> = sent.iter().map(|sent| (&*sent.command.account, sent.outcome.clone())).collect();
            let poor = world.sent::<Withdraw>().into_iter().find(|sent| sent.command.cents == 300).ok_or("not sent")?;
            assert_eq!(poor.outcome, SentOutcome::Rejected("bank.insufficient-funds".to_owned()), "{result:?}");
            let Some(Sender { domain, actor, key, .. }) = poor.from else { return Err("a client sent it".to_owned()) };
            assert_eq!((&*domain, &*actor, &*key), ("transfers", "transfer", "poor"));
            assert_eq!(result.len(), 2);
            let deposits = world.sent::<Deposit>();
            assert!(deposits[0].from.is_none() && deposits[0].outcome == SentOutcome::Accepted, "{deposits:?}");
            assert_eq!(deposits[1].command.account, "bob", "the saga's: {deposits:?}");
            assert!(poor.at >= Duration::from_secs(5) && world.now() >= poor.at, "{:?}", poor.at);
            Ok(())
        })
        .run(async |world| {
            world.send(deposit("ada", 100)).await.unwrap();
            world.send(transfer("good", "ada", "bob", 30)).await.unwrap();
            world.sleep(Duration::from_secs(5)).await;
            world.send(transfer("poor", "ada", "bob", 300)).await.unwrap();
        });
    run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.actor_steps));
}

#[test]
fn rules_expect_more_of_an_undisturbed_run() {
    let crash = Fault::Crash { service: 0, steps: 0, down: Duration::ZERO };
    for (profile, fault, undisturbed) in [
        (FaultProfile::NONE, None, true),
        (FaultProfile { loss: 1, ..FaultProfile::NONE }, None, false),
        (FaultProfile::NONE, Some(crash.clone()), false),
    ] {
        let faults = fault.iter().cloned().collect::<Vec<_>>();
        let sim = cluster(Sim::new(1)).fault_profile(profile).at_end(move |world| {
            assert_eq!(world.is_undisturbed(), undisturbed);
            assert_eq!(world.fault_profile(), profile);
            let struck: Vec<_> = world.faults().into_iter().map(|struck| (struck.fault, struck.times)).collect();
            assert_eq!(struck, faults.iter().map(|fault| (fault.clone(), 1)).collect::<Vec<_>>());
            Ok(())
        });
        let sim = fault.into_iter().fold(sim, |sim, fault| sim.fault(Duration::from_millis(10), fault));
        let run = sim.run(async |world| {
            world.send(deposit("ada", 100)).await.unwrap();
            world.sleep(Duration::from_millis(50)).await;
        });
        run.unwrap_or_else(|violation| panic!("{violation}"));
    }
}

#[test]
fn some_seeds_of_a_flow_are_undisturbed() {
    let undisturbed = std::rc::Rc::new(std::cell::Cell::new(0));
    let count = std::rc::Rc::clone(&undisturbed);
    let flow = Flow::new("quiet", cluster, steps(), 1..6, perform).at_end(move |world, _| {
        count.set(count.get() + u32::from(world.is_undisturbed()));
        Ok(())
    });
    flow.check(0..60);
    assert!((3..20).contains(&undisturbed.get()), "{}", undisturbed.get());
}

#[test]
fn random_numbers_of_a_fake_follow_from_the_seed() {
    let draws = |random: &Random| (0..8).map(|_| random.below(1_000_000)).collect::<Vec<_>>();
    let of = |seed: u64, name: &str| draws(&Sim::new(seed).random(name));
    assert_eq!(of(1, "bank"), of(1, "bank"));
    assert_ne!(of(1, "bank"), of(2, "bank"));
    assert_ne!(of(1, "bank"), of(1, "post"));
    let bank = Sim::new(1).random("bank");
    let before = draws(&bank.of("job1"));
    assert_eq!(draws(&bank.of("job1")), before, "whatever was drawn in between");
    assert!((0..100).filter(|_| bank.chance(500)).count().abs_diff(50) < 30);
}
