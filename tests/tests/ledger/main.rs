//! Real runs under the eyes of the checker: nodes that are killed and started again, callers that repeat themselves, a store that
//! loses what it has not committed, a courier that loses, repeats and reorders.
//!
//! Everything happens on one thread, in virtual time and from a seed. `tests/run --long` runs more seeds.

#[path = "../../../framework/tests/bank/mod.rs"]
mod bank;
mod clients;
mod world;

use std::ops::Range;

use whizbang::bridge::loopback::LoopbackFaults;
use whizbang::clock::{Clock, Timestamp};
use whizbang::message::IdSource;
use whizbang_tests::checker::Verdict;
use whizbang_tests::{Panics, brief_or_long};

use world::World;

/// What happens in a run.
#[derive(Clone, Copy)]
struct Plan {
    /// How often nodes are killed.
    rounds: u64,
    /// How many commands are sent between two kills.
    commands: u64,
    /// How often each of them is sent, at once.
    deliveries: u64,
    /// The service of each node: one that hosts everything, or two.
    services: &'static [&'static str],
    /// Whether commits come late, so that a kill loses some.
    late_commits: bool,
    /// Whether each node's wall clock jumps, by up to two hours in either direction.
    clocks_jump: bool,
    /// What the courier does.
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

/// A source of chance whose numbers follow from the seed.
fn chance(seed: u64) -> IdSource {
    IdSource::seeded(Clock::manual(Timestamp::from_millis(1_800_000_000_000)).0, seed)
}

async fn run(plan: Plan, seed: u64) -> Verdict {
    let mut world = World::new(plan, seed);
    for _ in 0..plan.rounds {
        world.round().await;
    }
    world.verdict().await
}

/// Runs a plan with each seed, on a runtime whose time passes when nothing else happens.
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
fn a_node_that_is_killed_again_and_again_loses_doubles_and_invents_nothing() {
    check(ALONE, seeds(0));
}

#[test]
fn commands_delivered_three_times_in_any_order_are_decided_once() {
    check(Plan { rounds: 10, commands: 20, deliveries: 3, ..ALONE }, seeds(1_000));
}

#[test]
fn nothing_is_said_before_it_is_committed_even_if_a_kill_loses_what_was_not() {
    check(Plan { late_commits: true, ..ALONE }, seeds(2_000));
}

#[test]
fn two_services_that_are_killed_in_turn_lose_double_and_invent_nothing() {
    check(PAIR, seeds(3_000));
}

#[test]
fn a_courier_that_loses_repeats_and_reorders_changes_nothing() {
    let faults = LoopbackFaults { drop: 0.1, duplicate: 0.2, reorder: 0.3, ..LoopbackFaults::default() };
    check(Plan { faults: Some(faults), ..PAIR }, seeds(4_000));
}

#[test]
fn wall_clocks_that_jump_change_no_order_and_no_deduplication() {
    check(Plan { clocks_jump: true, deliveries: 3, commands: 10, ..ALONE }, seeds(5_000));
    check(Plan { clocks_jump: true, deliveries: 2, commands: 15, ..PAIR }, seeds(6_000));
}

#[test]
fn all_faults_together_lose_double_and_invent_nothing() {
    let faults = LoopbackFaults { drop: 0.1, duplicate: 0.2, reorder: 0.3, ..LoopbackFaults::default() };
    check(Plan { faults: Some(faults), late_commits: true, clocks_jump: true, deliveries: 2, ..PAIR }, seeds(7_000));
}
