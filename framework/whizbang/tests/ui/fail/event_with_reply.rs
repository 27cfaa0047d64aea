use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank, reply = u64)]
struct Deposited {
    cents: u64,
}

fn main() {}
