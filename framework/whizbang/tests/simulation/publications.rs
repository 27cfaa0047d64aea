//! Events of clients, published without an aggregate, under all faults.

use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};

use crate::bank::{Account, deposit};

#[derive(Domain)]
struct Plant;

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Plant)]
struct Measured {
    units: u64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Plant)]
struct Ignored {}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Measured))]
struct Report {
    units: u64,
}

impl Project<Measured> for Report {
    fn project(&mut self, measured: &Measured, _context: &EventContext) {
        self.units += measured.units;
    }
}

fn cluster(sim: Sim) -> Sim {
    // The faults of callers hit commands only: the bank gets some.
    sim.service("plant", |node| node.publishes::<Measured>())
        .service("office", |node| node.projection::<Report>())
        .service("bank", |node| node.aggregate::<Account>())
}

#[test]
fn publications_are_recorded_once_under_all_faults() {
    let flow =
        Flow::new("publications", cluster, (0..3u8, 1..200u64), 1..12, async |world: &World, (boiler, units)| {
            world.publish(&format!("boiler{boiler}"), Measured { units }).await.expect("it is committed");
            world.call(deposit("ada", units)).retrying().await.expect("the account is open");
        });
    let flow = flow.at_end(|world, steps| {
        let expected: u64 = steps.iter().map(|(_, units)| units).sum();
        match world.view::<Report>().units {
            units if units == expected => Ok(()),
            units => Err(format!("{units} units are reported, and {expected} were published")),
        }
    });
    let coverage = flow.no_regressions().check(0..100);
    let fired = |kind: &str| coverage.faults().get(kind).map_or(0, |count| count.fired);
    assert!(fired("Crash") > 20, "{}", fired("Crash"));
}

#[test]
fn event_that_no_service_publishes_is_refused() {
    let run = cluster(Sim::new(1)).run(async |world| {
        let refused = world.publish("boiler", Ignored {}).await;
        assert!(matches!(refused, Err(whizbang::SendError::Unhandled { .. })), "{refused:?}");
    });
    assert!(run.is_ok());
}
