//! Each service as its own process. Only two things differ: the store outlives the process, and the bridge is NATS.

use whizbang::prelude::*;

use crate::counter::{Guest, Look, Order};
use crate::machine::Machine;
use crate::served;

/// Runs the machine until Ctrl-C.
pub(crate) async fn machine(url: &str) -> Result<(), whizbang::Error> {
    let store = EmbeddedStore::open("two-services-data/machine")?;
    let machine =
        Node::builder("machine", store).aggregate::<Machine>().bridge(NatsBridge::connect(url).await?).start().await?;
    println!("the machine brews; Ctrl-C ends it");
    machine.run().await?;
    println!("the machine has stopped");
    Ok(())
}

/// Runs the counter until a guest is served. While the machine is stopped, the order waits in the outbox.
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
