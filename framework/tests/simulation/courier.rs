//! What the simulated courier does to messages, one fault at a time. Each must have fired.

use std::time::Duration;

use whizbang::testing::{Fault, Sim};

use crate::bank::*;
use crate::cluster;

fn one_transfer_during(fault: Fault) -> whizbang::testing::sim::Run {
    let run = cluster(Sim::new(2))
        .fault(Duration::from_millis(10), fault)
        .at_end(|world| match world.state::<Account>("bob").cents {
            30 => Ok(()),
            cents => Err(format!("bob has {cents} cents")),
        })
        .run(async |world| {
            world.send(deposit("ada", 100)).await.unwrap();
            world.sleep(Duration::from_millis(20)).await;
            world.send(transfer("t1", "ada", "bob", 30)).await.unwrap();
        });
    run.unwrap_or_else(|broken| panic!("{broken}\n{}", broken.trace))
}

/// The second at which a line stands in the trace.
fn at(trace: &str, line: &str) -> f64 {
    let found = trace.lines().find(|text| text.contains(line)).unwrap_or_else(|| panic!("no `{line}` in\n{trace}"));
    found.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_pause_holds_everything_up_and_loses_nothing() {
    let run = one_transfer_during(Fault::PauseCourier { lasts: Duration::from_secs(4) });
    assert!(at(&run.trace, "[Withdrawn]") >= 4.0, "{}", run.trace);
    run.coverage.of::<Transfer>().reply::<Deposit>().at_least(1);
}

#[test]
fn what_is_refused_while_the_leader_changes_is_sent_again_and_taken_once() {
    let run = one_transfer_during(Fault::RefuseSends { lasts: Duration::from_secs(4) });
    assert!(run.trace.matches(" sends command Withdraw ").count() > 1, "{}", run.trace);
    assert_eq!(run.coverage.of::<Account>().command::<Withdraw>().count(), 1);
}
