use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    cents: u64,
}

#[derive(Saga, Default)]
#[saga(domain = Bank, reacts(Deposited))]
struct Audit;

impl React<Deposited> for Audit {
    fn react(&self, deposited: Deposited, effects: &mut Effects<Self>) {
        effects.send(deposited);
    }
}

fn main() {}
