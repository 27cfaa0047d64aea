use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Deserialize)]
struct PaidV1 {}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank, version = 2, split(1 = PaidV1))]
struct Paid {}

fn main() {}
