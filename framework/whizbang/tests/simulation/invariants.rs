//! Invariants of every simulated cluster: live actors equal the fold of their logs, timers fire as often as they are due, and
//! deliveries are settled after their commit. Patches in `tests/mutations` prove that each can fail.

use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};

#[derive(Domain)]
struct Alarms;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Alarms)]
struct Set {
    #[key]
    clock: String,
    millis: u64,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Alarms)]
struct Stop {
    #[key]
    clock: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Alarms)]
struct Rang {}

#[derive(Document, Clone, Debug, Serialize, Deserialize)]
#[document(domain = Alarms)]
struct Ring {}

#[derive(Saga, Debug, Default, Serialize, Deserialize)]
#[saga(domain = Alarms, handles(Set, Stop), applies(Rang), timers(Ring), snapshot(every = 3))]
struct Alarm {
    rang: u64,
}

impl Handle<Set> for Alarm {
    fn handle(&self, set: Set, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.set_timer(&Ring {}, Duration::from_millis(set.millis));
        Ok(())
    }
}

impl Handle<Stop> for Alarm {
    fn handle(&self, _stop: Stop, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.clear_timer::<Ring>();
        Ok(())
    }
}

impl OnTimer<Ring> for Alarm {
    fn on_timer(&self, _ring: Ring, effects: &mut Effects<Self>) {
        effects.record(Rang {});
    }
}

impl Apply<Rang> for Alarm {
    fn apply(&mut self, _rang: &Rang) {
        self.rang += 1;
    }
}

#[derive(Clone, Debug)]
enum Act {
    Set(u8, u64),
    Stop(u8),
}

/// A flow of alarms that are set again and stopped around the time at which they are due. Snapshots are taken every third turn,
/// and a key handles more commands than its initial memory of ids holds.
fn alarms() -> Flow<Act, impl AsyncFn(&World, Act)> {
    let cluster = |sim: Sim| sim.service("alarms", |node| node.saga::<Alarm>()).allow_open_sagas();
    let act = prop_oneof![
        4 => (0..2u8, 0..20u64).prop_map(|(clock, steps)| Act::Set(clock, steps * 20)),
        1 => (0..2u8).prop_map(Act::Stop),
    ];
    Flow::new("alarms", cluster, act, 1..40, async |world: &World, act| {
        let clock = |clock: u8| format!("c{clock}");
        let sent = match act {
            Act::Set(at, millis) => world.send(Set { clock: clock(at), millis }).await,
            Act::Stop(at) => world.send(Stop { clock: clock(at) }).await,
        };
        sent.expect("alarms are set and stopped");
    })
    .arrivals((0..10u64).prop_map(|steps| Duration::from_millis(20 * steps)))
}

#[test]
fn alarms_fire_as_often_as_they_are_due() {
    let coverage = alarms().check(0..200);
    coverage.of::<Alarm>().timer::<Ring>().at_least(500);
    coverage.of::<Alarm>().command::<Stop>().at_least(200);
}
