//! The cost of idle nodes: the run time of their threads, as part of a core.

use std::fs;
use std::time::{Duration, Instant};

use whizbang::derive::block_on;
use whizbang::prelude::*;
use whizbang::store::embedded::EmbeddedStore;

use crate::nats::{Book, Reader, bridge, next_run, write};
use whizbang_tests::nats::{NatsServer, Release};

/// The measured span.
const SPAN: Duration = Duration::from_secs(10);
/// The limit for one node, in percent of a core.
const LIMIT: f64 = 0.5;

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
    let row = serde_json::json!({
        "bench": bench,
        "value": (percent * 1000.0).round() / 1000.0,
        "unit": format!("% of a core: {what}"),
        "anchor": "limit",
        "anchor_value": LIMIT,
        "ratio": (percent / LIMIT * 1000.0).round() / 1000.0,
    });
    println!("{row}");
}
