//! Leases in PostgreSQL beyond the conformance suite: the server's clock, races of renewals and takeovers, sessions that hold
//! locks.

use std::sync::Arc;
use std::time::Duration;

use whizbang::error_chain;
use whizbang::message::{Name, ShardId};
use whizbang::store::{Leases, Member, MemberId, Store, StoreError};
use whizbang::testing::store::{Owner, RecordingListener, SHARDS, TurnBuilder, run};
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::postgres::{PostgresServer, Session};

const PATIENCE: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(600);

const ADA: MemberId = MemberId::from_u128(1);
const BOB: MemberId = MemberId::from_u128(2);

/// Waits for a shard's row as long as a session holds it.
const HOLD: &str = "BEGIN; SELECT id FROM whizbang.shards WHERE number = 0 FOR UPDATE";

fn bank(number: u16) -> ShardId {
    ShardId::new(Name::new("bank").unwrap(), number)
}

fn turn(number: u64) -> TurnBuilder {
    TurnBuilder::new("Account", "ada", number).at(number, number - 1).event("Happened", "1")
}

async fn connect(url: &str) -> Arc<dyn Store> {
    Arc::new(PostgresStore::connect(url).await.expect("connects"))
}

async fn renew(store: &Arc<dyn Store>, member: MemberId, ttl: Duration) -> Leases {
    let member = Member::new(member, Name::new("bank").unwrap(), "node");
    store.leases().unwrap().renew(&member, ttl).await.expect("the lease is renewed")
}

/// Two nodes; the first one owns the shard 0.
async fn two(server: &PostgresServer) -> (Arc<dyn Store>, Arc<dyn Store>, Owner) {
    let (one, other) = (connect(&server.url()).await, connect(&server.url()).await);
    renew(&one, ADA, LONG).await;
    renew(&other, BOB, LONG).await;
    let owner = Owner::lease(&one, ADA, &bank(0)).await.expect("the shard is free");
    (one, other, owner)
}

/// The number of sessions that wait for a lock.
fn waiting_sessions(server: &PostgresServer) -> usize {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
    server.sql(waiting).parse().expect("a number")
}

/// Waits for a condition, while tasks of this thread run.
async fn until(mut holds: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "the condition did not hold in time");
        tokio::task::yield_now().await;
    }
}

#[test]
fn leases_are_counted_by_the_clock_of_the_server() {
    let server = PostgresServer::start();
    // The server's clock, as far as the store sees it, is an hour ahead of this process.
    server.sql(
        "CREATE SCHEMA shifted; CREATE TABLE shifted.by (ahead interval); INSERT INTO shifted.by VALUES ('1 hour'); \
         CREATE FUNCTION shifted.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS \
         'SELECT pg_catalog.clock_timestamp() + ahead FROM shifted.by'; \
         ALTER DATABASE postgres SET search_path = shifted, pg_catalog",
    );
    run(async {
        let (one, other, mut owner) = two(&server).await;
        let seen = renew(&one, ADA, LONG).await;
        assert_eq!((seen.members.len(), seen.owner(&bank(0))), (2, Some(ADA)));
        assert!(Owner::lease(&other, BOB, &bank(0)).await.is_none(), "the lease has ten minutes");
        server.sql("UPDATE shifted.by SET ahead = '1 hour 9 minutes'");
        assert!(Owner::lease(&other, BOB, &bank(0)).await.is_none(), "it has another minute");
        owner.try_commit(&turn(1)).await.unwrap();
        server.sql("UPDATE shifted.by SET ahead = '1 hour 11 minutes'");
        renew(&other, BOB, LONG).await;
        let mut taker = Owner::lease(&other, BOB, &bank(0)).await.expect("the lease has expired");
        taker.try_commit(&turn(2)).await.unwrap();
        assert!(matches!(owner.try_commit(&turn(2)).await, Err(StoreError::Fenced { .. })));
    });
}

#[test]
fn renewal_during_a_takeover_comes_before_or_after_it() {
    let server = PostgresServer::start();
    run(async {
        let (one, other, _owner) = two(&server).await;
        renew(&one, ADA, Duration::ZERO).await;
        let mut lock = Session::start(&server);
        lock.sql(HOLD);
        let takeover = tokio::task::spawn_local(async move { Owner::lease(&other, BOB, &bank(0)).await.is_some() });
        until(|| waiting_sessions(&server) == 1).await;
        // The owner renews its lease while the other member waits for the shard.
        let renewal = tokio::task::spawn_local(async move { renew(&one, ADA, LONG).await.owner(&bank(0)) });
        until(|| renewal.is_finished() || waiting_sessions(&server) == 2).await;
        lock.sql("COMMIT");
        let (taken, owner) = (takeover.await.unwrap(), renewal.await.unwrap());
        assert!(taken != (owner == Some(ADA)), "taken: {taken}, the renewal returned {owner:?}");
    });
}

#[test]
fn session_with_a_lock_delays_a_takeover_for_a_limited_time() {
    let server = PostgresServer::start();
    run(async {
        let (one, other, mut owner) = two(&server).await;
        renew(&one, ADA, Duration::ZERO).await;
        let mut lock = Session::start(&server);
        lock.sql(HOLD);
        let listener = Arc::new(RecordingListener::default());
        let leases = other.leases().unwrap();
        let refused = leases.open(BOB, &bank(0), SHARDS, listener).await.map(|_| ());
        let error = refused.unwrap_err();
        assert!(error_chain(&error).to_string().contains("lock timeout"), "{error}");
        lock.sql("COMMIT");
        owner.try_commit(&turn(1)).await.expect("nothing has changed");
        assert!(Owner::lease(&other, BOB, &bank(0)).await.is_some());
    });
}

#[test]
fn renewal_does_not_wait_for_commits() {
    let server = PostgresServer::start();
    run(async {
        let (one, _other, mut owner) = two(&server).await;
        let mut lock = Session::start(&server);
        lock.sql(HOLD);
        let late = owner.append(&turn(1)).unwrap();
        until(|| waiting_sessions(&server) == 1).await;
        for _ in 0..10 {
            assert_eq!(renew(&one, ADA, LONG).await.owner(&bank(0)), Some(ADA));
        }
        assert_eq!(owner.reader.position(), 0, "the commit still waits");
        lock.sql("COMMIT");
        owner.settled(late).await;
    });
}

#[test]
fn exclusive_store_has_no_leases_and_takes_every_shard() {
    let server = PostgresServer::start();
    run(async {
        let (one, _other, mut owner) = two(&server).await;
        let alone = PostgresStore::builder(&server.url()).exclusive().connect().await.unwrap();
        assert!(alone.leases().is_none());
        let alone: Arc<dyn Store> = Arc::new(alone);
        let mut young = Owner::take(&alone, &bank(0)).await;
        young.commit(&turn(1)).await;
        assert!(matches!(owner.try_commit(&turn(1)).await, Err(StoreError::Fenced { .. })));
        assert_eq!(renew(&one, ADA, LONG).await.owner(&bank(0)), None);
    });
}

#[test]
fn takeovers_under_load_lose_and_double_nothing() {
    let server = PostgresServer::start();
    run(async {
        let stores = [connect(&server.url()).await, connect(&server.url()).await];
        let members = [ADA, BOB];
        let mut committed = 0;
        let mut held: Vec<Owner> = Vec::new();
        for round in 0..20 {
            let at = round % 2;
            renew(&stores[at], members[at], LONG).await;
            renew(&stores[1 - at], members[1 - at], Duration::ZERO).await;
            let mut taken = Vec::new();
            // The old owners append while each shard is taken.
            for number in 0..SHARDS {
                for old in &mut held {
                    let next = old.load("Account", "ada").await.turns.len() as u64 + 1;
                    drop(old.append(&turn(next)));
                }
                taken.push(Owner::lease(&stores[at], members[at], &bank(number)).await.expect("its lease is expired"));
            }
            held = taken;
            for owner in &mut held {
                let next = owner.load("Account", "ada").await.turns.len() as u64 + 1;
                owner.try_commit(&turn(next)).await.unwrap();
                committed += 1;
            }
        }
        let rows: u64 = server.sql("SELECT count(*) FROM whizbang.turns").parse().unwrap();
        assert!(rows >= committed, "{rows} rows, {committed} reported");
        for owner in &held {
            let turns = owner.load("Account", "ada").await.turns;
            assert!(turns.iter().map(|turn| turn.number).eq(1..=turns.len() as u64));
            assert_eq!(owner.reader.position(), turns.len() as u64);
        }
    });
}

#[test]
fn commit_waits_for_a_takeover_that_is_under_way() {
    let server = PostgresServer::start();
    run(async {
        let (_one, _other, mut owner) = two(&server).await;
        owner.try_commit(&turn(1)).await.unwrap();
        let mut takeover = Session::start(&server);
        takeover.sql("BEGIN; UPDATE whizbang.shards SET epoch = epoch + 1, owner = NULL WHERE number = 0");
        let late = owner.append(&turn(2)).unwrap();
        until(|| waiting_sessions(&server) == 1).await;
        takeover.sql("COMMIT");
        let outcome = owner.listener.until_settled(&owner.shard, owner.writer.epoch(), late.ticket).await;
        assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{outcome:?}");
        assert_eq!(server.sql("SELECT count(*) FROM whizbang.turns"), "1");
    });
}

/// The database forgets a takeover whose owner continues. By a count, the next takeover would have the same epoch.
#[test]
fn takeover_on_an_older_database_has_a_later_epoch() {
    let mut server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        renew(&store, ADA, LONG).await;
        renew(&store, BOB, LONG).await;
        store.close().await.unwrap();
        server.stop();
        let copy = server.back_up();
        server.run();
        let first = connect(&server.url()).await;
        let lost = Owner::lease(&first, ADA, &bank(0)).await.expect("the shard is free");
        server.stop();
        server.restore(&copy);
        server.run();
        let second = connect(&server.url()).await;
        let mut next = Owner::lease(&second, BOB, &bank(0)).await.expect("the shard is free in the copy");
        assert!(next.writer.epoch() > lost.writer.epoch(), "{} after {}", next.writer.epoch(), lost.writer.epoch());
        next.try_commit(&turn(1)).await.unwrap();
    });
}
