use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Close {
    #[key]
    account: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Close))]
struct Account;

impl Handle<Close> for Account {
    fn handle(&self, _close: Close, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.compensate();
        Ok(())
    }
}

fn main() {}
