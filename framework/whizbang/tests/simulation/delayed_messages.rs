//! Messages that an aggregate sends later, and several timers of one type, under all faults: each happens once, and nothing
//! that was cancelled happens.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;
use whizbang::prelude::*;
use whizbang::testing::{CrashPoint, Fault, Flow, Sim, World};

#[derive(Domain)]
#[domain(name = "relays", shards = 4)]
struct Relays;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Relays)]
struct Plan {
    #[key]
    label: String,
}

#[derive(Document, Serialize, Deserialize)]
#[document(domain = Relays)]
struct Ring {}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Relays)]
struct Rang {
    number: u32,
}

#[derive(Domain)]
#[domain(name = "counts", shards = 4)]
struct Counts;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Counts)]
struct Count {
    #[key]
    label: String,
    by: u32,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Counts)]
struct Counted {
    by: u32,
}

/// The delay of messages and timers.
const DELAY: Duration = Duration::from_secs(60);
/// The largest jump of a clock.
const MAX_JUMP: Duration = Duration::from_secs(15);
/// Added for messages and timers that were cancelled.
const CANCELLED: u32 = 1_000;

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Relays, handles(Plan), applies(Rang), timers(Ring))]
struct Relay {
    rang: u32,
}

impl Handle<Plan> for Relay {
    fn handle(&self, plan: Plan, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        note(&plan.label, "planned", 0);
        let count = |by| Count { label: plan.label.clone(), by };
        effects.send(count(1)).after(DELAY);
        effects.send(count(10)).after(DELAY / 2);
        let cancelled = effects.send(count(CANCELLED)).after(DELAY).id();
        effects.cancel(cancelled);
        for (name, after) in [("1", DELAY), ("10", DELAY / 2), ("1000", DELAY)] {
            effects.set_named_timer(name, &Ring {}, after);
        }
        effects.clear_named_timer::<Ring>("1000");
        Ok(())
    }
}

impl OnTimer<Ring> for Relay {
    fn on_timer(&self, _ring: Ring, effects: &mut Effects<Self>) {
        let number = effects.timer_name().and_then(|name| name.parse().ok()).unwrap_or(CANCELLED);
        note(effects.key(), "rang", number);
        effects.record(Rang { number });
    }
}

impl Apply<Rang> for Relay {
    fn apply(&mut self, rang: &Rang) {
        self.rang += rang.number;
    }
}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Counts, handles(Count), applies(Counted))]
struct Counter {
    count: u32,
}

impl Handle<Count> for Counter {
    fn handle(&self, count: Count, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        note(&count.label, "counted", count.by);
        effects.record(Counted { by: count.by });
        Ok(())
    }
}

impl Apply<Counted> for Counter {
    fn apply(&mut self, counted: &Counted) {
        self.count += counted.by;
    }
}

/// The first and the last attempt at something.
type Attempts = (Instant, Instant);

thread_local! {
    /// The attempts of the handlers by label, action and number. A simulation runs on one thread.
    static ATTEMPTS: RefCell<BTreeMap<(String, &'static str, u32), Attempts>> = RefCell::default();
}

fn note(label: &str, action: &'static str, number: u32) {
    let now = Instant::now();
    ATTEMPTS
        .with_borrow_mut(|attempts| attempts.entry((label.to_owned(), action, number)).or_insert((now, now)).1 = now);
}

/// Checks that everything planned happens at its time: not earlier than `early` before it, and not later than `late` after it.
fn times(label: &str, early: Duration, late: Duration) -> Result<(), String> {
    // The clock of a node counts in milliseconds.
    let early = early + Duration::from_millis(1);
    ATTEMPTS.with_borrow(|attempts| {
        let at = |action, number| attempts.get(&(label.to_owned(), action, number)).copied();
        let planned = at("planned", 0).ok_or("not planned")?;
        for (number, delay) in [(1, DELAY), (10, DELAY / 2)] {
            for action in ["counted", "rang"] {
                let (first, last) = at(action, number).ok_or("not done")?;
                if first + early < planned.0 + delay || last.duration_since(planned.1) > delay.saturating_add(late) {
                    let after = (first - planned.0, last - planned.1);
                    return Err(format!("{label} {action} {number} after {after:?} instead of {delay:?}"));
                }
            }
        }
        Ok(())
    })
}

type Labels = Arc<Mutex<Vec<String>>>;

fn cluster(sim: Sim) -> Sim {
    sim.service("relays", |node| node.aggregate::<Relay>()).service("counts", |node| node.aggregate::<Counter>())
}

/// Plans once.
async fn planned(world: &World, labels: &Labels) {
    let label = format!("label{}", world.below(u64::MAX));
    world.send(Plan { label: label.clone() }).await.expect("it is planned");
    labels.lock().unwrap().push(label);
    world.sleep(2 * DELAY).await;
}

fn check(world: &World, labels: &Labels, early: Duration, late: Duration) -> Result<(), String> {
    for label in labels.lock().unwrap().drain(..) {
        let (count, rang) = (world.state::<Counter>(&label).count, world.state::<Relay>(&label).rang);
        if (count, rang) != (11, 11) {
            return Err(format!("{label} was counted {count} times and rang {rang} times"));
        }
        times(&label, early, late)?;
    }
    Ok(())
}

thread_local! {
    static LABELS: Labels = Labels::default();
}

fn plans() -> Flow<u64, impl AsyncFn(&World, u64)> {
    let checked = |sim| {
        let labels = LABELS.with(Arc::clone);
        labels.lock().unwrap().clear();
        // A wall clock that jumps counts after a restart, and faults delay without a bound.
        cluster(sim).at_end(move |world| check(world, &labels, MAX_JUMP, Duration::MAX / 2))
    };
    let plan = async |world: &World, _| planned(world, &LABELS.with(Arc::clone)).await;
    // After a restart wall time counts. A clock that has jumped past the due time lets a message overtake its
    // cancellation.
    Flow::new("delayed-messages", checked, 1..5u64, 1..6, plan).max_clock_jump(MAX_JUMP).no_regressions()
}

#[test]
fn delayed_messages_are_sent_once_under_all_faults() {
    let coverage = plans().check(0..150);
    for kind in ["Crash", "CrashAt Commit"] {
        let count = coverage.faults()[kind];
        assert!(count.fired > 0 && count.requested > 5, "{kind}: {count:?}");
    }
}

#[test]
fn node_killed_around_the_due_time_sends_once() {
    for steps in 0..6 {
        let (labels, down) = (Labels::default(), Duration::from_millis(500));
        let fault = Fault::CrashAt { service: 0, point: CrashPoint::Commit, steps, down };
        let ended = Arc::clone(&labels);
        let late = down + Duration::from_secs(1);
        let sim = cluster(Sim::new(7)).at_end(move |world| check(world, &ended, Duration::ZERO, late));
        let run = sim.fault(DELAY - Duration::from_millis(5), fault).run(async |world| planned(world, &labels).await);
        run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.actor_steps));
    }
}

#[test]
fn delayed_messages_are_sent_within_a_second() {
    for seed in 0..20 {
        let labels = Labels::default();
        let ended = Arc::clone(&labels);
        let second = Duration::from_secs(1);
        let sim = cluster(Sim::new(seed)).at_end(move |world| check(world, &ended, Duration::ZERO, second));
        let run = sim.run(async |world| planned(world, &labels).await);
        run.unwrap_or_else(|violation| panic!("{violation}\n{}", violation.actor_steps));
    }
}
