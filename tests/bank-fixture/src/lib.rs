//! The bank of the documentation's examples.
//!
//! Used by the doctests of the crates and of the pages only. A page shows `use bank::…`, as a reader's own crate would be named.

#![allow(missing_docs)]

use whizbang::prelude::*;

#[derive(Domain, Debug)]
#[domain(name = "bank")]
pub struct Bank;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
pub struct Deposit {
    #[key]
    pub account: String,
    pub cents: u64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Bank)]
pub struct Deposited {
    pub cents: u64,
}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Bank, handles(Deposit), applies(Deposited))]
pub struct Account {
    pub cents: u64,
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

/// Starts a node of the bank, in memory.
///
/// # Panics
/// If the node does not start.
pub async fn bank() -> Node {
    let builder = Node::builder("bank", MemoryStore::new()).aggregate::<Account>();
    builder.start().await.expect("the bank starts")
}
