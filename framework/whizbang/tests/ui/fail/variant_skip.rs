use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
enum Moved {
    In { cents: u64 },
    #[serde(skip)]
    Out,
}

fn main() {}
