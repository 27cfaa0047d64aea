use whizbang::prelude::*;

#[derive(Domain)]
#[domain]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

fn main() {}
