//! Projections with statements: each event is in the table once, whatever fails, and what cannot be written halts its shard.

mod bank;
mod eventually;
mod instrumented_store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use bank::*;
use eventually::eventually;
use instrumented_store::{InstrumentedStore, StoreProbe};
use parking_lot::Mutex;
use tokio::time::{Instant, advance};
use whizbang::message::{Domain as _, Name, ShardId, shard_of};
use whizbang::prelude::*;
use whizbang::store::{SqlValue, Statement, StoreError};
use whizbang::{Retry, StartError};

const ADD: &str = "add";
const RESET: &str = "reset";

/// Writes each deposit to a table.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(name = "rows", projects(Deposited), answers(Total), reset = "reset")]
struct Rows {
    cents: u64,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Bank, reply = u64)]
struct Total {}

impl Project<Deposited> for Rows {
    fn project(&mut self, deposited: &Deposited, _context: &EventContext) {
        self.cents += deposited.cents;
    }

    fn statements(&self, deposited: &Deposited, context: &EventContext) -> Vec<Statement> {
        add(deposited, context)
    }
}

impl Answer<Total> for Rows {
    fn answer(&self, _query: Total) -> u64 {
        self.cents
    }
}

/// The same with another schema.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(name = "rows", projects(Deposited), schema = 2, reset = "reset")]
struct RowsOfSchema2 {}

impl Project<Deposited> for RowsOfSchema2 {
    fn project(&mut self, _deposited: &Deposited, _context: &EventContext) {}

    fn statements(&self, deposited: &Deposited, context: &EventContext) -> Vec<Statement> {
        add(deposited, context)
    }
}

/// A projection whose derive does not name its statements.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Deposited))]
struct Undeclared {}

impl Project<Deposited> for Undeclared {
    fn project(&mut self, _deposited: &Deposited, _context: &EventContext) {}

    fn statements(&self, deposited: &Deposited, context: &EventContext) -> Vec<Statement> {
        add(deposited, context)
    }
}

/// Rows with a view that cannot be encoded at times.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(name = "rows", projects(Deposited), reset = "reset")]
struct Unsavable {
    #[serde(serialize_with = "encoded")]
    cents: u64,
}

static IS_SAVABLE: AtomicBool = AtomicBool::new(false);
static ENCODINGS: AtomicU32 = AtomicU32::new(0);

fn encoded<S: serde::Serializer>(cents: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    ENCODINGS.fetch_add(1, Ordering::Relaxed);
    match IS_SAVABLE.load(Ordering::Relaxed) {
        true => cents.serialize(serializer),
        false => Err(serde::ser::Error::custom("planned")),
    }
}

impl Project<Deposited> for Unsavable {
    fn project(&mut self, deposited: &Deposited, _context: &EventContext) {
        self.cents += deposited.cents;
    }

    fn statements(&self, deposited: &Deposited, context: &EventContext) -> Vec<Statement> {
        add(deposited, context)
    }
}

fn add(deposited: &Deposited, context: &EventContext) -> Vec<Statement> {
    vec![Statement::new(ADD).bind(&context.key).bind(i64::try_from(deposited.cents).unwrap())]
}

/// A table in memory: the sum and the number of rows of each account.
#[derive(Default)]
struct Table {
    rows: Mutex<BTreeMap<String, (i64, u32)>>,
    resets: AtomicU32,
    saves: AtomicU32,
    /// The most statements of a save.
    largest: AtomicUsize,
    /// The number of saves that fail without a fault of a statement.
    outages: AtomicU32,
    /// Every save is cancelled, as by a time limit of the server.
    cancels: AtomicBool,
    /// A value that violates a constraint; 0 for none.
    forbidden: AtomicU32,
}

impl Table {
    /// Runs all statements or none, as a transaction does.
    fn run(&self, statements: &[Statement]) -> Result<(), StoreError> {
        self.saves.fetch_add(1, Ordering::Relaxed);
        self.largest.fetch_max(statements.len(), Ordering::Relaxed);
        if self.outages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(StoreError::io("saving a view", std::io::Error::other("the server is away")));
        }
        if self.cancels.load(Ordering::Relaxed) {
            let reason = "ERROR 57014: canceling statement due to statement timeout".to_owned();
            return Err(StoreError::Statement { number: 0, reason, is_transient: true });
        }
        let mut rows = self.rows.lock();
        let mut changed = rows.clone();
        for (number, statement) in statements.iter().enumerate() {
            match (statement.sql(), statement.values()) {
                (RESET, []) => {
                    self.resets.fetch_add(1, Ordering::Relaxed);
                    changed.clear();
                }
                (ADD, [SqlValue::Text(account), SqlValue::Integer(cents)]) => {
                    if *cents == i64::from(self.forbidden.load(Ordering::Relaxed)) {
                        let reason = "ERROR 23514: the value is forbidden".to_owned();
                        return Err(StoreError::Statement { number, reason, is_transient: false });
                    }
                    let (sum, count) = changed.entry(account.clone()).or_default();
                    (*sum, *count) = (*sum + cents, *count + 1);
                }
                unknown => panic!("unknown statement {unknown:?}"),
            }
        }
        *rows = changed;
        Ok(())
    }

    fn of(&self, account: &str) -> (i64, u32) {
        self.rows.lock().get(account).copied().unwrap_or_default()
    }

    fn is(&self, account: &str, row: (i64, u32)) -> bool {
        self.of(account) == row
    }
}

/// The shard of an account.
fn shard_of_account(account: &str) -> ShardId {
    ShardId::new(Name::from_static("bank").unwrap(), shard_of(account, Bank::SHARDS))
}

/// An account in another shard.
fn other_shard(account: &str) -> String {
    let shard = shard_of(account, Bank::SHARDS);
    (0..).map(|n| format!("other {n}")).find(|other| shard_of(other, Bank::SHARDS) != shard).unwrap()
}

fn store() -> (MemoryStore, Arc<Table>) {
    let table = Arc::new(Table::default());
    let shared = Arc::clone(&table);
    (MemoryStore::run_statements_by(move |statements| shared.run(statements)), table)
}

async fn node<P: Projection>(store: &MemoryStore) -> Node {
    let retry = Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(4) };
    let builder = Node::builder("bank", store.clone()).threads(0).aggregate::<Account>().projection::<P>();
    builder.retry(retry).start().await.unwrap()
}

#[whizbang::test]
async fn node_killed_at_any_moment_writes_each_event_once() {
    let (store, table) = store();
    let mut sent = 0;
    for round in 0..12 {
        let node = node::<Rows>(&store).await;
        let before = table.of("ada").1;
        for _ in 0..=round * 60 {
            node.client().send(deposit("ada", 2)).await.unwrap();
            sent += 1;
        }
        if round % 3 == 0 {
            // With a part of the events in the table.
            eventually(async || table.of("ada").1 > before).await;
        }
        drop(node);
    }
    let node = node::<Rows>(&store).await;
    eventually(async || table.is("ada", (2 * sent, u32::try_from(sent).unwrap()))).await;
    assert_eq!(node.client().query(Total {}).await.unwrap(), 2 * u64::try_from(sent).unwrap());
    node.stop().await.unwrap();
    assert!(table.is("ada", (2 * sent, u32::try_from(sent).unwrap())), "{:?}", table.of("ada"));
    assert_eq!(table.resets.load(Ordering::Relaxed), 1, "only the new view begins with empty tables");
}

#[whizbang::test]
async fn stopped_node_has_written_every_event() {
    let (store, table) = store();
    let node = node::<Rows>(&store).await;
    for _ in 0..10 {
        node.client().send(deposit("ada", 1)).await.unwrap();
    }
    node.wait_idle().await;
    node.stop().await.unwrap();
    assert!(table.is("ada", (10, 10)), "{:?}", table.of("ada"));
}

#[whizbang::test]
async fn rejected_statement_halts_its_shard_and_can_be_skipped() {
    let (store, table) = store();
    table.forbidden.store(13, Ordering::Relaxed);
    let node = node::<Rows>(&store).await;
    let client = node.client();
    for cents in [1, 2, 13, 4] {
        client.send(deposit("ada", cents)).await.unwrap();
    }
    let place = "projection `rows` halted at position 3 of bank";
    eventually(async || node.health().reasons.iter().any(|reason| reason.starts_with(place))).await;
    let reasons = node.health().reasons;
    assert!(reasons.iter().any(|reason| reason.contains("the value is forbidden")), "{reasons:?}");
    eventually(async || table.is("ada", (3, 2))).await;
    // Other shards proceed, and queries are answered.
    let other = other_shard("ada");
    for _ in 0..500 {
        client.send(deposit(&other, 1)).await.unwrap();
    }
    eventually(async || table.is(&other, (500, 500))).await;
    assert_eq!(client.query(Total {}).await.unwrap(), 503);
    assert!(node.health().ready, "{:?}", node.health());
    // The rejected event stays out, with or without a restart.
    node.stop().await.unwrap();
    let node = self::node::<Rows>(&store).await;
    eventually(async || node.health().reasons.iter().any(|reason| reason.starts_with(place))).await;
    let shard = shard_of_account("ada");
    node.skip_event("rows", &shard, 3).await.unwrap();
    eventually(async || table.is("ada", (7, 3))).await;
    assert!(node.health().reasons.is_empty(), "{:?}", node.health());
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn retried_statement_is_written_once_it_is_accepted() {
    let (store, table) = store();
    table.forbidden.store(13, Ordering::Relaxed);
    let retry = Retry { attempts: 1000, first: Duration::from_millis(1), longest: Duration::from_millis(4) };
    let builder = Node::builder("bank", store.clone()).threads(0).aggregate::<Account>().projection::<Rows>();
    let node = builder.retry(retry).start().await.unwrap();
    for cents in [1, 13, 4] {
        node.client().send(deposit("ada", cents)).await.unwrap();
    }
    // The third attempt is under way.
    eventually(async || table.saves.load(Ordering::Relaxed) > 6).await;
    assert!(table.is("ada", (1, 1)), "{:?}", table.of("ada"));
    table.forbidden.store(0, Ordering::Relaxed);
    eventually(async || table.is("ada", (18, 3))).await;
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn save_that_fails_is_repeated_until_it_succeeds() {
    let (store, table) = store();
    let node = node::<Rows>(&store).await;
    node.client().send(deposit("ada", 1)).await.unwrap();
    eventually(async || table.is("ada", (1, 1))).await;
    table.outages.store(u32::MAX, Ordering::Relaxed);
    node.client().send(deposit("ada", 2)).await.unwrap();
    let note = "projection `rows` waits for its tables";
    eventually(async || node.health().reasons.iter().any(|reason| reason.starts_with(note))).await;
    node.client().send(deposit("ada", 4)).await.unwrap();
    table.outages.store(1, Ordering::Relaxed);
    eventually(async || table.is("ada", (7, 3))).await;
    eventually(async || node.health().reasons.is_empty()).await;
    assert_eq!(node.client().query(Total {}).await.unwrap(), 7);
    node.stop().await.unwrap();
    assert!(table.is("ada", (7, 3)), "{:?}", table.of("ada"));
}

#[whizbang::test]
async fn cancelled_statement_shows_in_health_while_it_is_repeated() {
    let (store, table) = store();
    let node = node::<Rows>(&store).await;
    table.cancels.store(true, Ordering::Relaxed);
    node.client().send(deposit("ada", 1)).await.unwrap();
    // More often than a statement that is rejected for good.
    eventually(async || table.saves.load(Ordering::Relaxed) > 8).await;
    let health = node.health();
    let note =
        |reason: &String| reason.starts_with("projection `rows` waits for its tables") && reason.contains("57014");
    assert!(health.ready && health.reasons.iter().any(note), "{health:?}");
    assert!(node.metrics().retries > 5, "{:?}", node.metrics());
    table.cancels.store(false, Ordering::Relaxed);
    eventually(async || table.is("ada", (1, 1))).await;
    eventually(async || node.health().reasons.is_empty()).await;
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn view_that_cannot_be_saved_gathers_few_statements() {
    let (store, table) = store();
    let node = node::<Unsavable>(&store).await;
    for _ in 0..2000 {
        node.client().send(deposit("ada", 1)).await.unwrap();
    }
    let note = "view of projection `rows` not saved";
    eventually(async || node.health().reasons.iter().any(|reason| reason.starts_with(note))).await;
    eventually(async || ENCODINGS.load(Ordering::Relaxed) > 5).await;
    assert!(node.health().ready && table.saves.load(Ordering::Relaxed) == 0);
    IS_SAVABLE.store(true, Ordering::Relaxed);
    eventually(async || table.is("ada", (2000, 2000))).await;
    let largest = table.largest.load(Ordering::Relaxed);
    assert!(largest < 300, "{largest} statements were in memory");
    eventually(async || node.health().reasons.is_empty()).await;
    node.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn slow_save_delays_the_next_one_by_few_seconds() {
    tokio::task::LocalSet::new()
        .run_until(async {
            let ((memory, table), probe) = (store(), Arc::<StoreProbe>::default());
            probe.saves.next.store(true, Ordering::Relaxed);
            let builder = Node::builder("bank", InstrumentedStore(memory, Arc::clone(&probe))).threads(0);
            let node = builder.aggregate::<Account>().projection::<Rows>().start().await.unwrap();
            probe.saves.reads.notified().await;
            // It waits for a lock, for example.
            advance(Duration::from_secs(9)).await;
            probe.saves.go.notify_one();
            for count in 1..3 {
                node.client().send(deposit("ada", 1)).await.unwrap();
                let begun = Instant::now();
                while !table.is("ada", (count.into(), count)) {
                    assert!(begun.elapsed() < Duration::from_secs(4), "event {count} is not in the table");
                    advance(Duration::from_millis(10)).await;
                    tokio::task::yield_now().await;
                }
            }
            node.stop().await.unwrap();
        })
        .await;
}

#[whizbang::test]
async fn rebuilt_view_empties_its_tables_first() {
    let (store, table) = store();
    let node = node::<Rows>(&store).await;
    for _ in 0..400 {
        node.client().send(deposit("ada", 1)).await.unwrap();
    }
    node.wait_idle().await;
    node.stop().await.unwrap();
    assert!(table.is("ada", (400, 400)), "{:?}", table.of("ada"));
    table.rows.lock().insert("a row of the older schema".to_owned(), (1, 1));
    let node = self::node::<RowsOfSchema2>(&store).await;
    eventually(async || table.is("ada", (400, 400)) && table.rows.lock().len() == 1).await;
    node.stop().await.unwrap();
    assert_eq!(table.resets.load(Ordering::Relaxed), 2);
    assert!(table.is("ada", (400, 400)), "{:?}", table.of("ada"));
}

#[whizbang::test]
async fn store_without_statements_refuses_the_start() {
    let builder = Node::builder("bank", MemoryStore::new()).threads(0).aggregate::<Account>().projection::<Rows>();
    let refused = builder.start().await;
    assert!(matches!(&refused, Err(StartError::NoStatements { projection }) if projection == "rows"), "{refused:?}");
    assert!(refused.unwrap_err().to_string().contains("use PostgreSQL"));
}

#[whizbang::test]
async fn undeclared_statements_halt_the_projection() {
    let (store, table) = store();
    let node = node::<Undeclared>(&store).await;
    node.client().send(deposit("ada", 1)).await.unwrap();
    eventually(async || node.health().reasons.iter().any(|reason| reason.contains("has no `reset`"))).await;
    node.stop().await.unwrap();
    assert_eq!(table.saves.load(Ordering::Relaxed), 0);
}

/// Events of which one amount cannot be read again, as after a change of their type.
mod unreadable {
    use super::*;

    const UNREADABLE: u64 = 99;

    /// The version of the program that cannot read it.
    static IS_NEW_VERSION: AtomicBool = AtomicBool::new(false);

    #[derive(Domain)]
    #[domain(name = "mint", shards = 1)]
    struct Mint;

    #[derive(Command, Serialize, Deserialize)]
    #[command(domain = Mint)]
    struct Strike {
        #[key]
        die: String,
        cents: u64,
    }

    #[derive(Event, Serialize, Deserialize)]
    #[event(domain = Mint)]
    struct Struck {
        #[serde(deserialize_with = "decoded")]
        cents: u64,
    }

    fn decoded<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        match u64::deserialize(deserializer)? {
            UNREADABLE if IS_NEW_VERSION.load(Ordering::Relaxed) => Err(serde::de::Error::custom("planned")),
            cents => Ok(cents),
        }
    }

    #[derive(Aggregate, Default)]
    #[aggregate(domain = Mint, handles(Strike), applies(Struck))]
    struct Die {}

    impl Handle<Strike> for Die {
        fn handle(&self, strike: Strike, effects: &mut Effects<Self>) -> Result<(), Rejection> {
            effects.record(Struck { cents: strike.cents });
            Ok(())
        }
    }

    impl Apply<Struck> for Die {
        fn apply(&mut self, _struck: &Struck) {}
    }

    #[derive(Projection, Default, Serialize, Deserialize)]
    #[projection(projects(Struck), reset = "reset")]
    struct Coins {}

    impl Project<Struck> for Coins {
        fn project(&mut self, _struck: &Struck, _context: &EventContext) {}

        fn statements(&self, struck: &Struck, context: &EventContext) -> Vec<Statement> {
            vec![Statement::new(ADD).bind(&context.key).bind(i64::try_from(struck.cents).unwrap())]
        }
    }

    #[whizbang::test]
    async fn rejected_statement_before_a_halt_is_tried_again() {
        let (store, table) = store();
        table.forbidden.store(13, Ordering::Relaxed);
        let builder = || Node::builder("mint", store.clone()).threads(0).aggregate::<Die>();
        let node = builder().start().await.unwrap();
        for (die, cents) in [("a", 13), ("b", UNREADABLE), ("c", 4)] {
            node.client().send(Strike { die: die.to_owned(), cents }).await.unwrap();
        }
        node.stop().await.unwrap();
        IS_NEW_VERSION.store(true, Ordering::Relaxed);
        let retry = Retry { attempts: u32::MAX, first: Duration::from_millis(1), longest: Duration::from_millis(4) };
        let node = builder().projection::<Coins>().retry(retry).start().await.unwrap();
        let is_halted = || {
            let place = "projection `coins` halted at position 2 of mint";
            node.health().reasons.iter().any(|reason| reason.starts_with(place))
        };
        eventually(async || is_halted()).await;
        let before = table.saves.load(Ordering::Relaxed);
        eventually(async || table.saves.load(Ordering::Relaxed) > before + 3).await;
        table.forbidden.store(0, Ordering::Relaxed);
        eventually(async || table.is("a", (13, 1))).await;
        eventually(async || is_halted()).await;
        let shard = ShardId::new(Name::from_static("mint").unwrap(), 0);
        node.skip_event("coins", &shard, 2).await.unwrap();
        eventually(async || table.is("c", (4, 1))).await;
        assert!(node.health().reasons.is_empty(), "{:?}", node.health());
        node.stop().await.unwrap();
    }
}
