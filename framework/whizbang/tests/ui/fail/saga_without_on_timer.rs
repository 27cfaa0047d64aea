use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    cents: u64,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Bank)]
struct PaymentOverdue {
    cents: u64,
}

#[derive(Saga, Default)]
#[saga(domain = Bank, reacts(Deposited), timers(PaymentOverdue))]
struct Audit {
    seen: u64,
}

impl React<Deposited> for Audit {
    fn react(&self, _deposited: Deposited, _effects: &mut Effects<Self>) {}
}

fn main() {}
