//! Commands that expire, under all faults: each is handled or rejected as expired, never both and never neither, and the saga that
//! sent it knows which.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};
use whizbang::{Retry, WorkerOptions};

/// The time within which a job or a turn has to begin.
const LIFE: Duration = Duration::from_millis(300);

#[derive(Domain)]
#[domain(name = "desks", shards = 4)]
struct Desks;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Desks)]
struct Plan {
    #[key]
    label: String,
}

/// Handled by an aggregate beside the saga.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Desks)]
struct Take {
    #[key]
    label: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Desks)]
struct Taken {}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Desks)]
struct Answered {
    by_worker: bool,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Outcome {
    Done,
    Expired,
    /// An operator has discarded it.
    Other,
}

#[derive(Domain)]
#[domain(name = "docks", shards = 4)]
struct Docks;

/// Handled by a worker of another service.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Docks)]
struct Load {
    #[key]
    label: String,
}

#[derive(Saga, Debug, Default)]
#[saga(domain = Desks, handles(Plan), applies(Answered), replies(Take, Load))]
struct Desk {
    taken: Vec<Outcome>,
    loaded: Vec<Outcome>,
}

impl Handle<Plan> for Desk {
    fn handle(&self, plan: Plan, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(Take { label: plan.label.clone() }).expires_in(LIFE);
        effects.send(Load { label: plan.label }).expires_in(LIFE);
        Ok(())
    }
}

fn outcome(reply: &Result<(), Rejection>) -> Outcome {
    match reply {
        Ok(()) => Outcome::Done,
        Err(no) if no.code() == Rejection::EXPIRED => Outcome::Expired,
        Err(_) => Outcome::Other,
    }
}

impl OnReply<Take> for Desk {
    fn on_reply(&self, reply: Result<(), Rejection>, effects: &mut Effects<Self>) {
        effects.record(Answered { by_worker: false, outcome: outcome(&reply) });
        if !self.loaded.is_empty() {
            effects.complete();
        }
    }
}

impl OnReply<Load> for Desk {
    fn on_reply(&self, reply: Result<(), Rejection>, effects: &mut Effects<Self>) {
        effects.record(Answered { by_worker: true, outcome: outcome(&reply) });
        if !self.taken.is_empty() {
            effects.complete();
        }
    }
}

impl Apply<Answered> for Desk {
    fn apply(&mut self, answered: &Answered) {
        if answered.by_worker { &mut self.loaded } else { &mut self.taken }.push(answered.outcome);
    }
}

#[derive(Aggregate, Debug, Default)]
#[aggregate(domain = Desks, handles(Take), applies(Taken))]
struct Shelf {
    taken: u32,
}

impl Handle<Take> for Shelf {
    fn handle(&self, _take: Take, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Taken {});
        Ok(())
    }
}

impl Apply<Taken> for Shelf {
    fn apply(&mut self, _taken: &Taken) {
        self.taken += 1;
    }
}

/// The external dock: the loads that have begun there. Survives the crashes of the service.
type Begun = Arc<Mutex<BTreeSet<String>>>;

#[derive(Worker)]
#[worker(domain = Docks, performs(Load))]
struct Loader(Begun);

impl Perform<Load> for Loader {
    async fn perform(&self, load: Load, _job: Job) -> Result<(), WorkError> {
        self.0.lock().unwrap().insert(load.label);
        tokio::time::sleep(Duration::from_millis(90)).await;
        Ok(())
    }
}

/// The number of commands of all runs by their outcome.
type Counts = Arc<Mutex<BTreeMap<&'static str, u32>>>;

/// Compares what the saga of a label knows with what has happened.
fn check(world: &World, label: &str, desk: &Desk, begun: &BTreeSet<String>, counts: &Counts) -> Result<(), String> {
    let ([taken], [loaded]) = (desk.taken.as_slice(), desk.loaded.as_slice()) else {
        return Err(format!("{label} got another number of answers: {desk:?}"));
    };
    let was_taken = world.state::<Shelf>(label).taken;
    let (is_taken, is_loaded) = (was_taken == 1, begun.contains(label));
    for (what, outcome, has_begun) in [("take", *taken, is_taken), ("load", *loaded, is_loaded)] {
        let holds = match outcome {
            Outcome::Done => has_begun,
            Outcome::Expired => !has_begun,
            Outcome::Other => true,
        };
        if !holds || was_taken > 1 {
            return Err(format!("the {what} of {label} is {outcome:?}, and begun: {has_begun}"));
        }
        if outcome == Outcome::Expired {
            *counts.lock().unwrap().entry(what).or_default() += 1;
        }
    }
    Ok(())
}

fn loads(counts: Counts) -> Flow<u64, impl AsyncFn(&World, u64)> {
    let cluster = move |sim: Sim| {
        let (begun, counts) = (Begun::default(), Arc::clone(&counts));
        let ended = Arc::clone(&begun);
        let options = WorkerOptions::new().jobs(1).retry(Retry { attempts: 20, ..Retry::default() });
        sim.service("desks", |node| node.saga::<Desk>().aggregate::<Shelf>())
            .service("docks", move |node| node.worker_with(Loader(Arc::clone(&begun)), options.clone()))
            .at_end(move |world| {
                let begun = ended.lock().unwrap();
                let desks = world.states::<Desk>();
                desks.iter().try_for_each(|(label, desk)| check(world, label, desk, &begun, &counts))
            })
    };
    let flow = Flow::new("expiring-loads", cluster, 1..6u64, 1..6, async |world: &World, count| {
        for _ in 0..count {
            world.send(Plan { label: format!("label{}", world.below(u64::MAX)) }).await.expect("it is planned");
        }
    });
    flow.no_regressions()
}

#[test]
fn command_is_handled_or_expires_under_all_faults() {
    let counts = Counts::default();
    loads(Arc::clone(&counts)).check(0..150);
    let counts = counts.lock().unwrap();
    println!("expired: {counts:?}");
    assert!(counts["load"] > 100 && counts["take"] > 0, "{counts:?}");
}
