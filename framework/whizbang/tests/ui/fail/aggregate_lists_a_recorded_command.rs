use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
struct Deposit {
    #[key]
    account: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit), records(Deposit))]
struct Account;

impl Handle<Deposit> for Account {
    fn handle(&self, _deposit: Deposit, _effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        Ok(0)
    }
}

fn main() {}
