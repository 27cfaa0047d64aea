use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Deposit {
    #[key]
    account: usize,
    cents: u64,
}

fn main() {}
