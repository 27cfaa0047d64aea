//! Two services in one process: a command goes to the other, an event comes back. Each has its node, domain and store.

mod counter;
mod machine;

use std::time::Duration;

use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;

use counter::{Guest, Look, Order};
use machine::Machine;

#[whizbang::main]
async fn main() -> Result<(), whizbang::Error> {
    let hub = LoopbackHub::new();
    let counter = Node::builder("counter", MemoryStore::new()).host::<Guest>().bridge(hub.bridge()).start().await?;
    // Nobody brews yet: the command waits in the counter's outbox.
    counter.client().send(Order { guest: "ada".into(), drink: "espresso".into() }).await?;

    let machine = Node::builder("machine", MemoryStore::new()).host::<Machine>().bridge(hub.bridge()).start().await?;
    println!("ada got {}", served(&counter.client(), "ada").await?);

    // A client reaches every service through its node.
    machine.client().send(Order { guest: "bob".into(), drink: "mocha".into() }).await?;
    println!("bob got {}", served(&machine.client(), "bob").await?);

    counter.stop().await?;
    machine.stop().await
}

/// Waits until a guest has something.
async fn served(client: &Client, guest: &str) -> Result<String, whizbang::Error> {
    loop {
        let got = client.send(Look { guest: guest.into() }).await?;
        if !got.is_empty() {
            return Ok(got);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
