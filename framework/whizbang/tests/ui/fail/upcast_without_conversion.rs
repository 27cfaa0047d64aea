use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank, version = 3, upcast(1 = DepositedV1, 2 = DepositedV2))]
struct Deposited {
    cents: u64,
}

#[derive(Serialize, Deserialize)]
struct DepositedV1 {
    euros: u32,
}

#[derive(Serialize, Deserialize)]
struct DepositedV2 {
    euros: u32,
}

impl From<DepositedV2> for Deposited {
    fn from(old: DepositedV2) -> Self {
        Self { cents: u64::from(old.euros) * 100 }
    }
}

fn main() {}
