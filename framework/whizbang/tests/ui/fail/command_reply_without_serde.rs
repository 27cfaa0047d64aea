use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

struct Balance(u64);

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = Balance)]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

fn main() {}
