use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event()]
struct Deposited {
    cents: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bank, reacts(Deposited), applies(Deposited))]
struct Account {
    cents: u64,
}

impl Apply<Deposited> for Account {
    fn apply(&mut self, deposited: &Deposited) {
        self.cents += deposited.cents;
    }
}

impl React<Deposited> for Account {
    fn react(&self, _deposited: Deposited, _effects: &mut Effects<Self>) {}
}

fn main() {}
