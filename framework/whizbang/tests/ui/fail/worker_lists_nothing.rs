use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Worker)]
#[worker(domain = Bank)]
struct Teller;

fn main() {}
