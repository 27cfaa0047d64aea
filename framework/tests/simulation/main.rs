//! The bank's transfer in a simulated cluster: every fault, from one seed, and the framework's own invariants.

#[path = "../bank/mod.rs"]
mod bank;
#[path = "../bank/transfers.rs"]
mod bank_transfers;

mod broker;
mod clients;
mod coverage;
mod jobs;
mod keys;
mod kit;
mod known;
mod regressions;
mod rules;
mod standing;
mod stuck;
mod trips;
mod versions;
mod zombies;

use std::time::Duration;

use bank::*;
use bank_transfers::{Step, cluster, money_is_conserved, perform, steps};
use whizbang::testing::{Fault, FaultProfile, Flow, Sim, World};

const ROUGH: FaultProfile = FaultProfile { lose: 100, repeat: 150, delay: 40, disk: 8, load: 8 };

#[test]
fn one_rough_run_holds() {
    let run = cluster(Sim::new(1))
        .weather(ROUGH)
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
        Err(broken) => panic!("{broken}\n{}", broken.trace),
    }
}

fn transfers() -> Flow<Step, impl AsyncFn(&World, Step)> {
    Flow::new("transfers", cluster, steps(), 1..12, perform).at_end(money_is_conserved)
}

/// The same with the store on disk, on disks that lose what was not flushed.
fn transfers_on_disk() -> Flow<Step, impl AsyncFn(&World, Step)> {
    Flow::new("transfers-on-disk", |sim| cluster(sim).on_disk(), steps(), 1..12, perform).at_end(money_is_conserved)
}

#[test]
fn two_hundred_seeds_of_transfers_hold_on_disks_that_lose_what_was_not_flushed() {
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
fn a_lost_last_event_is_noticed_although_its_owner_has_started_again() {
    let run = cluster(Sim::new(3)).weather(FaultProfile { delay: 100, ..FaultProfile::FAIR }).run(async |world| {
        for number in 0..20 {
            perform(world, Step::Deposit { account: number, cents: 1 }).await;
            // EventContext half of the events are still under way.
            world.strike(&Fault::EmptyStreams).await;
        }
        world.kill(0);
        world.restart(0).await;
    });
    if let Err(broken) = run {
        panic!("{broken}\n{}", broken.trace);
    }
}

/// The trace of some seeds, for comparison.
fn traces() -> String {
    let trace = |run: Result<whizbang::testing::sim::Run, _>| run.expect("the flow holds").trace;
    (0..6).flat_map(|seed| [trace(transfers().run(seed)), trace(transfers_on_disk().run(seed))]).collect()
}

#[test]
fn the_same_seed_gives_the_same_trace_in_this_process_and_in_another() {
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
    // Another process has other addresses and other random states.
    let ran = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_same_seed_gives_the_same_trace_in_this_process_and_in_another"])
        .env(MARK, &path)
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stdout));
    let there = std::fs::read_to_string(&path).unwrap();
    let differs = here.lines().zip(there.lines()).find(|(here, there)| here != there);
    assert!(here == there, "processes differ: {differs:?}");
}

/// A wrong saga.
#[allow(unreachable_pub)]
mod hasty {
    use whizbang::prelude::*;

    use super::bank::*;

    /// Pays before it knows that the money was withdrawn.
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
fn a_saga_that_pays_before_it_knows_is_found_and_the_case_is_short() {
    let cluster = |sim: Sim| {
        sim.service("accounts", |node| node.aggregate::<Account>())
            .service("transfers", |node| node.saga::<hasty::Hasty>())
    };
    let flow = Flow::new("hasty", cluster, steps(), 1..12, perform).at_end(money_is_conserved).no_regressions();
    let found = flow.first_broken(0..200).expect("it is found");
    let plan = &found.plan;
    assert!(found.broken.reason.contains("cents were paid in"), "{}", found.broken.reason);
    // The values are the simplest of their strategies, too.
    assert!(matches!(plan.steps[..], [(_, Step::Transfer { from: 0, to: 0, cents: 1 })]), "{plan}");
    assert!(plan.faults.is_empty(), "{plan}");
    let text = flow.play(found.seed, &found.path).expect_err("it is found again");
    assert!(text.contains(&format!("WHIZBANG_SIM=hasty/{}/{}", found.seed, found.path)), "{text}");
}
