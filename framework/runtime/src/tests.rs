//! Small domains for unit tests.

pub(crate) mod pots;

use crate::actor::Effects;
use crate::aggregate::{Apply, Handle};
use crate::derive::derives::{Aggregate, Command, Deserialize, Domain, Event, Serialize};
use whizbang_core::message::Rejection;

#[derive(Domain)]
pub(crate) struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
pub(crate) struct Deposit {
    #[key]
    pub(crate) account: String,
    pub(crate) cents: u64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
pub(crate) struct Deposited {
    pub(crate) cents: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit), applies(Deposited))]
pub(crate) struct Account {
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
