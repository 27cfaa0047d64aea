use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
#[whizbang(crate = "::whizbang")]
struct Moved {
    cents: u64,
}

fn main() {}
