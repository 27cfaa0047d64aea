use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    memo: std::rc::Rc<str>,
}

#[derive(Saga, Default)]
#[saga(domain = Bank, reacts(Deposited))]
struct Watch;

impl React<Deposited> for Watch {
    fn react(&self, _: Deposited, _: &mut Effects<Self>) {}
}

fn main() {}
