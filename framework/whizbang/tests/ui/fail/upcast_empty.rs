use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank, version = 3, upcast())]
struct Deposited {
    cents: u64,
}

fn main() {}
