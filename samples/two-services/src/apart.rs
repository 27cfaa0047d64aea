//! Each service as a process of its own: other than in one process are the store, which outlives the process, and the bridge.

use whizbang::prelude::*;

use crate::counter::{Guest, Look, Order};
use crate::machine::Machine;
use crate::served;

/// The machine, until Ctrl-C.
pub(crate) async fn machine(url: &str) -> Result<(), whizbang::Error> {
    let store = EmbeddedStore::open("two-services-data/machine")?;
    let machine =
        Node::builder("machine", store).aggregate::<Machine>().bridge(NatsBridge::connect(url).await?).start().await?;
    println!("the machine brews; Ctrl-C ends it");
    machine.run().await?;
    println!("the machine has stopped");
    Ok(())
}

/// The counter, until a guest has been served. If the machine is away the order waits until it is back.
pub(crate) async fn counter(url: &str, guest: &str, drink: &str) -> Result<(), whizbang::Error> {
    let store = EmbeddedStore::open("two-services-data/counter")?;
    let counter =
        Node::builder("counter", store).aggregate::<Guest>().bridge(NatsBridge::connect(url).await?).start().await?;
    let client = counter.client();
    let before = client.send(Look { guest: guest.into() }).await?;
    client.send(Order { guest: guest.into(), drink: drink.into() }).await?;
    println!("{guest} got {}", served(&client, guest, &before).await?);
    counter.stop().await
}
