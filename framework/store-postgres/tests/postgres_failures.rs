//! Failures of the server and of connections, seen by a store: nothing is lost, nothing is written twice, the cause is named,
//! and commits continue without a restart.

mod readers;

use std::sync::Arc;
use std::time::Duration;

use whizbang::error_chain;
use whizbang::message::{Name, ShardId};
use whizbang::store::{Store, StoreError};
use whizbang::testing::store::{Owner, RecordingListener, TurnBuilder, run};
use whizbang_store_postgres::{Durability, Migrations, PostgresStore};
use whizbang_tests::postgres::PostgresServer;
use whizbang_tests::{LossyProxy, eventually};

const PATIENCE: Duration = Duration::from_secs(60);

fn shard(number: u16) -> ShardId {
    ShardId::new(Name::new("bank").unwrap(), number)
}

fn turn(key: &str, number: u64) -> TurnBuilder {
    TurnBuilder::new("Account", key, number).at(number, number - 1).event("Happened", number.to_string())
}

fn url_of(proxy: &LossyProxy) -> String {
    format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port())
}

async fn connect(url: &str) -> Arc<dyn Store> {
    Arc::new(PostgresStore::connect(url).await.expect("connects"))
}

async fn rejection(url: &str) -> String {
    error_chain(&PostgresStore::connect(url).await.map(|_| ()).unwrap_err()).to_string()
}

/// Opens the shard 0.
async fn take(store: &Arc<dyn Store>) -> (Owner, Arc<RecordingListener>) {
    let listener = Arc::new(RecordingListener::default());
    (Owner::take_with(store, &shard(0), Arc::clone(&listener)).await, listener)
}

/// Appends turns of 8 keys until the number is reached, and waits for the last one.
async fn fill(owner: &mut Owner, from: u64, to: u64) {
    let mut last = None;
    for number in from..=to {
        for key in 0..8 {
            last = Some(owner.append(&turn(&key.to_string(), number)).expect("the turn is appended"));
        }
    }
    owner.settled(last.expect("there are turns")).await;
}

/// Checks every stream and every position in a store that is opened again.
async fn verify(url: &str, turns: u64) {
    let store = connect(url).await;
    let owner = Owner::take(&store, &shard(0)).await;
    assert_eq!(owner.reader.position(), 8 * turns);
    let events = owner.events(0, usize::MAX).await;
    assert!(events.iter().map(|event| event.position).eq(1..=8 * turns));
    for key in 0..8 {
        let history = owner.reader.history(&Name::new("Account").unwrap(), &key.to_string()).await.unwrap();
        assert!(history.iter().map(|turn| turn.number).eq(1..=turns), "key {key}");
    }
    store.close().await.unwrap();
}

#[test]
fn restarted_server_commits_what_was_appended_meanwhile() {
    let mut server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        let (mut owner, listener) = take(&store).await;
        fill(&mut owner, 1, 5).await;
        for (round, kill) in [true, false, true, false].into_iter().enumerate() {
            if kill {
                server.kill()
            } else {
                server.stop()
            }
            let first = 6 + round as u64;
            let appended = owner.append(&turn("0", first)).expect("it waits");
            assert!(!appended.committed);
            // The cause is named as long as it lasts.
            eventually("the cause to be named", PATIENCE, || {
                store.issues().iter().any(|issue| error_chain(issue).to_string().contains("PostgreSQL")).then_some(())
            });
            server.run();
            owner.settled(appended).await;
            eventually("the store to be well", PATIENCE, || store.issues().is_empty().then_some(()));
            for key in 1..8 {
                owner.commit(&turn(&key.to_string(), first)).await;
            }
        }
        assert!(listener.error().is_none(), "{:?}", listener.error());
        store.close().await.unwrap();
        verify(&server.url(), 9).await;
    });
}

#[test]
fn idle_store_notices_that_the_server_is_gone_and_back() {
    let mut server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        let (mut owner, _) = take(&store).await;
        fill(&mut owner, 1, 1).await;
        server.kill();
        eventually("the cause to be named", PATIENCE, || (!store.issues().is_empty()).then_some(()));
        server.run();
        eventually("the store to be well", PATIENCE, || store.issues().is_empty().then_some(()));
        fill(&mut owner, 2, 2).await;
    });
}

#[test]
fn sessions_are_terminated_under_load_without_a_loss() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        let (mut owner, listener) = take(&store).await;
        let mut ended = 0;
        for round in 0..20u64 {
            let mut last = None;
            for number in 1..=25 {
                for key in 0..8 {
                    last = Some(owner.append(&turn(&key.to_string(), round * 25 + number)).unwrap());
                    if (number, key) == (12, 3) {
                        ended += server.terminate_sessions();
                    }
                }
            }
            owner.settled(last.unwrap()).await;
        }
        assert!(ended >= 20, "{ended} sessions were ended");
        assert!(listener.error().is_none(), "{:?}", listener.error());
        store.close().await.unwrap();
        verify(&server.url(), 500).await;
    });
}

#[test]
fn commit_whose_answer_is_lost_is_found_and_not_repeated() {
    let server = PostgresServer::start();
    let proxy = LossyProxy::start(server.port());
    run(async {
        let store = connect(&url_of(&proxy)).await;
        let (mut owner, listener) = take(&store).await;
        fill(&mut owner, 1, 2).await;
        for round in 3..=12u64 {
            // The server gets the statement and executes it; its answer is thrown away with the connection.
            let after = server.sql("SELECT count(*) FROM whizbang.turns");
            let lost = proxy.lost();
            proxy.lose_answers();
            for key in 0..8 {
                owner.append(&turn(&key.to_string(), round)).unwrap();
            }
            eventually("the server to commit", PATIENCE, || {
                (server.sql("SELECT count(*) FROM whizbang.turns") != after).then_some(())
            });
            // The commit is visible before its answer has reached the proxy.
            eventually("the answer to be lost", PATIENCE, || (proxy.lost() > lost).then_some(()));
            proxy.restore();
            let last = owner.append(&TurnBuilder::new("Account", "end", round).at(round - 2, 0)).unwrap();
            owner.settled(last).await;
        }
        assert!(proxy.lost() >= 10, "{} answers were lost", proxy.lost());
        assert!(listener.error().is_none(), "{:?}", listener.error());
        store.close().await.unwrap();
        verify(&server.url(), 12).await;
    });
}

#[test]
fn lost_commit_is_not_confused_with_one_of_the_next_owner() {
    let server = PostgresServer::start();
    let proxy = LossyProxy::start(server.port());
    run(async {
        let (first, second) = (connect(&url_of(&proxy)).await, connect(&server.url()).await);
        let (mut old, listener) = take(&first).await;
        fill(&mut old, 1, 2).await;
        proxy.lose_requests();
        let late = old.append(&turn("0", 3)).unwrap();
        eventually("the cause to be named", PATIENCE, || (!first.issues().is_empty()).then_some(()));
        let (mut young, _) = take(&second).await;
        fill(&mut young, 3, 4).await;
        proxy.restore();
        let error = listener.until_settled(&old.shard, old.writer.epoch(), late.ticket).await.unwrap_err();
        assert!(matches!(error, StoreError::Fenced { .. }), "{error}");
        assert!(listener.error().is_none(), "{:?}", listener.error());
        fill(&mut young, 5, 5).await;
        first.close().await.unwrap();
        second.close().await.unwrap();
        verify(&server.url(), 5).await;
    });
}

#[test]
fn owner_in_another_process_is_fenced_for_its_lost_shards_only() {
    let server = PostgresServer::start();
    run(async {
        let (first, second) = (connect(&server.url()).await, connect(&server.url()).await);
        let listeners = [Arc::new(RecordingListener::default()), Arc::new(RecordingListener::default())];
        let mut lost = Owner::take_with(&first, &shard(0), Arc::clone(&listeners[0])).await;
        // With two writers: both listeners commit on the same connection.
        drop(Owner::take(&first, &shard(2)).await);
        let mut kept = Owner::take_with(&first, &shard(1), Arc::clone(&listeners[1])).await;
        lost.commit(&turn("ada", 1)).await;
        kept.commit(&turn("bob", 1)).await;
        let mut young = Owner::take(&second, &shard(0)).await;
        assert_eq!(young.load("Account", "ada").await.turns.len(), 1);
        let late = lost.append(&turn("ada", 2)).expect("the process does not know yet");
        let well = kept.append(&turn("bob", 2)).unwrap();
        let error = listeners[0].until_settled(&lost.shard, lost.writer.epoch(), late.ticket).await.unwrap_err();
        let current = young.writer.epoch();
        assert!(matches!(&error, StoreError::Fenced { current: found, .. } if *found == current), "{error}");
        kept.settled(well).await;
        assert!(lost.append(&turn("ada", 3)).is_err());
        young.commit(&turn("ada", 2)).await;
        kept.commit(&turn("bob", 3)).await;
        assert_eq!(server.sql("SELECT count(*) FROM whizbang.turns"), "5");
    });
}

#[test]
fn database_without_the_last_commits_fails_the_shards() {
    let mut server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        let (mut owner, listener) = take(&store).await;
        fill(&mut owner, 1, 3).await;
        server.stop();
        let copy = server.back_up();
        server.run();
        fill(&mut owner, 4, 6).await;
        server.stop();
        server.restore(&copy);
        server.run();
        let last = owner.append(&turn("0", 7)).unwrap();
        let error = listener.until(last.ticket).await.unwrap_err();
        assert!(error_chain(&error).to_string().contains("lacks committed turns"), "{error}");
        assert!(matches!(owner.append(&turn("0", 8)), Err(StoreError::Closed)));
        // Opened again, the shard continues from what is there.
        let mut next = Owner::take(&store, &shard(0)).await;
        assert_eq!(next.reader.position(), 24);
        fill(&mut next, 4, 4).await;
        store.close().await.unwrap();
        verify(&server.url(), 4).await;
    });
}

#[test]
fn read_only_server_is_named_and_commits_later() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        let (mut owner, _) = take(&store).await;
        fill(&mut owner, 1, 1).await;
        server.sql("ALTER SYSTEM SET default_transaction_read_only = on");
        server.sql("SELECT pg_reload_conf()");
        server.terminate_sessions();
        let last = owner.append(&turn("0", 2)).unwrap();
        eventually("the cause to be named", PATIENCE, || {
            store.issues().iter().any(|issue| error_chain(issue).to_string().contains("read-only")).then_some(())
        });
        server.sql("ALTER SYSTEM RESET default_transaction_read_only");
        server.sql("SELECT pg_reload_conf()");
        owner.settled(last).await;
        assert!(
            rejection(&format!("{}?options=-c%20default_transaction_read_only=on", server.url()))
                .await
                .contains("read-only")
        );
    });
}

#[test]
fn full_disk_rejects_turns_until_a_commit_succeeds() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        let (mut owner, _) = take(&store).await;
        fill(&mut owner, 1, 1).await;
        // The server's own error, without a disk that really is full.
        server.sql(
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$; \
             CREATE TRIGGER full_disk BEFORE INSERT ON whizbang.turns FOR EACH ROW EXECUTE FUNCTION full_disk()",
        );
        let waits = owner.append(&turn("0", 2)).expect("it is not known yet");
        let mut keys = 0..;
        eventually("turns to be rejected", PATIENCE, || {
            let fresh = format!("fresh-{}", keys.next()?);
            matches!(owner.append(&turn(&fresh, 1)), Err(StoreError::Full { .. })).then_some(())
        });
        assert!(store.issues().iter().any(|issue| matches!(issue, StoreError::Full { .. })));
        server.sql("DROP TRIGGER full_disk ON whizbang.turns");
        owner.settled(waits).await;
        eventually("the store to be well", PATIENCE, || store.issues().is_empty().then_some(()));
    });
}

#[test]
fn unsafe_server_is_rejected_unless_it_is_accepted_by_name() {
    for (setting, value) in [("fsync", "off"), ("full_page_writes", "off"), ("synchronous_commit", "off")] {
        let server = PostgresServer::start_with(&[(setting, value)]);
        run(async {
            let error = rejection(&server.url()).await;
            assert!(error.contains(&format!("{setting} is off")), "{error}");
            let store = PostgresStore::builder(&server.url()).durability(Durability::Any).connect().await.unwrap();
            assert!(store.durability().contains("NOT durable"));
        });
    }
}

#[test]
fn too_many_connections_are_named() {
    let server = PostgresServer::start();
    server.sql("CREATE ROLE app LOGIN CONNECTION LIMIT 1");
    server.sql("GRANT CREATE ON DATABASE postgres TO app");
    let url = server.url().replacen("postgres@", "app@", 1);
    run(async {
        let error = rejection(&url).await;
        assert!(error.contains("too many connections"), "{error}");
    });
}

#[test]
fn tables_of_a_newer_version_are_rejected() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        store.close().await.unwrap();
        server.sql("INSERT INTO whizbang.migrations (version) VALUES (99)");
        let error = PostgresStore::connect(&server.url()).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 99, known: 5, .. }), "{error}");
    });
}

#[test]
fn printed_migrations_are_all_that_a_limited_user_needs() {
    let server = PostgresServer::start();
    server.sql("CREATE ROLE app LOGIN");
    let url = server.url().replacen("postgres@", "app@", 1);
    run(async {
        let connect = || PostgresStore::builder(&url).migrations(Migrations::Expect).connect();
        let error = error_chain(&connect().await.map(|_| ()).unwrap_err()).to_string();
        assert!(error.contains("version 5 of the tables is needed, found 0"), "{error}");
        server.sql(&PostgresStore::migrations());
        server.sql("GRANT USAGE ON SCHEMA whizbang TO app");
        server.sql("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA whizbang TO app");
        let store: Arc<dyn Store> = Arc::new(connect().await.unwrap());
        let (mut owner, _) = take(&store).await;
        fill(&mut owner, 1, 2).await;
        let view = Name::new("balances").unwrap();
        let epoch = store.claim_view(&view).await.unwrap();
        assert!(store.claim_view(&view).await.unwrap() > epoch);
        store.close().await.unwrap();
    });
}

#[test]
fn schemas_keep_two_services_apart() {
    let server = PostgresServer::start();
    run(async {
        for schema in ["one", "two"] {
            let store = PostgresStore::builder(&server.url()).schema(schema).connect().await.unwrap();
            let store: Arc<dyn Store> = Arc::new(store);
            let (mut owner, _) = take(&store).await;
            assert_eq!(owner.reader.position(), 0);
            fill(&mut owner, 1, 2).await;
            store.close().await.unwrap();
        }
        let refused = PostgresStore::builder(&server.url()).schema("a; DROP").connect().await.map(|_| ()).unwrap_err();
        assert!(error_chain(&refused).to_string().contains("is not the name of a schema"), "{refused}");
    });
}

#[test]
fn events_are_read_with_plain_sql() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        let mut owner = Owner::take(&store, &shard(3)).await;
        owner.commit(&turn("a\0b\\c", 1)).await;
        let two = TurnBuilder::new("Account", "ada", 7).event("Deposited", r#"{"cents": 5}"#).event("Odd", "no JSON");
        owner.commit(&two).await;
        let row = server.sql(
            "SELECT domain, shard, position, actor, key, stream_version, type, schema_version, data->>'cents', \
             convert_from(payload, 'UTF8') FROM whizbang.events WHERE type = 'Deposited'",
        );
        assert_eq!(row, r#"bank|3|2|Account|ada|1|Deposited|3|5|{"cents": 5}"#);
        assert_eq!(server.sql("SELECT data IS NULL FROM whizbang.events WHERE type = 'Odd'"), "t");
        assert_eq!(server.sql("SELECT key FROM whizbang.events WHERE position = 1"), r"a\0b\\c");
        let plan = server.sql(
            "EXPLAIN SELECT * FROM whizbang.events WHERE domain = 'bank' AND shard = 3 AND actor = 'Account' AND key = 'ada'",
        );
        assert!(!plan.contains("Seq Scan on event_data") && !plan.contains("Seq Scan on turns"), "{plan}");
    });
}

#[test]
fn commits_leave_no_dead_rows() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        let (mut owner, _) = take(&store).await;
        let to = ShardId::new(Name::new("shop").unwrap(), 0);
        for round in 0..50 {
            fill(&mut owner, 10 * round + 1, 10 * round + 10).await;
            owner.sent(&to, round).await;
        }
        store.close().await.unwrap();
        let dead = "SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE relname IN ('turns', 'event_data')";
        assert_eq!(server.sql(dead), "0");
        // A row that commits only lock, and one that is replaced in its page.
        let pages = "SELECT pg_relation_size('whizbang.shards') / 8192, pg_relation_size('whizbang.progress') / 8192";
        assert_eq!(server.sql(pages), "1|1");
    });
}

#[test]
fn silent_server_is_named_until_it_answers() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        let silent = |issue: &StoreError| error_chain(issue).to_string().contains("does not answer");
        let named = || eventually("its name", PATIENCE, || store.issues().iter().any(silent).then_some(()));
        let is_well = || eventually("the store to be well", PATIENCE, || store.issues().is_empty().then_some(()));
        let (mut owner, _) = take(&store).await;
        fill(&mut owner, 1, 1).await;
        server.pause();
        let last = owner.append_alone(&turn("0", 2)).unwrap();
        assert!(!last.committed);
        named();
        server.resume();
        owner.settled(last).await;
        is_well();
        // The store is idle: no commit shows that the server answers again.
        server.pause();
        named();
        server.resume();
        is_well();
    });
}

#[test]
fn stalled_server_blocks_an_actor_for_a_moment_only() {
    let server = PostgresServer::start();
    run(async {
        let store = connect(&server.url()).await;
        let (mut owner, _) = take(&store).await;
        let (mut number, mut waits) = (0, Vec::new());
        while waits.len() < 3 {
            // Until a commit is fast: then the next lone turn waits for its own.
            eventually("a commit within a millisecond", PATIENCE, || {
                number += 1;
                owner.append_alone(&turn("ada", number)).unwrap().committed.then_some(())
            });
            server.pause();
            number += 1;
            let begun = tokio::time::Instant::now();
            let last = owner.append_alone(&turn("ada", number)).unwrap();
            // After a commit that was slow nevertheless, the turn is left to the writer's thread at once.
            waits.extend(Some(begun.elapsed()).filter(|wait| *wait >= Duration::from_micros(500)));
            assert!(!last.committed);
            server.resume();
            owner.settled(last).await;
        }
        assert!(waits.iter().any(|wait| *wait < Duration::from_millis(8)), "{waits:?}");
    });
}
