//! Nodes of different services over the loopback bridge: commands reach their owner, events their subscribers, replies
//! their caller.

mod bank;
mod eventually;

use bank::*;
use eventually::{eventually, eventually_within};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;

async fn accounts(store: &MemoryStore, hub: &LoopbackHub) -> Node {
    Node::builder("accounts", store.clone())
        .threads(0)
        .aggregate::<Account>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap()
}

async fn transfers(store: &MemoryStore, hub: &LoopbackHub) -> Node {
    Node::builder("transfers", store.clone()).threads(0).saga::<Transfer>().bridge(hub.bridge()).start().await.unwrap()
}

#[whizbang::test]
async fn command_reaches_its_owner_and_the_reply_its_caller() {
    let hub = LoopbackHub::new();
    let (money, moves) = (MemoryStore::new(), MemoryStore::new());
    let (accounts, transfers) = (accounts(&money, &hub).await, transfers(&moves, &hub).await);
    // The client of each node reaches the domain of the other.
    assert_eq!(transfers.client().send(deposit("ada", 5)).await.unwrap(), 5);
    assert_eq!(accounts.client().send(outcome("none")).await.unwrap(), "open");
    let no = transfers.client().send(withdraw("ada", 6, "")).await.unwrap_err();
    assert_eq!(no.rejection().map(Rejection::code), Some("bank.insufficient-funds"));
}

#[whizbang::test]
async fn deadline_holds_between_differing_clocks() {
    use whizbang::SendError;
    use whizbang::clock::{Clock, Timestamp};

    // Seconds by which the owner's clock is ahead of the sender's, and whether the command is late.
    for (ahead, late) in [(0, false), (-240, false), (60, false), (299, false), (400, true)] {
        let hub = LoopbackHub::new();
        let now = Timestamp::from_millis(1_700_000_000_000);
        let theirs = Timestamp::from_millis(now.as_millis().saturating_add_signed(ahead * 1000));
        let accounts = Node::builder("accounts", MemoryStore::new())
            .threads(0)
            .aggregate::<Account>()
            .clock(Clock::manual(theirs).0);
        let _accounts = accounts.bridge(hub.bridge()).start().await.unwrap();
        let transfers =
            Node::builder("transfers", MemoryStore::new()).threads(0).saga::<Transfer>().clock(Clock::manual(now).0);
        let transfers = transfers.bridge(hub.bridge()).start().await.unwrap();
        let reply = transfers.client().send(deposit("ada", 5)).deadline(std::time::Duration::from_secs(5)).await;
        assert_eq!(matches!(reply, Err(SendError::Late)), late, "{ahead} s ahead: {reply:?}");
        assert_eq!(reply.is_ok(), !late, "{ahead} s ahead: {reply:?}");
    }
}

#[whizbang::test]
async fn saga_moves_money_between_accounts_of_another_service() {
    let hub = LoopbackHub::new();
    let (money, moves) = (MemoryStore::new(), MemoryStore::new());
    let (accounts, transfers) = (accounts(&money, &hub).await, transfers(&moves, &hub).await);
    let client = accounts.client();
    client.send(deposit("ada", 100)).await.unwrap();
    client.send(transfer("t1", "ada", "bob", 30)).await.unwrap();
    client.send(Close { account: "cy".into() }).await.unwrap();
    client.send(transfer("t2", "ada", "cy", 30)).await.unwrap();
    eventually(async || client.send(outcome("t1")).await.unwrap() == "done").await;
    eventually(async || client.send(outcome("t2")).await.unwrap() == "failed").await;
    assert_eq!(client.send(deposit("bob", 0)).await.unwrap(), 30);
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 70);
    transfers.stop().await.unwrap();
    accounts.stop().await.unwrap();
}

#[whizbang::test]
async fn message_to_an_absent_owner_arrives_after_its_return() {
    let hub = LoopbackHub::new();
    let (money, moves) = (MemoryStore::new(), MemoryStore::new());
    let transfers = transfers(&moves, &hub).await;
    for n in 0..20 {
        transfers.client().send(transfer(&format!("t{n}"), "ada", "bob", 5)).await.unwrap();
    }
    {
        let alone = Node::builder("accounts", money.clone()).threads(0).aggregate::<Account>().start().await.unwrap();
        alone.client().send(deposit("ada", 1000)).await.unwrap();
    }
    let accounts = accounts(&money, &hub).await;
    let client = accounts.client();
    eventually(async || client.send(deposit("bob", 0)).await.unwrap() == 100).await;
    assert_eq!(client.send(deposit("ada", 0)).await.unwrap(), 900);
}

#[cfg(feature = "testing")]
#[whizbang::test]
async fn full_disk_of_an_owner_is_named_to_remote_callers() {
    use whizbang::SendError;
    use whizbang::store::StoreError;

    let hub = LoopbackHub::new();
    let (money, faults) = MemoryStore::faulty();
    let (accounts, transfers) = (accounts(&money, &hub).await, transfers(&MemoryStore::new(), &hub).await);
    let client = Client::connect("teller", hub.bridge()).await.unwrap();
    for caller in [transfers.client(), client] {
        faults.refuse(1, StoreError::Full { at: "/var/lib/bank".to_owned() });
        let error = caller.send(deposit("ada", 5)).no_retry().await.unwrap_err();
        assert!(matches!(&error, SendError::Refused(StoreError::Full { .. })), "{error}");
        assert!(error.is_transient() && !error.may_have_happened());
        assert!(!error.to_string().contains("/var/lib"), "{error}: the error contains a path of the owner");
        // By default the caller waits until there is space.
        faults.refuse(1, StoreError::Full { at: "/var/lib/bank".to_owned() });
        caller.send(deposit("ada", 5)).await.unwrap();
    }
    assert_eq!(accounts.client().send(deposit("ada", 0)).await.unwrap(), 10);
    accounts.stop().await.unwrap();
}

#[cfg(feature = "testing")]
#[whizbang::test]
async fn lossy_reordering_broker_changes_nothing() {
    use whizbang::clock::Clock;
    use whizbang::message::IdSource;
    use whizbang::testing::LoopbackFaults;

    for seed in 0..2 {
        let hub = LoopbackHub::new();
        let (money, moves) = (MemoryStore::new(), MemoryStore::new());
        let (accounts, transfers) = (accounts(&money, &hub).await, transfers(&moves, &hub).await);
        for n in 0..20 {
            accounts.client().send(deposit(&format!("from{n}"), 100)).await.unwrap();
        }
        let faults = LoopbackFaults { drop: 0.2, duplicate: 0.3, reorder: 0.3, ..LoopbackFaults::default() };
        faults.inject(&hub, IdSource::seeded(Clock::system(), seed));
        for n in 0..100 {
            let client = transfers.client();
            client.send(transfer(&format!("t{n}"), &format!("from{}", n % 20), "bob", 10)).await.unwrap();
        }
        eventually_within(60, async || {
            let mut done = 0;
            for n in 0..100 {
                let state = transfers.client().send(outcome(&format!("t{n}"))).await.unwrap();
                assert_ne!(state, "failed");
                done += u32::from(state == "done");
            }
            done == 100
        })
        .await;
        hub.deliver_all();
        assert_eq!(accounts.client().send(deposit("bob", 0)).await.unwrap(), 1000);
        for n in 0..20 {
            assert_eq!(accounts.client().send(deposit(&format!("from{n}"), 0)).await.unwrap(), 50);
        }
        let seen = accounts.metrics().duplicates + transfers.metrics().duplicates;
        let gaps = accounts.metrics().gaps + transfers.metrics().gaps;
        assert!(seen > 0 && gaps > 0, "the faults did not fire: {seen} duplicates, {gaps} gaps");
    }
}
