//! Causation and correlation: everything that one command causes can be derived from the stored turns.

mod bank;
mod eventually;

use std::sync::Arc;

use bank::*;
use eventually::eventually;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;

#[whizbang::test]
async fn causes_and_correlation_are_kept_over_three_hops() {
    use whizbang::message::{Name, ShardId, shard_of};
    use whizbang::store::Store;

    struct Deaf;
    impl whizbang::store::CommitListener for Deaf {
        fn committed(&self, _through: u64) {}
        fn failed(&self, _error: whizbang::store::StoreError) {}
    }

    let hub = LoopbackHub::new();
    let (money, moves) = (MemoryStore::new(), MemoryStore::new());
    let accounts = Node::builder("accounts", money.clone())
        .threads(0)
        .aggregate::<Account>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap();
    let transfers = Node::builder("transfers", moves.clone())
        .threads(0)
        .saga::<Transfer>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap();
    let client = transfers.client();
    client.send(deposit("ada", 100)).await.unwrap();
    let id = client.new_id();
    client.send(transfer("t1", "ada", "bob", 30)).id(id).await.unwrap();
    eventually(async || client.send(outcome("t1")).await.unwrap() == "done").await;
    transfers.stop().await.unwrap();
    accounts.stop().await.unwrap();

    let turns = async |store: &MemoryStore, domain: &'static str, actor: &'static str, key: &str| {
        let shard = ShardId::new(Name::from_static(domain).unwrap(), shard_of(key, 16));
        let handle = store.open(&shard, 16, Arc::new(Deaf)).await.unwrap();
        handle.reader.history(&Name::from_static(actor).unwrap(), key).await.unwrap()
    };
    let saga = turns(&moves, "transfers", "transfer", "t1").await;
    let from = turns(&money, "bank", "account", "ada").await;
    let to = turns(&money, "bank", "account", "bob").await;
    // Client -> saga -> account -> saga -> account: all messages have the id of the first command as their correlation.
    let started = saga.iter().find(|turn| turn.id == id).expect("the saga has the command");
    let withdraw = started.sent.first().expect("it sends the withdrawal").id;
    let withdrawn = from.iter().find(|turn| turn.id == withdraw).expect("the account has handled that withdrawal");
    let event = withdrawn.events.first().expect("it records the event");
    assert_eq!(event.cause, withdraw);
    let reacted = saga.iter().find(|turn| turn.sent.iter().any(|sent| to.iter().any(|turn| turn.id == sent.id)));
    assert!(reacted.is_some(), "the saga's deposit is the one that the other account has handled");
    for turn in saga.iter().skip_while(|turn| turn.id != id).take_while(|turn| !turn.events.is_empty()) {
        assert_eq!(turn.correlation, id);
    }
    assert_eq!(withdrawn.correlation, id);
    assert!(to.iter().any(|turn| turn.correlation == id));
}
