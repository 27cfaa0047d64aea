use whizbang::prelude::*;

#[derive(Domain)]
struct Bank;

use std::rc::Rc;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bank)]
struct Deposited {
    cents: u64,
}

#[derive(Projection, Default)]
#[projection(projects(Deposited))]
struct Totals {
    cents: Rc<u64>,
}

impl Project<Deposited> for Totals {
    fn project(&mut self, _: &Deposited, _: &EventContext) {}
}

fn main() {}
