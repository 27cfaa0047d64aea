//! Programs in Python that use nats-py and the rules of docs/wire.md: a client, which sends requests and posts and receives events,
//! and a service, which owns a domain.

mod owner;

use std::path::Path;
use std::process::Command;

use async_nats::jetstream;
use serde_json::{Value, json};
use whizbang::bridge::nats::NatsBridge;
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsServer, Release};

#[derive(Domain)]
#[domain(codec = json)]
struct Library;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Library, reply = u64)]
struct Lend {
    #[key]
    book: String,
    reader: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Library)]
struct Return {
    #[key]
    book: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Library)]
struct Lent {
    reader: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Library)]
struct Returned {}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Library, reply = Vec<String>)]
struct Out {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Library, handles(Lend, Return), applies(Lent, Returned))]
struct Book {
    lent: u64,
    reader: Option<String>,
}

impl Handle<Lend> for Book {
    fn handle(&self, lend: Lend, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if let Some(reader) = &self.reader {
            return Err(Rejection::new("library.lent", format!("{reader} has it")));
        }
        effects.record(Lent { reader: lend.reader });
        Ok(self.lent + 1)
    }
}

impl Handle<Return> for Book {
    fn handle(&self, _: Return, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Returned {});
        Ok(())
    }
}

impl Apply<Lent> for Book {
    fn apply(&mut self, lent: &Lent) {
        self.lent += 1;
        self.reader = Some(lent.reader.clone());
    }
}

impl Apply<Returned> for Book {
    fn apply(&mut self, _: &Returned) {
        self.reader = None;
    }
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Lent, Returned), answers(Out))]
struct Shelves {
    out: Vec<String>,
}

impl Project<Lent> for Shelves {
    fn project(&mut self, _: &Lent, about: &EventContext) {
        self.out.push(about.key.clone());
    }
}

impl Project<Returned> for Shelves {
    fn project(&mut self, _: &Returned, about: &EventContext) {
        self.out.retain(|book| *book != about.key);
    }
}

impl Answer<Out> for Shelves {
    fn answer(&self, _: Out) -> Vec<String> {
        self.out.clone()
    }
}

/// Runs one step of the client and returns its output.
async fn python(server: &NatsServer, turn: &str) -> Vec<Value> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = tests.join("../.tools/python");
    assert!(packages.join("nats").is_dir(), "no nats-py in {packages:?}: run tests/install");
    let mut command = Command::new("python3");
    command.arg(tests.join("tests/nats_python/library.py")).args([&server.url(), turn]).env("PYTHONPATH", packages);
    let (ended, end) = tokio::sync::oneshot::channel();
    // The node runs on this thread and must respond during the step.
    std::thread::spawn(move || ended.send(command.output().expect("python3 runs")));
    let output = end.await.expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let said = String::from_utf8(output.stdout).expect("text");
    said.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn python_client_works_by_the_rules_of_the_wire_page() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let server = NatsServer::start(release);
            let bridge = NatsBridge::connect(&server.url()).await.expect("connects");
            let node = Node::builder("library", MemoryStore::new()).aggregate::<Book>().projection::<Shelves>();
            let node = node.bridge(bridge).start().await.expect("starts");
            let moby = "Moby Dick, é and %";
            let said = python(&server, "first").await;
            let undecodable = said.get(5).cloned();
            assert_eq!(
                said.iter().filter(|line| Some(*line) != undecodable.as_ref()).collect::<Vec<_>>(),
                [
                    &json!({ "answer": "reply", "reply": { "Ok": 1 } }),
                    // The same id again returns the first reply. With another payload it is a conflict.
                    &json!({ "answer": "reply", "reply": { "Ok": 1 } }),
                    &json!({ "answer": "conflict", "reply": "" }),
                    &json!({ "answer": "reply", "reply": { "Err": { "code": "library.lent", "text": "ada has it" } } }),
                    &json!({ "answer": "unhandled" }),
                    // The same id three times is handled once.
                    &json!({ "posted": 3 }),
                    &json!({ "event": "library.Lent", "key": moby, "version": 1, "body": { "reader": "ada" } }),
                    &json!({ "event": "library.Returned", "key": moby, "version": 2, "body": {} }),
                ],
                "{said:#?}"
            );
            assert_eq!(undecodable, Some(json!({ "answer": "undecodable" })));
            // The client receives the events recorded in its absence, and none of the earlier ones.
            for reader in ["cy", "di", "eve"] {
                let lend = Lend { book: format!("{reader}'s book"), reader: reader.to_owned() };
                node.client().send(lend).await.expect("is handled");
            }
            let mut said = python(&server, "second").await;
            let out = said.pop().expect("an answer");
            assert_eq!(out, json!({ "answer": "reply", "reply": ["cy's book", "di's book", "eve's book"] }));
            said.sort_by_key(|event| event["key"].to_string());
            let lent = |reader: &str| json!({ "event": "library.Lent", "key": format!("{reader}'s book"), "version": 1, "body": { "reader": reader } });
            assert_eq!(said, [lent("cy"), lent("di"), lent("eve")]);
            assert_eq!(node.metrics().dead_letters, 0);
            node.stop().await.expect("stops");
        });
    }
}

#[test]
fn python_subscriber_of_one_event_finds_and_fills_a_gap() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let server = NatsServer::start(release);
            let bridge = NatsBridge::connect(&server.url()).await.expect("connects");
            let node = Node::builder("library", MemoryStore::new()).aggregate::<Book>().bridge(bridge).start().await;
            let (node, moby) = (node.expect("starts"), "Moby Dick, é and %".to_owned());
            for reader in ["ada", "bob", "cy"] {
                let lend = Lend { book: moby.clone(), reader: reader.to_owned() };
                node.client().send(lend).await.expect("is handled");
                node.client().send(Return { book: moby.clone() }).await.expect("is handled");
            }
            node.wait_idle().await;
            // The broker loses the second return: the fourth event of the stream, and its fourth message.
            let context = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            let stream = context.get_stream("whizbang_events_library").await.expect("a stream");
            let lost = stream.get_raw_message(4).await.expect("a message");
            assert!(lost.subject.ends_with(".Returned"), "{}", lost.subject);
            assert!(stream.delete_message(4).await.expect("deletes"));
            assert_eq!(
                python(&server, "third").await,
                [
                    json!({ "received": "library.Returned", "version": 2 }),
                    json!({ "filled": "library.Returned", "key": moby, "version": 4, "body": {} }),
                    json!({ "received": "library.Returned", "version": 6 }),
                ]
            );
            node.stop().await.expect("stops");
        });
    }
}
