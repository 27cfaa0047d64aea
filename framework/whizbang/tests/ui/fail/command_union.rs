use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Command)]
#[command(domain = Bank)]
union Deposit {
    cents: u64,
}

fn main() {}
