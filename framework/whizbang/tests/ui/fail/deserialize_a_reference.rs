use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
struct Deposit {
    #[key]
    account: String,
    currency: &'static str,
}

fn main() {}
