//! Stores in use, places with content, and places without a store are refused, and nothing is changed there.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use whizbang::PostgresStore;
use whizbang::store::{MoveStep, Store, StoreError};
use whizbang_tests::postgres::PostgresServer;
use whizbang_tests::until;

use crate::bank::deposit;
use crate::content::{assert_same, content};
use crate::service::start;
use crate::{Place, connect, move_between, open};

#[whizbang::test]
async fn target_with_content_is_refused() {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let (first, other) = (folder.path().join("first"), folder.path().join("other"));
    for path in [&first, &other] {
        let node = start(open(path).unwrap(), false).await;
        node.client().send(deposit("ada", 5)).await.unwrap();
        node.stop().await.unwrap();
    }
    let node = start(connect(&server, "used").await.unwrap(), false).await;
    node.stop().await.unwrap();
    let before = content(&open(&first).unwrap()).await;
    for target in [Place::Folder(&other), Place::Folder(&first), Place::Schema(&server, "used")] {
        let refused = move_between(Place::Folder(&first), target, |_| {}).await;
        let is_refused = matches!(refused, Err(StoreError::NotEmpty { .. } | StoreError::InUse { .. }));
        assert!(is_refused, "{}: {refused:?}", target.argument());
        target.open().await.unwrap().close().await.unwrap();
    }
    assert_same(&before, &content(&open(&first).unwrap()).await);
    // Tables without content, as an administrator creates them, are a target.
    connect(&server, "empty").await.unwrap().close().await.unwrap();
    move_between(Place::Folder(&first), Place::Schema(&server, "empty"), |_| {}).await.unwrap();
    let back = move_between(Place::Schema(&server, "empty"), Place::Folder(&first), |_| {}).await;
    assert!(matches!(back, Err(StoreError::NotEmpty { .. })), "the old place still has its content: {back:?}");
}

#[whizbang::test]
async fn source_that_does_not_exist_is_refused() {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let (missing, new) = (folder.path().join("missing"), folder.path().join("new"));
    for source in [Place::Folder(&missing), Place::Schema(&server, "missing")] {
        let refused = move_between(source, Place::Folder(&new), |_| {}).await;
        assert!(matches!(refused, Err(StoreError::Missing { .. })), "{refused:?}");
        assert!(!source.exists() && !new.exists(), "nothing was created");
    }
}

#[whizbang::test]
async fn source_in_use_is_refused() {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let (first, new) = (folder.path().join("first"), folder.path().join("new"));
    let node = start(open(&first).unwrap(), false).await;
    let refused = move_between(Place::Folder(&first), Place::Schema(&server, "bank"), |_| {}).await;
    assert!(matches!(refused, Err(StoreError::InUse { .. })), "{refused:?}");
    node.stop().await.unwrap();
    move_between(Place::Folder(&first), Place::Schema(&server, "bank"), |_| {}).await.unwrap();

    let shared = PostgresStore::builder(&server.url()).schema("bank").connect().await.unwrap();
    let node = start(shared, false).await;
    let refused = move_between(Place::Schema(&server, "bank"), Place::Folder(&new), |_| {}).await;
    let Err(StoreError::InUse { at }) = &refused else { panic!("{refused:?}") };
    assert!(at.contains("schema `bank`") && at.contains("nodes: "), "{at}");
    // The node was not disturbed.
    assert_eq!(node.client().send(deposit("ada", 5)).await.unwrap(), 5);
    node.stop().await.unwrap();
    // A node that has stopped in order has no lease.
    let again = move_between(Place::Schema(&server, "bank"), Place::Folder(&new), |progress| {
        // Another move, and a node that starts, are refused while this one runs.
        if progress.step == MoveStep::Compare && progress.events == 0 {
            let output = std::process::Command::new(env!("CARGO_BIN_EXE_move-store"))
                .args([Place::Schema(&server, "bank").argument(), folder.path().join("third").display().to_string()])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(text.contains("is in use"), "{text}");
        }
    });
    again.await.unwrap();
}

#[whizbang::test]
async fn node_that_runs_alone_is_fenced_by_the_move() {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path().join("new");
    // A node without leases cannot be seen: its commits are rejected after the move.
    let node = start(connect(&server, "bank").await.unwrap(), false).await;
    assert_eq!(node.client().send(deposit("ada", 5)).await.unwrap(), 5);
    move_between(Place::Schema(&server, "bank"), Place::Folder(&new), |_| {}).await.unwrap();
    let late = node.client().send(deposit("ada", 7)).await;
    assert!(late.is_err(), "a commit after the move: {late:?}");
    drop(node);
    let store = open(&new).unwrap();
    let after = content(&store).await;
    assert!(after.values().any(|text| text.contains("Deposited")), "the deposit has moved");
    store.close().await.unwrap();
    let node = start(open(&new).unwrap(), false).await;
    assert_eq!(node.client().send(deposit("ada", 1)).await.unwrap(), 6, "only the first deposit counts");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn acknowledged_commits_during_a_move_are_in_the_copy() {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let new = folder.path().join("new");
    let node = start(connect(&server, "bank").await.unwrap(), false).await;
    let acknowledged = Rc::new(Cell::new(0));
    let (counted, client) = (Rc::clone(&acknowledged), node.client());
    let load = tokio::task::spawn_local(async move {
        while client.send(deposit("ada", 1)).await.is_ok() {
            counted.set(counted.get() + 1);
        }
    });
    until("the first deposits", async || acknowledged.get() > 50).await;
    let mut at_the_beginning = 0;
    let moved = move_between(Place::Schema(&server, "bank"), Place::Folder(&new), |progress| {
        if progress.step == MoveStep::Create {
            at_the_beginning = acknowledged.get();
        }
    });
    moved.await.unwrap();
    // The next commit is rejected, which ends the load.
    tokio::time::timeout(Duration::from_secs(60), load).await.expect("the load ends").unwrap();
    drop(node);
    assert!(at_the_beginning > 50);
    let node = start(open(&new).unwrap(), false).await;
    let balance = node.client().send(deposit("ada", 1)).await.unwrap() - 1;
    // The last one may be committed without an answer.
    let acknowledged = acknowledged.get();
    assert!((acknowledged..=acknowledged + 1).contains(&balance), "{acknowledged} acknowledged, {balance} moved");
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn source_without_its_events_is_refused_as_corrupt() {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let node = start(connect(&server, "bank").await.unwrap(), false).await;
    for _ in 0..3 {
        node.client().send(deposit("ada", 5)).await.unwrap();
    }
    node.stop().await.unwrap();
    let deleted = server.sql(
        "WITH deleted AS (DELETE FROM bank.event_data WHERE (shard, position) IN \
         (SELECT shard, min(position) FROM bank.event_data GROUP BY shard LIMIT 1) RETURNING *) SELECT count(*) FROM deleted",
    );
    assert_eq!(deleted.trim(), "1");
    let refused = move_between(Place::Schema(&server, "bank"), Place::Folder(&folder.path().join("new")), |_| {}).await;
    assert!(matches!(refused, Err(StoreError::Corrupt { .. })), "{refused:?}");
    connect(&server, "bank").await.unwrap().close().await.unwrap();
}

#[whizbang::test]
async fn tables_in_use_keep_their_version_if_refused() {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let (first, new) = (folder.path().join("first"), folder.path().join("new"));
    let shared = PostgresStore::builder(&server.url()).schema("bank").connect().await.unwrap();
    let node = start(shared, false).await;
    // As a node of an older program has left them.
    server.sql("DELETE FROM bank.migrations WHERE version = 5 RETURNING version");
    drop(open(&first).unwrap());
    let (folder, schema) = (Place::Folder(&first), Place::Schema(&server, "bank"));
    for (from, to) in [(schema, Place::Folder(&new)), (folder, schema)] {
        let refused = move_between(from, to, |_| {}).await;
        assert!(matches!(refused, Err(StoreError::InUse { .. })), "{refused:?}");
        assert_eq!(server.sql("SELECT max(version) FROM bank.migrations").trim(), "4");
    }
    node.stop().await.unwrap();
}

#[test]
fn unlikely_folders_and_schemas_are_refused() {
    let program = |from: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_move-store")).args([from, "new"]).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for from in ["postgre://u:secret@db/bank", "POSTGRES://u:secret@db/bank", "host=db password=secret"] {
        let (code, text) = program(from);
        assert!(code == Some(2) && text.contains("postgres://") && !text.contains("secret"), "{code:?}: {text}");
    }
    for from in ["postgres://u:pass#secret@db/bank", "postgres://u@db/bank#", "postgres://u@db/bank#Secret"] {
        let (code, text) = program(from);
        assert!(code == Some(2) && text.contains("schema") && !text.contains("ecret"), "{code:?}: {text}");
    }
}
