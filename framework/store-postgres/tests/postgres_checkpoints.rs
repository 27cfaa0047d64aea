//! Checkpoints: an opening reads only the newest turns, and finds everything that it would find in the whole log.

use std::sync::Arc;
use std::time::Duration;

use whizbang::error_chain;
use whizbang::message::{Name, ShardId};
use whizbang::store::{Leases, Member, MemberId, Store, StoreError};
use whizbang::testing::store::{Owner, RecordingListener, SHARDS, TurnBuilder, run};
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::brief_or_long;
use whizbang_tests::postgres::PostgresServer;

const KEYS: u64 = 1000;

fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

fn bank(number: u16) -> ShardId {
    ShardId::new(name("bank"), number)
}

fn turn(key: u64, number: u64) -> TurnBuilder {
    TurnBuilder::new("Account", &key.to_string(), number).at(number, number - 1).event("Happened", "1")
}

async fn connect(server: &PostgresServer) -> Arc<PostgresStore> {
    Arc::new(PostgresStore::connect(&server.url()).await.expect("connects"))
}

fn shared(store: &Arc<PostgresStore>) -> Arc<dyn Store> {
    Arc::clone(store) as Arc<dyn Store>
}

/// Commits turns of each key, from a number to another.
async fn fill(owner: &mut Owner, keys: u64, from: u64, to: u64) {
    let mut last = None;
    for number in from..=to {
        for key in 0..keys {
            last = Some(owner.append(&turn(key, number)).expect("the turn is appended"));
        }
        // At most about a megabyte waits.
        if let Some(last) = last.take_if(|_| number % 8 == 0 || number == to) {
            owner.settled(last).await;
        }
    }
}

/// Makes a record of the shard's beginning unreadable: an opening that reads it fails.
fn damage_the_beginning(server: &PostgresServer) {
    server.sql("UPDATE whizbang.turns SET record = '\\x00' WHERE location = 3");
}

#[test]
fn opening_reads_only_the_turns_after_a_checkpoint() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server).await;
        let mut owner = Owner::take(&shared(&store), &bank(0)).await;
        fill(&mut owner, 8, 1, 5).await;
        store.checkpoint().await;
        fill(&mut owner, 8, 6, 7).await;
        store.close().await.unwrap();
        damage_the_beginning(&server);
        let store = connect(&server).await;
        let mut owner = Owner::take(&shared(&store), &bank(0)).await;
        assert_eq!(owner.reader.position(), 56);
        fill(&mut owner, 8, 8, 9).await;
        let history = owner.reader.history(&name("Account"), "7").await.unwrap();
        assert!(history.iter().map(|turn| turn.number).eq(1..=9));
        let damaged = owner.reader.history(&name("Account"), "2").await.map(|_| ()).unwrap_err();
        assert!(matches!(damaged, StoreError::Corrupt { .. }), "{damaged}");
        store.close().await.unwrap();
        server.sql("DELETE FROM whizbang.checkpoints");
        let store = connect(&server).await;
        let listener = Arc::new(RecordingListener::default());
        let whole = store.open(&bank(0), SHARDS, listener).await.map(|_| ()).unwrap_err();
        assert!(matches!(whole, StoreError::Corrupt { .. }), "{whole}");
    });
}

#[test]
fn damaged_checkpoint_is_skipped() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server).await;
        let mut owner = Owner::take(&shared(&store), &bank(0)).await;
        fill(&mut owner, 8, 1, 5).await;
        store.checkpoint().await;
        store.close().await.unwrap();
        for damage in ["set_byte(bytes, 40, get_byte(bytes, 40) # 1)", "substr(bytes, 1, 20)", "''"] {
            server.sql(&format!("UPDATE whizbang.checkpoints SET bytes = {damage}"));
            let store = connect(&server).await;
            let owner = Owner::take(&shared(&store), &bank(0)).await;
            assert_eq!(owner.reader.position(), 40);
            assert_eq!(owner.load("Account", "7").await.turns.len(), 5);
            store.close().await.unwrap();
        }
    });
}

#[test]
fn log_that_ends_before_its_checkpoint_is_rejected() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server).await;
        let mut owner = Owner::take(&shared(&store), &bank(0)).await;
        fill(&mut owner, 8, 1, 5).await;
        store.checkpoint().await;
        store.close().await.unwrap();
        server.sql("DELETE FROM whizbang.turns WHERE location > 30");
        let store = connect(&server).await;
        let listener = Arc::new(RecordingListener::default());
        let error = store.open(&bank(0), SHARDS, listener).await.map(|_| ()).unwrap_err();
        assert!(error_chain(&error).to_string().contains("ends before its checkpoint"), "{error}");
        assert!(
            store.issues().iter().any(|issue| error_chain(issue).to_string().contains("ends before its checkpoint"))
        );
    });
}

#[test]
fn fenced_owner_saves_no_checkpoint() {
    async fn renew(store: &Arc<PostgresStore>, id: u128, ttl: Duration) -> Leases {
        let member = Member::new(MemberId::from_u128(id), name("bank"), "node");
        store.leases().unwrap().renew(&member, ttl).await.unwrap()
    }
    let server = PostgresServer::start();
    run(async {
        let (one, other) = (connect(&server).await, connect(&server).await);
        renew(&one, 1, Duration::ZERO).await;
        let refused = Owner::lease(&shared(&one), MemberId::from_u128(1), &bank(0)).await;
        assert!(refused.is_none(), "its lease has no time");
        renew(&one, 1, Duration::from_secs(600)).await;
        renew(&other, 2, Duration::from_secs(600)).await;
        let mut old = Owner::lease(&shared(&one), MemberId::from_u128(1), &bank(0)).await.unwrap();
        fill(&mut old, 8, 1, 2).await;
        renew(&one, 1, Duration::ZERO).await;
        let mut young = Owner::lease(&shared(&other), MemberId::from_u128(2), &bank(0)).await.unwrap();
        fill(&mut young, 8, 3, 3).await;
        // It does not know yet that it has lost the shard.
        one.checkpoint().await;
        assert_eq!(server.sql("SELECT count(*) FROM whizbang.checkpoints"), "0");
        other.checkpoint().await;
        assert_eq!(server.sql("SELECT through FROM whizbang.checkpoints"), "25");
    });
}

/// Everything that a reader of the shard answers, as text.
async fn everything(server: &PostgresServer) -> String {
    let store = connect(server).await;
    let owner = Owner::take(&shared(&store), &bank(0)).await;
    let reader = &owner.reader;
    let shop = ShardId::new(name("shop"), 1);
    let mut streams = reader.streams().await.unwrap();
    streams.sort();
    let mut loaded = Vec::new();
    for (actor, key) in &streams {
        loaded.push(reader.load(actor, key).await.unwrap());
    }
    let heads = reader.outbox_heads();
    let outbox = reader.outbox(&shop, 0, 10_000).await.unwrap();
    let events = owner.events(0, usize::MAX).await;
    let seen = format!("{} {heads:?} {outbox:?} {events:?} {streams:?} {loaded:?}", reader.position());
    store.close().await.unwrap();
    seen
}

#[test]
fn checkpoints_under_load_equal_the_log() {
    let server = PostgresServer::start();
    run(async {
        let store = PostgresStore::builder(&server.url()).checkpoint_turns(1).connect().await.unwrap();
        let store = Arc::new(store);
        let mut owner = Owner::take(&shared(&store), &bank(0)).await;
        let shop = ShardId::new(name("shop"), 1);
        let mut last = None;
        for number in 1..=200 {
            for key in 0..8 {
                let mut turn = turn(key, number);
                if (key + number) % 3 == 0 {
                    turn = turn.send(&shop, number);
                }
                last = Some(owner.append(&turn).unwrap());
            }
            if number % 20 == 0 {
                owner.sent(&shop, number).await;
            }
        }
        owner.settled(last.unwrap()).await;
        // Neither closed nor saved at the end: the last checkpoint is behind the log.
        drop((owner, store));
        assert_ne!(server.sql("SELECT count(*) FROM whizbang.checkpoints"), "0");
        let with = everything(&server).await;
        server.sql("DELETE FROM whizbang.checkpoints");
        server.sql("DELETE FROM whizbang.handled_ids");
        assert_eq!(with, everything(&server).await);
    });
}

#[test]
fn long_log_grows_by_its_rows_only_and_opens_by_its_end() {
    let turns = brief_or_long(100_000, 5_000_000);
    let server = PostgresServer::start_in("/tmp", &[("max_wal_size", "4GB")]);
    let reopened = async |what: &str| {
        let store = connect(&server).await;
        let begun = tokio::time::Instant::now();
        let owner = Owner::take(&shared(&store), &bank(0)).await;
        let took = begun.elapsed();
        println!("{turns} turns of {KEYS} keys, opened {what}: {took:?}");
        assert_eq!(owner.reader.position(), turns);
        store.close().await.unwrap();
        took
    };
    run_long(async {
        let store = connect(&server).await;
        let mut owner = Owner::take(&shared(&store), &bank(0)).await;
        // An old snapshot, as of a report that runs for long: rows that are replaced cannot be removed.
        let mut report = whizbang_tests::postgres::Session::start(&server);
        report.sql("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM whizbang.turns");
        fill(&mut owner, KEYS, 1, turns / KEYS).await;
        drop(report);
        store.close().await.unwrap();
        drop((owner, store));
        // A session reports the rows that it has replaced when it ends, and that must not be after the vacuum.
        let others =
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
        let begun = tokio::time::Instant::now();
        while server.sql(others) != "0" {
            assert!(begun.elapsed() < Duration::from_secs(20), "a session stays");
        }
        server.sql("VACUUM ANALYZE");
        let sizes = server
            .sql("SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE relname IN ('turns', 'event_data', 'shards')");
        assert_eq!(sizes, "0");
        let bytes: u64 = server
            .sql("SELECT pg_total_relation_size('whizbang.turns') + pg_total_relation_size('whizbang.event_data')")
            .parse()
            .unwrap();
        println!("{} bytes for each turn", bytes / turns);
        assert!(bytes / turns < 600, "{} bytes for each turn", bytes / turns);
        assert_eq!(server.sql("SELECT pg_relation_size('whizbang.shards') / 8192"), "1");
        assert_eq!(server.sql("SELECT count(*) FROM whizbang.checkpoints"), "1");
        let by_its_end = reopened("by its checkpoint").await;
        server.sql("DELETE FROM whizbang.checkpoints");
        let by_all = reopened("without a checkpoint").await;
        assert!(by_its_end < by_all, "{by_its_end:?}, {by_all:?}");
    });
}

/// As `run`, without the limit for a case.
fn run_long(case: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, case);
}
