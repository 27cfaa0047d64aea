//! The resident memory of a process while requests for pages flood it, and while its outbox has no broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::HeaderMap;
use futures_util::StreamExt;
use whizbang::bridge::subject::{Address, Namespace};
use whizbang::bridge::wire::Packet;
use whizbang::bridge::{Request, Response};
use whizbang::clock::Clock;
use whizbang::message::shard_of;
use whizbang::prelude::*;
use whizbang::testing::bridge::cases::sample::shard;
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, service};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::NatsServer;

use whizbang_tests::{Direction, StallingProxy, brief_or_long, resident_mib};

use crate::bank::{Account, Bank, Withdraw, deposit};
use crate::windows::{self, Device};
use crate::{BOTH, services, until};

/// The maximum growth in MiB of this process.
const GROWTH: u64 = 64;
/// The same while two nodes in it have as many large messages as they may: 32 MiB in the queue of the sender, 16 unacknowledged, 16
/// in its window, 8 in the batch that it reads; 16 that the receiver has pulled and 16 in its windows. The messages have 160 MB.
const GROWTH_OF_TWO_NODES: u64 = 112;
/// The bytes of a large message.
const LARGE: usize = 400_000;

/// Samples the memory of this process until dropped, and keeps the maximum.
struct MemorySampler {
    before: u64,
    most: Arc<AtomicU64>,
    sampling: tokio::task::JoinHandle<()>,
}

impl MemorySampler {
    fn start() -> Self {
        let most = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&most);
        let sampling = tokio::task::spawn_local(async move {
            loop {
                seen.fetch_max(resident_mib(), Ordering::Relaxed);
                whizbang_tests::poll_interval().await;
            }
        });
        Self { before: resident_mib(), most, sampling }
    }

    /// Returns the growth in MiB since the start.
    fn end(self) -> u64 {
        self.sampling.abort();
        self.most.load(Ordering::Relaxed).max(resident_mib()).saturating_sub(self.before)
    }
}

/// Starts a node whose log has 20 large events of one shard.
async fn bank_with_large_events(url: &str) -> Node {
    let node = Node::builder("accounts", MemoryStore::new()).aggregate::<Account>();
    let node = node.bridge(services::bridge(url).await).start().await.expect("starts");
    let client = node.client();
    client.send(deposit("ada", 100)).await.expect("is handled");
    for _ in 0..20 {
        let withdraw = Withdraw { account: "ada".to_owned(), cents: 1, transfer: "x".repeat(LARGE) };
        client.send(withdraw).await.expect("is handled");
    }
    node.wait_idle().await;
    node
}

/// A client publishes questions for the events of a shard faster than they can be answered.
#[test]
fn questions_for_pages_do_not_fill_memory() {
    const QUESTIONS: usize = 4_000;
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node = bank_with_large_events(&server.url()).await;
            let asked = shard("bank", shard_of("ada", Bank::SHARDS));
            let stranger = async_nats::connect(server.url()).await.expect("connects");
            let sampler = MemorySampler::start();
            // The server drops the responses: nothing subscribes to this inbox.
            for _ in 0..QUESTIONS {
                ask(&stranger, "_INBOX.nothing", Request::Events { shard: asked.clone(), after: 0, limit: 1_000 })
                    .await;
            }
            // The server keeps the order, so the node has received all questions when it answers this one.
            let mut inbox = stranger.subscribe("_INBOX.last").await.expect("subscribes");
            let last = Request::Watermark { from: shard("shop", 0), to: asked.clone() };
            ask(&stranger, "_INBOX.last", last).await;
            tokio::time::timeout(Duration::from_secs(60), inbox.next()).await.expect("an answer in time");
            let peer = services::bridge(&server.url()).await;
            let peer =
                TestNode::attach(Arc::new(peer), service("peer"), NodeBehavior::default()).await.expect("attaches");
            until("an answered question", async || {
                let question = Request::Events { shard: asked.clone(), after: 0, limit: 1 };
                matches!(peer.bridge.request(question, Duration::from_secs(5)).await, Ok(Response::Envelopes(..)))
            })
            .await;
            let grown = sampler.end();
            println!("{release:?}: {grown} MiB more during {QUESTIONS} questions");
            assert!(grown < GROWTH, "{grown} MiB");
            peer.stop().await;
            node.stop().await.expect("stops");
        });
    }
}

/// A client publishes large messages on the subject of a claim faster than the owner renews it.
#[test]
fn messages_in_place_of_claims_do_not_fill_memory() {
    const MESSAGES: usize = 400;
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let node = bank_with_large_events(&server.url()).await;
            let stranger = async_nats::connect(server.url()).await.expect("connects");
            let subject = Namespace::default().claim_subject(&shard("bank", 0).domain);
            let sampler = MemorySampler::start();
            for _ in 0..MESSAGES {
                stranger.publish(subject.clone(), vec![b'x'; LARGE].into()).await.expect("the connection is open");
                // This process has the client's queue, too.
                stranger.flush().await.expect("sends");
            }
            // The server delivers them to the node before the claim that the node writes again.
            let claims = async_nats::jetstream::new(stranger.clone());
            until("a renewed claim", async || {
                let stream = claims.get_stream(Namespace::default().claims_stream()).await.expect("the stream exists");
                let last = stream.get_last_raw_message_by_subject(&subject).await.expect("a message");
                last.payload.len() < LARGE
            })
            .await;
            let grown = sampler.end();
            println!("{release:?}: {grown} MiB more during {MESSAGES} messages in place of a claim");
            assert!(grown < GROWTH, "{grown} MiB");
            node.client().send(deposit("ada", 1)).await.expect("is handled");
            node.stop().await.expect("stops");
        });
    }
}

async fn ask(stranger: &async_nats::Client, inbox: &'static str, request: Request) {
    let packet = Packet::from_request(&request).expect("is encoded");
    let mut headers = HeaderMap::new();
    for (name, value) in &packet.headers {
        headers.append(name.as_ref(), value.as_str());
    }
    let subject = Namespace::default().subject(&Address::for_request(&request));
    let written = stranger.publish_with_reply_and_headers(subject, inbox, headers, packet.payload).await;
    written.expect("the connection is open");
}

#[derive(Domain)]
#[domain(name = "scans", shards = 4)]
struct Scans;

#[derive(Domain)]
#[domain(name = "archive", shards = 4)]
struct Archive;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Scans)]
struct Scan {
    #[key]
    scanner: String,
    shelf: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Archive, reply = u64)]
struct Keep {
    #[key]
    shelf: String,
    image: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Archive)]
struct Kept {}

/// Sends a large image to the archive for each scan.
#[derive(Aggregate, Default)]
#[aggregate(domain = Scans, handles(Scan))]
struct Scanner {}

impl Handle<Scan> for Scanner {
    fn handle(&self, scan: Scan, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        effects.send(Keep { shelf: scan.shelf, image: "x".repeat(LARGE) });
        Ok(())
    }
}

#[derive(Aggregate, Default)]
#[aggregate(domain = Archive, handles(Keep), applies(Kept))]
struct Shelf {
    images: u64,
}

impl Handle<Keep> for Shelf {
    fn handle(&self, keep: Keep, effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        if !keep.image.is_empty() {
            effects.record(Kept {});
        }
        Ok(self.images)
    }
}

impl Apply<Kept> for Shelf {
    fn apply(&mut self, _kept: &Kept) {
        self.images += 1;
    }
}

/// Outbox entries are recorded at full speed while the broker is down, and are read in bounded pieces when it is back.
#[test]
fn outbox_recorded_without_broker_is_sent_in_pieces() {
    let entries = brief_or_long(400, 1_500);
    for release in BOTH {
        run(async {
            let mut server = NatsServer::start(release);
            let folder = tempfile::tempdir().expect("a folder");
            let store = EmbeddedStore::open(folder.path()).expect("opens");
            let scans = Node::builder("scans", store).aggregate::<Scanner>();
            let scans = scans.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
            let archive = Node::builder("archive", MemoryStore::new()).aggregate::<Shelf>();
            let archive = archive.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
            server.kill();
            let client = scans.client();
            let sampler = MemorySampler::start();
            let began = std::time::Instant::now();
            for number in 0..entries {
                let scan =
                    Scan { scanner: format!("scanner {}", number % 16), shelf: format!("shelf {}", number % 13) };
                client.send(scan).await.expect("is recorded");
            }
            let recorded = began.elapsed();
            server.restart();
            let reader = archive.client();
            let kept = async || {
                let mut sum = 0;
                for shelf in 0..13 {
                    let keep = Keep { shelf: format!("shelf {shelf}"), image: String::new() };
                    sum += reader.send(keep).await.expect("is handled");
                }
                sum
            };
            until("all entries", async || kept().await >= entries).await;
            let took = began.elapsed() - recorded;
            scans.wait_idle().await;
            assert_eq!(kept().await, entries, "each entry is handled once");
            let grown = sampler.end();
            println!("{release:?}: {entries} entries recorded in {recorded:?}, sent in {took:?}, {grown} MiB more");
            assert!(grown < GROWTH_OF_TWO_NODES, "{grown} MiB");
            scans.stop().await.expect("stops");
            archive.stop().await.expect("stops");
        });
    }
}

#[derive(Domain)]
#[domain(name = "bindery", shards = 4)]
struct Bindery;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Bindery)]
struct Bind {
    #[key]
    book: String,
    image: String,
}

#[derive(Worker)]
#[worker(domain = Bindery, performs(Bind))]
struct Binder(Device);

impl Perform<Bind> for Binder {
    async fn perform(&self, bind: Bind, _job: Job) -> Result<(), WorkError> {
        assert_eq!(bind.image.len(), LARGE);
        self.0.use_once().await;
        Ok(())
    }
}

/// Large jobs of a client wait for a worker that does none: most stay at the broker, and few in the memory of the node. A node with
/// leased shards has a consumer for each.
#[test]
fn large_jobs_that_wait_do_not_fill_memory() {
    // Less than the stream of a domain holds.
    const JOBS: u64 = 300;
    let shared = || MemoryStore::shared(&Clock::system());
    let cases = BOTH.map(|release| [(release, "one owner", MemoryStore::new()), (release, "leased", shared())]);
    for (release, shards, store) in cases.into_iter().flatten() {
        run(async {
            let server = NatsServer::start(release);
            let device = Device::broken();
            let node = Node::builder("bindery", store);
            // A running job has its message twice: encoded and decoded.
            let node = node.worker_with(Binder(device.clone()), whizbang::WorkerOptions::new().jobs(4));
            let node = node.bridge(services::bridge(&server.url()).await).start().await.expect("starts");
            let client = windows::client(&server, "office").await;
            let sampler = MemorySampler::start();
            for number in 0..JOBS {
                let bind = Bind { book: format!("book {number}"), image: "x".repeat(LARGE) };
                client.post_to_broker(bind).await.expect("is accepted");
            }
            // Each refusal means that the node had as many as it keeps.
            until("refusals of all jobs", async || node.metrics().busy >= JOBS).await;
            let grown = sampler.end();
            println!("{release:?}, {shards}: {grown} MiB more while {JOBS} jobs of {LARGE} bytes waited");
            assert!(grown < GROWTH + 8, "{shards}: {grown} MiB");
            device.repair();
            until("all jobs", async || device.uses() >= JOBS).await;
            node.wait_idle().await;
            assert_eq!(device.uses(), JOBS, "each job is done once");
            client.disconnect().await;
            node.stop().await.expect("stops");
        });
    }
}

/// The connection of a node accepts no more bytes while requests flood it. It continues to receive, and keeps only what it must.
#[test]
fn requests_during_a_stalled_write_do_not_fill_memory() {
    const REQUESTS: u64 = 2_000;
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let proxy = StallingProxy::start(server.port());
            let behind = format!("nats://127.0.0.1:{}", proxy.port());
            let node = bank_with_large_events(&behind).await;
            let asked = shard("bank", shard_of("ada", Bank::SHARDS));
            let stranger = async_nats::connect(server.url()).await.expect("connects");
            let sampler = MemorySampler::start();
            proxy.stall(Direction::Requests);
            // The pages fill the connection.
            for _ in 0..200 {
                ask(&stranger, "_INBOX.nothing", Request::Events { shard: asked.clone(), after: 0, limit: 1_000 })
                    .await;
            }
            let subject = Namespace::default()
                .subject(&Address::for_request(&Request::Watermark { from: shard("shop", 0), to: asked.clone() }));
            for number in 0..REQUESTS {
                let request = vec![b'x'; LARGE / 4].into();
                let written = stranger.publish_with_reply(subject.clone(), "_INBOX.nothing", request).await;
                written.expect("the connection is open");
                // This process has the client's queue, too.
                if number % 20 == 0 {
                    stranger.flush().await.expect("sends");
                }
            }
            until("all requests", async || node.metrics().refused_requests >= REQUESTS).await;
            let grown = sampler.end();
            println!("{release:?}: {grown} MiB more during {REQUESTS} requests that cannot be answered");
            assert!(proxy.held() > 0, "the connection was not stalled");
            assert!(grown < GROWTH, "{grown} MiB");
            proxy.resume();
            until("a command after the stall", async || node.client().send(deposit("ada", 1)).await.is_ok()).await;
            node.stop().await.expect("stops");
        });
    }
}
