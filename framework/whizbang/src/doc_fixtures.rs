//! The bank of the documentation's examples. Not a public API.

use crate::prelude::*;

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
pub async fn bank() -> crate::Node {
    match crate::Node::builder("bank", crate::MemoryStore::new()).aggregate::<Account>().start().await {
        Ok(node) => node,
        Err(error) => unreachable_in_docs(&error),
    }
}

#[expect(clippy::panic, reason = "only the documentation's examples call it")]
fn unreachable_in_docs(error: &crate::StartError) -> ! {
    panic!("{error}")
}
