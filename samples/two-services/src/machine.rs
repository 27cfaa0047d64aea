//! The machine: brews drinks and publishes an event for each. It does not know the counter.

use whizbang::prelude::*;

#[derive(Domain)]
pub(crate) struct Machines;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Machines)]
pub(crate) struct Brew {
    #[key]
    pub(crate) machine: String,
    pub(crate) drink: String,
    pub(crate) guest: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Machines)]
pub(crate) struct Brewed {
    pub(crate) cup: u64,
    pub(crate) drink: String,
    pub(crate) guest: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Machines, handles(Brew), applies(Brewed))]
pub(crate) struct Machine {
    cups: u64,
}

impl Handle<Brew> for Machine {
    fn handle(&self, brew: Brew, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Brewed { cup: self.cups + 1, drink: brew.drink, guest: brew.guest });
        Ok(())
    }
}

impl Apply<Brewed> for Machine {
    fn apply(&mut self, brewed: &Brewed) {
        self.cups = brewed.cup;
    }
}
