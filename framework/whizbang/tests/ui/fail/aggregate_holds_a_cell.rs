use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

use std::cell::Cell;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Deposit {
    #[key]
    account: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit))]
struct Account {
    cents: Cell<u64>,
}

impl Handle<Deposit> for Account {
    fn handle(&self, _: Deposit, _: &mut Effects<Self>) -> Result<(), Rejection> {
        self.cents.set(1);
        Ok(())
    }
}

fn main() {}
