use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Serialize, Deserialize)]
struct PaidV1 {}

impl From<PaidV1> for Vec<Paid> {
    fn from(_: PaidV1) -> Self {
        vec![]
    }
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank, version = 2, split(1 = PaidV1), writes = 1)]
struct Paid {}

fn main() {}
