//! The counter: accepts orders, sends them to the machine, and serves the drinks. It knows only the messages of the machine.

use whizbang::prelude::*;

use crate::machine::{Brew, Brewed};

#[derive(Domain)]
pub(crate) struct Counter;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Counter)]
pub(crate) struct Order {
    #[key]
    pub(crate) guest: String,
    pub(crate) drink: String,
}

/// Asks for the last drink of a guest. The reply is empty before the first one.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Counter, reply = String)]
pub(crate) struct Look {
    #[key]
    pub(crate) guest: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Counter)]
pub(crate) struct Ordered;

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Counter)]
pub(crate) struct Served {
    cup: u64,
    drink: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Counter, handles(Order, Look), applies(Ordered, Served), reacts(Brewed))]
pub(crate) struct Guest {
    got: String,
}

impl Handle<Order> for Guest {
    fn handle(&self, order: Order, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Ordered);
        // The machine belongs to another service. The command is sent there once this turn is committed.
        effects.send(Brew { machine: "left".into(), drink: order.drink, guest: order.guest });
        Ok(())
    }
}

impl Handle<Look> for Guest {
    fn handle(&self, _look: Look, _: &mut Effects<Self>) -> Result<String, Rejection> {
        Ok(self.got.clone())
    }
}

impl React<Brewed> for Guest {
    fn key(brewed: &Brewed, _: &EventContext) -> Option<String> {
        Some(brewed.guest.clone())
    }

    fn react(&self, brewed: Brewed, effects: &mut Effects<Self>) {
        effects.record(Served { cup: brewed.cup, drink: brewed.drink });
    }
}

impl Apply<Ordered> for Guest {
    fn apply(&mut self, _: &Ordered) {}
}

impl Apply<Served> for Guest {
    fn apply(&mut self, served: &Served) {
        self.got = format!("cup {} with {}", served.cup, served.drink);
    }
}
