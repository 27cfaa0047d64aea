//! The program of the README after its diff: a log on disk and a NATS server.

use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
struct Deposit(#[key] String, u64);

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited(u64);

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit), applies(Deposited))]
struct Account(u64);

impl Handle<Deposit> for Account {
    fn handle(&self, Deposit(_, cents): Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        let balance = self.0 + cents;
        effects.record(Deposited(balance));
        Ok(balance)
    }
}

impl Apply<Deposited> for Account {
    fn apply(&mut self, Deposited(balance): &Deposited) {
        self.0 = *balance;
    }
}

#[tokio::main]
async fn main() -> Result<(), whizbang::Error> {
    let store = EmbeddedStore::open("bank-data")?;
    let bridge = NatsBridge::connect("nats://127.0.0.1:4222").await?;
    let node = Node::builder("bank", store).bridge(bridge).aggregate::<Account>().start().await?;
    println!("ada has {} cents", node.client().send(Deposit("ada".into(), 500)).await?);
    node.stop().await
}
