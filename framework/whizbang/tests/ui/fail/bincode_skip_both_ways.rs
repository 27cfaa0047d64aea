use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Moved {
    #[serde(skip_serializing, skip_deserializing)]
    seen: u64,
    cents: u64,
}

fn main() {}
