//! The measured aggregate: one small event per turn.

use whizbang::prelude::*;

#[derive(Domain)]
pub(crate) struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
pub(crate) struct Deposit {
    #[key]
    pub(crate) account: String,
    pub(crate) cents: u64,
    pub(crate) note: [u8; 16],
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
pub(crate) struct Deposited {
    pub(crate) cents: u64,
    pub(crate) note: [u8; 16],
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit), applies(Deposited))]
pub(crate) struct Account {
    cents: u64,
}

impl Handle<Deposit> for Account {
    fn handle(&self, deposit: Deposit, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        effects.record(Deposited { cents: deposit.cents, note: deposit.note });
        Ok(self.cents + deposit.cents)
    }
}

impl Apply<Deposited> for Account {
    fn apply(&mut self, deposited: &Deposited) {
        self.cents += deposited.cents;
    }
}

pub(crate) fn deposit(account: &str) -> Deposit {
    Deposit { account: account.to_owned(), cents: 1, note: [7; 16] }
}
