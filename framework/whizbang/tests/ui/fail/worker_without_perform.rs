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

#[derive(Worker)]
#[worker(domain = Bank, performs(Deposit))]
struct Teller;

fn main() {}
