use whizbang::prelude::*;

#[derive(Domain)]
#[domain(codec = json)]
struct Web;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Web)]
#[serde(rename_all(serialize = "camelCase"))]
enum Moved {
    In { cents: u64 },
    Out,
}

fn main() {}
