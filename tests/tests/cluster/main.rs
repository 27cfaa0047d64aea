//! Two services with three nodes each, over PostgreSQL and three NATS servers with replicated streams. Nodes and servers are
//! killed, paused, restarted and cut off in one direction under load: nothing is lost, duplicated, misordered or invented, the
//! money is constant, and every transfer ends.
#![cfg(unix)]

#[path = "../../../framework/whizbang/tests/bank/mod.rs"]
mod bank;
mod callers;
mod faults;
mod nodes;
mod resurrected;
mod singletons;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use whizbang::clock::Clock;
use whizbang::message::IdSource;
use whizbang_tests::brief_or_long;
use whizbang_tests::checker::{ShardLog, Stage, Verdict};
use whizbang_tests::nats::Release;

use bank::{Bank, Transfers};
use callers::{CALLERS, Callers, FIRST};
use faults::{Fault, inject};
use nodes::{Cluster, NODES, SERVICES};

/// Starts every caller on the runtime.
fn start_callers(runtime: &tokio::runtime::Runtime, callers: &Arc<Callers>) -> Vec<tokio::task::JoinHandle<()>> {
    let call = |caller| {
        let callers = Arc::clone(callers);
        async move { callers.transfer(caller).await }
    };
    (0..CALLERS).map(|caller| runtime.spawn(call(caller))).collect()
}

/// Ends the load, checks the money, stops all nodes and compares their logs with the replies.
fn verdict(
    runtime: &tokio::runtime::Runtime,
    mut cluster: Cluster,
    callers: &Arc<Callers>,
    calling: Vec<tokio::task::JoinHandle<()>>,
) -> Verdict {
    callers.stops.store(true, Ordering::Relaxed);
    runtime.block_on(async {
        for caller in calling {
            caller.await.expect("a caller ends");
        }
        let transfers = callers.wait_for_ends().await;
        assert!(transfers > 0, "no transfer has begun");
        assert_eq!(callers.total().await, FIRST * CALLERS as u64, "the money is constant");
        callers.disconnect().await;
        println!("{transfers} transfers");
    });
    cluster.stop();
    runtime.block_on(async {
        let mut ledger = std::mem::take(&mut *callers.ledger.lock().await);
        let logs = ShardLog::read_domain::<Bank>(&cluster.store(0).await).await.expect("reads the log");
        logs.into_iter().for_each(|log| ledger.log(log));
        let logs = ShardLog::read_domain::<Transfers>(&cluster.store(1).await).await.expect("reads the log");
        logs.into_iter().for_each(|log| ledger.log(log));
        ledger.check(Stage::Idle)
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

#[test]
fn three_nodes_share_shards_evenly_and_follow_joins_and_stops() {
    let mut cluster = Cluster::start(Release::Pinned);
    for service in 0..SERVICES.len() {
        cluster.wait_until_even(service, NODES);
    }
    let mut node = cluster.nodes[0][1].take().expect("a running node");
    node.signal("TERM");
    node.ends_in_order();
    // It gave everything away before the process ended.
    assert_eq!(cluster.shards_by_owner(0).len(), NODES - 1);
    cluster.wait_until_even(0, NODES - 1);
    cluster.kill(0, 2);
    cluster.wait_until_even(0, 1);
    for number in [1, 2] {
        cluster.start_node(0, number);
        cluster.wait_until_ready(0, number);
    }
    cluster.wait_until_even(0, NODES);
    cluster.stop();
}

#[test]
fn rolling_restart_under_load_shows_no_error_to_callers() {
    let runtime = runtime();
    let mut cluster = Cluster::start(Release::Pinned);
    let callers = runtime.block_on(Callers::connect(&cluster.nats.url()));
    runtime.block_on(callers.open_accounts());
    let calling = start_callers(&runtime, &callers);
    for service in 0..SERVICES.len() {
        for number in 0..NODES {
            let mut node = cluster.nodes[service][number].take().expect("a running node");
            node.signal("TERM");
            node.ends_in_order();
            cluster.start_node(service, number);
            cluster.wait_until_ready(service, number);
            cluster.wait_until_even(service, NODES);
        }
    }
    let errors = std::mem::take(&mut *runtime.block_on(callers.errors.lock()));
    let longest = *runtime.block_on(callers.longest.lock());
    println!("longest wait for a reply: {longest:?}");
    let verdict = verdict(&runtime, cluster, &callers, calling);
    println!("{verdict}");
    verdict.assert_clean();
    assert!(errors.is_empty(), "callers saw errors: {errors:#?}");
    // A planned move takes about 0.1 s; the rest is for a busy machine. Far below the deadline of a command, 30 s.
    assert!(longest < Duration::from_secs(5), "a caller waited {longest:?}");
}

#[test]
fn killed_and_paused_nodes_and_servers_lose_and_invent_nothing() {
    run_with_faults(Release::Pinned);
}

#[test]
fn killed_and_paused_nodes_and_old_servers_lose_nothing() {
    run_with_faults(Release::Distribution);
}

/// Kills and pauses nodes and servers at random while commands run, and checks the logs afterwards.
fn run_with_faults(release: Release) {
    let seed = std::env::var("TESTS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| IdSource::random(Clock::system()).next_u64());
    println!("TESTS_SEED={seed}");
    let chance = IdSource::seeded(Clock::system(), seed);
    let runtime = runtime();
    let mut cluster = Cluster::start(release);
    let callers = runtime.block_on(Callers::connect(&cluster.nats.url()));
    runtime.block_on(callers.open_accounts());
    let calling = start_callers(&runtime, &callers);
    let end = Instant::now() + brief_or_long(Duration::from_secs(90), Duration::from_secs(30 * 60));
    let operator = runtime.block_on(cluster.nats.operator());
    let fired = inject(&mut cluster, (&runtime, &operator), &callers, &chance, end);
    println!("{fired:?}");
    assert!(Fault::ALL.iter().all(|fault| fired.get(fault).is_some_and(|times| *times > 0)), "{fired:?}");
    let (answered, errors) = (callers.answered.load(Ordering::Relaxed), runtime.block_on(callers.errors.lock()).len());
    println!("{answered} commands answered, {errors} errors before a reply");
    let verdict = verdict(&runtime, cluster, &callers, calling);
    println!("{verdict}");
    verdict.assert_clean();
}
