use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank, version = 2, upcast(1 = DepositedV1), writes = 2)]
struct Deposited {
    cents: u64,
}

#[derive(Serialize, Deserialize)]
struct DepositedV1 {
    euros: u32,
}

impl From<DepositedV1> for Deposited {
    fn from(old: DepositedV1) -> Self {
        Self { cents: u64::from(old.euros) * 100 }
    }
}

fn main() {}
