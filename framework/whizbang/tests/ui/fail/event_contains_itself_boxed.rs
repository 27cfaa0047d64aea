use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
enum Deposited {
    Cash(u64),
    Both { first: Option<Box<Self>>, cents: u64 },
}

fn main() {}
