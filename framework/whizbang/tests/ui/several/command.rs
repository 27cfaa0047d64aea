// 5 mistakes, reported together.

use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(reply = u64, name = "no name", version = 0, colour = "red")]
struct Deposit {
    account: String,
    cents: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit))]
struct Account {
    cents: u64,
}

impl Handle<Deposit> for Account {
    fn handle(&self, deposit: Deposit, _effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        Ok(self.cents + deposit.cents + deposit.account.len() as u64)
    }
}

fn main() {}
