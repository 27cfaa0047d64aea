//! Two services: one sends a command, the other publishes an event. Each has its own node, domain and store.
//!
//! Without arguments both run in this process. With arguments each is its own process, on any machine, connected by a NATS
//! server: `two-services machine URL`, and `two-services counter URL GUEST DRINK`. The services are the same code.

mod apart;
mod counter;
mod machine;

use std::time::Duration;

use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;

use counter::{Guest, Look, Order};
use machine::Machine;

#[whizbang::main]
async fn main() -> Result<(), whizbang::Error> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => together().await,
        ["machine", url] => apart::machine(url).await,
        ["counter", url, guest, drink] => apart::counter(url, guest, drink).await,
        _ => {
            eprintln!("usage: two-services [machine URL | counter URL GUEST DRINK]");
            std::process::exit(2);
        }
    }
}

/// Runs both services in this process.
async fn together() -> Result<(), whizbang::Error> {
    let hub = LoopbackHub::new();
    let counter =
        Node::builder("counter", MemoryStore::new()).aggregate::<Guest>().bridge(hub.bridge()).start().await?;
    // The machine is not running yet: the command waits in the outbox of the counter.
    counter.client().send(Order { guest: "ada".into(), drink: "espresso".into() }).await?;

    let machine =
        Node::builder("machine", MemoryStore::new()).aggregate::<Machine>().bridge(hub.bridge()).start().await?;
    println!("ada got {}", served(&counter.client(), "ada", "").await?);

    // A client reaches every service through its node.
    machine.client().send(Order { guest: "bob".into(), drink: "mocha".into() }).await?;
    println!("bob got {}", served(&machine.client(), "bob", "").await?);

    counter.stop().await?;
    machine.stop().await
}

/// Waits until the last drink of a guest differs from `before`, and returns it.
async fn served(client: &Client, guest: &str, before: &str) -> Result<String, whizbang::Error> {
    loop {
        let got = client.send(Look { guest: guest.into() }).await?;
        if got != before {
            return Ok(got);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
