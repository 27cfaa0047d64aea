use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Aggregate)]
#[aggregate(domain = Bank)]
union Account {
    cents: u64,
}

fn main() {}
