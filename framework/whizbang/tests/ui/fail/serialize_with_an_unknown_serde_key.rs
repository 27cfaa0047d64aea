use whizbang::prelude::*;

#[derive(Serialize)]
struct Line {
    #[serde(renam = "c")]
    cents: u64,
}

fn main() {}
