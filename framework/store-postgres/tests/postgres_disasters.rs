//! Disasters of the server, for real: a full disk, a standby that is promoted without the last commits.

use std::sync::Arc;
use std::time::Duration;

use whizbang::error_chain;
use whizbang::message::{Name, ShardId};
use whizbang::store::{Store, StoreError};
use whizbang::testing::store::{Owner, RecordingListener, TurnBuilder, run};
use whizbang_store_postgres::PostgresStore;
use whizbang_tests::eventually;
use whizbang_tests::postgres::{PostgresServer, SmallDisk};

const PATIENCE: Duration = Duration::from_secs(60);

/// The keys that are written.
const KEYS: u64 = 8;

fn shard() -> ShardId {
    ShardId::new(Name::new("bank").unwrap(), 0)
}

fn turn(key: u64, number: u64) -> TurnBuilder {
    let payload = "x".repeat(1000);
    TurnBuilder::new("Account", &key.to_string(), number).at(number, number - 1).event("Happened", payload)
}

async fn connect(url: &str) -> Arc<dyn Store> {
    Arc::new(PostgresStore::connect(url).await.expect("connects"))
}

async fn take(store: &Arc<dyn Store>) -> (Owner, Arc<RecordingListener>) {
    let listener = Arc::new(RecordingListener::default());
    (Owner::take_with(store, &shard(), Arc::clone(&listener)).await, listener)
}

async fn fill(owner: &mut Owner, from: u64, to: u64) {
    for number in from..=to {
        for key in 0..KEYS {
            owner.commit(&turn(key, number)).await;
        }
    }
}

/// Appends turns, one key after the other, until the store rejects one. Returns the number of each key's last turn.
fn append_until_full(owner: &mut Owner, from: u64) -> Vec<u64> {
    let mut last = vec![from; KEYS as usize];
    eventually("turns to be rejected", PATIENCE, || {
        for key in 0..KEYS {
            let next = last[key as usize] + 1;
            match owner.append(&turn(key, next)) {
                Ok(_) => last[key as usize] = next,
                Err(StoreError::Full { .. }) => return Some(()),
                Err(error) => panic!("{error}"),
            }
        }
        None
    });
    last
}

/// Checks that the log has exactly these turns of each key.
async fn verify(url: &str, last: &[u64]) {
    let store = connect(url).await;
    let owner = Owner::take(&store, &shard()).await;
    assert_eq!(owner.reader.position(), last.iter().sum::<u64>());
    for (key, last) in last.iter().enumerate() {
        let history = owner.reader.history(&Name::new("Account").unwrap(), &key.to_string()).await.unwrap();
        assert!(history.iter().map(|turn| turn.number).eq(1..=*last), "key {key}");
    }
    store.close().await.unwrap();
}

#[test]
fn really_full_disk_rejects_turns_and_loses_none() {
    let disk = SmallDisk::mount(192);
    let place = disk.path().to_str().unwrap();
    let server = PostgresServer::start_in(place, &[("max_wal_size", "64MB"), ("min_wal_size", "32MB")]);
    run(async {
        let store = connect(&server.url()).await;
        let (mut owner, listener) = take(&store).await;
        fill(&mut owner, 1, 5).await;
        let mut from = 5;
        for _ in 0..3 {
            disk.fill();
            let last = append_until_full(&mut owner, from);
            let full = store.issues().iter().any(|issue| matches!(issue, StoreError::Full { .. }));
            assert!(full, "{:?}", store.issues());
            disk.free();
            eventually("the store to be well", PATIENCE, || store.issues().is_empty().then_some(()));
            // Every turn that was accepted is committed.
            from = *last.iter().max().unwrap();
            for (key, last) in (0..).zip(&last) {
                for number in last + 1..=from {
                    owner.commit(&turn(key, number)).await;
                }
            }
        }
        assert!(listener.error().is_none(), "{:?}", listener.error());
        store.close().await.unwrap();
        verify(&server.url(), &[from; KEYS as usize]).await;
    });
    let log = server.log();
    assert!(log.contains("No space left on device"), "{log}");
}

#[test]
fn promoted_standby_without_the_last_commits_is_detected() {
    let mut primary = PostgresServer::start();
    let standby = PostgresServer::standby(&primary);
    let url = format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres", primary.port(), standby.port());
    run(async {
        let store = connect(&url).await;
        let (mut owner, listener) = take(&store).await;
        fill(&mut owner, 1, 3).await;
        let end = primary.sql("SELECT pg_current_wal_lsn()");
        eventually("the standby to follow", PATIENCE, || {
            (standby.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")) == "t").then_some(())
        });
        standby.sql("ALTER SYSTEM SET primary_conninfo = ''");
        standby.sql("SELECT pg_reload_conf()");
        eventually("the standby to be cut off", PATIENCE, || {
            (standby.sql("SELECT count(*) FROM pg_stat_wal_receiver") == "0").then_some(())
        });
        fill(&mut owner, 4, 6).await;
        primary.kill();
        let last = owner.append(&turn(0, 7)).unwrap();
        eventually("the cause to be named", PATIENCE, || (!store.issues().is_empty()).then_some(()));
        assert!(listener.error().is_none(), "a standby is not used: {:?}", listener.error());
        standby.sql("SELECT pg_promote()");
        let error = listener.until(last.ticket).await.unwrap_err();
        assert!(error_chain(&error).to_string().contains("lacks committed turns"), "{error}");
        // Opened again, the shard continues from what is there.
        let (mut next, _) = take(&store).await;
        assert_eq!(next.reader.position(), 3 * KEYS);
        fill(&mut next, 4, 4).await;
        store.close().await.unwrap();
        verify(&standby.url(), &[4; KEYS as usize]).await;
    });
}

#[test]
fn promoted_standby_with_every_commit_is_continued_on() {
    let mut primary = PostgresServer::start_with(&[("synchronous_standby_names", "*")]);
    // Until a standby follows, commits wait.
    let standby = PostgresServer::standby(&primary);
    let url = format!("postgres://postgres@127.0.0.1:{},127.0.0.1:{}/postgres", primary.port(), standby.port());
    run(async {
        let store = connect(&url).await;
        assert!(store.durability().contains("loss of the server"), "{}", store.durability());
        let (mut owner, listener) = take(&store).await;
        fill(&mut owner, 1, 5).await;
        primary.kill();
        let last = owner.append(&turn(0, 6)).unwrap();
        standby.sql("SELECT pg_promote()");
        owner.settled(last).await;
        for key in 1..KEYS {
            owner.commit(&turn(key, 6)).await;
        }
        assert!(listener.error().is_none(), "{:?}", listener.error());
        store.close().await.unwrap();
        verify(&standby.url(), &[6; KEYS as usize]).await;
    });
}

/// The database forgets an opening whose owner continues. By a count, the next opening would have the same number.
#[test]
fn owner_of_a_lost_opening_is_fenced_by_the_next_one() {
    let mut server = PostgresServer::start();
    run(async {
        let (first, second) = (connect(&server.url()).await, connect(&server.url()).await);
        let (mut old, _) = take(&first).await;
        fill(&mut old, 1, 1).await;
        let view = Name::new("balances").unwrap();
        first.claim_view(&view).await.unwrap();
        server.stop();
        let copy = server.back_up();
        server.run();
        let (mut lost, listener) = take(&second).await;
        let lost_view = second.claim_view(&view).await.unwrap();
        server.stop();
        server.restore(&copy);
        server.run();
        let (mut young, _) = take(&first).await;
        assert!(young.writer.epoch() > lost.writer.epoch(), "{} after {}", young.writer.epoch(), lost.writer.epoch());
        assert!(first.claim_view(&view).await.unwrap() > lost_view);
        young.commit(&turn(0, 2)).await;
        let outcome = match lost.append(&turn(0, 2)) {
            Ok(late) => listener.until_settled(&lost.shard, lost.writer.epoch(), late.ticket).await,
            Err(error) => Err(error),
        };
        assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{outcome:?}");
        young.commit(&turn(1, 2)).await;
        first.close().await.unwrap();
        second.close().await.unwrap();
        verify(&server.url(), &[2, 2, 1, 1, 1, 1, 1, 1]).await;
    });
}
