use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
struct Deposit {
    #[key(account)]
    account: String,
    cents: u64,
}

fn main() {}
