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

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles = Deposit)]
struct Account {
    cents: u64,
}

impl Handle<Deposit> for Account {
    fn handle(&self, deposit: Deposit, _effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        Ok(self.cents + deposit.cents)
    }
}

fn main() {}
