use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    cents: u64,
}

#[derive(Projection, Default, Serialize, Deserialize)]
struct Balances {
    cents: u64,
}

impl Project<Deposited> for Balances {
    fn project(&mut self, deposited: &Deposited, _about: &EventContext) {
        self.cents += deposited.cents;
    }
}

fn main() {}
