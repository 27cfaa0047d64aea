//! A saga with several steps in flight: all bookings of an abandoned trip are cancelled in reverse order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{Fault, FaultEvent, Flow, Sim, World};

#[derive(Domain)]
struct Places;

#[derive(Domain)]
struct Trips;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Places)]
struct Book {
    #[key]
    place: String,
    trip: String,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Places)]
struct Cancel {
    #[key]
    place: String,
    trip: String,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Places)]
struct Booked {
    trip: String,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Places)]
struct Cancelled {
    trip: String,
}

/// A place with two beds.
#[derive(Aggregate, Default)]
#[aggregate(domain = Places, handles(Book, Cancel), applies(Booked, Cancelled))]
struct Place {
    guests: BTreeSet<String>,
}

impl Handle<Book> for Place {
    fn handle(&self, book: Book, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        if self.guests.len() >= 2 {
            return Err(Rejection::new("places.full", "both beds are taken"));
        }
        effects.record(Booked { trip: book.trip });
        Ok(())
    }
}

impl Handle<Cancel> for Place {
    fn handle(&self, cancel: Cancel, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Cancelled { trip: cancel.trip });
        Ok(())
    }
}

impl Apply<Booked> for Place {
    fn apply(&mut self, booked: &Booked) {
        self.guests.insert(booked.trip.clone());
    }
}

impl Apply<Cancelled> for Place {
    fn apply(&mut self, cancelled: &Cancelled) {
        self.guests.remove(&cancelled.trip);
    }
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Trips)]
struct Plan {
    #[key]
    trip: String,
    places: Vec<u8>,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Trips)]
struct Planned {
    places: Vec<u8>,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Trips)]
struct PlaceBooked {}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Trips)]
struct AllBooked {}

#[derive(Document, Debug, Serialize, Deserialize)]
#[document(domain = Trips)]
struct TooLate {}

/// A bug in the saga.
#[derive(Clone, Copy, PartialEq)]
enum Bug {
    None,
    /// Completes in the turn that starts compensation.
    EndsAtOnce,
}

macro_rules! trip {
    ($saga:ident, $bug:expr) => {
        #[derive(Saga, Default)]
        #[saga(domain = Trips, handles(Plan), replies(Book), timers(TooLate), applies(Planned, PlaceBooked, AllBooked))]
        struct $saga {
            places: Vec<u8>,
            booked: usize,
        }

        impl Handle<Plan> for $saga {
            fn handle(&self, plan: Plan, effects: &mut Effects<Self>) -> Result<(), Rejection> {
                for place in &plan.places {
                    let (place, trip) = (format!("place{place}"), plan.trip.clone());
                    effects
                        .send(Book { place: place.clone(), trip: trip.clone() })
                        .compensate_with(Cancel { place, trip });
                }
                effects.set_timer(&TooLate {}, Duration::from_millis(500));
                effects.record(Planned { places: plan.places });
                Ok(())
            }
        }

        impl OnReply<Book> for $saga {
            fn on_reply(&self, reply: Result<(), Rejection>, effects: &mut Effects<Self>) {
                if reply.is_err() {
                    return Self::give_up(effects);
                }
                effects.record(PlaceBooked {});
                if self.booked + 1 == self.places.len() {
                    effects.record(AllBooked {});
                    effects.complete();
                }
            }
        }

        impl OnTimer<TooLate> for $saga {
            fn on_timer(&self, _: TooLate, effects: &mut Effects<Self>) {
                Self::give_up(effects);
            }
        }

        impl $saga {
            fn give_up(effects: &mut Effects<Self>) {
                effects.compensate();
                if $bug == Bug::EndsAtOnce {
                    effects.complete();
                }
            }
        }

        impl Apply<Planned> for $saga {
            fn apply(&mut self, planned: &Planned) {
                self.places = planned.places.clone();
            }
        }

        impl Apply<PlaceBooked> for $saga {
            fn apply(&mut self, _: &PlaceBooked) {
                self.booked += 1;
            }
        }

        impl Apply<AllBooked> for $saga {
            fn apply(&mut self, _: &AllBooked) {}
        }
    };
}

trip!(Trip, Bug::None);
trip!(Hurried, Bug::EndsAtOnce);

/// A trip to three different places.
impl Arbitrary for Plan {
    type Parameters = ();
    type Strategy = BoxedStrategy<Self>;

    fn arbitrary_with((): ()) -> Self::Strategy {
        let places = Just(vec![0u8, 1, 2, 3]).prop_shuffle().prop_map(|places| places.into_iter().take(3).collect());
        (any::<u64>(), places).prop_map(|(trip, places)| Plan { trip: format!("trip{trip}"), places }).boxed()
    }
}

async fn plan(world: &World, plan: Plan) {
    world.send(plan).await.expect("a trip can always be planned");
}

/// Checks that every guest has booked the whole trip.
fn whole_trips(world: &World, _: &[Plan]) -> Result<(), String> {
    let booked: BTreeSet<_> = world.events::<AllBooked>().into_iter().map(|(trip, _)| trip).collect();
    for (place, Place { guests }) in world.states() {
        if let Some(guest) = guests.iter().find(|guest| !booked.contains(*guest)) {
            return Err(format!("{guest} has a bed in {place} and is not going anywhere"));
        }
    }
    Ok(())
}

macro_rules! flow {
    ($name:literal, $saga:ident) => {{
        let cluster = |sim: Sim| {
            sim.service("places", |node| node.aggregate::<Place>()).service("trips", |node| node.saga::<$saga>())
        };
        Flow::new($name, cluster, any::<Plan>(), 1..8, plan)
    }};
}

#[test]
fn two_hundred_seeds_of_trips_compensate_in_reverse() {
    let coverage = flow!("trips", Trip).at_end(whole_trips).check(0..200);
    let trip = coverage.of::<Trip>();
    assert!(trip.completed() > 50 && trip.compensated() > 50, "{trip}");
    trip.reply::<Cancel>().while_compensating().at_least(50);
    trip.reply::<Book>().while_compensating().at_least(50);
    trip.rejection::<Book>().while_compensating().at_least(20);
    trip.timer::<TooLate>().while_open().at_least(20);
}

#[test]
fn saga_completing_during_compensation_compensates_all() {
    // `complete` beside `compensate` has no effect, so the rule about compensation holds.
    let found = flow!("hurried", Hurried).no_regressions().first_failure(0..20);
    assert!(found.is_none(), "{}", found.map(|found| found.violation.reason.to_string()).unwrap_or_default());
}

#[test]
fn custom_strategies_control_arrivals_and_faults() {
    let crash = (1..20u64).prop_map(|tenths| {
        let fault = Fault::Crash { service: 0, steps: 0, down: Duration::from_millis(200) };
        (Duration::from_millis(100 * tenths), fault)
    });
    let flow = flow!("trips-at-once", Trip).arrivals(Just(Duration::ZERO)).faults_from(crash).max_faults(3);
    let coverage = flow.no_regressions().at_end(whole_trips).check(0..30);
    // All trips arrive at the same instant, before any has ended, and crashes are the only faults.
    let happened = |event| coverage.fault_events().get(&event).copied().unwrap_or(0);
    assert!(coverage.crashes() > 10, "{}", coverage.crashes());
    assert_eq!(
        (happened(FaultEvent::ClockJumped), happened(FaultEvent::HandedOver), happened(FaultEvent::StreamLost)),
        (0, 0, 0)
    );
    let together = flow!("trips-at-once", Trip).arrivals(Just(Duration::ZERO)).max_faults(0).no_regressions();
    let mut most = 0;
    for seed in 0..10 {
        let trace = together.run(seed).expect("it holds").trace;
        // A client without a reply sends again with the same id; only the first request counts.
        let mut first: BTreeMap<_, _> = BTreeMap::new();
        for line in trace.lines().filter(|line| line.contains("asks trips Plan")) {
            first.entry(line.rsplit(' ').next()).or_insert_with(|| line.split_whitespace().next());
        }
        assert_eq!(first.values().collect::<BTreeSet<_>>().len(), 1, "{trace}");
        most = most.max(first.len());
    }
    assert!(most >= 4, "{most} trips at once");
}
