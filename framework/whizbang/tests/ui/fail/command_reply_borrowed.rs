use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank, reply = Option<&'static str>)]
struct Deposit {
    #[key]
    account: String,
    cents: u64,
}

fn main() {}
