use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Bank)]
#[serde(untagged)]
enum Moved {
    In { cents: u64 },
    Out,
}

fn main() {}
