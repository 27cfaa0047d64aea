use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bank)]
enum Deposit {
    Cents(u64),
}

fn main() {}
