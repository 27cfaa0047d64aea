use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    cents: u64,
}

#[derive(Worker)]
#[worker(domain = Bank, on_batch(Deposited))]
struct Teller;

fn main() {}
