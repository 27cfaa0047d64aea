//! The cost of idle nodes: the run time of their threads, as part of a core.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use whizbang::derive::block_on;
use whizbang::prelude::*;
use whizbang::store::embedded::EmbeddedStore;

use crate::nats::{Book, Reader, bridge, next_run, write};
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::nats::{NatsServer, Release};
use whizbang_tests::postgres::PostgresServer;

/// The measured span.
const SPAN: Duration = Duration::from_secs(10);
/// The limit for one node, in percent of a core.
const LIMIT: f64 = 0.5;
/// The limit for three nodes with their database.
const CLUSTER_LIMIT: f64 = 1.0;

/// Measures one node with an embedded store.
pub(crate) fn alone() {
    let folder = tempfile::tempdir().expect("a folder");
    block_on(async {
        let store = EmbeddedStore::open(folder.path()).expect("opens");
        let node =
            Node::builder("notes", store).aggregate::<Book>().projection::<Reader>().start().await.expect("starts");
        work(&node).await;
        print("idle_alone", "one node with an embedded store", cost().await);
        node.stop().await.expect("stops");
    });
}

/// Measures two nodes over a server: one owns a domain, the other subscribes to its events.
pub(crate) fn over_nats() {
    let server = NatsServer::start(Release::Distribution);
    let folder = tempfile::tempdir().expect("a folder");
    block_on(async {
        let run = next_run();
        let store = EmbeddedStore::open(folder.path().join("notes")).expect("opens");
        let owner = Node::builder("notes", store).aggregate::<Book>().bridge(bridge(&server.url(), run).await);
        let owner = owner.start().await.expect("starts");
        let store = EmbeddedStore::open(folder.path().join("reader")).expect("opens");
        let reader = Node::builder("reader", store).projection::<Reader>().bridge(bridge(&server.url(), run).await);
        let reader = reader.start().await.expect("starts");
        work(&owner).await;
        reader.wait_idle().await;
        print("idle_over_nats", "an owner and a subscriber, together", cost().await);
        reader.stop().await.expect("stops");
        owner.stop().await.expect("stops");
    });
}

/// Measures three nodes of one service over PostgreSQL and a broker, together with the database server.
pub(crate) fn over_postgres() {
    let (database, server) = (PostgresServer::start(), NatsServer::start(Release::Distribution));
    block_on(async {
        let run = next_run();
        let mut nodes = Vec::new();
        for number in 0..3 {
            let store = PostgresStore::builder(&database.url()).connect().await.expect("connects");
            let node = Node::builder("notes", store).aggregate::<Book>().label(&format!("node-{number}"));
            nodes.push(node.bridge(bridge(&server.url(), run).await).start().await.expect("starts"));
        }
        for node in &nodes {
            work(node).await;
        }
        let is_even = |node: &Node| {
            let members = node.cluster().expect("a shared store").members;
            members.len() == 3 && members.iter().all(|member| member.shards >= 5)
        };
        while !nodes.iter().all(is_even) {
            let _ = tokio::time::timeout(Duration::from_millis(100), std::future::pending::<()>()).await;
        }
        // The consumers of moved shards have ended by then, and the database has written what it had deferred.
        let _ = tokio::time::timeout(SPAN / 2, std::future::pending::<()>()).await;
        let processes = || run_time_of(&children_of(postmaster(&database)));
        let (before, begun) = (processes(), Instant::now());
        let nodes_cost = cost().await;
        let database_cost = (processes() - before).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0;
        let what = format!("three nodes over PostgreSQL: nodes {nodes_cost:.3}, database {database_cost:.3}, together");
        print_with("idle_over_postgres", &what, nodes_cost + database_cost, CLUSTER_LIMIT);
        for node in nodes {
            node.stop().await.expect("stops");
        }
    });
}

/// Returns the id of the first process of a server.
fn postmaster(server: &PostgresServer) -> u32 {
    let file = server.folder().join("data").join("postmaster.pid");
    let text = fs::read_to_string(file).expect("the file of the server");
    text.lines().next().and_then(|id| id.trim().parse().ok()).expect("a process id")
}

/// Returns a process and its children.
fn children_of(parent: u32) -> Vec<PathBuf> {
    let of = |process: &PathBuf| {
        let stat = fs::read_to_string(process.join("stat")).ok()?;
        // The name in parentheses may contain spaces; the state and the parent follow.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let processes = fs::read_dir("/proc").expect("Linux").flatten().map(|entry| entry.path());
    let children = processes.filter(|process| of(process) == Some(parent));
    children.chain([PathBuf::from(format!("/proc/{parent}"))]).collect()
}

/// Returns the run time of processes, by their folders in `/proc`.
fn run_time_of(processes: &[PathBuf]) -> Duration {
    let nanos = processes.iter().filter_map(|process| {
        let text = fs::read_to_string(process.join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// Handles 1,000 commands and waits until the node is idle, so that every task that could poll exists.
async fn work(node: &Node) {
    for book in 0..1000 {
        node.client().send(write(book)).await.expect("is handled");
    }
    node.wait_idle().await;
}

/// Measures the run time of all threads of this process without any work, as percent of a core.
async fn cost() -> f64 {
    let (before, begun) = (run_time(), Instant::now());
    // The runtime keeps running during this wait.
    let _ = tokio::time::timeout(SPAN, std::future::pending::<()>()).await;
    (run_time() - before).as_secs_f64() / begun.elapsed().as_secs_f64() * 100.0
}

/// Returns the run time of the threads of this process. `/proc/PID/stat` would have a resolution of only 10 ms.
fn run_time() -> Duration {
    let threads = fs::read_dir("/proc/self/task").expect("Linux").flatten();
    let nanos = threads.filter_map(|thread| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

fn print(bench: &str, what: &str, percent: f64) {
    print_with(bench, what, percent, LIMIT);
}

fn print_with(bench: &str, what: &str, percent: f64, limit: f64) {
    let row = serde_json::json!({
        "bench": bench,
        "value": (percent * 1000.0).round() / 1000.0,
        "unit": format!("% of a core: {what}"),
        "anchor": "limit",
        "anchor_value": limit,
        "ratio": (percent / limit * 1000.0).round() / 1000.0,
    });
    println!("{row}");
}
