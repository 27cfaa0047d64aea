//! One event that fails at several subscribers: an operator redrives the key of each of them.

use std::time::Duration;

use whizbang::prelude::*;
use whizbang::testing::sim::OperatorAction;
use whizbang::testing::{Fault, FaultEvent, Sim, World};

#[derive(Domain)]
#[domain(name = "bells")]
struct Bells;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bells)]
struct Ring {
    #[key]
    bell: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Bells)]
struct Rang {
    bell: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Bells, handles(Ring), records(Rang))]
struct Bell;

impl Handle<Ring> for Bell {
    fn handle(&self, ring: Ring, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Rang { bell: ring.bell });
        Ok(())
    }
}

macro_rules! listener {
    ($domain:ident $name:literal $saga:ident $event:ident) => {
        #[derive(Domain)]
        #[domain(name = $name)]
        struct $domain;

        #[derive(Event, Serialize, Deserialize)]
        #[event(domain = $domain)]
        struct $event {}

        #[derive(Saga, Default)]
        #[saga(domain = $domain, reacts(Rang), applies($event))]
        struct $saga {
            heard: u32,
        }

        impl React<Rang> for $saga {
            fn key(rang: &Rang, _context: &EventContext) -> Option<String> {
                Some(rang.bell.clone())
            }

            fn react(&self, _rang: Rang, effects: &mut Effects<Self>) {
                effects.record($event {});
            }
        }

        impl Apply<$event> for $saga {
            fn apply(&mut self, _event: &$event) {
                self.heard += 1;
            }
        }
    };
}

listener!(Dogs "dogs" Dog Barked);
listener!(Cats "cats" Cat Fled);

#[test]
fn event_poisoned_at_two_subscribers_is_redriven_at_both() {
    const RINGS: u32 = 5;
    let all_heard = |world: &World| {
        let heard = (world.state::<Dog>("b").heard, world.state::<Cat>("b").heard);
        match (heard, world.dead_letters().len()) {
            ((RINGS, RINGS), 0) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    };
    for seed in 0..20 {
        let sim = Sim::new(seed)
            .service("bells", |node| node.aggregate::<Bell>())
            .service("animals", |node| node.saga::<Dog>().saga::<Cat>());
        let run = sim.allow_open_sagas().at_end(all_heard).run(async |world| {
            let action = OperatorAction::Redrive;
            let poison = Fault::Poison { service: 1, after: Duration::from_secs(2), action };
            let rings = async {
                for _ in 0..RINGS {
                    world.send(Ring { bell: "b".to_owned() }).await.unwrap();
                }
            };
            tokio::join!(world.inject(&poison), rings);
        });
        let run = run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.trace));
        assert_eq!(run.coverage.fault_events()[&FaultEvent::MessagePoisoned], 1);
    }
}
