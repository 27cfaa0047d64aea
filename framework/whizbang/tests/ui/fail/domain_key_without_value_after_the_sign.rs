use whizbang::prelude::*;

#[derive(Domain)]
#[domain(name =, shards = 4)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

fn main() {}
