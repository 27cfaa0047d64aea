//! One aggregate, one command: the first thing to read.

use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    cents: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit), applies(Deposited))]
struct Account {
    cents: u64,
}

impl Handle<Deposit> for Account {
    fn handle(&self, deposit: Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Deposited { cents: deposit.cents });
        Ok(self.cents + deposit.cents)
    }
}

impl Apply<Deposited> for Account {
    fn apply(&mut self, deposited: &Deposited) {
        self.cents += deposited.cents;
    }
}

#[whizbang::main]
async fn main() -> Result<(), whizbang::Error> {
    let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().start().await?;
    let balance = node.client().send(Deposit { account: "ada".into(), cents: 500 }).await?;
    println!("ada has {balance} cents");
    node.stop().await
}
