use whizbang::prelude::*;

#[derive(Domain)]
#[domain(codec = json)]
struct Web;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Web)]
struct Moved {
    #[serde(rename(serialize = "cents", deserialize = "amount"))]
    cents: u64,
}

fn main() {}
