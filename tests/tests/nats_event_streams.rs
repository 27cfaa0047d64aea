//! Streams of events over real servers: with permissions, through restarts of the server and of the owner.

use std::collections::BTreeSet;

use futures_util::FutureExt;
use whizbang::bridge::nats::{NatsBridge, NatsBuilder, NatsPermissions, StreamSetup};
use whizbang::bridge::subject::Namespace;
use whizbang::bridge::{BridgeError, NodeCard};
use whizbang::clock::Clock;
use whizbang::message::Name;
use whizbang::prelude::*;
use whizbang::subscribe::{EventStream, SubscribeError};
use whizbang_tests::nats::{NatsConfig, NatsServer, Release};

#[derive(Domain)]
#[domain(name = "plant", shards = 4)]
struct Plant;

#[derive(Event, Debug, Serialize, Deserialize)]
#[event(domain = Plant)]
struct Measured {
    number: u64,
}

const BOTH: [Release; 2] = [Release::Distribution, Release::Pinned];

/// Takes the next `count` events.
async fn take(stream: &mut EventStream<Measured, Plant>, count: usize, all: &mut BTreeSet<u64>) {
    for taken in 0..count {
        let next = tokio::time::timeout(std::time::Duration::from_secs(60), stream.next()).await;
        let item = next.unwrap_or_else(|_| panic!("{taken} of {count} events have arrived")).unwrap().unwrap();
        assert!(all.insert(item.event.number), "{item:?} arrives twice");
    }
}

async fn measure(client: &Client, numbers: std::ops::Range<u64>) {
    for number in numbers {
        client.publish(format!("meter-{}", number % 10), Measured { number }).await.unwrap();
    }
}

async fn owner(store: &MemoryStore, bridge: NatsBuilder) -> Node {
    let bridge = bridge.connect().await.unwrap();
    Node::builder("plant", store.clone()).publishes::<Measured>().bridge(bridge).start().await.unwrap()
}

#[whizbang::test]
async fn stream_survives_restarts_of_the_server_and_the_owner() {
    for release in BOTH {
        let mut server = NatsServer::start(release);
        let builder = || NatsBridge::builder(&server.url());
        let (store, mut all) = (MemoryStore::new(), BTreeSet::new());
        let node = owner(&store, builder()).await;
        measure(&node.client(), 0..600).await;
        let client = Client::connect("reader", builder().connect().await.unwrap()).await.unwrap();
        let mut streams = [client.subscribe::<Measured>().from_start(), client.subscribe::<Measured>()];
        streams[1].started().await.unwrap();
        take(&mut streams[0], 600, &mut all).await;
        // Both share the subscription of the connection; events arrive one by one and in packs.
        measure(&node.client(), 600..610).await;
        take(&mut streams[0], 10, &mut all).await;
        let mut later = BTreeSet::new();
        take(&mut streams[1], 10, &mut later).await;
        server.restart();
        measure(&node.client(), 610..700).await;
        take(&mut streams[0], 90, &mut all).await;
        take(&mut streams[1], 90, &mut later).await;
        node.stop().await.unwrap();
        let node = owner(&store, NatsBridge::builder(&server.url())).await;
        measure(&node.client(), 700..800).await;
        take(&mut streams[0], 100, &mut all).await;
        assert_eq!(all.len(), 800, "{release:?}");
        let [first, mut second] = streams;
        drop(first);
        take(&mut second, 100, &mut later).await;
        assert_eq!(later, (600..800).collect());
        client.disconnect().await;
        assert!(matches!(second.next().await, Some(Err(SubscribeError::Stopped))));
        node.stop().await.unwrap();
    }
}

#[whizbang::test]
async fn unpolled_stream_does_not_delay_others() {
    let server = NatsServer::start(Release::Pinned);
    let builder = || NatsBridge::builder(&server.url());
    let node = owner(&MemoryStore::new(), builder()).await;
    let client = Client::connect("reader", builder().connect().await.unwrap()).await.unwrap();
    measure(&node.client(), 0..10).await;
    // It begins to watch the domain, and is then kept without being polled.
    let mut unpolled = client.subscribe::<Measured>().from_start();
    assert!(unpolled.next().now_or_never().is_none());
    let (mut stream, mut all) = (client.subscribe::<Measured>().from_start(), BTreeSet::new());
    take(&mut stream, 10, &mut all).await;
    let mut later = BTreeSet::new();
    take(&mut unpolled, 10, &mut later).await;
    assert_eq!(all, later);
    client.disconnect().await;
    node.stop().await.unwrap();
}

/// Returns the card of a program that hosts nothing.
fn card(service: &str) -> NodeCard {
    NodeCard::new(Name::new(service).unwrap())
}

#[whizbang::test]
async fn permissions_let_only_followers_read_events() {
    for release in BOTH {
        let plant = Name::new("plant").unwrap();
        let cards = [
            card("plant").owning(plant.clone(), 4),
            card("reader").following(plant),
            card("caller"),
            card("other").following(Name::new("elsewhere").unwrap()),
        ];
        let namespace = Namespace::default();
        let permissions = cards.iter().map(|card| NatsPermissions::runtime(card, &namespace));
        let (mut block, mut users) = (String::new(), String::new());
        for permissions in permissions.chain([NatsPermissions::setup(&cards, &namespace)]) {
            block += &permissions.to_string();
            let name = &permissions.identity;
            users += &format!("  {{ user: \"{name}\", password: \"{name}\", permissions: $WHIZBANG_{name} }}\n");
        }
        let config = NatsConfig::authorization(&format!("{block}users: [\n{users}]"));
        let server = NatsServer::start_with(release, config);
        let login =
            |name: &str| NatsBridge::builder(&server.url()).user(name, name).stream_setup(StreamSetup::Existing);
        login("setup").set_up(&cards).await.unwrap();
        let node = owner(&MemoryStore::new(), login("plant")).await;
        measure(&node.client(), 0..50).await;
        let connect = async |name: &str| Client::connect(name, login(name).connect().await.unwrap()).await.unwrap();

        let reader = connect("reader").await;
        let (mut stream, mut all) = (reader.subscribe::<Measured>().from_start(), BTreeSet::new());
        take(&mut stream, 50, &mut all).await;
        measure(&node.client(), 50..80).await;
        take(&mut stream, 30, &mut all).await;
        for name in ["caller", "other"] {
            let client = connect(name).await;
            let error = client.subscribe::<Measured>().from_start().next().await.unwrap().unwrap_err();
            let SubscribeError::Bridge { source, .. } = &error else { panic!("{error:?}") };
            assert!(matches!(**source, BridgeError::Refused { .. }), "{source:?}");
            client.disconnect().await;
        }
        reader.disconnect().await;
        node.stop().await.unwrap();
    }
}

#[whizbang::test]
async fn leased_service_reads_its_own_events() {
    let cards = [card("plant").owning(Name::new("plant").unwrap(), 4).sharing_shards()];
    let namespace = Namespace::default();
    let (mut block, mut users) = (String::new(), String::new());
    for permissions in [NatsPermissions::runtime(&cards[0], &namespace), NatsPermissions::setup(&cards, &namespace)] {
        block += &permissions.to_string();
        let name = &permissions.identity;
        users += &format!("  {{ user: \"{name}\", password: \"{name}\", permissions: $WHIZBANG_{name} }}\n");
    }
    let config = NatsConfig::authorization(&format!("{block}users: [\n{users}]"));
    let server = NatsServer::start_with(Release::Pinned, config);
    let login = |name: &str| NatsBridge::builder(&server.url()).user(name, name).stream_setup(StreamSetup::Existing);
    login("setup").set_up(&cards).await.unwrap();
    let store = MemoryStore::shared(&Clock::system());
    let one = owner(&store, login("plant")).await;
    let two = owner(&store, login("plant")).await;
    // Some of the shards are those of the other node.
    let (mut stream, mut all) = (two.client().subscribe::<Measured>().from_start(), BTreeSet::new());
    measure(&one.client(), 0..50).await;
    take(&mut stream, 50, &mut all).await;
    two.stop().await.unwrap();
    one.stop().await.unwrap();
}
