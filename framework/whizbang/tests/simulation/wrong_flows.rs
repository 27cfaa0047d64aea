//! Failure reports of flows that contain a bug or are described wrongly.

#![allow(clippy::disallowed_methods, reason = "some handlers are nondeterministic on purpose")]

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{Fault, Flow, Sim, World};

use crate::bank::*;
use crate::{Step, cluster, perform, steps};

#[derive(Domain)]
struct Tickets;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Tickets)]
struct Draw {
    #[key]
    queue: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Tickets)]
struct Drawn {
    number: u64,
}

/// An alias hides the type from the derive. The simulation must find the bug.
type Hidden = Cell<u64>;

async fn draw(world: &World, queue: u8) {
    world.send(Draw { queue: format!("q{queue}") }).await.expect("a ticket can be drawn");
}

/// Defines a queue whose numbers come from an expression.
macro_rules! queue {
    ($name:ident, $state:ident, $number:expr $(, $derive:ident)?) => {
        mod $name {
            use super::*;

            #[derive(Aggregate, Default $(, $derive)?)]
            #[aggregate(domain = Tickets, handles(Draw), applies(Drawn))]
            pub(super) struct Queue {
                pub(super) drawn: u64,
                #[allow(dead_code)]
                pub(super) hidden: Hidden,
            }

            impl Handle<Draw> for Queue {
                fn handle(&self, _draw: Draw, effects: &mut Effects<Self>) -> Result<(), Rejection> {
                    let $state = self;
                    effects.record(Drawn { number: $number });
                    Ok(())
                }
            }

            impl Apply<Drawn> for Queue {
                fn apply(&mut self, _drawn: &Drawn) {
                    self.drawn += 1;
                }
            }

            pub(super) fn flow() -> Flow<u8, impl AsyncFn(&World, u8)> {
                let cluster = |sim: Sim| sim.service("tickets", |node| node.aggregate::<Queue>());
                Flow::new("tickets", cluster, 0..2u8, 1..8, draw).no_regressions()
            }
        }
    };
}

queue!(random, _queue, RandomState::new().build_hasher().finish() % 1000);
queue!(hidden, queue, {
    queue.hidden.set(queue.hidden.get() + 1);
    queue.hidden.get()
});
queue!(
    shown,
    queue,
    {
        queue.hidden.set(queue.hidden.get() + 1);
        queue.hidden.get()
    },
    Debug
);

fn failure_report(flow: &Flow<u8, impl AsyncFn(&World, u8) + 'static>) -> String {
    let found = flow.first_failure(0..200).expect("200 seeds find it");
    flow.replay(found.seed, &found.path).expect_err("it fails again")
}

#[test]
fn handler_with_random_numbers_is_reported() {
    let report = failure_report(&random::flow());
    assert!(report.contains("two runs of the same case differ"), "{report}");
    assert!(report.contains("[Drawn]") && report.contains("random numbers, the order of a HashMap"), "{report}");
}

#[test]
fn state_outside_events_is_found_by_its_rule() {
    // Without `Debug` the state cannot be compared. Actors are reloaded in some seeds, and then the numbers start again.
    let flow = hidden::flow().always(|world, _| {
        let mut last = std::collections::BTreeMap::new();
        for (queue, drawn) in world.events::<Drawn>() {
            let before = last.insert(queue.clone(), drawn.number).unwrap_or(0);
            if drawn.number != before + 1 {
                return Err(format!("number {} follows {before} in {queue}", drawn.number));
            }
        }
        Ok(())
    });
    let found = flow.first_failure(0..200).expect("200 seeds find it");
    assert_eq!(found.violation.rule, "always 1", "{}", found.violation.reason);
    assert!(found.plan.size() <= 4, "{}", found.plan);
}

#[test]
fn state_outside_events_is_found_without_a_rule() {
    let found = shown::flow().first_failure(0..200).expect("200 seeds find it");
    assert_eq!(found.violation.rule, "state", "{}", found.violation.reason);
    assert!(found.violation.reason.contains("tickets.queue `q"), "{}", found.violation.reason);
    assert!(found.plan.size() <= 3, "{}", found.plan);
}

/// A flow with a limit for accounts. The reason of its rule contains all accounts or none.
fn bounded(verbose: bool) -> Flow<Step, impl AsyncFn(&World, Step)> {
    Flow::new("bounded", cluster, steps(), 1..12, perform).no_regressions().at_end(move |world, _| {
        let accounts = world.states::<Account>();
        if accounts.iter().all(|(_, account)| account.cents <= 200) {
            Ok(())
        } else if verbose {
            Err(format!("too much in one of {accounts:?}"))
        } else {
            Err("too much in an account".to_owned())
        }
    })
}

#[test]
fn rule_text_does_not_affect_shrinking() {
    let (verbose, plain) = (bounded(true), bounded(false));
    for seed in 0..12 {
        let (Some(verbose), Some(plain)) = (verbose.first_failure(seed..seed + 1), plain.first_failure(seed..seed + 1))
        else {
            continue;
        };
        assert_eq!(verbose.plan.size(), plain.plan.size(), "{}\n{}", verbose.plan, plain.plan);
        assert_eq!(verbose.runs, plain.runs);
    }
    let found = bounded(true).first_failure(0..200).expect("it is found");
    assert_eq!(found.violation.rule, "at the end 1");
}

#[test]
fn shrinking_removes_unneeded_time() {
    let flow = bounded(false).arrivals(Just(Duration::from_secs(7))).max_faults(0);
    let found = flow.first_failure(0..200).expect("it is found");
    assert!(found.plan.steps.iter().all(|(at, _)| *at == Duration::ZERO), "{}", found.plan);
    let report = flow.replay(found.seed, &found.path).expect_err("it fails again");
    assert!(report.contains(&found.plan.to_string()), "{report}");
}

#[test]
fn fault_of_a_missing_service_is_an_error() {
    let faulty = || cluster(Sim::new(1)).fault(Duration::from_secs(1), Fault::FailCommits { service: 2 });
    let violation = faulty().run(async |_| {}).expect_err("there are services 0 and 1");
    assert!(violation.reason.contains("unknown service 2"), "{}", violation.reason);
    let fault = Fault::Partition { from: 0, to: 9, duration: Duration::ZERO };
    let violation = cluster(Sim::new(1)).run(async move |world| world.inject(&fault).await).expect_err("no service 9");
    assert!(violation.reason.contains("unknown service 9"), "{}", violation.reason);
}

#[test]
fn domain_hosted_twice_is_an_error() {
    let run = Sim::new(1)
        .service("one", |node| node.aggregate::<Account>())
        .service("two", |node| node.aggregate::<Account>())
        .run(async |_| panic!("it is not run"));
    let violation = run.expect_err("both would answer");
    assert!(violation.reason.contains("`one` and `two` both host the domain `bank`"), "{}", violation.reason);
}

#[test]
fn rejected_command_counts_as_reached() {
    let run = cluster(Sim::new(1)).run(async |world| {
        world.send(withdraw("ada", 1, "")).await.expect_err("there is nothing to withdraw");
    });
    let never = run.expect("nothing is wrong").coverage.unreached();
    assert!(never.iter().any(|line| line == "account: Deposit"), "{never:#?}");
    assert!(!never.iter().any(|line| line == "account: Withdraw"), "{never:#?}");
}
