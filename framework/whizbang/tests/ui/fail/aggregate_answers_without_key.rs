use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    cents: u64,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
struct Balance {
    account: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, reacts(Deposited), answers(Balance))]
struct Account {}

impl React<Deposited> for Account {
    fn react(&self, _deposited: Deposited, _effects: &mut Effects<Self>) {}
}

impl Answer<Balance> for Account {
    fn answer(&self, _query: Balance) -> u64 {
        0
    }
}

fn main() {}
