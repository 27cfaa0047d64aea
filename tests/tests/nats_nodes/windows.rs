//! Messages that wait for a slow job, a slow subscriber or the messages before them leave room for unrelated ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, consumer::pull};
use futures_util::future::join_all;
use tokio::sync::Semaphore;
use whizbang::bridge::Bridge;
use whizbang::bridge::nats::NatsBridge;
use whizbang::message::{Codec, Envelope, MessageId, Origin, StoreId, shard_of};
use whizbang::prelude::*;
use whizbang::testing::bridge::cases::sample::{command, event, shard};
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, named, service};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use crate::bank::{Account, Bank, deposit};
use crate::{BOTH, services, until};

/// The time within which an unrelated message must be handled while others wait.
const BOUND: Duration = Duration::from_secs(15);

#[derive(Domain)]
#[domain(name = "desks")]
struct Desks;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Desks)]
struct Print {
    #[key]
    page: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Desks)]
struct Write {
    #[key]
    paper: String,
    lines: u64,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Desks, reply = u64)]
struct Count {
    #[key]
    paper: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Desks)]
struct Written {
    number: u64,
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Desks, handles(Write, Count), applies(Written))]
struct Paper {
    lines: u64,
}

impl Handle<Write> for Paper {
    fn handle(&self, write: Write, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for number in 1..=write.lines {
            effects.record(Written { number: self.lines + number });
        }
        Ok(())
    }
}

impl Handle<Count> for Paper {
    fn handle(&self, _count: Count, _effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        Ok(self.lines)
    }
}

impl Apply<Written> for Paper {
    fn apply(&mut self, _written: &Written) {
        self.lines += 1;
    }
}

/// A device whose jobs wait until it is repaired.
#[derive(Clone)]
pub(crate) struct Device {
    repaired: Arc<Semaphore>,
    done: Arc<AtomicU64>,
}

impl Device {
    pub(crate) fn broken() -> Self {
        Self { repaired: Arc::new(Semaphore::new(0)), done: Arc::default() }
    }

    pub(crate) async fn use_once(&self) {
        drop(self.repaired.acquire().await);
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn repair(&self) {
        self.repaired.add_permits(1_000_000);
    }

    pub(crate) fn uses(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

#[derive(Worker)]
#[worker(domain = Desks, performs(Print))]
struct Printer(Device);

impl Perform<Print> for Printer {
    async fn perform(&self, _print: Print, _job: Job) -> Result<(), WorkError> {
        self.0.use_once().await;
        Ok(())
    }
}

#[derive(Domain)]
#[domain(name = "readers")]
struct Readers;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Readers, reply = u64)]
struct ReadLines {
    #[key]
    reader: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Readers)]
struct LineRead {}

/// Has read the lines of each paper.
#[derive(Saga, Default)]
#[saga(domain = Readers, handles(ReadLines), reacts(Written), applies(LineRead))]
struct Reader {
    lines: u64,
}

impl Handle<ReadLines> for Reader {
    fn handle(&self, _read: ReadLines, _effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        Ok(self.lines)
    }
}

impl React<Written> for Reader {
    fn key(_written: &Written, context: &EventContext) -> Option<String> {
        Some(context.key.clone())
    }

    fn react(&self, _written: Written, effects: &mut Effects<Self>) {
        effects.record(LineRead {});
    }
}

impl Apply<LineRead> for Reader {
    fn apply(&mut self, _read: &LineRead) {
        self.lines += 1;
    }
}

/// Copies each line with a device.
#[derive(Worker)]
#[worker(domain = Readers, on(Written))]
struct Copier(Device);

impl OnEvent<Written> for Copier {
    async fn on_event(&self, _written: Written, _job: Job) -> Result<(), WorkError> {
        self.0.use_once().await;
        Ok(())
    }
}

/// Waits until `holds`, and returns the time it took.
async fn timed(what: &str, holds: impl AsyncFnMut() -> bool) -> Duration {
    let began = Instant::now();
    until(what, holds).await;
    began.elapsed()
}

pub(crate) async fn client(server: &NatsServer, name: &str) -> Client {
    Client::connect(name, services::bridge(&server.url()).await).await.expect("connects")
}

#[test]
fn slow_jobs_leave_room_for_other_commands() {
    const JOBS: usize = 5_000;
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let device = Device::broken();
            let node = Node::builder("desks", MemoryStore::new()).worker(Printer(device.clone())).aggregate::<Paper>();
            let node = node.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
            let client = client(&server, "office").await;
            let posts =
                join_all((0..JOBS).map(|page| client.post_to_broker(Print { page: format!("page {page}") }))).await;
            assert!(posts.iter().all(Result::is_ok), "{:?}", posts.iter().find(|post| post.is_err()));
            client.post_to_broker(Write { paper: "letter".to_owned(), lines: 1 }).await.expect("is accepted");
            let lines = async || client.send(Count { paper: "letter".to_owned() }).await.expect("is handled");
            let took = timed("a command behind slow jobs", async || lines().await == 1).await;
            println!("{release:?}: a command behind {JOBS} slow jobs was handled within {took:?}");
            assert!(took < BOUND, "{took:?}");
            assert_eq!(device.uses(), 0, "no job is done");
            device.repair();
            until("all jobs", async || device.uses() >= JOBS as u64).await;
            node.wait_idle().await;
            assert_eq!(device.uses(), JOBS as u64, "each job is done once");
            client.disconnect().await;
            node.stop().await.expect("stops");
        });
    }
}

#[test]
fn slow_subscriber_leaves_room_for_others() {
    const EVENTS: u64 = 6_000;
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let device = Device::broken();
            let desks = Node::builder("desks", MemoryStore::new()).aggregate::<Paper>();
            let desks = desks.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
            let readers = Node::builder("readers", MemoryStore::new()).saga::<Reader>().worker(Copier(device.clone()));
            let readers = readers.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
            let client = client(&server, "office").await;
            for paper in 0..60 {
                client.send(Write { paper: format!("paper {paper}"), lines: EVENTS / 60 }).await.expect("is handled");
            }
            let read = async |paper: &str| client.send(ReadLines { reader: paper.to_owned() }).await;
            until("the lines of the first papers", async || {
                let all = join_all((0..60).map(async |paper| read(&format!("paper {paper}")).await.ok())).await;
                all.iter().all(|lines| *lines == Some(EVENTS / 60))
            })
            .await;
            client.send(Write { paper: "letter".to_owned(), lines: 1 }).await.expect("is handled");
            let took = timed("an event behind slow jobs", async || read("letter").await.ok() == Some(1)).await;
            println!("{release:?}: an event behind {EVENTS} events of a slow worker was handled within {took:?}");
            assert!(took < BOUND, "{took:?}");
            assert_eq!(device.uses(), 0, "no job is done");
            device.repair();
            until("all jobs", async || device.uses() > EVENTS).await;
            readers.wait_idle().await;
            assert_eq!(device.uses(), EVENTS + 1, "each event is handled once");
            client.disconnect().await;
            readers.stop().await.expect("stops");
            desks.stop().await.expect("stops");
        });
    }
}

/// Owners of domains that are away.
macro_rules! absent {
    ($($module:ident $name:literal),*) => {
        $(mod $module {
            use super::*;

            #[derive(Domain)]
            #[domain(name = $name)]
            pub(super) struct Home;

            #[derive(Event, Serialize, Deserialize)]
            #[event(domain = Home)]
            pub(super) struct Happened {}

            #[derive(Saga, Default)]
            #[saga(domain = Readers, name = $name, reacts(Happened))]
            pub(super) struct Watch;

            impl React<Happened> for Watch {
                fn react(&self, _happened: Happened, _effects: &mut Effects<Self>) {}
            }
        })*
    };
}

absent!(north "north", east "east", south "south", west "west", centre "centre");

const ABSENT: [&str; 5] = ["north", "east", "south", "west", "centre"];

async fn test_node(server: &NatsServer, card: whizbang::bridge::NodeCard) -> TestNode {
    let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
    TestNode::attach(bridge, card, NodeBehavior::default()).await.expect("attaches")
}

/// The stream has lost the first events of each shard, and the owner cannot be asked for them.
#[test]
fn gaps_of_absent_owners_leave_room_for_commands() {
    const EVENTS: u64 = 1_000;
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let card = ABSENT.iter().fold(service("absent"), |card, name| card.owning(named(name), 16));
            let owner = test_node(&server, card).await;
            let node = Node::builder("readers", MemoryStore::new())
                .saga::<Reader>()
                .saga::<north::Watch>()
                .saga::<east::Watch>()
                .saga::<south::Watch>()
                .saga::<west::Watch>()
                .saga::<centre::Watch>();
            let node = node.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
            for domain in ABSENT {
                for number in 0..2 {
                    let shard = shard(domain, number);
                    let sent = join_all((2..EVENTS + 2).map(|position| owner.bridge.publish(event(&shard, position))));
                    assert!(sent.await.iter().all(Result::is_ok), "all events are published");
                }
            }
            owner.stop().await;
            let operator = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
            for domain in ABSENT {
                let stream = operator.get_stream(format!("whizbang_events_{domain}")).await.expect("a stream");
                let mut consumer = stream.get_consumer::<pull::Config>("readers").await.expect("a consumer");
                // Packs of about sixty events each. The node receives them until its window is full.
                until("events behind a gap", async || {
                    consumer.info().await.expect("its state").delivered.stream_sequence >= 8
                })
                .await;
            }
            let client = client(&server, "office").await;
            client.post_to_broker(ReadLines { reader: "me".to_owned() }).await.expect("is accepted");
            let took = timed("a command to the subscriber", async || node.metrics().turns >= 1).await;
            println!("{release:?}: a command behind gaps of five absent owners was handled within {took:?}");
            assert!(took < BOUND, "{took:?}");
            client.disconnect().await;
            node.stop().await.expect("stops");
        });
    }
}

/// Returns a deposit that an actor of shard 0 of a domain sends.
fn deposit_from(domain: &'static str, account: &str, sequence: u64) -> Envelope {
    let mut payload = Vec::new();
    Codec::Bincode.encode(&deposit(account, 5), &mut payload).expect("is encoded");
    let to = shard("bank", shard_of(account, Bank::SHARDS));
    let like = command(&shard(domain, 0), &to, sequence);
    let id = MessageId::from_idempotency_key(domain, "", &sequence.to_string());
    Envelope { id, name: named("Deposit"), key: account.to_owned(), payload: payload.into(), ..like }
}

/// Returns a command whose sender has a store, in which it stays until it is committed.
fn of_store(mut command: Envelope) -> Envelope {
    command.origin = command.origin.map(|origin| Origin { store: Some(StoreId::from_u128(7)), ..origin });
    command
}

/// The first command of each sending shard is missing, and their owner cannot be asked for it. More commands wait than the server
/// delivers without acknowledgements.
#[test]
fn commands_behind_gaps_leave_room_for_other_senders() {
    const SENDERS: u16 = 12;
    const AHEAD: u64 = 1_028;
    const { assert!(SENDERS as u64 * AHEAD > 10_000, "max_ack_pending") };
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let bank = Node::builder("accounts", MemoryStore::new()).aggregate::<Account>();
            let bank = bank.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
            let absent = test_node(&server, service("absent").owning(named("absent"), 16)).await;
            for number in 0..SENDERS {
                let from = shard("absent", number);
                let to = shard("bank", number);
                for first in (2..AHEAD + 2).step_by(100) {
                    let some = first..(first + 100).min(AHEAD + 2);
                    let sent =
                        join_all(some.map(|sequence| absent.bridge.send(of_store(command(&from, &to, sequence)))))
                            .await;
                    assert!(sent.iter().all(Result::is_ok), "all commands are sent");
                }
            }
            absent.stop().await;
            until("a gap from each sender", async || bank.metrics().gaps >= u64::from(SENDERS)).await;
            let client = client(&server, "office").await;
            let till = test_node(&server, service("till").owning(named("till"), 16)).await;
            client.post_to_broker(deposit("ada", 5)).await.expect("is accepted");
            for sequence in 1..=10 {
                till.bridge.send(deposit_from("till", "bob", sequence)).await.expect("is sent");
            }
            let balance = async |account: &str| client.send(deposit(account, 0)).await.expect("is handled");
            let took = timed("a post and commands of another sender", async || {
                balance("ada").await == 5 && balance("bob").await == 50
            })
            .await;
            println!("{release:?}: commands behind gaps of {SENDERS} absent senders were handled within {took:?}");
            assert!(took < BOUND, "{took:?}");
            client.disconnect().await;
            till.stop().await;
            bank.stop().await.expect("stops");
        });
    }
}
