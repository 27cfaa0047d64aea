//! Isolation of neighbors: actors with one name in two domains, impossible statements of a peer, texts of unlimited
//! length.
#![cfg(feature = "testing")]

mod bank;
mod eventually;
mod wallet;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bank::{deposit, transfer};
use eventually::eventually;
use futures_util::future::{BoxFuture, FutureExt};
use wallet::{Filled, Wallet, fill};
use whizbang::bridge::loopback::LoopbackHub;
use whizbang::bridge::{AckOutcome, Bridge, Inbound, NodeCard, Notification, Request, Response};
use whizbang::message::{
    Codec, Envelope, Kind, MAX_PAYLOAD_BYTES, MessageId, Name, Origin, ReplyMode, ShardId, shard_of,
};
use whizbang::prelude::*;
use whizbang::store::{SourceKind, Store};
use whizbang::{NodeConfig, Retry};

/// A watcher called `watch` in a domain of its own.
macro_rules! watcher {
    ($module:ident, $name:literal, $shard:literal) => {
        mod $module {
            use super::*;

            pub(super) static PANICS: AtomicBool = AtomicBool::new(false);

            #[derive(Domain)]
            #[domain(name = $name, shards = 2)]
            pub(super) struct Home;

            #[derive(Command, Serialize, Deserialize)]
            #[command(domain = Home, reply = u64)]
            pub(super) struct Look {
                #[key]
                pub(super) watch: String,
            }

            #[derive(Event, Serialize, Deserialize)]
            #[event(domain = Home)]
            pub(super) struct Seen {}

            #[derive(Saga, Default)]
            #[saga(domain = Home, name = "watch", handles(Look), applies(Seen), reacts(Filled))]
            pub(super) struct Watch {
                seen: u64,
            }

            impl Handle<Look> for Watch {
                fn handle(&self, _look: Look, _effects: &mut Effects<Self>) -> Result<u64, Rejection> {
                    Ok(self.seen)
                }
            }

            impl Apply<Seen> for Watch {
                fn apply(&mut self, _seen: &Seen) {
                    self.seen += 1;
                }
            }

            impl React<Filled> for Watch {
                fn key(_filled: &Filled, _context: &EventContext) -> Option<String> {
                    Some(key_in($shard))
                }

                fn react(&self, _filled: Filled, effects: &mut Effects<Self>) {
                    assert!(!PANICS.load(Ordering::Relaxed), "planned: the handler panics");
                    effects.record(Seen {});
                }
            }
        }
    };
}

watcher!(north, "north", 0);
watcher!(south, "south", 1);

/// Serializes the tests that make the watchers panic.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Returns a key of a shard.
fn key_in(shard: u16) -> String {
    (0..).map(|n| format!("k{n}")).find(|key| shard_of(key, 2) == shard).unwrap()
}

async fn both(store: &MemoryStore, retry: Retry) -> Node {
    let config = NodeConfig { threads: 0, passivate_after: Duration::from_secs(1), retry, ..NodeConfig::default() };
    let builder = Node::builder("both", store.clone())
        .threads(0)
        .aggregate::<Wallet>()
        .saga::<north::Watch>()
        .saga::<south::Watch>();
    builder.config(config).start().await.unwrap()
}

/// Returns the watermark of a shard for the wallet's events.
async fn watermark(store: &MemoryStore, domain: &str, shard: u16) -> u64 {
    let reader = store.read(&ShardId::new(Name::new(domain).unwrap(), shard)).await.unwrap();
    let marks = reader.map(|reader| reader.watermarks()).unwrap_or_default();
    let of_events = |kind: &SourceKind| matches!(kind, SourceKind::Events { .. });
    marks.iter().find(|mark| of_events(&mark.source.kind)).map_or(0, |mark| mark.through)
}

#[whizbang::test]
async fn equally_named_actors_receive_their_own_events_only() {
    let _alone = ALONE.lock().await;
    let store = MemoryStore::new();
    let patient = Retry { attempts: 100, first: Duration::from_secs(60), longest: Duration::from_secs(60) };
    let node = both(&store, patient).await;
    north::PANICS.store(true, Ordering::Relaxed);
    node.client().send(fill("a")).await.unwrap();
    eventually(async || node.client().send(south::Look { watch: key_in(1) }).await.unwrap() == 1).await;
    // The shards that the event does not concern are notified of its position.
    eventually(async || watermark(&store, "south", 0).await == 1 || watermark(&store, "north", 0).await == 1).await;
    // The failing one keeps its own event until it can handle it.
    eventually(async || node.metrics().deferred == 1).await;
    drop(node);
    north::PANICS.store(false, Ordering::Relaxed);
    let node = both(&store, patient).await;
    node.wait_idle().await;
    assert_eq!(node.client().send(north::Look { watch: key_in(0) }).await.unwrap(), 1);
    assert_eq!(node.client().send(south::Look { watch: key_in(1) }).await.unwrap(), 1);
}

#[whizbang::test]
async fn dead_letters_of_equally_named_actors_are_redriven() {
    let _alone = ALONE.lock().await;
    let store = MemoryStore::new();
    let node = both(&store, Retry::NEVER).await;
    south::PANICS.store(true, Ordering::Relaxed);
    node.client().send(fill("a")).await.unwrap();
    node.wait_idle().await;
    south::PANICS.store(false, Ordering::Relaxed);
    let letters = node.dead_letters().await.unwrap();
    assert_eq!(letters.len(), 1, "{letters:?}");
    node.redrive(&letters[0]).await.unwrap();
    assert_eq!(node.dead_letters().await.unwrap(), []);
    assert_eq!(node.client().send(south::Look { watch: key_in(1) }).await.unwrap(), 1);
}

static STAMP_PANICS: AtomicBool = AtomicBool::new(false);

#[derive(Domain)]
#[domain(name = "desk", shards = 1)]
struct Desk;

#[derive(Domain)]
#[domain(name = "clerks", shards = 1)]
struct Clerks;

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Desk)]
struct Stamp {
    #[key]
    paper: String,
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Desk, reply = u64)]
struct Stamps {
    #[key]
    paper: String,
}

#[derive(Event, Serialize, Deserialize)]
#[event(domain = Desk)]
struct Stamped {}

#[derive(Aggregate, Default)]
#[aggregate(domain = Desk, handles(Stamp, Stamps), applies(Stamped))]
struct Paper {
    stamps: u64,
}

impl Handle<Stamp> for Paper {
    fn handle(&self, stamp: Stamp, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        assert!(stamp.paper != "slow" || !STAMP_PANICS.load(Ordering::Relaxed), "planned: the handler panics");
        assert!(stamp.paper != "endless", "{}", "x".repeat(3 << 20));
        effects.record(Stamped {});
        Ok(())
    }
}

impl Handle<Stamps> for Paper {
    fn handle(&self, _stamps: Stamps, _effects: &mut Effects<Self>) -> Result<u64, Rejection> {
        Ok(self.stamps)
    }
}

impl Apply<Stamped> for Paper {
    fn apply(&mut self, _stamped: &Stamped) {
        self.stamps += 1;
    }
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Clerks)]
struct Do {
    #[key]
    clerk: String,
    papers: Vec<String>,
}

#[derive(Saga, Default)]
#[saga(domain = Clerks, handles(Do))]
struct Clerk;

impl Handle<Do> for Clerk {
    fn handle(&self, work: Do, effects: &mut Effects<Self>) -> Result<(), Rejection> {
        for paper in work.papers {
            effects.send(Stamp { paper });
        }
        Ok(())
    }
}

async fn desk(store: &MemoryStore, retry: Retry) -> Node {
    Node::builder("desk", store.clone())
        .threads(0)
        .aggregate::<Paper>()
        .saga::<Clerk>()
        .retry(retry)
        .start()
        .await
        .unwrap()
}

async fn order(node: &Node, papers: &[&str]) {
    let papers = papers.iter().map(|paper| (*paper).to_owned()).collect();
    node.client().send(Do { clerk: "c".into(), papers }).await.unwrap();
}

async fn stamps(node: &Node, paper: &str) -> u64 {
    node.client().send(Stamps { paper: paper.into() }).await.unwrap()
}

#[whizbang::test]
async fn out_of_order_commit_blocks_nothing_after_two_restarts() {
    let _alone = ALONE.lock().await;
    let store = MemoryStore::new();
    let patient = Retry { attempts: 100, first: Duration::from_secs(60), longest: Duration::from_secs(60) };
    STAMP_PANICS.store(true, Ordering::Relaxed);
    let node = desk(&store, patient).await;
    order(&node, &["slow", "quick"]).await;
    eventually(async || stamps(&node, "quick").await == 1).await;
    drop(node);
    STAMP_PANICS.store(false, Ordering::Relaxed);
    let node = desk(&store, patient).await;
    eventually(async || stamps(&node, "slow").await == 1).await;
    node.wait_idle().await;
    assert_eq!(stamps(&node, "quick").await, 1, "it came a second time, and its key knows its place");
    drop(node);
    let reader = store.read(&ShardId::new(Name::new("desk").unwrap(), 0)).await.unwrap().unwrap();
    assert_eq!(reader.watermarks()[0].through, 2, "sender and receiver both know two messages");
    let node = desk(&store, patient).await;
    order(&node, &["quick"]).await;
    eventually(async || stamps(&node, "quick").await == 2).await;
    node.stop().await.unwrap();
    assert_eq!(reader.watermarks()[0].through, 3, "nothing is missing in between");
}

#[whizbang::test]
async fn panic_with_a_long_text_becomes_a_dead_letter() {
    let node = desk(&MemoryStore::new(), Retry::NEVER).await;
    order(&node, &["endless", "other"]).await;
    eventually(async || stamps(&node, "other").await == 1).await;
    eventually(async || node.dead_letters().await.unwrap().len() == 1).await;
    let error = node.client().send(Stamp { paper: "endless".into() }).await.unwrap_err();
    assert!(matches!(error, whizbang::SendError::DeadLetter { .. }), "{error:?}");
}

#[derive(Command, Serialize, Deserialize)]
#[command(domain = Desk)]
struct Print {
    #[key]
    paper: String,
}

#[derive(Worker)]
#[worker(domain = Desk, performs(Print))]
struct Printer;

impl Perform<Print> for Printer {
    async fn perform(&self, _print: Print, _job: Job) -> Result<(), WorkError> {
        Err(WorkError::Fail("x".repeat(3 << 20).into()))
    }
}

#[whizbang::test]
async fn job_failing_with_a_long_text_becomes_a_dead_letter() {
    let node = Node::builder("desk", MemoryStore::new()).threads(0).worker(Printer).start().await.unwrap();
    let error = node.client().send(Print { paper: "a".into() }).await.unwrap_err();
    assert!(matches!(error, whizbang::SendError::DeadLetter { .. }), "{:.200}", format!("{error:?}"));
    assert_eq!(node.dead_letters().await.unwrap().len(), 1);
}

/// A service that sends arbitrary statements.
struct Impostor {
    answer: Response,
    asked: AtomicUsize,
}

impl Impostor {
    fn answering(answer: Response) -> Arc<Self> {
        Arc::new(Self { answer, asked: AtomicUsize::new(0) })
    }
}

impl Inbound for Impostor {
    fn deliver(&self, _envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        std::future::ready(AckOutcome::Retry).boxed()
    }
    fn event(&self, _envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        std::future::ready(AckOutcome::Ack).boxed()
    }
    fn request(&self, _request: Request) -> BoxFuture<'static, Response> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        std::future::ready(self.answer.clone()).boxed()
    }
    fn notify(&self, _notification: Notification) {}
    fn reconnected(&self) {}
    fn capacity(&self) -> usize {
        1
    }
}

fn card(service: &'static str, owns: &'static str) -> NodeCard {
    NodeCard::new(Name::new(service).unwrap()).owning(Name::new(owns).unwrap(), 16)
}

#[whizbang::test]
async fn undecodable_reply_may_have_happened() {
    let hub = LoopbackHub::new();
    let impostor = hub.bridge();
    let too_large = Response::Reply(vec![0; MAX_PAYLOAD_BYTES + 1].into());
    impostor.attach(card("bank", "bank"), Impostor::answering(too_large)).await.unwrap();
    let node = Node::builder("transfers", MemoryStore::new()).threads(0).saga::<bank::Transfer>().bridge(hub.bridge());
    let node = node.start().await.unwrap();
    let error = node.client().send(deposit("ada", 5)).await.unwrap_err();
    assert!(error.may_have_happened(), "{error:?}");
}

#[whizbang::test]
async fn confirmation_of_unsent_messages_loses_nothing() {
    let hub = LoopbackHub::new();
    let (money, moves) = (MemoryStore::new(), MemoryStore::new());
    let accounts = Node::builder("accounts", money)
        .threads(0)
        .aggregate::<bank::Account>()
        .bridge(hub.bridge())
        .start()
        .await
        .unwrap();
    let transfers = Node::builder("transfers", moves).threads(0).saga::<bank::Transfer>().bridge(hub.bridge());
    let transfers = transfers.start().await.unwrap();
    accounts.client().send(deposit("ada", 100)).await.unwrap();
    let forger = hub.bridge();
    forger.attach(card("forger", "lies"), Impostor::answering(Response::watermark(0))).await.unwrap();
    let client = transfers.client();
    client.send(transfer("t1", "ada", "bob", 1)).await.unwrap();
    eventually(async || client.send(bank::outcome("t1")).await.unwrap() == "done").await;
    for through in [50, u64::MAX] {
        for to in 0..16 {
            let from = ShardId::new(Name::new("transfers").unwrap(), shard_of("t1", 16));
            let to = ShardId::new(Name::new("bank").unwrap(), to);
            forger.notify(Notification::Committed { from, to, through }).await.unwrap();
        }
        // Another saga of the same shard.
        let next = (0..).map(|n| format!("t{through}-{n}")).find(|key| shard_of(key, 16) == shard_of("t1", 16));
        let next = next.unwrap();
        // It arrives after the notifications before it.
        for _ in 0..20 {
            client.send(bank::outcome(&next)).await.unwrap();
        }
        client.send(transfer(&next, "ada", "bob", 1)).await.unwrap();
        eventually(async || client.send(bank::outcome(&next)).await.unwrap() == "done").await;
    }
    assert_eq!(accounts.client().send(deposit("bob", 0)).await.unwrap(), 3);
}

/// Returns a deposit sent by an actor of a domain.
fn deposit_from(domain: &str, sequence: u64) -> Envelope {
    let name = |name: &str| Name::new(name).unwrap();
    let mut payload = Vec::new();
    Codec::Bincode.encode(&deposit("ada", 5), &mut payload).unwrap();
    let shard = ShardId::new(name(domain), 0);
    let origin = Origin { shard, actor: name("actor"), key: "k".to_owned(), sequence, version: 0, store: None };
    let id = MessageId::from_idempotency_key(domain, "", &sequence.to_string());
    Envelope {
        id,
        kind: Kind::Command,
        name: name("Deposit"),
        version: 1,
        shape: None,
        domain: name("bank"),
        to: Some(ShardId::new(name("bank"), shard_of("ada", 16))),
        key: "ada".to_owned(),
        actor: None,
        origin: Some(origin),
        correlation: id,
        causation: None,
        time: whizbang::clock::Timestamp::from_millis(0),
        deadline: None,
        wants: ReplyMode::Nothing,
        traceparent: None,
        headers: Vec::new(),
        codec: Codec::Bincode,
        payload: payload.into(),
    }
}

#[whizbang::test]
async fn owner_cannot_answer_for_the_shard_of_another() {
    for (speaks_for, balance) in [("transfers", 0), ("lies", 10)] {
        let hub = LoopbackHub::new();
        let accounts =
            Node::builder("accounts", MemoryStore::new()).threads(0).aggregate::<bank::Account>().bridge(hub.bridge());
        let accounts = accounts.start().await.unwrap();
        let forger = hub.bridge();
        let answers = Impostor::answering(Response::envelopes(vec![deposit_from(speaks_for, 1)], 2));
        forger.attach(card("forger", "lies"), Arc::clone(&answers) as Arc<dyn Inbound>).await.unwrap();
        // The first is missing, so it is requested.
        forger.send(deposit_from("lies", 2)).await.unwrap();
        eventually(async || answers.asked.load(Ordering::Relaxed) > 0).await;
        for _ in 0..100 {
            assert!(accounts.client().send(deposit("ada", 0)).await.unwrap() <= balance, "{speaks_for}");
        }
        eventually(async || accounts.client().send(deposit("ada", 0)).await.unwrap() == balance).await;
    }
}

#[whizbang::test]
async fn command_to_a_key_of_another_shard_becomes_a_dead_letter() {
    let hub = LoopbackHub::new();
    let store = MemoryStore::new();
    let accounts = async || {
        let builder = Node::builder("accounts", store.clone()).aggregate::<bank::Account>().threads(2);
        builder.bridge(hub.bridge()).start().await.unwrap()
    };
    let node = accounts().await;
    let sender = hub.bridge();
    sender.attach(card("shop", "shop"), Impostor::answering(Response::watermark(0))).await.unwrap();
    // In a shard of another thread, and in another one of the same.
    let home = shard_of("ada", 16);
    let key_of = |shard: u16| (0..).map(|n| format!("k{n}")).find(|key| shard_of(key, 16) == shard % 16).unwrap();
    let strays = [String::new(), key_of(home + 1), key_of(home + 2)];
    let count = strays.len() as u64;
    for (key, sequence) in strays.into_iter().zip(1..) {
        sender.send(Envelope { key, ..deposit_from("shop", sequence) }).await.unwrap();
    }
    sender.send(deposit_from("shop", count + 1)).await.unwrap();
    eventually(async || node.client().send(deposit("ada", 0)).await.unwrap() == 5).await;
    eventually(async || node.dead_letters().await.unwrap().len() as u64 == count).await;
    let letters = node.dead_letters().await.unwrap();
    assert!(letters.iter().any(|letter| letter.error.contains("0 bytes")), "{letters:?}");
    drop(node);
    // They are handled exactly once.
    let node = accounts().await;
    sender.send(deposit_from("shop", count + 2)).await.unwrap();
    eventually(async || node.client().send(deposit("ada", 0)).await.unwrap() == 10).await;
    assert_eq!(node.dead_letters().await.unwrap().len() as u64, count);
    let reader = store.read(&ShardId::new(Name::new("bank").unwrap(), home)).await.unwrap().unwrap();
    let through: Vec<_> = reader.watermarks().iter().map(|mark| mark.through).collect();
    assert_eq!(through, [count + 2], "everything is counted at its destination");
}
