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

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, handles(Deposit))]
struct Account<T> {
    cents: T,
}

fn main() {}
