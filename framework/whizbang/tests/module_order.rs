//! The architecture page as a test: one command through two nodes passes the modules in the order in which they are
//! listed. It is alone in its file because tracing decides once per process and call site whether a subscriber is
//! interested.

mod bank;
mod eventually;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use bank::*;
use eventually::eventually;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;

/// The modules that a command has passed, each with the message that passed it.
type Path = Vec<(String, String)>;

/// The paths, by correlation.
#[derive(Clone, Default)]
struct PassedModules(Arc<Mutex<BTreeMap<String, Path>>>);

#[derive(Default)]
struct Fields {
    module: Option<String>,
    message: String,
    correlation: String,
}

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}").trim_matches('"').to_owned();
        match field.name() {
            "module" => self.module = Some(text),
            "message" if self.message.is_empty() && text != "passes" => self.message = text,
            "correlation" => self.correlation = text,
            _ => {}
        }
    }
}

impl<S: tracing::Subscriber> Layer<S> for PassedModules {
    fn on_event(&self, event: &tracing::Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if let Some(module) = fields.module {
            self.0.lock().unwrap().entry(fields.correlation).or_default().push((module, fields.message));
        }
    }
}

#[whizbang::test]
async fn command_through_two_nodes_passes_modules_in_order() {
    let passed = PassedModules::default();
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
    let path = passed.get(&id.to_string()).expect("the command was followed");
    let modules: Vec<&str> = path.iter().map(|(module, _)| module.as_str()).collect();
    // The path of the command, and on to the account of the other service: each module comes after the one before.
    let expected = [
        "client", "bridge", "router", "actor", "store", // StartTransfer is decided by the saga
        "relay", "bridge", "inbox", "router", "actor", "store", // Withdraw by the account
        "relay", "bridge", "inbox", "router", "actor", "store", // Withdrawn, and the reply, by the saga
    ];
    let mut at = 0;
    for module in &modules {
        if expected.get(at) == Some(module) {
            at += 1;
        }
    }
    assert_eq!(at, expected.len(), "{:?} was not followed by {:?}: {path:?}", expected.get(..at), expected.get(at));
}
