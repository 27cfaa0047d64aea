//! Resequencer: puts the numbered readings of a meter in order, waits a bounded time for a missing one, and holds a bounded number.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::sim::{SentCommand, SentOutcome};
use whizbang::testing::{Flow, Sim, World};

use crate::SEEDS;

const PATIENCE: Duration = Duration::from_secs(2);
const MOST_HELD: usize = 2;

#[derive(Domain)]
struct Meters;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Meters)]
struct Report {
    #[key]
    meter: String,
    /// The number that the meter gave to the reading, from 1.
    number: u64,
    value: u64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Meters)]
struct ReadingHeld {
    number: u64,
    value: u64,
}

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Meters)]
struct ReadingReleased {
    number: u64,
    value: u64,
}

/// Readings before `to` are no longer waited for.
#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Meters)]
struct GapSkipped {
    to: u64,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Meters)]
struct GapOverdue;

#[derive(Aggregate, Default)]
#[aggregate(
    domain = Meters,
    handles(Report),
    applies(ReadingHeld, ReadingReleased, GapSkipped),
    timers(GapOverdue)
)]
struct Meter {
    /// The number of the last released or skipped reading.
    last: u64,
    held: BTreeMap<u64, u64>,
}

impl Handle<Report> for Meter {
    fn handle(&self, report: Report, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        let Report { number, value, .. } = report;
        if number <= self.last || self.held.contains_key(&number) {
            return Err(Rejection::new("meters.too-late", "repeated, or no longer waited for"));
        }
        if number == self.last + 1 {
            effects.record(ReadingReleased { number, value });
            self.release_after(number, effects);
            return Ok(());
        }
        if self.held.len() == MOST_HELD {
            return Err(Rejection::new("meters.full", "too many readings wait for a missing one"));
        }
        if self.held.is_empty() {
            effects.set_timer(&GapOverdue, PATIENCE);
        }
        effects.record(ReadingHeld { number, value });
        Ok(())
    }
}

impl OnTimer<GapOverdue> for Meter {
    fn on_timer(&self, _overdue: GapOverdue, effects: &mut Effects<Self>) {
        let Some(first) = self.held.keys().next() else { return };
        effects.record(GapSkipped { to: *first });
        self.release_after(first - 1, effects);
    }
}

impl Meter {
    /// Releases the held readings that follow `last` without a gap. The time for the next gap begins again.
    fn release_after(&self, last: u64, effects: &mut Effects<Self>) {
        let next = last + 1..;
        let run: Vec<_> = next.zip(self.held.range(last + 1..)).take_while(|(next, (held, _))| next == *held).collect();
        for (number, (_, value)) in &run {
            effects.record(ReadingReleased { number: *number, value: **value });
        }
        match run.len() == self.held.len() {
            true => effects.clear_timer::<GapOverdue>(),
            false => effects.set_timer(&GapOverdue, PATIENCE),
        }
    }
}

impl Apply<ReadingHeld> for Meter {
    fn apply(&mut self, held: &ReadingHeld) {
        self.held.insert(held.number, held.value);
    }
}

impl Apply<ReadingReleased> for Meter {
    fn apply(&mut self, released: &ReadingReleased) {
        self.held.remove(&released.number);
        self.last = released.number;
    }
}

impl Apply<GapSkipped> for Meter {
    fn apply(&mut self, skipped: &GapSkipped) {
        self.last = skipped.to - 1;
    }
}

fn reports() -> impl Strategy<Value = Report> {
    (0..2u8, 1..9u64).prop_map(|(meter, number)| Report { meter: format!("meter{meter}"), number, value: number * 10 })
}

async fn report(world: &World, report: Report) {
    // A late reading is rejected, which is not a failure of the flow.
    let _ = world.send(report).await;
}

/// Readings are released in order, and each accepted one is.
fn readings_are_in_order(world: &World, _reports: &[Report]) -> Result<(), String> {
    let released = world.events::<ReadingReleased>();
    for meter in ["meter0", "meter1"] {
        let numbers: Vec<_> =
            released.iter().filter(|(of, _)| of == meter).map(|(_, reading)| reading.number).collect();
        if !numbers.is_sorted_by(|one, next| one < next) {
            return Err(format!("{meter} releases {numbers:?}"));
        }
    }
    for sent in world.sent::<Report>().iter().filter(|sent| sent.outcome == SentOutcome::Accepted) {
        let Report { meter, number, value } = &sent.command;
        let is_it = |reading: &ReadingReleased| reading.number == *number && reading.value == *value;
        if !released.iter().any(|(of, reading)| of == meter && is_it(reading)) {
            return Err(format!("reading {number} of {meter} is accepted and not released"));
        }
    }
    Ok(())
}

#[test]
fn resequencer_releases_readings_in_order() {
    let gaps = (0..15u64).prop_map(|tenths| Duration::from_millis(tenths * 100));
    let cluster = |sim: Sim| sim.service("meters", |node| node.aggregate::<Meter>());
    let (full, refused) = (Rc::new(Cell::new(0)), SentOutcome::Rejected("meters.full".to_owned()));
    let seen = Rc::clone(&full);
    let flow = Flow::new("resequencer", cluster, reports(), 1..16, report).arrivals(gaps).always(|world, _| {
        let most = world.states::<Meter>().iter().map(|(_, meter)| meter.held.len()).max();
        if most > Some(MOST_HELD) { Err(format!("{most:?} readings are held")) } else { Ok(()) }
    });
    let flow = flow.at_end(move |world, reports| {
        let is_refused = |sent: &&SentCommand<Report>| sent.outcome == refused;
        seen.set(seen.get() + world.sent::<Report>().iter().filter(is_refused).count());
        readings_are_in_order(world, reports)
    });
    let coverage = flow.check(0..SEEDS);
    // Without refusals the bound would hold by chance.
    assert!(full.get() > 0, "no reading was refused because too many are held");
    let meter = coverage.of::<Meter>();
    meter.timer::<GapOverdue>().while_open().at_least(5);
    meter.rejects::<Report>().at_least(5);
}
