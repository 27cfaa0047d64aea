//! Batch handlers of workers: the jobs of a call, and the results that are each job's own.

mod eventually;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use eventually::eventually;
use parking_lot::Mutex;
use tokio::time::Instant;
use whizbang::clock::{Clock, Timestamp};
use whizbang::layer::{Layer, Refusal};
use whizbang::message::MessageId;
use whizbang::prelude::*;
use whizbang::{ConfigError, JobError, NodeConfig, Retry, RetryDecision, SendError, StartError, WorkerOptions};

/// Long enough that a call which waits for it fails its test.
const LONG: Duration = Duration::from_secs(10);

#[derive(Domain)]
#[domain(name = "rows", shards = 4)]
struct Rows;

/// Inserts a row. `how` says what becomes of it.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Rows, reply = String)]
struct Insert {
    #[key]
    row: String,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum How {
    Done,
    /// Its own result is an error, in the first attempt.
    RetryOnce,
    Reject,
    Fail,
    /// The whole call ends with an error, a rejection, a panic, never, or with a result too few.
    FailCall,
    RejectCall,
    Panic,
    Hang,
    Miscount,
}

/// Asks for several rows, so that an actor sends the commands.
#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Rows)]
struct Fill {
    #[key]
    table: String,
    rows: u32,
    /// Same key for all rows.
    same: bool,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Rows, reply = Vec<String>)]
struct Read {
    #[key]
    table: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Rows)]
struct Noted {
    text: String,
}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Rows)]
struct Note {
    #[key]
    table: String,
    text: String,
}

/// Sends rows, and lists the notes about them.
#[derive(Aggregate, Default)]
#[aggregate(domain = Rows, handles(Fill, Note, Read), applies(Noted))]
struct Table {
    notes: Vec<String>,
}

impl Handle<Fill> for Table {
    fn handle(&self, fill: Fill, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for n in 0..fill.rows {
            let row = if fill.same { "same".to_owned() } else { format!("{}{n}", fill.table) };
            effects.send(Insert { row, how: How::Done });
        }
        Ok(())
    }
}

impl Handle<Note> for Table {
    fn handle(&self, note: Note, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Noted { text: note.text });
        Ok(())
    }
}

impl Handle<Read> for Table {
    fn handle(&self, _read: Read, _effects: &mut Effects<Self>) -> Result<Vec<String>, Rejection> {
        Ok(self.notes.clone())
    }
}

impl Apply<Noted> for Table {
    fn apply(&mut self, noted: &Noted) {
        self.notes.push(noted.text.clone());
    }
}

/// One call of a batch handler: key, delivery and idempotency key of each message.
#[derive(Clone, Debug)]
struct Call {
    begun: Instant,
    messages: Vec<(String, u32, MessageId)>,
}

/// The database, and the calls so far.
#[derive(Default)]
struct Database {
    calls: Mutex<Vec<Call>>,
    holds: AtomicBool,
}

impl Database {
    fn begin<M>(&self, batch: &[(M, Job)]) {
        let messages = batch.iter().map(|(_, job)| (job.key.clone(), job.delivery, job.idempotency_key)).collect();
        self.calls.lock().push(Call { begun: Instant::now(), messages });
    }

    /// Returns the keys of each call, in the order of the calls; those of a call are sorted.
    fn calls(&self) -> Vec<Vec<String>> {
        let keys = |call: &Call| {
            let mut keys: Vec<_> = call.messages.iter().map(|(key, ..)| key.clone()).collect();
            keys.sort_unstable();
            keys
        };
        self.calls.lock().iter().map(keys).collect()
    }

    /// Returns the deliveries of each key, in the order of the calls.
    fn deliveries(&self) -> BTreeMap<String, Vec<u32>> {
        let mut deliveries = BTreeMap::<_, Vec<_>>::new();
        for (key, delivery, _) in self.calls.lock().iter().flat_map(|call| call.messages.clone()) {
            deliveries.entry(key).or_default().push(delivery);
        }
        deliveries
    }
}

#[derive(Worker)]
#[worker(domain = Rows, performs_batch(Insert))]
struct Loader(Arc<Database>);

#[derive(Worker)]
#[worker(domain = Rows, on_batch(Noted))]
struct Exporter(Arc<Database>);

impl PerformBatch<Insert> for Loader {
    async fn perform_batch(&self, rows: Vec<(Insert, Job)>) -> Result<Vec<Result<String, WorkError>>, WorkError> {
        self.0.begin(&rows);
        while self.0.holds.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
        }
        for (insert, job) in &rows {
            job.send(Note { table: "t".to_owned(), text: insert.row.clone() });
        }
        for (insert, _) in &rows {
            match insert.how {
                How::FailCall => Err(std::io::Error::other("the database is down"))?,
                How::RejectCall => Err(Rejection::new("rows.locked", "the table is locked"))?,
                How::Panic => panic!("planned: a batch"),
                How::Hang => std::future::pending().await,
                _ => {}
            }
        }
        let mut results: Vec<_> = rows
            .iter()
            .map(|(insert, job)| match insert.how {
                How::RetryOnce if job.delivery == 1 => Err(std::io::Error::other("the row is locked").into()),
                How::Reject => Err(Rejection::new("rows.known", "the row exists").into()),
                How::Fail => Err(WorkError::permanent("no such column")),
                _ => Ok(format!("inserted {}", insert.row)),
            })
            .collect();
        if rows.iter().any(|(insert, _)| insert.how == How::Miscount) {
            results.pop();
        }
        Ok(results)
    }
}

impl OnEventBatch<Noted> for Exporter {
    async fn on_event_batch(&self, notes: Vec<(Noted, Job)>) -> Result<Vec<Result<(), WorkError>>, WorkError> {
        self.0.begin(&notes);
        Ok(notes.iter().map(|_| Ok(())).collect())
    }
}

/// Counts the jobs that have passed the layers.
struct Passed(Arc<AtomicUsize>);

impl Layer for Passed {
    fn before(&self, _call: &whizbang::layer::Call<'_>) -> Result<(), Refusal> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn quick() -> Retry {
    Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(4) }
}

async fn start(store: &MemoryStore, database: &Arc<Database>, options: WorkerOptions) -> Node {
    let loader = Loader(Arc::clone(database));
    let node = Node::builder("rows", store.clone()).threads(0).aggregate::<Table>().retry(quick());
    node.worker_with(loader, options).start().await.unwrap()
}

/// Sends rows at once, and returns the results in order.
async fn insert(node: &Node, rows: &[(&str, How)]) -> Vec<Result<String, SendError>> {
    let send = |(row, how): &(&str, How)| {
        let client = node.client().clone();
        let insert = Insert { row: (*row).to_owned(), how: *how };
        async move { client.send(insert).await }
    };
    futures_util::future::join_all(rows.iter().map(send)).await
}

fn reason(result: &Result<String, SendError>) -> &str {
    match result {
        Err(SendError::DeadLetter { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[whizbang::test]
async fn complete_batch_is_one_call_at_once() {
    let (store, database) = (MemoryStore::new(), Arc::<Database>::default());
    let node = start(&store, &database, WorkerOptions::new().batch(4, LONG)).await;
    let begun = Instant::now();
    let results = insert(&node, &[("a", How::Done), ("b", How::Done), ("c", How::Done), ("d", How::Done)]).await;
    let results: Vec<_> = results.into_iter().map(Result::unwrap).collect();
    assert_eq!(results, ["inserted a", "inserted b", "inserted c", "inserted d"]);
    assert_eq!(database.calls(), [["a", "b", "c", "d"]]);
    // An actor sends the next ones, more than two calls take.
    node.client().send(Fill { table: "x".into(), rows: 8, same: false }).await.unwrap();
    eventually(async || database.calls().len() == 3).await;
    assert!(database.calls().iter().all(|call| call.len() == 4) && begun.elapsed() < LONG, "{:?}", database.calls());
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn batch_begins_when_its_time_has_passed() {
    let (store, database) = (MemoryStore::new(), Arc::<Database>::default());
    let wait = Duration::from_millis(60);
    let node = start(&store, &database, WorkerOptions::new().batch(100, wait)).await;
    let begun = Instant::now();
    for result in insert(&node, &[("a", How::Done), ("b", How::Done), ("c", How::Done)]).await {
        result.unwrap();
    }
    assert_eq!(database.calls(), [["a", "b", "c"]]);
    assert!(database.calls.lock()[0].begun - begun >= wait);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn job_that_failed_is_retried_alone() {
    let (store, database) = (MemoryStore::new(), Arc::<Database>::default());
    let node = start(&store, &database, WorkerOptions::new().batch(4, LONG)).await;
    let rows = [("a", How::Done), ("b", How::RetryOnce), ("c", How::Reject), ("d", How::Fail)];
    let results = insert(&node, &rows).await;
    assert_eq!(results[0].as_ref().unwrap(), "inserted a");
    assert_eq!(results[1].as_ref().unwrap(), "inserted b");
    assert!(matches!(&results[2], Err(SendError::Rejected(no)) if no.code() == "rows.known"), "{results:?}");
    assert_eq!(reason(&results[3]), "no such column");
    let calls = database.calls();
    assert_eq!((calls[0].len(), &calls[1..]), (4, &[vec!["b".to_owned()]][..]));
    let first = database.calls.lock()[0].messages.iter().find(|(key, ..)| key == "b").cloned().unwrap();
    let second = database.calls.lock()[1].messages[0].clone();
    assert_eq!((first.1, second.1, first.2 == second.2), (1, 2, true));
    // Each job sends in its own commit: those that are done.
    node.wait_idle().await;
    let mut notes = node.client().send(Read { table: "t".into() }).await.unwrap();
    notes.sort_unstable();
    assert_eq!(notes, ["a", "b"]);
    assert_eq!(node.dead_letters().await.unwrap().len(), 1);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn error_of_a_call_is_final_for_none_of_its_jobs() {
    // A rule that gives up decides about a job alone.
    let options = || {
        WorkerOptions::new()
            .batch(3, LONG)
            .job_limit(Duration::from_millis(50))
            .retry_error(|_: &std::io::Error, _| RetryDecision::GiveUp)
            .retry_error(|_: &JobError, _| RetryDecision::GiveUp)
    };
    for (how, text) in [
        (How::FailCall, "the database is down"),
        (How::RejectCall, "rows.locked"),
        (How::Panic, "job panicked: planned: a batch"),
        (How::Hang, "job took longer than 50ms"),
        (How::Miscount, "batch handler returned 0 results for 1 messages"),
    ] {
        let (store, database) = (MemoryStore::new(), Arc::<Database>::default());
        let node = start(&store, &database, options()).await;
        let results = insert(&node, &[("a", How::Done), ("b", how), ("c", How::Done)]).await;
        assert_eq!(results[0].as_ref().unwrap(), "inserted a", "{how:?}");
        assert_eq!(results[2].as_ref().unwrap(), "inserted c", "{how:?}");
        match &results[1] {
            Err(SendError::Rejected(no)) => assert_eq!((no.code(), how), (text, How::RejectCall)),
            result => assert_eq!(reason(result), text, "{how:?}"),
        }
        let calls = database.calls();
        assert_eq!(calls[0], ["a", "b", "c"], "{how:?}");
        assert!(calls[1..].iter().all(|call| call.len() == 1), "{how:?}: {calls:?}");
        let again = if how == How::Miscount { vec![1, 2, 3] } else { vec![1, 2] };
        let expected = [("a", vec![1, 2]), ("b", again), ("c", vec![1, 2])];
        assert_eq!(database.deliveries(), expected.map(|(key, count)| (key.to_owned(), count)).into(), "{how:?}");
        node.wait_idle().await;
        assert_eq!(node.client().send(Read { table: "t".into() }).await.unwrap().len(), 2, "{how:?}");
        assert_eq!(node.metrics().panics, if how == How::Panic { 2 } else { 0 });
        node.stop().await.unwrap();
    }
}

#[whizbang::test]
async fn events_of_several_actors_are_one_call() {
    let database = Arc::<Database>::default();
    let node = Node::builder("rows", MemoryStore::new()).threads(0).aggregate::<Table>();
    let options = WorkerOptions::new().batch(3, LONG);
    let node = node.worker_with(Exporter(Arc::clone(&database)), options).start().await.unwrap();
    for table in ["a", "b", "c"] {
        node.client().send(Note { table: table.into(), text: "noted".into() }).await.unwrap();
    }
    eventually(async || database.calls().len() == 1).await;
    assert_eq!(database.calls(), [["a", "b", "c"]]);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn call_has_one_job_of_an_exclusive_key() {
    let (store, database) = (MemoryStore::new(), Arc::<Database>::default());
    let options = WorkerOptions::new().batch(8, Duration::from_millis(5)).exclusive_by_key();
    let node = start(&store, &database, options).await;
    node.client().send(Fill { table: "x".into(), rows: 4, same: true }).await.unwrap();
    eventually(async || database.calls().len() == 4).await;
    assert_eq!(database.calls(), [["same"], ["same"], ["same"], ["same"]]);
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn stop_of_the_node_begins_an_open_batch() {
    let (database, passed) = (Arc::<Database>::default(), Arc::<AtomicUsize>::default());
    let node = Node::builder("rows", MemoryStore::new()).threads(0).layer(Passed(Arc::clone(&passed)));
    let loader = Loader(Arc::clone(&database));
    let node = node.worker_with(loader, WorkerOptions::new().batch(100, LONG)).start().await.unwrap();
    let client = node.client().clone();
    let insert = Insert { row: "a".into(), how: How::Done };
    let sent = tokio::task::spawn_local(async move { client.send(insert).no_retry().await });
    eventually(async || passed.load(Ordering::Relaxed) == 1).await;
    let begun = Instant::now();
    node.stop().await.unwrap();
    assert!(begun.elapsed() < LONG);
    assert_eq!(sent.await.unwrap().unwrap(), "inserted a");
    assert_eq!(database.calls(), [["a"]]);
}

#[whizbang::test]
async fn jobs_of_a_call_that_ended_the_process_run_alone() {
    let (store, database) = (MemoryStore::new(), Arc::<Database>::default());
    let (clock, hand) = Clock::manual(Timestamp::from_millis(1_800_000_000_000));
    let start = async || {
        hand.advance(Duration::from_secs(1));
        let node = Node::builder("rows", store.clone()).threads(0).aggregate::<Table>().clock(clock.clone());
        let options = WorkerOptions::new().batch(3, Duration::from_millis(20));
        node.worker_with(Loader(Arc::clone(&database)), options).retry(quick()).start().await.unwrap()
    };
    database.holds.store(true, Ordering::Relaxed);
    let node = start().await;
    node.client().send(Fill { table: "x".into(), rows: 3, same: false }).await.unwrap();
    eventually(async || database.calls().len() == 1).await;
    drop(node);
    // The first attempt after a crash is recorded before it begins.
    let node = start().await;
    eventually(async || database.calls().len() == 2).await;
    drop(node);
    database.holds.store(false, Ordering::Relaxed);
    let node = start().await;
    node.wait_idle().await;
    let sizes: Vec<_> = database.calls().iter().map(Vec::len).collect();
    assert_eq!(sizes, [3, 3, 1, 1, 1]);
    assert!(database.deliveries().values().all(|each| *each == [1, 1, 2]), "{:?}", database.deliveries());
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn batch_out_of_its_range_is_refused() {
    let refused = async |jobs, wait| {
        let options = WorkerOptions::new().batch(jobs, wait);
        let node = Node::builder("rows", MemoryStore::new()).threads(0).worker_with(Loader(Arc::default()), options);
        match node.start().await {
            Err(StartError::Config(ConfigError::Range { key, .. })) => key,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(0, LONG).await, "WorkerOptions::batch jobs");
    assert_eq!(refused(10_001, LONG).await, "WorkerOptions::batch jobs");
    assert_eq!(refused(1, Duration::ZERO).await, "WorkerOptions::batch wait");
    assert_eq!(refused(1, Duration::from_secs(11)).await, "WorkerOptions::batch wait");
}

#[whizbang::test]
async fn batch_is_not_larger_than_the_jobs_at_once() {
    let database = Arc::<Database>::default();
    let options = WorkerOptions::new().batch(100, LONG).jobs(2);
    let node = start(&MemoryStore::new(), &database, options).await;
    node.client().send(Fill { table: "x".into(), rows: 6, same: false }).await.unwrap();
    eventually(async || database.calls().len() == 3).await;
    node.stop().await.unwrap();
    // Without that limit, than those of the thread.
    let database = Arc::<Database>::default();
    let config = NodeConfig { jobs: 3, ..NodeConfig::default() };
    let loader = Loader(Arc::clone(&database));
    let node = Node::builder("rows", MemoryStore::new()).config(config).threads(0).aggregate::<Table>();
    let node = node.worker_with(loader, WorkerOptions::new().batch(100, LONG)).start().await.unwrap();
    node.client().send(Fill { table: "x".into(), rows: 6, same: false }).await.unwrap();
    eventually(async || database.calls().len() == 2).await;
    assert_eq!(database.calls().iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
    node.stop().await.unwrap();
}
