//! Statements of projections on a real server: their values, their transaction, and tables that contain each event once, whatever
//! is killed.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::FutureExt as _;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::clock::Timestamp;
use whizbang::message::{Domain as _, Name, ShardId, shard_of};
use whizbang::prelude::*;
use whizbang::store::{SqlValue, Statement, Store as _, StoreError, View};
use whizbang::{NodeConfig, Retry};
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::postgres::{PostgresServer, Session};
use whizbang_tests::{brief_or_long, until};

const LEASE: Duration = Duration::from_secs(2);

/// A domain whose events SQL can read.
#[derive(Domain)]
#[domain(name = "accounts", codec = json)]
struct Accounts;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Accounts)]
struct Deposit {
    #[key]
    account: String,
    cents: i64,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Accounts)]
struct Deposited {
    cents: i64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Accounts, handles(Deposit), applies(Deposited))]
struct Account {}

impl Handle<Deposit> for Account {
    fn handle(&self, deposit: Deposit, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Deposited { cents: deposit.cents });
        Ok(())
    }
}

impl Apply<Deposited> for Account {
    fn apply(&mut self, _deposited: &Deposited) {}
}

fn deposit(account: &str, cents: i64) -> Deposit {
    Deposit { account: account.to_owned(), cents }
}

/// An account in another shard.
fn other_shard(account: &str) -> String {
    let shard = shard_of(account, Accounts::SHARDS);
    (0..).map(|n| format!("other {n}")).find(|other| shard_of(other, Accounts::SHARDS) != shard).unwrap()
}

/// The balances as a table.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(name = "balance-table", projects(Deposited), reset = "DELETE FROM balances")]
struct BalanceTable {}

impl Project<Deposited> for BalanceTable {
    fn project(&mut self, _deposited: &Deposited, _context: &EventContext) {}

    fn statements(&self, deposited: &Deposited, context: &EventContext) -> Vec<Statement> {
        let add = "INSERT INTO balances AS b VALUES ($1, $2, 1)
            ON CONFLICT (account) DO UPDATE SET cents = b.cents + excluded.cents, deposits = b.deposits + 1";
        vec![Statement::new(add).bind(&context.key).bind(deposited.cents)]
    }
}

fn server() -> PostgresServer {
    let server = PostgresServer::start();
    server.sql("CREATE TABLE balances (account text PRIMARY KEY, cents bigint NOT NULL CHECK (cents <> 13), deposits int NOT NULL)");
    server
}

async fn connect(server: &PostgresServer) -> PostgresStore {
    PostgresStore::builder(&server.url()).exclusive().connect().await.unwrap()
}

/// The only node of the service.
async fn start(server: &PostgresServer) -> Node {
    let retry = Retry { attempts: 3, first: Duration::from_millis(1), longest: Duration::from_millis(4) };
    let builder = Node::builder("accounts", connect(server).await).threads(0).retry(retry);
    builder.aggregate::<Account>().projection::<BalanceTable>().start().await.unwrap()
}

/// One of several nodes.
async fn start_member(server: &PostgresServer, hub: &LoopbackHub, label: &str) -> Node {
    let store = PostgresStore::connect(&server.url()).await.unwrap();
    let config = NodeConfig { lease: LEASE, ..NodeConfig::default() };
    let builder = Node::builder("accounts", store).config(config).label(label).bridge(hub.bridge());
    builder.aggregate::<Account>().projection::<BalanceTable>().start().await.unwrap()
}

/// The sums of the events, by account.
const EXPECTED: &str =
    "SELECT key, sum((data->>'cents')::bigint), count(*) FROM whizbang.events WHERE type = 'Deposited'
    GROUP BY key ORDER BY key";
const ACTUAL: &str = "SELECT account, cents, deposits FROM balances ORDER BY account";

/// Waits until the table contains every event once.
async fn table_is_complete(server: &PostgresServer) {
    let is_complete = async || server.sql(ACTUAL) == server.sql(EXPECTED);
    until("a complete table", is_complete).await;
}

/// The number of sessions that wait for a lock.
fn waiting_sessions(server: &PostgresServer) -> usize {
    server.sql("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'").parse().expect("a number")
}

fn view(position: u64) -> View {
    let shard = ShardId::new(Name::from_static("bank").unwrap(), 0);
    View { schema: 1, checkpoint: vec![(shard, position)], bytes: Vec::new().into() }
}

#[whizbang::test]
async fn values_arrive_in_the_types_of_their_columns() {
    let server = PostgresServer::start();
    server.sql(
        "CREATE TABLE every (a boolean, b bigint, c integer, d double precision, e text, f varchar(9), g bytea, h uuid, \
         i timestamptz, j jsonb, k text, l bigint)",
    );
    let store = connect(&server).await;
    assert!(store.runs_statements());
    let name = Name::from_static("every").unwrap();
    let epoch = store.claim_view(&name).await.unwrap();
    let insert = Statement::new("INSERT INTO every VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)")
        .bind(true)
        .bind(i64::MIN)
        .bind(-7_i32)
        .bind(0.5_f64)
        .bind("it's; --")
        .bind("short")
        .bind(vec![0_u8, 255])
        .bind(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10_u128)
        .bind(Timestamp::from_millis(1_700_000_000_123))
        .bind(SqlValue::Json("{\"a\": [1]}".into()))
        .bind(None::<String>)
        .bind(SqlValue::Null);
    store.save_view_with(&name, epoch, view(1), &[insert]).await.unwrap();
    let row = server.sql("SET timezone = 'UTC'; SELECT * FROM every");
    let expected = "t|-9223372036854775808|-7|0.5|it's; --|short|\\x00ff|01020304-0506-0708-090a-0b0c0d0e0f10|\
                    2023-11-14 22:13:20.123+00|{\"a\": [1]}||";
    assert_eq!(row, expected);
    // A value is never part of the text, and is compared by its type.
    let delete = Statement::new("DELETE FROM every WHERE c = $1 AND h = $2").bind(-7_i64).bind(SqlValue::Null);
    store.save_view_with(&name, epoch, view(2), &[delete]).await.unwrap();
    assert_eq!(server.sql("SELECT count(*) FROM every"), "1");
}

#[whizbang::test]
async fn idle_node_has_written_its_tables() {
    let server = server();
    let hub = LoopbackHub::new();
    for round in 1..=5 {
        // Also right after the start, when the node claims its view.
        let node = start_member(&server, &hub, "only").await;
        for cents in [20, 30, 40] {
            node.client().send(deposit("ada", cents)).await.unwrap();
            node.wait_idle().await;
            assert_eq!(server.sql(ACTUAL), server.sql(EXPECTED), "round {round}");
        }
        node.stop().await.unwrap();
    }
    assert_eq!(server.sql(ACTUAL), "ada|450|15");
}

#[whizbang::test]
async fn failed_statement_leaves_neither_rows_nor_the_view() {
    let server = server();
    let store = connect(&server).await;
    let name = Name::from_static("balances").unwrap();
    let epoch = store.claim_view(&name).await.unwrap();
    let insert =
        |account: &str, cents: i64| Statement::new("INSERT INTO balances VALUES ($1, $2, 1)").bind(account).bind(cents);
    store.save_view_with(&name, epoch, view(1), &[insert("ada", 1)]).await.unwrap();
    let failures = [
        (insert("cyd", 13), "23514"),
        (insert("ada", 5), "23505"),
        (Statement::new("INSERT INTO missing VALUES (1)"), "42P01"),
        (Statement::new("SELECT 1 / $1::bigint").bind(0_i64), "22012"),
        (Statement::new("COMMIT"), "COMMIT is not allowed"),
        (Statement::new("/* a */ rollback"), "ROLLBACK is not allowed"),
        (Statement::new("; COMMIT"), "COMMIT is not allowed"),
        (Statement::new("-- a\rCOMMIT"), "COMMIT is not allowed"),
        (Statement::new("COPY balances FROM STDIN"), "COPY is not allowed"),
    ];
    for (failing, code) in failures {
        let statements = [insert("bob", 1), failing, insert("dan", 1)];
        match store.save_view_with(&name, epoch, view(2), &statements).await {
            Err(StoreError::Statement { number: 1, reason, is_transient: false }) if reason.contains(code) => {}
            other => panic!("{code}: {other:?}"),
        }
        assert_eq!(server.sql("SELECT string_agg(account, ' ') FROM balances"), "ada", "{code}");
        assert_eq!(store.view(&name).await.unwrap(), Some(view(1)), "{code}");
    }
    // Deferred constraints are checked with their statement.
    server.sql("CREATE TABLE owners (name text UNIQUE DEFERRABLE INITIALLY DEFERRED)");
    let owner = Statement::new("INSERT INTO owners VALUES ('ada')");
    match store.save_view_with(&name, epoch, view(2), &[owner.clone(), owner, insert("eve", 1)]).await {
        Err(StoreError::Statement { number: 1, .. }) => {}
        other => panic!("{other:?}"),
    }
    store.save_view_with(&name, epoch, view(2), &[insert("bob", 2)]).await.unwrap();
    assert_eq!(server.sql("SELECT sum(cents) FROM balances"), "3");
    assert_eq!(store.view(&name).await.unwrap(), Some(view(2)));
}

#[whizbang::test]
async fn owner_that_lost_the_view_runs_no_statement() {
    let server = server();
    let (one, other) = (connect(&server).await, connect(&server).await);
    let name = Name::from_static("balances").unwrap();
    let insert = [Statement::new("INSERT INTO balances VALUES ('ada', 1, 1)")];
    let old = one.claim_view(&name).await.unwrap();
    let young = other.claim_view(&name).await.unwrap();
    let refused = one.save_view_with(&name, old, view(1), &insert).await;
    assert!(matches!(refused, Err(StoreError::ViewTaken { .. })), "{refused:?}");
    assert_eq!(server.sql("SELECT count(*) FROM balances"), "0");
    other.save_view_with(&name, young, view(1), &insert).await.unwrap();
    assert_eq!(server.sql("SELECT count(*) FROM balances"), "1");
}

#[whizbang::test]
async fn claim_waits_for_a_transaction_under_way() {
    let server = server();
    let (one, other) = (connect(&server).await, connect(&server).await);
    let name = Name::from_static("balances").unwrap();
    let epoch = one.claim_view(&name).await.unwrap();
    let mut lock = Session::start(&server);
    lock.sql("BEGIN; LOCK TABLE balances IN ACCESS EXCLUSIVE MODE");
    let insert = [Statement::new("INSERT INTO balances VALUES ('ada', 1, 1)")];
    let saved = view(1);
    let save = one.save_view_with(&name, epoch, saved, &insert);
    let claim = async {
        until("a statement that waits", async || waiting_sessions(&server) == 1).await;
        let claim = other.claim_view(&name);
        let unlock = async {
            // The claim waits for the row of the view.
            until("a claim that waits", async || waiting_sessions(&server) == 2).await;
            lock.sql("COMMIT");
        };
        futures_util::future::join(claim, unlock).await.0.unwrap()
    };
    let (saved, young) = futures_util::future::join(save, claim).await;
    saved.unwrap();
    assert!(young > epoch);
    assert_eq!(other.view(&name).await.unwrap(), Some(view(1)), "what was committed before the claim is read after it");
    assert_eq!(server.sql("SELECT count(*) FROM balances"), "1");
}

/// A process that is stopped in the middle of its transaction holds the lock on its view for a limited time.
#[whizbang::test]
async fn owner_that_stops_in_its_transaction_loses_the_view() {
    let server = server();
    let (one, other) = (connect(&server).await, connect(&server).await);
    let name = Name::from_static("balances").unwrap();
    let epoch = one.claim_view(&name).await.unwrap();
    let insert = [Statement::new("INSERT INTO balances VALUES ('ada', 1, 1)")];
    let mut lock = Session::start(&server);
    lock.sql("BEGIN; LOCK TABLE balances IN ACCESS EXCLUSIVE MODE");
    let mut save = one.save_view_with(&name, epoch, view(1), &insert);
    until("a statement that waits", async || {
        assert!((&mut save).now_or_never().is_none(), "the table was not locked");
        waiting_sessions(&server) == 1
    })
    .await;
    lock.sql("COMMIT");
    // From here on the owner sends nothing. The other one waits, and its reads do not.
    let mut claim = other.claim_view(&name);
    until("a claim that waits", async || {
        assert!((&mut claim).now_or_never().is_none(), "the lock was not held");
        waiting_sessions(&server) == 1
    })
    .await;
    for _ in 0..8 {
        assert_eq!(other.view(&name).await.unwrap(), None);
    }
    until("a claim that does not wait for ever", async || match (&mut claim).now_or_never() {
        Some(claimed) => claimed.unwrap() > epoch,
        None => false,
    })
    .await;
    assert!(save.await.is_err());
    assert_eq!(other.view(&name).await.unwrap(), None);
    assert_eq!(server.sql("SELECT count(*) FROM balances"), "0");
}

#[whizbang::test]
async fn killed_server_or_sessions_write_each_event_once() {
    let mut server = server();
    let node = start(&server).await;
    for round in 0..brief_or_long(8, 100) {
        let sending = async {
            for n in 0..60 {
                let client = node.client();
                let id = client.new_id();
                let account = format!("account {}", n % 7);
                // A caller that gets no answer asks again, under the same id.
                while client.send(deposit(&account, 20)).id(id).deadline(Duration::from_secs(30)).await.is_err() {}
            }
        };
        let before = server.sql("SELECT coalesce(sum(deposits), 0) FROM balances");
        let faults = async {
            until("the next rows", async || server.sql("SELECT coalesce(sum(deposits), 0) FROM balances") != before)
                .await;
            if round % 2 == 0 {
                assert!(server.terminate_sessions() > 0);
            } else {
                server.kill();
                server.run();
            }
        };
        futures_util::future::join(sending, faults).await;
    }
    table_is_complete(&server).await;
    node.stop().await.unwrap();
    assert_eq!(server.sql(ACTUAL), server.sql(EXPECTED));
}

#[whizbang::test]
async fn node_killed_with_an_open_transaction_writes_each_event_once() {
    let server = server();
    for round in 0..5 {
        let node = start(&server).await;
        node.client().send(deposit("ada", 2)).await.unwrap();
        table_is_complete(&server).await;
        // The transaction of the next save waits in a statement while the node ends.
        let mut lock = Session::start(&server);
        lock.sql("BEGIN; SELECT * FROM balances FOR UPDATE");
        node.client().send(deposit("ada", 2)).await.unwrap();
        until("a statement that waits", async || waiting_sessions(&server) == 1).await;
        drop(node);
        lock.sql("COMMIT");
        drop(lock);
        let node = start(&server).await;
        table_is_complete(&server).await;
        assert_eq!(server.sql(ACTUAL), format!("ada|{}|{}", 4 * (round + 1), 2 * (round + 1)));
        node.stop().await.unwrap();
    }
}

#[whizbang::test]
async fn node_that_takes_over_the_view_writes_each_event_once() {
    let (server, hub) = (server(), LoopbackHub::new());
    let mut members = VecDeque::new();
    for label in ["one", "two"] {
        members.push_back(start_member(&server, &hub, label).await);
    }
    let epoch = || server.sql("SELECT epoch FROM whizbang.views WHERE projection = 'balance-table'");
    let (mut takeovers, mut round) = (0, 0);
    while takeovers < 2 {
        round += 1;
        assert!(round < 30, "the node that saves the view was never the one that ended");
        let client = members[1].client();
        let send = async |number: u32| {
            let account = format!("account {}", number % 9);
            client.send(deposit(&account, 20)).deadline(Duration::from_secs(30)).await.unwrap();
        };
        for number in 0..9 {
            send(number).await;
        }
        table_is_complete(&server).await;
        let before = epoch();
        // The transaction of the next events is open while a node ends, and is lost if it is the one that saves the view.
        let mut lock = Session::start(&server);
        lock.sql("BEGIN; SELECT * FROM balances FOR UPDATE");
        for number in 0..30 {
            send(number).await;
        }
        until("a statement that waits", async || waiting_sessions(&server) > 0).await;
        drop(members.pop_front());
        lock.sql("COMMIT");
        table_is_complete(&server).await;
        takeovers += u32::from(epoch() != before);
        members.push_back(start_member(&server, &hub, &format!("member {round}")).await);
    }
    for node in members {
        node.stop().await.unwrap();
    }
    assert_eq!(server.sql(ACTUAL), server.sql(EXPECTED));
}

#[whizbang::test]
async fn constraint_of_a_table_halts_the_shard_of_its_event() {
    let server = server();
    let node = start(&server).await;
    let client = node.client();
    for cents in [1, 14, 4] {
        client.send(deposit("ada", cents)).await.unwrap();
    }
    table_is_complete(&server).await;
    let bob = other_shard("ada");
    client.send(deposit(&bob, 13)).await.unwrap();
    client.send(deposit(&bob, 1)).await.unwrap();
    client.send(deposit("ada", 1)).await.unwrap();
    until("a halted shard", async || node.health().reasons.iter().any(|reason| reason.contains("23514"))).await;
    until("the other shards", async || server.sql(ACTUAL) == "ada|20|4").await;
    until("a node that is ready", async || node.health().ready).await;
    // With the constraint gone a restart continues at the event.
    node.stop().await.unwrap();
    server.sql("ALTER TABLE balances DROP CONSTRAINT balances_cents_check");
    let node = start(&server).await;
    table_is_complete(&server).await;
    assert!(node.health().reasons.is_empty(), "{:?}", node.health());
    node.stop().await.unwrap();
}
