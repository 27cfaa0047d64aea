//! Events that no aggregate decides on: published by clients and jobs, stored in the log of their domain, delivered like all
//! other events.

use std::time::Duration;

use whizbang::bridge::loopback::LoopbackHub;
use whizbang::prelude::*;
use whizbang::{SendError, StartError};

#[derive(Domain)]
#[domain(name = "plant", shards = 2)]
struct Plant;

#[derive(Event, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[event(domain = Plant)]
struct Measured {
    celsius: i32,
}

#[derive(Event, Clone, Debug, Serialize, Deserialize)]
#[event(domain = Plant)]
struct Started {}

/// An aggregate that records one of the published events as well.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Plant)]
struct Start {
    #[key]
    machine: String,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Plant, handles(Start), records(Started))]
struct Machine;

impl Handle<Start> for Machine {
    fn handle(&self, _start: Start, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.record(Started {});
        Ok(())
    }
}

#[derive(Domain)]
#[domain(name = "offices", shards = 2)]
struct Offices;

/// Reads meters and publishes what they show.
#[derive(Command, Serialize, Deserialize)]
#[command(domain = Offices)]
struct ReadMeter {
    #[key]
    meter: String,
    values: Vec<i32>,
    key: String,
}

#[derive(Worker)]
#[worker(domain = Offices, performs(ReadMeter))]
struct Reader;

impl Perform<ReadMeter> for Reader {
    async fn perform(&self, read: ReadMeter, job: Job) -> Result<(), WorkError> {
        let ids: Vec<_> =
            read.values.iter().map(|celsius| job.publish(&read.key, Measured { celsius: *celsius }).id()).collect();
        assert!(ids.windows(2).all(|two| two[0] != two[1]), "every event has its own id");
        if job.delivery < 3 {
            return Err(WorkError::Retry("the meter is wet".into()));
        }
        Ok(())
    }
}

/// Everything that was published: key, version, position in its shard, value; starts have none.
#[derive(Projection, Default, Serialize, Deserialize)]
#[projection(projects(Measured, Started), answers(Seen))]
struct Log {
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Line {
    key: String,
    version: u64,
    shard: u16,
    position: u64,
    celsius: Option<i32>,
}

#[derive(Query, Serialize, Deserialize)]
#[query(domain = Plant, reply = Vec<Line>)]
struct Seen;

fn line(context: &EventContext, celsius: Option<i32>) -> Line {
    let EventContext { key, version, shard, position, .. } = context.clone();
    Line { key, version, shard, position, celsius }
}

impl Project<Measured> for Log {
    fn project(&mut self, measured: &Measured, context: &EventContext) {
        self.lines.push(line(context, Some(measured.celsius)));
    }
}

impl Project<Started> for Log {
    fn project(&mut self, _started: &Started, context: &EventContext) {
        self.lines.push(line(context, None));
    }
}

impl Answer<Seen> for Log {
    fn answer(&self, _seen: Seen) -> Vec<Line> {
        self.lines.clone()
    }
}

fn measured(celsius: i32) -> Measured {
    Measured { celsius }
}

async fn start(store: &MemoryStore) -> Node {
    let node = Node::builder("plant", store.clone()).threads(0).publishes::<Measured>().publishes::<Started>();
    node.aggregate::<Machine>().projection::<Log>().worker(Reader).start().await.unwrap()
}

/// Returns the values of a key in the order in which they were projected. Checks versions and positions.
async fn seen(node: &Node, key: &str) -> Vec<i32> {
    node.wait_idle().await;
    let lines = node.client().query(Seen).await.unwrap();
    for shard in 0..2 {
        let positions: Vec<_> = lines.iter().filter(|line| line.shard == shard).map(|line| line.position).collect();
        assert_eq!(positions, (1..=positions.len() as u64).collect::<Vec<_>>(), "shard {shard}");
    }
    let of_key: Vec<_> = lines.into_iter().filter(|line| line.key == key).collect();
    let versions: Vec<_> = of_key.iter().filter(|line| line.celsius.is_some()).map(|line| line.version).collect();
    assert_eq!(versions, (1..=versions.len() as u64).collect::<Vec<_>>(), "{of_key:?}");
    of_key.into_iter().filter_map(|line| line.celsius).collect()
}

#[whizbang::test]
async fn published_events_reach_subscribers_in_order() {
    let store = MemoryStore::new();
    let node = start(&store).await;
    let client = node.client();
    for celsius in 0..20 {
        client.publish("boiler", measured(celsius)).await.unwrap();
        client.publish("oven", measured(-celsius)).await.unwrap();
    }
    client.send(Start { machine: "boiler".into() }).await.unwrap();
    client.publish("mill", Started {}).await.unwrap();
    assert_eq!(seen(&node, "boiler").await, (0..20).collect::<Vec<_>>());
    drop(node);
    // A view of another name reads everything from the first event.
    let node = start(&store).await;
    node.client().publish("boiler", measured(20)).await.unwrap();
    assert_eq!(seen(&node, "boiler").await, (0..=20).collect::<Vec<_>>());
    let lines = node.client().query(Seen).await.unwrap();
    assert_eq!(lines.iter().filter(|line| line.celsius.is_none()).count(), 2, "the aggregate's and the published one");
    assert!(node.manifest().to_string().contains("publisher whizbang-publisher"), "{}", node.manifest());
}

#[whizbang::test]
async fn repeated_publication_is_recorded_once() {
    let store = MemoryStore::new();
    for _ in 0..2 {
        let node = start(&store).await;
        for _ in 0..2 {
            node.client().publish("boiler", measured(7)).idempotency_key("line 1").await.unwrap();
        }
        let other = node.client().publish("boiler", measured(8)).idempotency_key("line 1").await;
        assert!(matches!(other, Err(SendError::Conflict)), "{other:?}");
        assert_eq!(seen(&node, "boiler").await, [7]);
    }
}

#[whizbang::test]
async fn invalid_publication_is_refused() {
    let node = Node::builder("plant", MemoryStore::new()).threads(0).publishes::<Measured>().start().await.unwrap();
    let client = node.client();
    let undeclared = client.publish("boiler", Started {}).await;
    assert!(matches!(&undeclared, Err(SendError::Unhandled { name, .. }) if name == "Started"), "{undeclared:?}");
    assert!(matches!(client.publish("", measured(1)).await, Err(SendError::Key { bytes: 0 })));
    let empty = client.publish("boiler", measured(1)).idempotency_key("").await;
    assert!(matches!(empty, Err(SendError::EmptyIdempotencyKey)));
    let twice =
        Node::builder("plant", MemoryStore::new()).publishes::<Measured>().publishes::<Measured>().start().await;
    assert!(matches!(twice, Err(StartError::DoubleHandler { .. })));
}

#[whizbang::test]
async fn job_publishes_once_in_order() {
    let store = MemoryStore::new();
    let node = start(&store).await;
    let values: Vec<_> = (1..=30).collect();
    let read = ReadMeter { meter: "m".into(), values: values.clone(), key: "boiler".into() };
    node.client().send(read).await.unwrap();
    assert_eq!(seen(&node, "boiler").await, values);
    let read = ReadMeter { meter: "m".into(), values: vec![1], key: String::new() };
    let error = node.client().send(read).await.unwrap_err();
    assert!(
        matches!(&error, SendError::DeadLetter { reason } if reason.contains("`Measured` to an invalid key")),
        "{error}"
    );
}

#[whizbang::test]
async fn events_are_published_over_a_bridge_and_read_from_the_first() {
    let hub = LoopbackHub::new();
    let plant = Node::builder("plant", MemoryStore::new()).threads(2).publishes::<Measured>().bridge(hub.bridge());
    let plant = plant.start().await.unwrap();
    let office = Node::builder("offices", MemoryStore::new()).worker(Reader).threads(0).bridge(hub.bridge());
    let office = office.start().await.unwrap();
    let outside = Client::connect("meter", hub.bridge()).await.unwrap();
    for celsius in 0..10 {
        outside.publish("boiler", measured(celsius)).idempotency_key(&celsius.to_string()).await.unwrap();
        outside.publish("boiler", measured(celsius)).idempotency_key(&celsius.to_string()).await.unwrap();
    }
    let read = ReadMeter { meter: "m".into(), values: vec![10, 11], key: "boiler".into() };
    office.client().send(read).await.unwrap();
    // A subscriber that starts later fills its gap from the owner's log.
    let view = Node::builder("views", MemoryStore::new()).projection::<Log>().threads(0).bridge(hub.bridge());
    let view = view.start().await.unwrap();
    let begun = tokio::time::Instant::now();
    while seen(&view, "boiler").await != (0..12).collect::<Vec<_>>() {
        assert!(begun.elapsed() < Duration::from_secs(10), "the events did not arrive in time");
        tokio::task::yield_now().await;
    }
    plant.stop().await.unwrap();
    office.stop().await.unwrap();
    view.stop().await.unwrap();
}

#[whizbang::test]
async fn undeclared_event_of_a_job_becomes_a_dead_letter() {
    let node = Node::builder("plant", MemoryStore::new()).threads(0).aggregate::<Machine>().worker(Reader);
    let node = node.start().await.unwrap();
    let read = ReadMeter { meter: "m".into(), values: vec![1], key: "boiler".into() };
    node.client().send(read).await.unwrap();
    node.wait_idle().await;
    let letters = node.dead_letters().await.unwrap();
    let about: Vec<_> = letters.iter().map(|letter| (letter.envelope.name.as_str(), letter.reason.as_str())).collect();
    assert_eq!(about, [("Measured", "unhandled")]);
}
