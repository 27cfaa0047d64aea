//! A service that is moved to PostgreSQL and back continues as if nothing had happened.

use whizbang::prelude::*;
use whizbang::store::{Store, StoreError};
use whizbang::{EmbeddedStore, PostgresStore, SendError};
use whizbang_tests::postgres::PostgresServer;
use whizbang_tests::until;

use crate::bank::{deposit, outcome, park, transfer};
use crate::content::{assert_same, content};
use crate::service::{BalanceOf, Noticed, Rings, Set, Tell, start};
use crate::{Place, move_between, open};

const ACCOUNTS: u64 = 12;

/// Deposits and transfers of one life; the money grows by 100 for each account.
async fn work(node: &Node, life: u64) {
    let client = node.client();
    let account = |number: u64| format!("account{}", number % ACCOUNTS);
    for number in 0..ACCOUNTS {
        client.send(deposit(&account(number), 100)).await.unwrap();
    }
    for number in 0..20 {
        let name = format!("t-{life}-{number}");
        // Some fail: there is not enough money.
        let cents = if number % 5 == 0 { 100_000 } else { number + 1 };
        client.send(transfer(&name, &account(number), &account(number * 7 + 1), cents)).await.unwrap();
    }
    node.wait_idle().await;
    for number in 0..20 {
        let expected = if number % 5 == 0 { "failed" } else { "done" };
        assert_eq!(client.send(outcome(&format!("t-{life}-{number}"))).await.unwrap(), expected);
    }
}

/// The money in all accounts, by the view.
async fn money(node: &Node) -> u64 {
    node.wait_idle().await;
    let client = node.client();
    let mut money = 0;
    for number in 0..ACCOUNTS {
        money += client.query(BalanceOf { account: format!("account{number}") }).await.unwrap();
    }
    money
}

async fn moved(from: Place<'_>, to: Place<'_>) {
    let before = from.open().await.unwrap();
    let expected = content(&*before).await;
    before.close().await.unwrap();
    drop(before);
    assert_ne!(expected["view"], "None");
    let moved = move_between(from, to, |_| {}).await.unwrap();
    assert!(moved.events > 50 && moved.turns > 100 && moved.views == 1 && !moved.is_resumed, "{moved:?}");
    let after = to.open().await.unwrap();
    assert_same(&expected, &content(&*after).await);
    after.close().await.unwrap();
    match from.open().await {
        Err(StoreError::Moved { to: named, .. }) => assert!(!named.is_empty()),
        other => panic!("the source can be opened: {:?}", other.map(|_| ())),
    }
}

#[whizbang::test]
async fn service_continues_in_postgres_and_back_on_disk() {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let (first, last) = (folder.path().join("first"), folder.path().join("last"));
    let schema = Place::Schema(&server, "bank");

    // The first life, on the local disk.
    let node = start(open(&first).unwrap(), false).await;
    let client = node.client();
    let id = client.new_id();
    let first_reply = client.send(deposit("ada", 100)).id(id).await.unwrap();
    client.send(deposit("ada", 1)).await.unwrap();
    work(&node, 0).await;
    park(&node, "parked").await;
    for number in 0..40 {
        client.send(Tell { key: format!("n{}", number % 10) }).await.unwrap();
    }
    client.send(Set { name: "soon".into(), millis: 10 }).await.unwrap();
    client.send(Set { name: "never".into(), millis: 3_600_000 }).await.unwrap();
    // It fires after the move.
    client.send(Set { name: "moved".into(), millis: 30_000 }).await.unwrap();
    until("an alarm", async || client.send(Rings { name: "soon".into() }).await.unwrap() == 1).await;
    assert_eq!(money(&node).await, ACCOUNTS * 100);
    node.stop().await.unwrap();

    moved(Place::Folder(&first), schema).await;
    assert!(matches!(EmbeddedStore::read_only(&first), Err(StoreError::Moved { .. })));

    // The second life, in PostgreSQL, with leases; now the messages have a receiver.
    let store = PostgresStore::builder(&server.url()).schema("bank").connect().await.unwrap();
    let node = start(store, true).await;
    let client = node.client();
    node.wait_idle().await;
    assert_eq!(client.send(deposit("ada", 100)).id(id).await.unwrap(), first_reply);
    let conflict = client.send(deposit("ada", 7)).id(id).await;
    assert!(matches!(conflict, Err(SendError::Conflict)), "the key of the digests has moved: {conflict:?}");
    assert_eq!(client.query(BalanceOf { account: "ada".into() }).await.unwrap(), 101);
    for number in 0..10 {
        assert_eq!(client.send(Noticed { key: format!("n{number}") }).await.unwrap(), 4, "delivered once");
    }
    assert_eq!(node.dead_letters().await.unwrap().len(), 1);
    // A timer that was set before the move is replaced: it is the same timer.
    client.send(Set { name: "moved".into(), millis: 10 }).await.unwrap();
    until("an alarm", async || client.send(Rings { name: "moved".into() }).await.unwrap() == 1).await;
    work(&node, 1).await;
    assert_eq!(money(&node).await, ACCOUNTS * 200);
    // It is due while the store is moved.
    client.send(Set { name: "back".into(), millis: 1 }).await.unwrap();
    node.stop().await.unwrap();

    moved(schema, Place::Folder(&last)).await;

    // The third life, on the local disk again.
    let node = start(open(&last).unwrap(), true).await;
    let client = node.client();
    until("an alarm", async || client.send(Rings { name: "back".into() }).await.unwrap() == 1).await;
    assert_eq!(client.send(deposit("ada", 100)).id(id).await.unwrap(), first_reply);
    for number in 0..10 {
        assert_eq!(client.send(Noticed { key: format!("n{number}") }).await.unwrap(), 4, "delivered once");
    }
    for name in ["soon", "moved"] {
        assert_eq!(client.send(Rings { name: name.into() }).await.unwrap(), 1, "{name}");
    }
    assert_eq!(client.send(Rings { name: "never".into() }).await.unwrap(), 0);
    work(&node, 2).await;
    assert_eq!(money(&node).await, ACCOUNTS * 300);
    node.stop().await.unwrap();
    // Once more it is opened, as a store that was moved.
    let store = open(&last).unwrap();
    content(&store).await;
    store.close().await.unwrap();
}

#[whizbang::test]
async fn epochs_continue_above_those_of_the_source() {
    let server = PostgresServer::start();
    let folder = tempfile::tempdir().unwrap();
    let (first, last) = (folder.path().join("first"), folder.path().join("last"));
    let (shard, schema) = (content_shard(), Place::Schema(&server, "bank"));
    let mut highest = 0;
    let mut opened = async |place: Place<'_>, times: u64| {
        let store = place.open().await.unwrap();
        for _ in 0..times {
            let listener = std::sync::Arc::new(NoListener);
            let epoch = store.open(&shard, 16, listener).await.unwrap().writer.epoch();
            assert!(epoch > highest, "{epoch} is not above {highest}");
            highest = epoch;
        }
        store.close().await.unwrap();
    };
    opened(Place::Folder(&first), 7).await;
    move_between(Place::Folder(&first), schema, |_| {}).await.unwrap();
    opened(schema, 3).await;
    move_between(schema, Place::Folder(&last), |_| {}).await.unwrap();
    opened(Place::Folder(&last), 1).await;
    // Also after the log was read again.
    opened(Place::Folder(&last), 1).await;
}

fn content_shard() -> whizbang::message::ShardId {
    whizbang::message::ShardId::new(whizbang::message::Name::new("bank").unwrap(), 3)
}

struct NoListener;

impl whizbang::store::CommitListener for NoListener {
    fn committed(&self, _: whizbang::store::Ticket) {}

    fn failed(&self, _: StoreError) {}
}
