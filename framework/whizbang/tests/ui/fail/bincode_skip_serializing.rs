use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Moved {
    #[serde(default, skip_serializing)]
    seen: u64,
    cents: u64,
}

fn main() {}
