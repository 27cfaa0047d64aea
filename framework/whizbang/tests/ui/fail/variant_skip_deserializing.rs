use whizbang::prelude::*;

#[derive(Domain)]
#[domain(codec = json)]
struct Web;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Web)]
enum Moved {
    In { cents: u64 },
    #[serde(skip_deserializing)]
    Out,
}

fn main() {}
