use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Bank)]
struct Moved {
    #[serde(skip)]
    seen: u64,
    cents: u64,
}

fn main() {}
