//! Two services with different types for one message, over the loopback bridge: a payload is never read as another
//! value.
#![cfg(feature = "testing")]

mod contracts;
mod older;

use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;

#[whizbang::test]
async fn drifted_messages_of_callers_are_refused() {
    let hub = LoopbackHub::new();
    contracts::callers_are_refused(async || hub.bridge()).await;
    let refused = hub.refused();
    let text = format!("{:?}", refused.first());
    assert!(refused.len() == 1 && text.contains("bank.Pay"), "a post is put aside: {refused:?}");
}

#[whizbang::test]
async fn compatible_json_passes() {
    let hub = LoopbackHub::new();
    contracts::compatible_json_passes(async || hub.bridge()).await;
}

#[whizbang::test]
async fn drifted_command_of_an_actor_becomes_a_dead_letter() {
    for by_its_reply in [false, true] {
        let hub = LoopbackHub::new();
        contracts::command_of_an_actor_becomes_a_dead_letter(async || hub.bridge(), by_its_reply).await;
    }
}

#[whizbang::test]
async fn equal_command_of_an_actor_is_replied_to() {
    let hub = LoopbackHub::new();
    contracts::command_of_an_actor_is_replied_to(async || hub.bridge()).await;
}

#[whizbang::test]
async fn drifted_events_halt() {
    let hub = LoopbackHub::new();
    contracts::drifted_events_halt(async || hub.bridge()).await;
}

#[whizbang::test]
async fn compatible_events_are_read() {
    let hub = LoopbackHub::new();
    contracts::compatible_events_are_read(async || hub.bridge()).await;
}

#[whizbang::test]
async fn older_peers_that_send_no_fingerprint_are_accepted() {
    use contracts::{bank, eventually, owned, reordered, same, same_shop};
    let hub = LoopbackHub::new();
    let owner = bank(older::Older(hub.bridge())).await;
    let client = Client::connect("cashier", older::Older(hub.bridge())).await.unwrap();
    assert_eq!(client.send(same::pay(5)).await.unwrap(), 5);
    // Without a fingerprint the difference cannot be detected: the payload is read as it is.
    assert_eq!(client.send(reordered::pay(7)).await.unwrap(), 5);
    let newer = Client::connect("newer", hub.bridge()).await.unwrap();
    assert_eq!(newer.send(same::pay(0)).await.unwrap(), 5);
    let store = MemoryStore::new();
    let shop = same_shop::start(&store, hub.bridge()).await;
    let event = "In { cents: 5 } ";
    eventually(async || same_shop::order(&shop, "ear", 0).await == event).await;
    shop.stop().await.unwrap();
    let shop = same_shop::start(&store, older::Older(hub.bridge())).await;
    same_shop::order(&shop, "one", 3).await;
    eventually(async || same_shop::order(&shop, "one", 0).await == "Ok(8) ").await;
    assert_eq!(owner.client().send(owned::pay(0)).await.unwrap(), 8);
    assert_eq!((owner.metrics().shape_refusals, shop.metrics().shape_refusals), (0, 0));
}
