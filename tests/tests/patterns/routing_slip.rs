//! Routing slip: a list of stations that travels with the parcel, grows on the way, and is undone in reverse if a station refuses.

use std::collections::BTreeMap;

use proptest::collection::btree_set;
use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};

use crate::{SEEDS, assert_found};

#[derive(Domain)]
struct Stations;

#[derive(Domain)]
struct Slips;

/// Replies with the stations that must follow at once.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Stations, reply = Vec<String>)]
struct Visit {
    #[key]
    station: String,
    slip: String,
}

/// Undoes a visit.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Stations)]
struct Leave {
    #[key]
    station: String,
    slip: String,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Stations)]
struct Visited {
    slip: String,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Stations)]
struct Left {
    slip: String,
}

/// A station with room for three parcels.
#[derive(Aggregate, Default)]
#[aggregate(domain = Stations, handles(Visit, Leave), applies(Visited, Left))]
struct Station {
    visitors: Vec<String>,
}

impl Handle<Visit> for Station {
    fn handle(&self, visit: Visit, effects: &mut Effects<Self>) -> Result<Vec<String>, Rejection> {
        if self.visitors.len() == 3 {
            return Err(Rejection::new("stations.full", "no room"));
        }
        effects.record(Visited { slip: visit.slip });
        Ok(if visit.station == "customs" { vec!["inspection".to_owned()] } else { Vec::new() })
    }
}

impl Handle<Leave> for Station {
    fn handle(&self, leave: Leave, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Left { slip: leave.slip });
        Ok(())
    }
}

impl Apply<Visited> for Station {
    fn apply(&mut self, visited: &Visited) {
        self.visitors.push(visited.slip.clone());
    }
}

impl Apply<Left> for Station {
    fn apply(&mut self, left: &Left) {
        if let Some(at) = self.visitors.iter().position(|slip| *slip == left.slip) {
            self.visitors.remove(at);
        }
    }
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Slips)]
struct StartSlip {
    #[key]
    slip: String,
    stations: Vec<String>,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Slips)]
struct SlipStarted {
    stations: Vec<String>,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Slips)]
struct StationVisited {
    /// The stations that this one adds before the remaining ones.
    added: Vec<String>,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Slips)]
struct SlipCompleted {}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Slips)]
struct SlipFaulted {
    code: String,
}

#[derive(Saga, Default)]
#[saga(
    domain = Slips,
    handles(StartSlip),
    replies(Visit),
    applies(SlipStarted, StationVisited),
    records(SlipCompleted, SlipFaulted)
)]
struct RoutingSlip {
    is_started: bool,
    visited: Vec<String>,
    /// The stations ahead. The first one has been asked.
    ahead: Vec<String>,
}

impl Handle<StartSlip> for RoutingSlip {
    fn handle(&self, start: StartSlip, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let first = start.stations.first().filter(|_| !self.is_started);
        let first = first.ok_or_else(|| Rejection::new("slips.invalid", "an empty slip, or one that exists"))?;
        visit(first, effects);
        effects.record(SlipStarted { stations: start.stations });
        Ok(())
    }
}

impl OnReply<Visit> for RoutingSlip {
    fn on_reply(&self, reply: Result<Vec<String>, Rejection>, effects: &mut Effects<Self>) {
        match reply {
            Ok(added) => {
                match added.iter().chain(self.ahead.iter().skip(1)).next() {
                    Some(next) => visit(next, effects),
                    None => {
                        effects.record(SlipCompleted {});
                        effects.complete();
                    }
                }
                effects.record(StationVisited { added });
            }
            Err(rejection) => {
                effects.record(SlipFaulted { code: rejection.code().to_owned() });
                effects.compensate();
            }
        }
    }
}

fn visit(station: &str, effects: &mut Effects<RoutingSlip>) {
    let (station, slip) = (station.to_owned(), effects.key().to_owned());
    let undo = Leave { station: station.clone(), slip: slip.clone() };
    effects.send(Visit { station, slip }).compensate_with(undo);
}

impl Apply<SlipStarted> for RoutingSlip {
    fn apply(&mut self, started: &SlipStarted) {
        self.is_started = true;
        self.ahead = started.stations.clone();
    }
}

impl Apply<StationVisited> for RoutingSlip {
    fn apply(&mut self, visited: &StationVisited) {
        self.visited.push(self.ahead.remove(0));
        self.ahead.splice(0..0, visited.added.iter().cloned());
    }
}

/// Sends a parcel to the stations that were added on the way without a way back.
mod wrong {
    use super::*;

    #[derive(Saga, Default)]
    #[saga(
        domain = Slips,
        name = "routing-slip",
        handles(StartSlip),
        replies(Visit),
        applies(SlipStarted, StationVisited),
        records(SlipCompleted, SlipFaulted)
    )]
    pub(super) struct Careless {
        slip: RoutingSlip,
    }

    impl Handle<StartSlip> for Careless {
        fn handle(&self, start: StartSlip, effects: &mut Effects<Self>) -> Result<(), Rejection> {
            let first = start.stations.first().filter(|_| !self.slip.is_started);
            let first = first.ok_or_else(|| Rejection::new("slips.invalid", "an empty slip, or one that exists"))?;
            visit(first, true, effects);
            effects.record(SlipStarted { stations: start.stations });
            Ok(())
        }
    }

    impl OnReply<Visit> for Careless {
        fn on_reply(&self, reply: Result<Vec<String>, Rejection>, effects: &mut Effects<Self>) {
            match reply {
                Ok(added) => {
                    match added.iter().chain(self.slip.ahead.iter().skip(1)).next() {
                        Some(next) => visit(next, added.is_empty(), effects),
                        None => {
                            effects.record(SlipCompleted {});
                            effects.complete();
                        }
                    }
                    effects.record(StationVisited { added });
                }
                Err(rejection) => {
                    effects.record(SlipFaulted { code: rejection.code().to_owned() });
                    effects.compensate();
                }
            }
        }
    }

    fn visit(station: &str, is_planned: bool, effects: &mut Effects<Careless>) {
        let (station, slip) = (station.to_owned(), effects.key().to_owned());
        let undo = Leave { station: station.clone(), slip: slip.clone() };
        let sent = effects.send(Visit { station, slip });
        if is_planned {
            sent.compensate_with(undo);
        }
    }

    impl Apply<SlipStarted> for Careless {
        fn apply(&mut self, started: &SlipStarted) {
            self.slip.apply(started);
        }
    }

    impl Apply<StationVisited> for Careless {
        fn apply(&mut self, visited: &StationVisited) {
            self.slip.apply(visited);
        }
    }
}

fn slips() -> impl Strategy<Value = StartSlip> {
    const STATIONS: [&str; 4] = ["weighing", "customs", "loading", "labelling"];
    (any::<u16>(), btree_set(0..4usize, 1..4), any::<bool>()).prop_map(|(slip, stations, is_reversed)| {
        let mut stations: Vec<_> = stations.into_iter().map(|station| STATIONS[station].to_owned()).collect();
        if is_reversed {
            stations.reverse();
        }
        StartSlip { slip: format!("slip{slip}"), stations }
    })
}

async fn start(world: &World, start: StartSlip) {
    // A second slip of the same name is rejected, which is not a failure of the flow.
    let _ = world.send(start).await;
}

/// A completed slip is at each of its stations once, and a faulted one is at none.
fn slips_are_done_or_undone(world: &World, _slips: &[StartSlip]) -> Result<(), String> {
    let stations = world.states::<Station>();
    let faulted = world.events::<SlipFaulted>();
    let left = world.sent::<Leave>();
    let added: BTreeMap<_, _> = world.events::<SlipStarted>().into_iter().collect();
    for (slip, started) in added {
        let mut expected = started.stations.clone();
        if let Some(at) = expected.iter().position(|station| station == "customs") {
            expected.insert(at + 1, "inspection".to_owned());
        }
        let at = stations.iter().filter(|(_, station)| station.visitors.contains(&slip)).map(|(name, _)| name.clone());
        let mut at: Vec<_> = at.collect();
        if faulted.iter().any(|(of, _)| *of == slip) {
            if !at.is_empty() {
                return Err(format!("{slip} has failed and is still at {at:?}"));
            }
            let undone: Vec<_> =
                left.iter().filter(|sent| sent.command.slip == slip).map(|sent| &sent.command.station).collect();
            let mut visits: Vec<_> = expected.iter().take(undone.len()).collect();
            visits.reverse();
            if undone != visits {
                return Err(format!("{slip} has left {undone:?} instead of {visits:?}"));
            }
            continue;
        }
        at.sort();
        expected.sort();
        if at != expected {
            return Err(format!("{slip} is at {at:?} instead of {expected:?}"));
        }
    }
    Ok(())
}

fn travels(sim: impl Fn(Sim) -> Sim + 'static) -> Flow<StartSlip, impl AsyncFn(&World, StartSlip)> {
    Flow::new("routing-slip", sim, slips(), 1..12, start).at_end(slips_are_done_or_undone)
}

#[test]
fn routing_slip_is_done_or_undone() {
    let cluster = |sim: Sim| {
        sim.service("stations", |node| node.aggregate::<Station>()).service("slips", |node| node.saga::<RoutingSlip>())
    };
    let coverage = travels(cluster).check(0..SEEDS);
    let slip = coverage.of::<RoutingSlip>();
    assert!(slip.completed() > 20 && slip.compensated() > 5, "{slip}");
    slip.reply::<Leave>().while_compensating().at_least(3);
}

#[test]
fn slip_that_skips_a_compensation_is_found() {
    let cluster = |sim: Sim| {
        sim.service("stations", |node| node.aggregate::<Station>())
            .service("slips", |node| node.saga::<wrong::Careless>())
    };
    assert_found(&travels(cluster).max_faults(2).no_regressions(), "is still at [\"inspection\"]");
}
