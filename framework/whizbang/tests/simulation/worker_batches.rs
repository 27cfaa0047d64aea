//! Workers with batch handlers in the simulated cluster, under all faults.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use whizbang::prelude::*;
use whizbang::testing::{Flow, Sim, World};
use whizbang::{Retry, WorkerOptions};

/// Most messages of a call.
const SIZE: usize = 3;
/// More attempts than all faults together use up.
const ATTEMPTS: u32 = 20;

#[derive(Domain)]
#[domain(shards = 2)]
struct Rows;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Rows, reply = String)]
struct Insert {
    #[key]
    row: String,
    number: u64,
    /// Number of calls that fail.
    jams: u32,
    is_known: bool,
}

/// Has numbered rows of two keys inserted, so that an actor sends the commands and gets the replies.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Rows)]
struct Fill {
    #[key]
    table: String,
    rows: u64,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Rows)]
struct Filled {
    rows: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Rows, handles(Fill), applies(Filled))]
struct Table {
    rows: u64,
}

impl Handle<Fill> for Table {
    fn handle(&self, fill: Fill, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for number in self.rows..self.rows + fill.rows {
            effects.send(Insert { row: format!("row{}", number % 2), number, jams: 1, is_known: false });
        }
        effects.record(Filled { rows: fill.rows });
        Ok(())
    }
}

impl Apply<Filled> for Table {
    fn apply(&mut self, filled: &Filled) {
        self.rows += filled.rows;
    }
}

/// The database, and the calls of one run.
#[derive(Default)]
struct Database {
    /// Number of failed calls, by row and number.
    jams: BTreeMap<(String, u64), u32>,
    /// Last inserted number of the rows of the table.
    last: BTreeMap<String, u64>,
    done: BTreeSet<(String, u64)>,
    /// First violation.
    wrong: Option<String>,
}

#[derive(Worker)]
#[worker(domain = Rows, performs_batch(Insert))]
struct Loader {
    database: Arc<Mutex<Database>>,
    /// Returns the results in the wrong order.
    reverses: bool,
}

impl PerformBatch<Insert> for Loader {
    async fn perform_batch(&self, rows: Vec<(Insert, Job)>) -> Result<Vec<Result<String, WorkError>>, WorkError> {
        // Some take so long that they are recorded while they run.
        tokio::time::sleep(Duration::from_millis(rows[0].0.number % 3 * 80)).await;
        let database = &mut *self.database.lock().unwrap();
        let keys: BTreeSet<_> = rows.iter().map(|(_, job)| job.key.clone()).collect();
        let is_again = rows.iter().any(|(_, job)| job.delivery > 1);
        if keys.len() < rows.len() || rows.len() > SIZE || (is_again && rows.len() > 1) {
            let rows: Vec<_> = rows.iter().map(|(row, job)| (&row.row, row.number, job.delivery)).collect();
            database.wrong.get_or_insert(format!("{rows:?} in one call"));
        }
        let mut results = Vec::new();
        for (row, job) in rows {
            let jams = database.jams.entry((row.row.clone(), row.number)).or_default();
            if row.is_known {
                results.push(Err(Rejection::new("rows.known", "the row exists").into()));
            } else if *jams < row.jams {
                *jams += 1;
                // Of the whole call, for every second number.
                let jammed = std::io::Error::other("jammed");
                if row.number % 2 == 1 {
                    return Err(jammed.into());
                }
                results.push(Err(jammed.into()));
            } else {
                if database.done.insert((row.row.clone(), row.number))
                    && job.delivery <= ATTEMPTS
                    && let Some(last) = database.last.insert(row.row.clone(), row.number)
                    && last > row.number
                {
                    database.wrong.get_or_insert(format!("{} got {} after {last}", row.row, row.number));
                }
                results.push(Ok(format!("{} {}", row.row, row.number)));
            }
        }
        if self.reverses {
            results.reverse();
        }
        Ok(results)
    }
}

fn shared() -> WorkerOptions {
    let retry = Retry { attempts: ATTEMPTS, ..Retry::default() };
    WorkerOptions::new().retry(retry).batch(SIZE, Duration::from_millis(40))
}

fn options() -> WorkerOptions {
    shared().exclusive_by_key()
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert,
    Jam,
    Known,
    Fill,
}

/// A flow with these options, and a worker that may return the results in the wrong order.
fn rows(options: fn() -> WorkerOptions, reverses: bool) -> Flow<Step, impl AsyncFn(&World, Step)> {
    let sim = move |sim: Sim| {
        let database = Arc::<Mutex<Database>>::default();
        let ended = Arc::clone(&database);
        let service = sim.service("rows", move |node| {
            let loader = Loader { database: Arc::clone(&database), reverses };
            node.aggregate::<Table>().worker_with(loader, options())
        });
        service.allow_dead_letters().at_end(move |_| match &ended.lock().unwrap().wrong {
            Some(wrong) => Err(wrong.clone()),
            None => Ok(()),
        })
    };
    let step = prop_oneof![Just(Step::Insert), Just(Step::Jam), Just(Step::Known), Just(Step::Fill)];
    let arrivals = (0..4u64).prop_map(|steps| Duration::from_millis(15 * steps));
    let flow = Flow::new("rows", sim, step, 1..12, async move |world: &World, step| {
        let row = format!("outside{}", world.below(u64::MAX));
        let expected = format!("{row} 2");
        let insert = |jams, is_known| Insert { row: row.clone(), number: 2, jams, is_known };
        match step {
            Step::Insert => assert_eq!(world.send(insert(0, false)).await.expect("it is inserted"), expected),
            Step::Jam => assert_eq!(world.send(insert(2, false)).await.expect("it is inserted"), expected),
            Step::Known => {
                let no = world.send(insert(0, true)).await.expect_err("it is rejected");
                assert!(no.to_string().contains("rows.known"), "{no}");
            }
            Step::Fill => world.send(Fill { table: "t".to_owned(), rows: 3 }).await.expect("it is sent"),
        }
    });
    flow.arrivals(arrivals).no_regressions()
}

#[test]
fn batches_hold_under_all_faults() {
    rows(options, false).check(0..200);
}

#[test]
fn results_of_other_jobs_are_found() {
    rows(options, true).first_failure(0..200).expect("a job has the result of another");
}

#[test]
fn calls_with_two_jobs_of_a_key_are_found() {
    rows(shared, false).first_failure(0..200).expect("a call has two jobs of a key");
}
