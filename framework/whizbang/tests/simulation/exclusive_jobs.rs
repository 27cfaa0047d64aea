//! Workers that are exclusive by key in the simulated cluster: the order of the jobs of a key, under all faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};
use whizbang::{CircuitBreaker, Priority, Retry, WorkerOptions};

/// More attempts than all faults together use up, but for a message that always fails.
const ATTEMPTS: u32 = 20;

#[derive(Domain)]
#[domain(shards = 2)]
struct Yards;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Yards)]
struct Load {
    #[key]
    truck: String,
    number: u64,
    jams: u32,
}

/// Sends numbered loads for two trucks.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Yards)]
struct Plan {
    #[key]
    desk: String,
    count: u64,
    jams: u32,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Yards)]
struct Planned {
    count: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Yards, handles(Plan), applies(Planned))]
struct Desk {
    planned: u64,
}

impl Handle<Plan> for Desk {
    fn handle(&self, plan: Plan, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for number in self.planned..self.planned + plan.count {
            effects.send(Load { truck: format!("truck{}", number % 2), number, jams: plan.jams });
        }
        effects.record(Planned { count: plan.count });
        Ok(())
    }
}

impl Apply<Planned> for Desk {
    fn apply(&mut self, planned: &Planned) {
        self.planned += planned.count;
    }
}

/// The external yard, and the loads of one run.
#[derive(Default)]
struct Yard {
    jams: BTreeMap<u64, u32>,
    done: BTreeSet<u64>,
    /// Last finished load of each truck.
    last: BTreeMap<String, u64>,
    /// First violation of the order.
    wrong: Option<String>,
}

#[derive(Worker)]
#[worker(domain = Yards, performs(Load))]
struct Loader {
    yard: Arc<Mutex<Yard>>,
    /// Trucks with a running job, of one start of the node.
    busy: Arc<Mutex<BTreeSet<String>>>,
}

struct Busy(Arc<Mutex<BTreeSet<String>>>, String);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.lock().unwrap().remove(&self.1);
    }
}

impl Perform<Load> for Loader {
    async fn perform(&self, load: Load, job: Job) -> Result<(), WorkError> {
        let is_alone = self.busy.lock().unwrap().insert(load.truck.clone());
        let _busy = Busy(Arc::clone(&self.busy), load.truck.clone());
        // Some take so long that they are recorded while they run.
        tokio::time::sleep(Duration::from_millis(load.number % 3 * 80)).await;
        let yard = &mut *self.yard.lock().unwrap();
        if !is_alone {
            yard.wrong.get_or_insert(format!("two jobs of {} ran at once", load.truck));
        }
        let jams = yard.jams.entry(load.number).or_default();
        if *jams < load.jams {
            *jams += 1;
            return Err(std::io::Error::other("jammed").into());
        }
        // A dead letter makes way, and is redriven after its last attempt.
        if yard.done.insert(load.number)
            && job.delivery <= ATTEMPTS
            && let Some(last) = yard.last.insert(load.truck.clone(), load.number)
            && last > load.number
        {
            yard.wrong.get_or_insert(format!("{} got {} after {last}", load.truck, load.number));
        }
        Ok(())
    }
}

/// Number of loads, and of failures of each.
type Step = (u64, u32);

fn options() -> WorkerOptions {
    WorkerOptions::new().retry(Retry { attempts: ATTEMPTS, ..Retry::default() })
}

fn loads(options: fn() -> WorkerOptions) -> Flow<Step, impl AsyncFn(&World, Step)> {
    let sim = move |sim: Sim| {
        let yard = Arc::<Mutex<Yard>>::default();
        let ended = Arc::clone(&yard);
        let service = sim.service("yards", move |node| {
            let loader = Loader { yard: Arc::clone(&yard), busy: Arc::default() };
            node.aggregate::<Desk>().worker_with(loader, options())
        });
        service.at_end(move |_| match &ended.lock().unwrap().wrong {
            Some(wrong) => Err(wrong.clone()),
            None => Ok(()),
        })
    };
    let arrivals = (0..6u64).prop_map(|steps| Duration::from_millis(60 * steps));
    let flow = Flow::new("loads", sim, (1..5u64, 0..3u32), 1..8, async |world: &World, (count, jams)| {
        world.send(Plan { desk: "d".to_owned(), count, jams }).await.expect("it is planned");
    });
    flow.arrivals(arrivals).no_regressions()
}

#[test]
fn jobs_of_a_key_keep_their_order_under_all_faults() {
    loads(|| options().exclusive_by_key()).check(0..200);
}

#[test]
fn few_slots_and_pauses_keep_the_order_of_a_key() {
    let limited = || {
        let breaker = CircuitBreaker::failures(2).pause(Duration::from_millis(300));
        options().exclusive_by_key().jobs(1).rate(5, Duration::from_millis(500)).circuit_breaker(breaker)
    };
    loads(limited).check(0..100);
}

#[test]
fn priorities_keep_the_order_of_a_key() {
    let urgent = || {
        let retry = Retry { attempts: ATTEMPTS, ..Retry::default() };
        let options = WorkerOptions::new().retry(retry).exclusive_by_key().jobs(1);
        // Later loads are more urgent.
        options.priority(|call| match call.message::<Load>() {
            Ok(Some(Load { number: 0..3, .. })) => Priority::Low,
            Ok(Some(Load { number: 3..6, .. })) => Priority::Normal,
            _ => Priority::Urgent,
        })
    };
    loads(urgent).check(0..100);
}

#[test]
fn jobs_without_order_are_found() {
    loads(options).first_failure(0..200).expect("two jobs of a key run at once");
}
