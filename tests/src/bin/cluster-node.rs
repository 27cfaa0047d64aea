//! One of several nodes of a service, in its own process: `cluster-node SERVICE DATABASE_URL NATS_URL LEASE_MILLISECONDS`.
//!
//! SERVICE is `bank` (the accounts) or `transfers` (the sagas between them). The nodes of a service share one schema of the
//! database. Prints `ready` once the node works and `stopped` after a graceful stop. If the environment variable `SINGLETON` names a
//! file, the service has a singleton that adds its epoch and the process id to that file, again and again.

#[path = "../../../framework/whizbang/tests/bank/mod.rs"]
mod bank;

use std::io::Write as _;
use std::time::Duration;

use bank::{Account, Transfer};
use whizbang::node::Singleton;
use whizbang::prelude::*;
use whizbang::{NatsBridge, NodeConfig, PostgresStore};

fn say(line: &str) {
    // The reader may have closed the pipe.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

/// Adds a line to the file at each step.
async fn beat(path: std::ffi::OsString, singleton: Singleton) {
    let mut steps = tokio::time::interval(Duration::from_millis(20));
    loop {
        steps.tick().await;
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&path).expect("a file");
        let line = format!("{} {}\n", singleton.epoch(), std::process::id());
        file.write_all(line.as_bytes()).expect("writes a line");
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), whizbang::Error> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
        .init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [service, database, nats, lease] = arguments.as_slice() else {
        panic!("usage: cluster-node SERVICE DATABASE_URL NATS_URL LEASE_MILLISECONDS");
    };
    let store = PostgresStore::builder(database).schema(service).connect().await?;
    let bridge = NatsBridge::builder(nats).replicas(3).ack_wait(Duration::from_secs(2)).connect().await?;
    let lease = Duration::from_millis(lease.parse().expect("a number"));
    let node = Node::builder(service, store).bridge(bridge).config(NodeConfig { lease, ..NodeConfig::default() });
    let node = match service.as_str() {
        "bank" => node.aggregate::<Account>(),
        "transfers" => node.saga::<Transfer>(),
        other => panic!("no service `{other}`"),
    };
    let node = match std::env::var_os("SINGLETON") {
        Some(path) => node.singleton("beat", move |singleton| beat(path.clone(), singleton)),
        None => node,
    };
    let node = node.start().await?;
    say("ready\n");
    node.run().await?;
    say("stopped\n");
    Ok(())
}
