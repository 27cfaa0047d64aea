//! Headers: set by senders, readable in every handler, passed on along causation if they are declared, and no part of the
//! message.

mod eventually;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use eventually::eventually;
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::message::HeaderError;
use whizbang::prelude::*;
use whizbang::{SendError, StartError};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[derive(Domain)]
#[domain(name = "orders", shards = 2)]
struct Orders;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Orders)]
struct Place {
    #[key]
    order: String,
    /// Sets this header in the handler, if it is not empty.
    sets: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
struct Placed {}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Orders)]
struct Paid {}

#[derive(Domain)]
#[domain(name = "payments", shards = 2)]
struct Payments;

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Payments, reply = u64)]
struct Charge {
    #[key]
    order: String,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Payments)]
struct Charged {}

#[derive(Command, Clone, Debug, Serialize, Deserialize)]
#[command(domain = Orders)]
struct Note {
    #[key]
    order: String,
}

/// The headers that handlers have read, as text, with the name of the handler.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<(&'static str, String)>>>);

thread_local! {
    /// The handlers of sagas have no access to anything else.
    static SEEN: Seen = Seen::default();
}

fn text(headers: &[(String, String)], traceparent: Option<&str>) -> String {
    let headers: Vec<_> = headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{}{}", headers.join(","), if traceparent == Some(TRACE) { " traced" } else { "" })
}

fn note(place: &'static str, effects: &Effects<Order>) {
    let text = text(effects.headers(), effects.traceparent());
    SEEN.with(|seen| seen.0.lock().unwrap().push((place, text)));
}

/// Places an order, has it charged, and learns of the charge.
#[derive(Saga, Default)]
#[saga(domain = Orders, handles(Place, Note), applies(Placed, Paid), replies(Charge), reacts(Charged), answers(AskedOf))]
struct Order {}

impl Handle<Place> for Order {
    fn handle(&self, place: Place, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        note("place", effects);
        if let Some((name, value)) = place.sets.split_once('=') {
            effects.set_header(name, value);
        }
        effects.record(Placed {});
        effects.send(Charge { order: place.order.clone() }).header("only", "charge");
        Ok(())
    }
}

impl Handle<Note> for Order {
    fn handle(&self, _note: Note, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        note("note", effects);
        Ok(())
    }
}

impl OnReply<Charge> for Order {
    fn on_reply(&self, _reply: Result<u64, Rejection>, effects: &mut Effects<Self>) {
        note("reply", effects);
        effects.record(Paid {});
    }
}

impl React<Charged> for Order {
    fn react(&self, _charged: Charged, effects: &mut Effects<Self>) {
        note("react", effects);
        assert_eq!(effects.event_context().unwrap().header("tenant"), effects.header("tenant"));
    }
}

impl Apply<Placed> for Order {
    fn apply(&mut self, _placed: &Placed) {}
}

impl Apply<Paid> for Order {
    fn apply(&mut self, _paid: &Paid) {}
}

#[derive(Worker)]
#[worker(domain = Payments, performs(Charge))]
struct Charger(Seen);

impl Perform<Charge> for Charger {
    async fn perform(&self, charge: Charge, job: Job) -> Result<u64, WorkError> {
        assert_eq!(job.header("only"), Some("charge"));
        self.0.0.lock().unwrap().push(("job", text(&job.headers, job.traceparent.as_deref())));
        job.publish(&job.key, Charged {}).header("by", "card");
        job.send(Note { order: charge.order });
        Ok(1)
    }
}

/// The headers of all events, as text.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Placed, Paid, Charged), answers(Events, Asked))]
struct Log {
    lines: Vec<String>,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Orders, reply = Vec<String>)]
struct Events;

/// Returns the headers of the query.
#[derive(Query, Serialize, Deserialize)]
#[query(domain = Orders, reply = String)]
struct Asked;

/// As [`Asked`], of a key.
#[derive(Query, Serialize, Deserialize)]
#[query(domain = Orders, reply = String)]
struct AskedOf {
    #[key]
    order: String,
}

impl Answer<Asked> for Log {
    fn answer(&self, _asked: Asked) -> String {
        "without context".to_owned()
    }

    fn answer_for(&self, _asked: Asked, context: &QueryContext<'_>) -> String {
        format!("{} {:?}", text(context.headers, context.traceparent), context.header("tenant"))
    }
}

impl Answer<AskedOf> for Order {
    fn answer(&self, _asked: AskedOf) -> String {
        "without context".to_owned()
    }

    fn answer_for(&self, _asked: AskedOf, context: &QueryContext<'_>) -> String {
        format!("{} {:?}", text(context.headers, context.traceparent), context.header("tenant"))
    }
}

impl Project<Placed> for Log {
    fn project(&mut self, _placed: &Placed, context: &EventContext) {
        self.lines.push(format!("placed {}", text(&context.headers, None)));
    }
}

impl Project<Paid> for Log {
    fn project(&mut self, _paid: &Paid, context: &EventContext) {
        self.lines.push(format!("paid {}", text(&context.headers, None)));
    }
}

impl Project<Charged> for Log {
    fn project(&mut self, _charged: &Charged, context: &EventContext) {
        self.lines.push(format!("charged {}", text(&context.headers, None)));
    }
}

impl Answer<Events> for Log {
    fn answer(&self, _events: Events) -> Vec<String> {
        let mut lines = self.lines.clone();
        lines.sort();
        lines
    }
}

fn place(order: &str, sets: &str) -> Place {
    Place { order: order.to_owned(), sets: sets.to_owned() }
}

fn seen() -> Vec<(&'static str, String)> {
    let mut seen = SEEN.with(|seen| seen.0.lock().unwrap().clone());
    seen.sort();
    seen
}

const EVENTS: [&str; 3] =
    ["charged by=card,tenant=acme,user=ada", "paid tenant=acme,user=ada", "placed tenant=acme,user=ada"];

fn expected() -> Vec<(&'static str, String)> {
    let list = [
        ("job", "only=charge,tenant=acme,user=ada traced"),
        ("note", "tenant=acme,user=ada traced"),
        ("place", "private=x,tenant=acme traced"),
        ("react", "by=card,tenant=acme,user=ada traced"),
        ("reply", "tenant=acme,user=ada traced"),
    ];
    list.map(|(place, text)| (place, text.to_owned())).to_vec()
}

#[whizbang::test]
async fn declared_headers_follow_causation_on_one_node() {
    let store = MemoryStore::new();
    let node = Node::builder("shop", store.clone()).threads(0).saga::<Order>().worker(Charger(SEEN.with(Seen::clone)));
    let node = node.projection::<Log>().publishes::<Charged>().propagate_headers(["tenant", "user", "traceparent"]);
    let node = node.start().await.unwrap();
    let send = node.client().send(place("o1", "user=ada")).header("tenant", "acme").header("private", "x");
    send.traceparent(TRACE).await.unwrap();
    node.wait_idle().await;
    assert_eq!(seen(), expected());
    assert_eq!(node.client().query(Events).await.unwrap(), EVENTS);
    drop(node);
    // Read from the log again, by a view that begins again.
    let node = Node::builder("other", store).threads(0).saga::<Order>().worker(Charger(SEEN.with(Seen::clone)));
    let node = node.projection::<Log>().publishes::<Charged>().start().await.unwrap();
    node.wait_idle().await;
    assert_eq!(node.client().query(Events).await.unwrap(), EVENTS);
}

#[whizbang::test]
async fn declared_headers_follow_causation_over_a_bridge() {
    let hub = LoopbackHub::new();
    let names = ["tenant", "user"];
    let orders = Node::builder("orders", MemoryStore::new()).threads(0).saga::<Order>().projection::<Log>();
    let orders = orders.propagate_headers(names).bridge(hub.bridge()).start().await.unwrap();
    let outside = Client::connect("caller", hub.bridge()).await.unwrap();
    let send = outside.send(place("o1", "user=ada")).header("tenant", "acme").header("private", "x");
    send.traceparent(TRACE).await.unwrap();
    // The other service starts later: the command waits in the outbox, and the event is read from the log.
    let payments = Node::builder("payments", MemoryStore::new()).threads(0).worker(Charger(SEEN.with(Seen::clone)));
    let payments = payments.publishes::<Charged>().propagate_headers(names).bridge(hub.bridge()).start().await.unwrap();
    eventually(async || seen() == expected() && orders.client().query(Events).await.unwrap() == EVENTS).await;
    payments.stop().await.unwrap();
    orders.stop().await.unwrap();
}

#[whizbang::test]
async fn undeclared_headers_are_readable_and_not_passed_on() {
    let node = Node::builder("shop", MemoryStore::new()).threads(0).saga::<Order>().projection::<Log>();
    let node = node.worker(Charger(SEEN.with(Seen::clone))).publishes::<Charged>().start().await.unwrap();
    node.client().post(place("o1", "")).header("tenant", "acme").await.unwrap();
    node.wait_idle().await;
    let all = [("job", "only=charge"), ("note", ""), ("place", "tenant=acme"), ("react", "by=card"), ("reply", "")];
    assert_eq!(seen(), all.map(|(place, text)| (place, text.to_owned())));
    assert_eq!(node.client().query(Events).await.unwrap(), ["charged by=card", "paid ", "placed "]);
}

#[whizbang::test]
async fn every_request_of_a_client_continues_a_trace() {
    let node = Node::builder("shop", MemoryStore::new()).threads(0).saga::<Order>();
    let node = node.worker(Charger(SEEN.with(Seen::clone))).publishes::<Charged>().start().await.unwrap();
    let client = node.client();
    let traced = async |handlers: &[&str]| {
        node.wait_idle().await;
        let seen = SEEN.with(|seen| std::mem::take(&mut *seen.0.lock().unwrap()));
        let of_handlers: Vec<_> = seen.iter().filter(|(place, _)| handlers.contains(place)).collect();
        assert_eq!(of_handlers.len(), handlers.len(), "{seen:?}");
        assert!(of_handlers.iter().all(|(_, text)| text.ends_with(" traced")), "{seen:?}");
    };
    client.send(place("o1", "")).traceparent(TRACE).await.unwrap();
    traced(&["place", "job", "reply", "note", "react"]).await;
    client.post(place("o2", "")).traceparent(TRACE).await.unwrap();
    traced(&["place", "job", "reply", "note", "react"]).await;
    client.publish("o1", Charged {}).traceparent(TRACE).await.unwrap();
    traced(&["react"]).await;
    let note = || Note { order: "o1".to_owned() };
    client.post(note()).after(Duration::from_millis(1)).traceparent(TRACE).await.unwrap();
    eventually(async || !seen().is_empty()).await;
    traced(&["note"]).await;
}

#[whizbang::test]
async fn answers_read_the_headers_of_queries() {
    let hub = LoopbackHub::new();
    let node = Node::builder("orders", MemoryStore::new()).threads(0).saga::<Order>().projection::<Log>();
    let node = node.bridge(hub.bridge()).start().await.unwrap();
    let outside = Client::connect("caller", hub.bridge()).await.unwrap();
    let of = || AskedOf { order: "o1".to_owned() };
    for client in [node.client(), outside] {
        let expected = "tenant=acme,user=ada traced Some(\"acme\")";
        let view = client.query(Asked).header("tenant", "acme").header("user", "ada").traceparent(TRACE);
        assert_eq!(view.await.unwrap(), expected);
        let key = client.query(of()).header("tenant", "acme").header("user", "ada").traceparent(TRACE);
        assert_eq!(key.await.unwrap(), expected);
        assert_eq!(
            (client.query(Asked).await.unwrap(), client.query(of()).await.unwrap()),
            (" None".into(), " None".into())
        );
        let invalid = client.query(Asked).header("tenant", "a\nb").await;
        assert!(matches!(invalid, Err(SendError::Header(HeaderError::Value { .. }))), "{invalid:?}");
        let invalid = client.query(of()).header("ce-id", "x").await;
        assert!(matches!(invalid, Err(SendError::Header(HeaderError::Reserved { .. }))), "{invalid:?}");
    }
    node.stop().await.unwrap();
}

#[whizbang::test]
async fn command_repeated_with_other_headers_is_a_duplicate() {
    let node = Node::builder("shop", MemoryStore::new()).threads(0).saga::<Order>().projection::<Log>();
    let node = node.worker(Charger(SEEN.with(Seen::clone))).publishes::<Charged>().start().await.unwrap();
    for tenant in ["acme", "other"] {
        node.client().send(place("o1", "")).idempotency_key("k").header("tenant", tenant).await.unwrap();
        let publish = node.client().publish("o2", Charged {}).idempotency_key("k");
        publish.header("tenant", tenant).await.unwrap();
    }
    node.wait_idle().await;
    assert_eq!(seen().iter().filter(|(place, _)| *place == "place").count(), 1);
    let events = node.client().query(Events).await.unwrap();
    assert_eq!(
        events.iter().filter(|line| line.starts_with("charged tenant")).collect::<Vec<_>>(),
        ["charged tenant=acme"]
    );
}

#[whizbang::test]
async fn invalid_header_is_refused_where_it_is_set() {
    let node = Node::builder("shop", MemoryStore::new()).threads(0).saga::<Order>().publishes::<Charged>();
    let node = node.start().await.unwrap();
    let client = node.client();
    let reserved = client.send(place("o1", "")).header("ce-id", "x").await;
    assert!(matches!(reserved, Err(SendError::Header(HeaderError::Reserved { .. }))), "{reserved:?}");
    let value = client.post(place("o1", "")).header("tenant", "a\nb").await;
    assert!(matches!(value, Err(SendError::Header(HeaderError::Value { .. }))), "{value:?}");
    let large = client.publish("o1", Charged {}).header("tenant", &"x".repeat(17_000)).await;
    assert!(matches!(large, Err(SendError::Header(HeaderError::TooLarge { limit: 16_384 }))), "{large:?}");
    let many = (0..65).fold(client.send(place("o1", "")), |send, n| send.header(&format!("h{n}"), ""));
    let many = many.await;
    assert!(matches!(many, Err(SendError::Header(HeaderError::TooMany { limit: 64 }))), "{many:?}");
    let failed = client.send(place("o1", "a b=c")).await;
    assert!(
        matches!(&failed, Err(SendError::Failed { reason }) if reason.contains("invalid header name `a b`")),
        "{failed:?}"
    );
    let start =
        Node::builder("shop", MemoryStore::new()).saga::<Order>().propagate_headers(["nats-msg-id"]).start().await;
    assert!(matches!(start, Err(StartError::Header(HeaderError::Reserved { .. }))));
}
