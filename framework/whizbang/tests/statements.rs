//! Projections with statements: each event is in the table once, whatever fails, and what cannot be written halts its shard.

mod bank;
mod eventually;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bank::*;
use eventually::eventually;
use parking_lot::Mutex;
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

fn add(deposited: &Deposited, context: &EventContext) -> Vec<Statement> {
    vec![Statement::new(ADD).bind(&context.key).bind(i64::try_from(deposited.cents).unwrap())]
}

/// A table in memory: the sum and the number of rows of each account.
#[derive(Default)]
struct Table {
    rows: Mutex<BTreeMap<String, (i64, u32)>>,
    resets: AtomicU32,
    saves: AtomicU32,
    /// So many saves fail without a fault of a statement.
    outages: AtomicU32,
    /// A value that violates a constraint; 0 for none.
    forbidden: AtomicU32,
}

impl Table {
    /// Runs all statements or none, as a transaction does.
    fn run(&self, statements: &[Statement]) -> Result<(), StoreError> {
        self.saves.fetch_add(1, Ordering::Relaxed);
        if self.outages.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            return Err(StoreError::io("saving a view", std::io::Error::other("the server is away")));
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
