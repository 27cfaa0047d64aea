use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Deposit {
    #[key]
    account: String,
}

#[derive(Worker)]
#[worker(domain = Bank, performs_batch(Deposit))]
struct Teller;

fn main() {}
