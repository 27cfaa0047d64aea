use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Deposit {
    #[key]
    account: String,
    cents: Vec<std::cell::Cell<u64>>,
}

fn main() {}
