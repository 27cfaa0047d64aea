use whizbang::prelude::*;

#[derive(Domain)]
#[domain(codec = json)]
struct Web;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Web)]
struct Moved(#[serde(skip_serializing_if = "Option::is_none")] Option<u64>, u64);

fn main() {}
