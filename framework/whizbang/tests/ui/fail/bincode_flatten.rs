use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Serialize, Deserialize)]
struct Place {
    city: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Moved {
    #[serde(flatten)]
    place: Place,
}

fn main() {}
