//! The loopback bridge: the conformance suite of bridges, and fault injection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::Notify;
use whizbang::bridge::loopback::{LoopbackBridge, LoopbackHub};
use whizbang::bridge::wire::Packet;
use whizbang::bridge::{AckOutcome, Bridge, BridgeError, Inbound, NodeCard, Notification, Request, Response};
use whizbang::clock::{Clock, Timestamp};
use whizbang::message::{Codec, Envelope, IdSource, Kind, MessageId, Name, ReplyMode, ShardId};
use whizbang::testing::LoopbackFaults;
use whizbang::testing::bridge::Fixture;
use whizbang::testing::bridge::hostile::Forgery;

#[derive(Default)]
struct Loopback {
    hub: LoopbackHub,
    bridges: Mutex<Vec<Arc<LoopbackBridge>>>,
}

impl Fixture for Loopback {
    fn bridge(&self) -> BoxFuture<'_, Arc<dyn Bridge>> {
        let bridge = Arc::new(self.hub.bridge());
        self.bridges.lock().unwrap().push(Arc::clone(&bridge));
        async move { bridge as Arc<dyn Bridge> }.boxed()
    }

    fn interrupt(&self) -> BoxFuture<'_, ()> {
        for bridge in self.bridges.lock().unwrap().iter() {
            bridge.disconnect();
            bridge.reconnect();
        }
        async {}.boxed()
    }

    fn inject(&self, to: ShardId, packet: Packet) -> BoxFuture<'_, ()> {
        async move { self.hub.inject(&to.domain, packet).await.unwrap() }.boxed()
    }

    fn forge(&self, forgery: Forgery) -> BoxFuture<'_, ()> {
        async move { self.hub.forge(&forgery.address, forgery.packet).await }.boxed()
    }

    fn refused(&self) -> BoxFuture<'_, usize> {
        async { self.hub.refused().len() }.boxed()
    }
}

whizbang::bridge_suite!(Loopback::default());
whizbang::bridge_lease_suite!(Loopback::default());
whizbang::bridge_watch_suite!(Loopback::default());

/// Records the keys of received commands.
#[derive(Default)]
struct Ledger {
    keys: Mutex<Vec<String>>,
    changed: Notify,
    reconnected: AtomicUsize,
}

impl Inbound for Ledger {
    fn deliver(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        self.keys.lock().unwrap().push(envelope.key);
        self.changed.notify_one();
        async { AckOutcome::Ack }.boxed()
    }

    fn event(&self, _: Envelope) -> BoxFuture<'static, AckOutcome> {
        async { AckOutcome::Ack }.boxed()
    }

    fn request(&self, _: Request) -> BoxFuture<'static, Response> {
        async { Response::watermark(7) }.boxed()
    }

    fn notify(&self, _: Notification) {}

    fn reconnected(&self) {
        self.reconnected.fetch_add(1, Ordering::Relaxed);
    }

    fn capacity(&self) -> usize {
        1024
    }
}

impl Ledger {
    async fn until(&self, count: usize) -> Vec<String> {
        loop {
            let keys = self.keys.lock().unwrap().clone();
            if keys.len() >= count {
                return keys;
            }
            self.changed.notified().await;
        }
    }
}

fn name(text: &'static str) -> Name {
    Name::from_static(text).unwrap()
}

async fn attach(hub: &LoopbackHub) -> (LoopbackBridge, Arc<Ledger>) {
    let (bridge, ledger) = (hub.bridge(), Arc::new(Ledger::default()));
    let card = NodeCard::new(name("bank")).owning(name("bank"), 1);
    bridge.attach(card, Arc::clone(&ledger) as Arc<dyn Inbound>).await.unwrap();
    (bridge, ledger)
}

fn command(number: u32) -> Envelope {
    let id = MessageId::from_u128(u128::from(number));
    Envelope {
        id,
        kind: Kind::Command,
        name: name("Do"),
        version: 1,
        shape: None,
        domain: name("bank"),
        to: Some(ShardId::new(name("bank"), 0)),
        key: number.to_string(),
        actor: None,
        origin: None,
        correlation: id,
        causation: None,
        time: Timestamp::from_millis(0),
        deadline: None,
        wants: ReplyMode::Nothing,
        traceparent: None,
        headers: Vec::new(),
        codec: Codec::Json,
        payload: Bytes::new(),
    }
}

fn seed(seed: u64) -> IdSource {
    IdSource::seeded(Clock::manual(Timestamp::from_millis(0)).0, seed)
}

/// Returns the keys that arrive of 200 commands sent under `faults`; a command sent after them ends the list.
async fn arrivals(faults: LoopbackFaults, from: u64) -> Vec<String> {
    let hub = LoopbackHub::new();
    let (bridge, ledger) = attach(&hub).await;
    faults.inject(&hub, seed(from));
    for number in 0..200 {
        bridge.send(command(number)).await.unwrap();
    }
    hub.deliver_all();
    // Longer than the maximum delay, in steps, so that each step wakes the tasks that are due. The paused time makes this quick.
    for _ in 0..50 {
        tokio::time::advance(Duration::from_millis(1)).await;
    }
    bridge.send(command(200)).await.unwrap();
    loop {
        let keys = ledger.until(1).await;
        if keys.last().is_some_and(|key| key == "200") {
            bridge.detach().await.unwrap();
            return keys;
        }
        ledger.changed.notified().await;
    }
}

/// Runs a test on one thread with paused time.
fn paused(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn in_order(keys: &[String]) -> bool {
    keys.is_sorted_by_key(|key| key.parse::<u32>().unwrap())
}

#[test]
fn faults_lose_duplicate_and_reorder_messages() {
    paused(async {
        let lost = arrivals(LoopbackFaults { drop: 0.5, ..LoopbackFaults::default() }, 1).await;
        assert!((60..140).contains(&lost.len()) && in_order(&lost), "{}", lost.len());
        let doubled = arrivals(LoopbackFaults { duplicate: 1.0, ..LoopbackFaults::default() }, 1).await;
        assert_eq!(doubled.len(), 401);
        let mut mixed = arrivals(LoopbackFaults { reorder: 0.5, ..LoopbackFaults::default() }, 1).await;
        assert!(!in_order(&mixed));
        mixed.sort();
        mixed.dedup();
        assert_eq!(mixed.len(), 201);
    });
}

#[test]
fn same_seed_causes_the_same_faults() {
    paused(async {
        let faults = LoopbackFaults { drop: 0.2, duplicate: 0.2, reorder: 0.3, ..LoopbackFaults::default() };
        let first = arrivals(faults, 42).await;
        assert_eq!(arrivals(faults, 42).await, first);
        assert_ne!(arrivals(faults, 43).await, first);
    });
}

#[test]
fn disconnected_node_neither_sends_nor_receives() {
    paused(async {
        let hub = LoopbackHub::new();
        let (bank, ledger) = attach(&hub).await;
        let client = hub.bridge();
        let card = NodeCard::new(name("shop"));
        client.attach(card, Arc::new(Ledger::default())).await.unwrap();
        let watermark =
            || Request::Watermark { from: ShardId::new(name("shop"), 0), to: ShardId::new(name("bank"), 0) };

        bank.disconnect();
        client.send(command(1)).await.unwrap();
        let answer = client.request(watermark(), Duration::from_secs(1)).await;
        assert!(matches!(answer, Err(BridgeError::NoResponse { .. })), "{answer:?}");
        assert!(matches!(bank.send(command(2)).await, Err(BridgeError::Unreachable { .. })));
        assert_eq!(ledger.reconnected.load(Ordering::Relaxed), 0);

        bank.reconnect();
        assert_eq!(ledger.reconnected.load(Ordering::Relaxed), 1);
        client.send(command(3)).await.unwrap();
        assert_eq!(ledger.until(1).await, ["3"]);
        assert_eq!(client.request(watermark(), Duration::from_secs(1)).await.unwrap(), Response::watermark(7));
    });
}

#[test]
fn crashed_node_leaves_the_hub() {
    let hub = LoopbackHub::new();
    let mut client = None;
    paused(async {
        let (bridge, _) = attach(&hub).await;
        bridge.send(command(1)).await.unwrap();
        client = Some(bridge);
        // The end of this block drops the `LocalSet` with the node's delivery task.
    });
    paused(async {
        let bridge = hub.bridge();
        let card = NodeCard::new(name("shop"));
        bridge.attach(card, Arc::new(Ledger::default())).await.unwrap();
        let sent = bridge.send(command(2)).await;
        assert!(matches!(sent, Err(BridgeError::NoOwner { .. })), "{sent:?}");
    });
}

#[test]
fn stuck_subscriber_delays_publishers_only_briefly() {
    struct Stuck(Arc<Ledger>);
    impl Inbound for Stuck {
        fn deliver(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
            self.0.deliver(envelope)
        }
        fn event(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
            self.0.event(envelope)
        }
        fn request(&self, asked: Request) -> BoxFuture<'static, Response> {
            self.0.request(asked)
        }
        fn notify(&self, _: Notification) {}
        fn reconnected(&self) {
            self.0.reconnected();
        }
        fn capacity(&self) -> usize {
            usize::from(!self.0.keys.lock().unwrap().is_empty())
        }
    }
    paused(async {
        let hub = LoopbackHub::new();
        let (bank, _) = attach(&hub).await;
        let ledger = Arc::new(Ledger::default());
        let card = NodeCard::new(name("slow")).subscribing(name("bank"), 1, [name("Done")]);
        let slow = hub.bridge();
        slow.attach(card, Arc::new(Stuck(Arc::clone(&ledger)))).await.unwrap();
        let start = tokio::time::Instant::now();
        for number in 0..20_000 {
            bank.publish(Envelope { kind: Kind::Event, name: name("Done"), to: None, ..command(number) })
                .await
                .unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert_eq!(ledger.reconnected.load(Ordering::Relaxed), 0);
        // The node has capacity again: once it has handled the queued messages, it is notified to check for gaps.
        ledger.keys.lock().unwrap().push("room".to_owned());
        while ledger.reconnected.load(Ordering::Relaxed) == 0 {
            tokio::time::advance(Duration::from_millis(1)).await;
        }
    });
}

/// More packets than a member handles at once: invalid ones must not stay in flight.
#[test]
fn junk_beyond_the_window_blocks_no_message() {
    paused(whizbang::testing::bridge::cases::flood_of_junk_blocks_no_message(&Loopback::default()));
}
