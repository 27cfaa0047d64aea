use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    cents: u64,
}

#[derive(Saga, Default)]
#[saga(domain = Bank, reacts(Deposited))]
struct Audit {
    seen: u64,
}

fn main() {}
