use whizbang::prelude::*;

struct Duration {
    millis: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Duration")]
struct DurationDef {
    millis: u64,
}

fn main() {}
