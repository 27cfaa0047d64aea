use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
#[serde(tag = "kind", content = "value")]
enum Moved {
    In { cents: u64 },
    Out,
}

fn main() {}
