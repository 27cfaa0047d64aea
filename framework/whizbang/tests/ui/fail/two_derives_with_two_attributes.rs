use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Event, Serialize, Deserialize)]
#[command(domain = Bank)]
#[event(domain = Bank)]
struct Deposit {
    #[key]
    account: String,
}

fn main() {}
