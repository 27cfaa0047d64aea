use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event)]
#[event(domain = Bank)]
struct Deposited<'a> {
    account: &'a str,
}

fn main() {}
