use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Audited {}

#[derive(Saga, Default)]
#[saga(domain = Bank, reacts(Deposited), applies(Audited), records(Audited))]
struct Audit;

impl React<Deposited> for Audit {
    fn react(&self, _: Deposited, effects: &mut Effects<Self>) {
        effects.record(Audited {});
    }
}

impl Apply<Audited> for Audit {
    fn apply(&mut self, _: &Audited) {}
}

fn main() {}
