//! The bank's transfer in a simulated cluster, with all faults and all invariants of the framework.

#[path = "../bank/mod.rs"]
mod bank;
#[path = "../bank/transfers.rs"]
mod bank_transfers;

mod broker;
mod clients;
mod coverage;
mod delayed_messages;
mod exclusive_jobs;
mod expiry;
mod fenced_nodes;
mod invariants;
mod job_outbox;
mod jobs;
mod keyed_queries;
mod keys;
mod layers;
mod nodes;
mod poisoned_events;
mod publications;
mod regressions;
mod rules;
mod run_queries;
mod singletons;
mod stuck_keys;
mod trips;
mod versions;
mod worker_batches;
mod worker_limits;
mod wrong_flows;

use std::time::Duration;

use bank::*;
use bank_transfers::{Step, cluster, money_is_conserved, perform, steps};
use whizbang::testing::{Fault, FaultProfile, Flow, Sim, World};

const ROUGH: FaultProfile = FaultProfile { loss: 100, duplication: 150, delay: 40, commit_delay: 8, read_delay: 8 };

#[test]
fn one_rough_run_holds() {
    let run = cluster(Sim::new(1))
        .fault_profile(ROUGH)
        .fault(Duration::from_millis(300), Fault::Crash { service: 0, steps: 3, down: Duration::from_millis(500) })
        .fault(Duration::from_millis(700), Fault::Crash { service: 1, steps: 9, down: Duration::from_millis(500) })
        .run(async |world| {
            perform(world, Step::Deposit { account: 0, cents: 100 }).await;
            for _ in 0..4 {
                perform(world, Step::Transfer { from: 0, to: 1, cents: 20 }).await;
            }
        });
    match run {
        Ok(run) => println!("{}", run.trace),
        Err(violation) => panic!("{violation}\n{}", violation.trace),
    }
}

fn transfers() -> Flow<Step, impl AsyncFn(&World, Step)> {
    Flow::new("transfers", cluster, steps(), 1..12, perform).at_end(money_is_conserved)
}

/// The same flow with the store on disk, on disks that lose unflushed data.
fn transfers_on_disk() -> Flow<Step, impl AsyncFn(&World, Step)> {
    Flow::new("transfers-on-disk", |sim| cluster(sim).on_disk(), steps(), 1..12, perform).at_end(money_is_conserved)
}

#[test]
fn two_hundred_seeds_of_transfers_hold_on_lossy_disks() {
    transfers_on_disk().check(0..200);
}

#[test]
fn forty_seeds_of_transfers_hold() {
    transfers().check(0..40);
}

#[test]
fn two_hundred_seeds_of_transfers_hold() {
    transfers().check(0..200);
}

#[test]
fn lost_last_event_is_noticed_after_owner_restart() {
    let run =
        cluster(Sim::new(3)).fault_profile(FaultProfile { delay: 100, ..FaultProfile::NONE }).run(async |world| {
            for number in 0..20 {
                perform(world, Step::Deposit { account: number, cents: 1 }).await;
                // About half of the events are still in transit.
                world.inject(&Fault::PurgeStreams).await;
            }
            world.kill(0);
            world.restart(0).await;
        });
    if let Err(violation) = run {
        panic!("{violation}\n{}", violation.trace);
    }
}

/// Returns the traces of some seeds, for comparison.
fn traces() -> String {
    let trace = |run: Result<whizbang::testing::sim::PassedRun, _>| run.expect("the flow holds").trace;
    (0..6).flat_map(|seed| [trace(transfers().run(seed)), trace(transfers_on_disk().run(seed))]).collect()
}

#[test]
fn same_seed_gives_same_trace_in_two_processes() {
    const MARK: &str = "WHIZBANG_TRACES_INTO";
    let here = traces();
    assert!(here.lines().count() > 200, "too little happened to compare:\n{here}");
    if let Ok(path) = std::env::var(MARK) {
        std::fs::write(path, here).unwrap();
        return;
    }
    assert!(here == traces(), "two runs of one process differ");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("traces");
    // Another process has other addresses and another hash seed.
    let ran = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "same_seed_gives_same_trace_in_two_processes"])
        .env(MARK, &path)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
    let there = std::fs::read_to_string(&path).unwrap();
    let differs = here.lines().zip(there.lines()).find(|(here, there)| here != there);
    assert!(here == there, "processes differ: {differs:?}");
}

/// A saga with a bug.
#[allow(unreachable_pub)]
mod hasty {
    use whizbang::prelude::*;

    use super::bank::*;

    /// Pays before the withdrawal is confirmed.
    #[derive(Saga, Debug, Default)]
    #[saga(domain = Transfers, handles(StartTransfer), applies(TransferStarted, TransferDone), replies(Deposit, Withdraw))]
    pub struct Hasty {
        done: bool,
    }

    impl Handle<StartTransfer> for Hasty {
        fn handle(&self, start: StartTransfer, effects: &mut Effects<Self>) -> Result<(), Rejection> {
            let StartTransfer { transfer, from, to, cents } = start;
            effects.send(Withdraw { account: from.clone(), cents, transfer });
            effects.send(Deposit { account: to.clone(), cents });
            effects.record(TransferStarted { from, to, cents });
            Ok(())
        }
    }

    impl OnReply<Withdraw> for Hasty {
        fn on_reply(&self, _reply: Result<u64, Rejection>, _effects: &mut Effects<Self>) {}
    }

    impl OnReply<Deposit> for Hasty {
        fn on_reply(&self, _reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
            effects.record(TransferDone {});
            effects.complete();
        }
    }

    impl Apply<TransferStarted> for Hasty {
        fn apply(&mut self, _started: &TransferStarted) {}
    }

    impl Apply<TransferDone> for Hasty {
        fn apply(&mut self, _done: &TransferDone) {
            self.done = true;
        }
    }
}

#[test]
fn saga_paying_too_early_is_found_with_short_case() {
    let cluster = |sim: Sim| {
        sim.service("accounts", |node| node.aggregate::<Account>())
            .service("transfers", |node| node.saga::<hasty::Hasty>())
    };
    let flow = Flow::new("hasty", cluster, steps(), 1..12, perform).at_end(money_is_conserved).no_regressions();
    let found = flow.first_failure(0..200).expect("it is found");
    let plan = &found.plan;
    assert!(found.violation.reason.contains("cents were paid in"), "{}", found.violation.reason);
    // Values are shrunk to the simplest ones.
    assert!(matches!(plan.steps[..], [(_, Step::Transfer { from: 0, to: 0, cents: 1 })]), "{plan}");
    assert!(plan.faults.is_empty(), "{plan}");
    let text = flow.replay(found.seed, &found.path).expect_err("it is found again");
    assert!(text.contains(&format!("WHIZBANG_SIM=hasty/{}/{}", found.seed, found.path)), "{text}");
}
