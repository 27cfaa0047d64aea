//! Runs of real nodes, verified by the checker: nodes are killed and restarted, callers repeat commands, stores lose uncommitted
//! data, and the bridge loses, duplicates and reorders messages.
//!
//! All runs use one thread, virtual time and a seed. `tests/run --long` runs more seeds.

#[path = "../../../framework/whizbang/tests/bank/mod.rs"]
mod bank;
mod clients;
mod world;

use std::ops::Range;

use whizbang::clock::{Clock, Timestamp};
use whizbang::message::IdSource;
use whizbang::testing::LoopbackFaults;
use whizbang_tests::checker::Verdict;
use whizbang_tests::{Panics, brief_or_long};

use world::World;

/// The parameters of a run.
#[derive(Clone, Copy)]
struct Plan {
    /// The number of rounds. Each ends with a kill.
    rounds: u64,
    /// The number of commands per round.
    commands: u64,
    /// The number of times each command is sent, at once.
    deliveries: u64,
    /// The service of each node: one that hosts everything, or two.
    services: &'static [&'static str],
    /// True if commits are delayed, so that a kill loses some.
    late_commits: bool,
    /// True if each node's wall clock jumps, by up to two hours in either direction.
    clocks_jump: bool,
    /// The faults of the bridge.
    faults: Option<LoopbackFaults>,
}

const ALONE: Plan = Plan {
    rounds: 20,
    commands: 30,
    deliveries: 1,
    services: &["bank"],
    late_commits: false,
    clocks_jump: false,
    faults: None,
};

const PAIR: Plan = Plan { rounds: 10, services: &["accounts", "transfers"], ..ALONE };

/// Returns a source of random numbers derived from the seed.
fn rng(seed: u64) -> IdSource {
    IdSource::seeded(Clock::manual(Timestamp::from_millis(1_800_000_000_000)).0, seed)
}

async fn run(plan: Plan, seed: u64) -> Verdict {
    let mut world = World::new(plan, seed);
    for _ in 0..plan.rounds {
        world.round().await;
    }
    world.verdict().await
}

/// Runs a plan with each seed, on a runtime with virtual time.
fn check(plan: Plan, seeds: Range<u64>) {
    let panics = Panics::watch_here();
    let mut interrupted = 0;
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let verdict = tokio::task::LocalSet::new().block_on(&runtime, run(plan, seed));
        println!("seed {seed}: {verdict}");
        verdict.assert_clean();
        interrupted += verdict.commands - verdict.acknowledged;
    }
    panics.assert_only(&[]);
    assert!(interrupted > 0, "no kill came in the midst of a command");
}

fn seeds(from: u64) -> Range<u64> {
    from..from + brief_or_long(10, 300)
}

#[test]
fn killed_node_loses_and_duplicates_nothing() {
    check(ALONE, seeds(0));
}

#[test]
fn commands_delivered_three_times_in_any_order_are_decided_once() {
    check(Plan { rounds: 10, commands: 20, deliveries: 3, ..ALONE }, seeds(1_000));
}

#[test]
fn kill_with_late_commits_breaks_no_reply() {
    check(Plan { late_commits: true, ..ALONE }, seeds(2_000));
}

#[test]
fn killed_services_lose_and_duplicate_nothing() {
    check(PAIR, seeds(3_000));
}

#[test]
fn lossy_bridge_changes_nothing() {
    let faults = LoopbackFaults { drop: 0.1, duplicate: 0.2, reorder: 0.3, ..LoopbackFaults::default() };
    check(Plan { faults: Some(faults), ..PAIR }, seeds(4_000));
}

#[test]
fn clock_jumps_change_no_order_and_no_deduplication() {
    check(Plan { clocks_jump: true, deliveries: 3, commands: 10, ..ALONE }, seeds(5_000));
    check(Plan { clocks_jump: true, deliveries: 2, commands: 15, ..PAIR }, seeds(6_000));
}

#[test]
fn all_faults_together_lose_and_duplicate_nothing() {
    let faults = LoopbackFaults { drop: 0.1, duplicate: 0.2, reorder: 0.3, ..LoopbackFaults::default() };
    check(Plan { faults: Some(faults), late_commits: true, clocks_jump: true, deliveries: 2, ..PAIR }, seeds(7_000));
}
