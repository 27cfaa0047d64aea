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
struct BalanceOf {
    #[key]
    account: String,
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited), answers(BalanceOf))]
struct Balances {
    cents: u64,
}

impl Project<Deposited> for Balances {
    fn project(&mut self, deposited: &Deposited, _about: &EventContext) {
        self.cents += deposited.cents;
    }
}

impl Answer<BalanceOf> for Balances {
    fn answer(&self, _query: BalanceOf) -> u64 {
        self.cents
    }
}

fn main() {}
