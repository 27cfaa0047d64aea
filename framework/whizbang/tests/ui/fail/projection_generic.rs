use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    cents: u64,
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited))]
struct Balances<T> {
    cents: T,
}

fn main() {}
