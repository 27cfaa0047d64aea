use whizbang::prelude::*;

#[derive(Serialize, Deserialize)]
#[serde(crate = "whizbang::derive::serde")]
struct Place {
    city: String,
}

fn main() {}
