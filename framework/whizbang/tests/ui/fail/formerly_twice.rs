use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank, formerly("Paid", "Paid"))]
struct Settled {}

fn main() {}
