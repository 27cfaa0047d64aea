//! A singleton over PostgreSQL: the process that runs it is killed, paused and stopped.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use whizbang_tests::eventually;
use whizbang_tests::nats::Release;

use crate::nodes::{Cluster, NODES};

/// The time limit of a step: several leases, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// The service of the accounts.
const BANK: usize = 0;

/// Returns the steps of the singleton so far: epoch and process.
fn steps(cluster: &Cluster) -> Vec<(u64, u32)> {
    let text = fs::read_to_string(cluster.singleton_file(BANK)).unwrap_or_default();
    let numbers = |line: &str| {
        let (epoch, process) = line.split_once(' ')?;
        Some((epoch.parse().ok()?, process.parse().ok()?))
    };
    text.lines().map(|line| numbers(line).unwrap_or_else(|| panic!("`{line}` is not a step"))).collect()
}

/// Waits until a running process other than `before` has made the last step, and returns the number of its node.
fn runner_after(cluster: &Cluster, before: Option<u32>) -> usize {
    let mut runner = None;
    eventually("a step of another process", LIMIT, || {
        let (_, last) = steps(cluster).pop()?;
        let is_it = |number: &usize| cluster.nodes[BANK][*number].as_ref().is_some_and(|node| node.id() == last);
        runner = (0..NODES).find(is_it).filter(|_| Some(last) != before);
        runner.map(drop)
    });
    runner.expect("a running node")
}

#[test]
fn singleton_of_a_killed_or_paused_process_runs_elsewhere() {
    let mut cluster = Cluster::start(Release::Pinned);
    for _ in 0..2 {
        let runner = runner_after(&cluster, None);
        let killed = cluster.node(BANK, runner).id();
        cluster.kill(BANK, runner);
        runner_after(&cluster, Some(killed));
        cluster.start_node(BANK, runner);
        cluster.wait_until_ready(BANK, runner);
        cluster.wait_until_even(BANK, NODES);
        // Its shard may have moved to the process that has joined.
        let runner = runner_after(&cluster, None);
        let paused = cluster.node(BANK, runner);
        paused.signal("STOP");
        runner_after(&cluster, Some(paused.id()));
        paused.signal("CONT");
        cluster.wait_until_even(BANK, NODES);
    }
    let runner = runner_after(&cluster, None);
    let mut stopped = cluster.nodes[BANK][runner].take().expect("a running node");
    stopped.signal("TERM");
    stopped.ends_in_order();
    runner_after(&cluster, Some(stopped.id()));
    cluster.start_node(BANK, runner);
    cluster.wait_until_ready(BANK, runner);
    cluster.stop();
    // A process that makes a step after a later one has begun would show a lower epoch.
    let steps = steps(&cluster);
    let is_ordered = steps.is_sorted_by(|one, next| one.0 <= next.0);
    let processes: BTreeSet<u32> = steps.iter().map(|(_, process)| *process).collect();
    assert!(is_ordered, "two processes ran the singleton at a time: {steps:?}");
    assert!(processes.len() >= 4, "{processes:?}");
}
