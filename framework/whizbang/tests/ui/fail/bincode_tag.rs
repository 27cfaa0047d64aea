use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
#[serde(tag = "kind")]
enum Moved {
    In { cents: u64 },
    Out,
}

fn main() {}
