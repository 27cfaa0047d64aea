//! Layers that alternate between refusing and passing, under all faults: a command keeps its first reply, and an event is handled once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use whizbang::SendError;
use whizbang::layer::{Call, Layer, Refusal};
use whizbang::message::Kind;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};

#[derive(Domain)]
struct Barns;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Barns)]
struct Store {
    #[key]
    barn: String,
    bales: u64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Barns)]
struct Stored {
    bales: u64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Barns)]
struct Counted {
    bales: u64,
}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Barns, handles(Store), applies(Stored))]
struct Barn {
    bales: u64,
}

impl Handle<Store> for Barn {
    fn handle(&self, store: Store, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Stored { bales: store.bales });
        Ok(())
    }
}

impl Apply<Stored> for Barn {
    fn apply(&mut self, stored: &Stored) {
        self.bales += stored.bales;
    }
}

/// Counts the bales as they are stored. It never ends, so it is an aggregate.
#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Barns, reacts(Stored), applies(Counted))]
struct Tally {
    bales: u64,
}

impl React<Stored> for Tally {
    fn react(&self, stored: Stored, effects: &mut Effects<Self>) {
        effects.record(Counted { bales: stored.bales });
    }
}

impl Apply<Counted> for Tally {
    fn apply(&mut self, counted: &Counted) {
        self.bales += counted.bales;
    }
}

/// Rejects each third command and is busy for two of three events.
#[derive(Default)]
struct Alternating(AtomicU32);

impl Layer for Alternating {
    fn before(&self, call: &Call<'_>) -> Result<(), Refusal> {
        let is_third = self.0.fetch_add(1, Ordering::Relaxed).is_multiple_of(3);
        match call.kind() {
            Kind::Command if is_third => Err(Rejection::new("barns.refused", "not this one").into()),
            Kind::Event if !is_third => Err(Refusal::Busy { after: Duration::from_millis(5) }),
            _ => Ok(()),
        }
    }
}

fn alternating_layers() -> Flow<Store, impl AsyncFn(&World, Store)> {
    let cluster = |sim: Sim| {
        sim.service("barns", |node| node.aggregate::<Barn>().aggregate::<Tally>().layer(Alternating::default()))
    };
    let stores = (0..3u8, 1..10u64).prop_map(|(barn, bales)| Store { barn: format!("barn{barn}"), bales });
    let store = async |world: &World, store: Store| match world.send(store).await {
        Ok(()) | Err(SendError::Rejected(_)) => {}
        Err(error) => panic!("{error}"),
    };
    Flow::new("alternating-layers", cluster, stores, 1..12, store).at_end(|world, _| {
        for (barn, counted) in world.states::<Tally>() {
            let stored = world.state::<Barn>(&barn).bales;
            if stored != counted.bales {
                return Err(format!("{barn} has {stored} bales, and {} were counted", counted.bales));
            }
        }
        Ok(())
    })
}

#[test]
fn alternating_layers_change_no_reply_and_lose_no_event() {
    alternating_layers().check(0..60);
}
