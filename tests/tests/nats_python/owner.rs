//! A service in Python that owns a domain: it was written from docs/wire.md and takes part like a node.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use async_nats::jetstream;
use whizbang::SendError;
use whizbang::bridge::nats::NatsBridge;
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsServer, Release};
use whizbang_tests::{until, wait_for};

/// Owned by the program in Python.
#[derive(Domain)]
#[domain(codec = json)]
struct Labels;

#[derive(Command, Clone, Serialize, Deserialize)]
#[command(domain = Labels, reply = u64)]
struct PrintLabel {
    #[key]
    order: String,
    text: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Labels)]
struct LabelPrinted {
    text: String,
}

#[derive(Domain)]
#[domain(codec = json)]
struct Orders;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Orders)]
struct Place {
    #[key]
    order: String,
    text: String,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Orders, reply = Option<Result<u64, String>>)]
struct LabelOf {
    #[key]
    order: String,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Orders, reply = BTreeMap<String, Vec<String>>)]
struct Printed {}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Orders)]
struct Labelled {
    result: Result<u64, String>,
}

#[derive(Saga, Default)]
#[saga(domain = Orders, handles(Place), answers(LabelOf), applies(Labelled), replies(PrintLabel))]
struct Order {
    label: Option<Result<u64, String>>,
}

impl Handle<Place> for Order {
    fn handle(&self, place: Place, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(PrintLabel { order: place.order, text: place.text });
        Ok(())
    }
}

impl OnReply<PrintLabel> for Order {
    fn on_reply(&self, reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        effects.record(Labelled { result: reply.map_err(|rejection| rejection.code().to_owned()) });
    }
}

impl Apply<Labelled> for Order {
    fn apply(&mut self, labelled: &Labelled) {
        self.label = Some(labelled.result.clone());
    }
}

impl Answer<LabelOf> for Order {
    fn answer(&self, _: LabelOf) -> Option<Result<u64, String>> {
        self.label.clone()
    }
}

#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(LabelPrinted), answers(Printed))]
struct AllLabels {
    texts: BTreeMap<String, Vec<String>>,
}

impl Project<LabelPrinted> for AllLabels {
    fn project(&mut self, printed: &LabelPrinted, about: &EventContext) {
        self.texts.entry(about.key.clone()).or_default().push(printed.text.clone());
    }
}

impl Answer<Printed> for AllLabels {
    fn answer(&self, _: Printed) -> BTreeMap<String, Vec<String>> {
        self.texts.clone()
    }
}

/// A process of the program, killed when it is dropped.
struct Owner(Child);

impl Owner {
    /// Starts the program and waits until it handles commands.
    async fn start(server: &NatsServer, folder: &Path) -> Self {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
        let packages = tests.join("../.tools/python");
        assert!(packages.join("nats").is_dir(), "no nats-py in {packages:?}: run tests/install");
        let mut command = Command::new("python3");
        command.arg(tests.join("tests/nats_python/owner.py")).arg(server.url()).arg(folder.join("labels.sqlite"));
        command.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1");
        let mut child = command.stdout(Stdio::piped()).spawn().expect("python3 runs");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || ready.send(output.lines().next()));
        let line = is_ready.await.expect("its first line");
        assert_eq!(line.expect("a line").expect("text"), "ready");
        Self(child)
    }

    fn kill(mut self) {
        self.0.kill().expect("kills its child");
        self.0.wait().expect("the end of a child");
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn start(server: &NatsServer, store: &MemoryStore) -> Node {
    let bridge = NatsBridge::connect(&server.url()).await.expect("connects");
    let node = Node::builder("orders", store.clone()).saga::<Order>().projection::<AllLabels>();
    node.bridge(bridge).start().await.expect("starts")
}

/// Waits until every one of these orders has a label, and returns the results.
async fn labels(node: &Node, orders: &[String]) -> Vec<Result<u64, String>> {
    let mut results = Vec::new();
    for order in orders {
        let label = async || {
            let label = node.client().query(LabelOf { order: order.clone() }).await;
            label.expect("is answered")
        };
        results.push(wait_for("a label", label).await);
    }
    results
}

/// Waits until the view shows this number of labels.
async fn printed(node: &Node, count: usize) -> BTreeMap<String, Vec<String>> {
    let shown = async || {
        let texts = node.client().query(Printed {}).await.expect("is answered");
        (texts.values().map(Vec::len).sum::<usize>() >= count).then_some(texts)
    };
    wait_for("the view to show every label", shown).await
}

#[test]
fn python_service_killed_under_load_prints_each_label_once() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let (server, folder) = (NatsServer::start(release), tempfile::tempdir().expect("a folder"));
            let node = start(&server, &MemoryStore::new()).await;
            let mut orders = Vec::new();
            for life in 0..6 {
                let owner = Owner::start(&server, folder.path()).await;
                let placed: Vec<_> = (0..20).map(|number| format!("order {life}-{number}, é and %")).collect();
                for order in &placed {
                    let place = Place { order: order.clone(), text: order.clone() };
                    node.client().send(place).await.expect("is placed");
                }
                // Killed with most of the orders open.
                labels(&node, &placed[..life]).await;
                owner.kill();
                orders.extend(placed);
            }
            let owner = Owner::start(&server, folder.path()).await;
            let empty = vec!["an order without a text".to_owned()];
            node.client().send(Place { order: empty[0].clone(), text: String::new() }).await.expect("is placed");
            assert_eq!(labels(&node, &empty).await, [Err("labels.empty".to_owned())]);
            // A second label of one order would have the number 2.
            assert_eq!(labels(&node, &orders).await, vec![Ok(1); orders.len()]);
            let expected = orders.iter().map(|order| (order.clone(), vec![order.clone()]));
            assert_eq!(printed(&node, orders.len()).await, expected.collect());
            assert_eq!(node.metrics().dead_letters, 0);
            owner.kill();
            node.stop().await.expect("stops");
        });
    }
}

#[test]
fn python_service_answers_clients_and_fills_gaps() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let (server, folder) = (NatsServer::start(release), tempfile::tempdir().expect("a folder"));
            let (store, order) = (MemoryStore::new(), "Moby Dick".to_owned());
            let node = start(&server, &store).await;
            let owner = Owner::start(&server, folder.path()).await;
            // One id: one label, the same reply, and a conflict with another payload.
            let (client, print) =
                (node.client(), |text: &str| PrintLabel { order: order.clone(), text: text.to_owned() });
            let id = client.new_id();
            assert_eq!(client.send(print("a")).id(id).await.expect("is handled"), 1);
            assert_eq!(client.send(print("a")).id(id).await.expect("is handled"), 1);
            let conflict = client.send(print("b")).id(id).await;
            assert!(matches!(conflict, Err(SendError::Conflict)), "{conflict:?}");
            let refused = client.send(print("")).await;
            assert!(matches!(&refused, Err(SendError::Rejected(no)) if no.code() == "labels.empty"), "{refused:?}");
            printed(&node, 1).await;

            // The broker loses an order's command, all replies, and the second event.
            let context = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            let stream = async |name: &str| context.get_stream(format!("whizbang_{name}")).await.expect("a stream");
            owner.kill();
            let lost = vec!["lost command".to_owned(), "lost reply".to_owned()];
            node.client().send(Place { order: lost[0].clone(), text: "c".to_owned() }).await.expect("is placed");
            let queued = async || stream("commands_labels").await.info().await.expect("its state").state.messages;
            until("the command to reach the broker", async || queued().await == 1).await;
            stream("commands_labels").await.purge().await.expect("purges");
            node.client().send(Place { order: lost[1].clone(), text: "d".to_owned() }).await.expect("is placed");
            until("the command to reach the broker", async || queued().await == 1).await;
            node.stop().await.expect("stops");
            let outside = Client::connect("outside", NatsBridge::connect(&server.url()).await.expect("connects")).await;
            let outside = outside.expect("connects");
            let owner = Owner::start(&server, folder.path()).await;
            assert_eq!(outside.send(print("b")).await.expect("is handled"), 2);
            until("the events to be published", async || {
                stream("events_labels").await.info().await.expect("its state").state.messages >= 3
            })
            .await;
            until("the reply to reach the broker", async || {
                stream("commands_orders").await.info().await.expect("its state").state.messages >= 1
            })
            .await;
            stream("commands_orders").await.purge().await.expect("purges");
            assert!(stream("events_labels").await.delete_message(2).await.expect("deletes"));
            outside.disconnect().await;

            let node = start(&server, &store).await;
            assert_eq!(labels(&node, &lost).await, [Ok(1), Ok(1)]);
            let texts = printed(&node, 4).await;
            assert_eq!(texts[&order], ["a", "b"]);
            assert_eq!((&*texts[&lost[0]], &*texts[&lost[1]]), (&["c".to_owned()][..], &["d".to_owned()][..]));
            owner.kill();
            node.stop().await.expect("stops");
        });
    }
}
