use whizbang::prelude::*;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bnak, reply = u64)]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

#[derive(Domain)]
struct Bank;

fn main() {}
