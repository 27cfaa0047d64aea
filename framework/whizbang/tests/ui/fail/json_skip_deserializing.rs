use whizbang::prelude::*;

#[derive(Domain)]
#[domain(codec = json)]
struct Web;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Web)]
struct Moved {
    #[serde(skip_deserializing)]
    seen: u64,
}

fn main() {}
