use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Deposit<T> {
    #[key]
    account: String,
    cents: T,
}

fn main() {}
