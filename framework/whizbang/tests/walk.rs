//! The architecture page as a test: one command through two nodes passes the rooms in the order in which they are listed.
//! Alone in its file: tracing decides once per process and call site whether anybody listens.

mod bank;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use bank::*;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;

/// The rooms that a command has passed, each with the message that passed it.
type Way = Vec<(String, String)>;

/// By correlation, the ways.
#[derive(Clone, Default)]
struct Passed(Arc<Mutex<BTreeMap<String, Way>>>);

#[derive(Default)]
struct Fields {
    room: Option<String>,
    message: String,
    correlation: String,
}

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}").trim_matches('"').to_owned();
        match field.name() {
            "room" => self.room = Some(text),
            "message" if self.message.is_empty() && text != "passes" => self.message = text,
            "correlation" => self.correlation = text,
            _ => {}
        }
    }
}

impl<S: tracing::Subscriber> Layer<S> for Passed {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if let Some(room) = fields.room {
            self.0.lock().unwrap().entry(fields.correlation).or_default().push((room, fields.message));
        }
    }
}

#[whizbang::test]
async fn a_command_through_two_nodes_passes_the_rooms_in_their_order() {
    let passed = Passed::default();
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(passed.clone()));
    let hub = LoopbackHub::new();
    let accounts = Node::builder("accounts", MemoryStore::new())
        .threads(0)
        .aggregate::<Account>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap();
    let transfers = Node::builder("transfers", MemoryStore::new())
        .threads(0)
        .saga::<Transfer>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap();
    accounts.client().send(deposit("ada", 100)).await.unwrap();
    let client = accounts.client();
    let id = client.new_id();
    client.send(transfer("t1", "ada", "bob", 30)).id(id).await.unwrap();
    eventually(async || client.send(outcome("t1")).await.unwrap() == "done").await;
    transfers.stop().await.unwrap();
    accounts.stop().await.unwrap();

    let passed = passed.0.lock().unwrap();
    let way = passed.get(&id.to_string()).expect("the command was followed");
    let rooms: Vec<&str> = way.iter().map(|(room, _)| room.as_str()).collect();
    // The command's own way, and on to the account of the other service: each room comes after the one before.
    let expected = [
        "client", "bridge", "router", "actor", "store", // StartTransfer is decided by the saga
        "relay", "bridge", "inbox", "router", "actor", "store", // Withdraw by the account
        "relay", "bridge", "inbox", "router", "actor", "store", // Withdrawn, and the reply, by the saga
    ];
    let mut at = 0;
    for room in &rooms {
        if expected.get(at) == Some(room) {
            at += 1;
        }
    }
    assert_eq!(at, expected.len(), "after {:?} came no {:?}: {way:?}", expected.get(..at), expected.get(at));
}
