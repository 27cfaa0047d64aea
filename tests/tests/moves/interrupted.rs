//! Moves whose process is aborted at the beginning of each step, and moves that lose their connection.

use std::process::{Command, Output};

use whizbang::store::{MoveStep, StoreError};
use whizbang_tests::postgres::PostgresServer;

use crate::bank::{deposit, transfer};
use crate::content::{Content, assert_same, content};
use crate::service::{Set, Tell, start};
use crate::{Place, move_between, open};

const STEPS: [MoveStep; 8] = [
    MoveStep::Create,
    MoveStep::Copy,
    MoveStep::Compare,
    MoveStep::CopyViews,
    MoveStep::Complete,
    MoveStep::GiveUpSource,
    MoveStep::Activate,
    MoveStep::Done,
];

/// Creates a small store, of each kind, and returns its content.
async fn fill(place: Place<'_>) -> Content {
    let Place::Folder(folder) = place else { panic!("a folder") };
    let node = start(open(folder).unwrap(), false).await;
    let client = node.client();
    for number in 0..20 {
        client.send(deposit(&format!("account{number}"), 100)).await.unwrap();
        client.send(Tell { key: format!("n{number}") }).await.unwrap();
    }
    client.send(transfer("t", "account1", "account2", 5)).await.unwrap();
    client.send(Set { name: "late".into(), millis: 3_600_000 }).await.unwrap();
    node.wait_idle().await;
    node.stop().await.unwrap();
    let store = open(folder).unwrap();
    content(&store).await
}

fn program(from: Place<'_>, to: Place<'_>, step: Option<MoveStep>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_move-store"));
    command.args([from.argument(), to.argument()]).args(step.map(MoveStep::as_str));
    command.output().unwrap()
}

/// Returns whether a node can use the store. Every other store is refused as a part of a move.
async fn is_usable(place: Place<'_>) -> bool {
    if !place.exists() {
        return false;
    }
    match place.open().await {
        Ok(store) => {
            store.close().await.unwrap();
            true
        }
        Err(StoreError::Moved { .. } | StoreError::Unfinished { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

/// Aborts a move at each step; then an operator follows the messages, until the store is at the new place.
async fn interrupted_at_each_step<'a>(mut from: Place<'a>, places: &[Place<'a>], expected: &Content) {
    for (step, to) in STEPS.into_iter().zip(places) {
        let to = *to;
        let aborted = program(from, to, Some(step));
        assert!(aborted.status.code().is_none(), "{step:?} was not reached: {aborted:?}");
        let usable = (is_usable(from).await, is_usable(to).await);
        let is_given_up = matches!(step, MoveStep::Activate | MoveStep::Done);
        assert_eq!(usable, (!is_given_up, step == MoveStep::Done), "after {step:?}");
        // The same command again; the target is deleted only if the message asks for it.
        let mut again = program(from, to, None);
        let text = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
        if text(&again).contains("delete it if its source was the same") {
            assert!(is_usable(from).await, "after {step:?}: nothing is lost with the target");
            to.delete();
            again = program(from, to, None);
        }
        match step {
            MoveStep::Done => assert!(text(&again).contains("has moved to"), "{}", text(&again)),
            _ => assert!(again.status.success(), "after {step:?}: {}", text(&again)),
        }
        assert_eq!((is_usable(from).await, is_usable(to).await), (false, true), "after {step:?}");
        let store = to.open().await.unwrap();
        assert_same(expected, &content(&*store).await);
        store.close().await.unwrap();
        drop(store);
        from = to;
    }
}

/// Each step once in each direction: every second place is a folder.
async fn alternately(first_is_folder: bool) {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let begin = folder.path().join("begin");
    let expected = fill(Place::Folder(&begin)).await;
    let folders: Vec<_> = (0..STEPS.len()).map(|number| folder.path().join(number.to_string())).collect();
    let schemas: Vec<_> = (0..STEPS.len()).map(|number| format!("bank{number}")).collect();
    let places = folders.iter().zip(&schemas).enumerate().map(|(number, (folder, schema))| {
        match (number % 2 == 0) == first_is_folder {
            true => Place::Folder(folder),
            false => Place::Schema(&server, schema),
        }
    });
    let places: Vec<_> = places.collect();
    let mut from = Place::Folder(&begin);
    if first_is_folder {
        let place = Place::Schema(&server, "begin");
        move_between(from, place, |_| {}).await.unwrap();
        from = place;
    }
    interrupted_at_each_step(from, &places, &expected).await;
}

#[whizbang::test]
async fn aborted_moves_leave_one_store_or_can_be_finished() {
    alternately(false).await;
}

#[whizbang::test]
async fn aborted_moves_of_the_other_direction_can_be_finished() {
    alternately(true).await;
}

#[whizbang::test]
async fn lost_connection_ends_the_move_and_keeps_the_source() {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let begin = folder.path().join("begin");
    let expected = fill(Place::Folder(&begin)).await;
    let source = Place::Schema(&server, "bank");
    move_between(Place::Folder(&begin), source, |_| {}).await.unwrap();
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let interrupted = move_between(source, Place::Folder(&first), |progress| {
        // The transaction that holds the source ends with its connection.
        if progress.step == MoveStep::GiveUpSource {
            assert!(server.terminate_sessions() > 0);
        }
    });
    let interrupted = interrupted.await;
    assert!(matches!(interrupted, Err(StoreError::Io { .. })), "{interrupted:?}");
    assert_eq!((is_usable(source).await, is_usable(Place::Folder(&first)).await), (true, false));
    let again = move_between(source, Place::Folder(&first), |_| {}).await;
    assert!(matches!(again, Err(StoreError::NotEmpty { .. })), "{again:?}");
    let from_copy = move_between(Place::Folder(&first), Place::Folder(&second), |_| {}).await;
    let text = from_copy.unwrap_err().to_string();
    assert!(text.contains("do not delete"), "a copy may be the only store that is left: {text}");
    move_between(source, Place::Folder(&second), |_| {}).await.unwrap();
    let store = open(&second).unwrap();
    assert_same(&expected, &content(&store).await);
}
