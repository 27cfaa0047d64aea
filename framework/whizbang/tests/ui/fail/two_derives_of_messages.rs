use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Event, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Deposit {
    #[key]
    account: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit))]
struct Account;

impl Handle<Deposit> for Account {
    fn handle(&self, _: Deposit, _: &mut Effects<Self>) -> Result<(), Rejection> {
        Ok(())
    }
}

fn main() {}
