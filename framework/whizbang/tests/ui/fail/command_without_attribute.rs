use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

fn main() {}
