use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Saga, Default)]
#[saga(domain = Bank)]
struct Audit {
    seen: u64,
}

fn main() {}
