use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    cents: u64,
}

#[derive(Saga, Default)]
#[saga(domain = Bank, reacts(Deposited, self::Deposited))]
struct Account;

impl React<Deposited> for Account {
    fn react(&self, _: Deposited, _: &mut Effects<Self>) {}
}

fn main() {}
