use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = u64)]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

#[derive(Saga, Default)]
#[saga(domain = Bank, reacts(Deposit))]
struct Audit {
    seen: u64,
}

fn main() {}
