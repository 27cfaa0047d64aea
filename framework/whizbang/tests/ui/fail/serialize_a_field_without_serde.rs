use whizbang::prelude::*;

struct Cents(u64);

#[derive(Serialize)]
struct Line {
    cents: Cents,
}

fn main() {}
