//! A client of a server without permissions publishes in the name of two services: events, commands, watermarks and positions. The
//! owners' responses decide, so the services do the same as without it.

use std::time::Duration;

use async_nats::{HeaderMap, jetstream};
use whizbang::bridge::Notification;
use whizbang::bridge::wire::Packet;
use whizbang::clock::Timestamp;
use whizbang::message::{Codec, Envelope, Kind, MessageId, Name, Origin, ReplyMode, ShardId, StoreId, shard_of};
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::checker::ShardLog;
use whizbang_tests::nats::{NatsServer, Release};

use crate::bank::{Account, Bank, Transfer, Transfers, deposit, outcome, transfer};
use crate::services::bridge;
use crate::{BOTH, until};

const STRANGE: StoreId = StoreId::from_u128(0xBAD);

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn adas() -> ShardId {
    ShardId::new(name("bank"), shard_of("ada", Bank::SHARDS))
}

/// Returns the shard of all sagas of this test, so that all their messages take one route.
fn sagas() -> ShardId {
    ShardId::new(name("transfers"), 0)
}

fn names(from: usize, count: usize) -> Vec<String> {
    let all = (0..).map(|n| format!("t{n}"));
    all.filter(|name| shard_of(name, Transfers::SHARDS) == 0).skip(from).take(count).collect()
}

/// Returns a message in the name of an actor of `from`: an event of its log, or with `to` a command of its outbox.
fn forged(message: &str, from: &ShardId, sequence: u64, to: Option<ShardId>, store: Option<StoreId>) -> Envelope {
    let id = MessageId::from_u128(0xF00 + u128::from(sequence) + u128::from(store.is_some()) * 0x1000);
    let domain = to.as_ref().map_or(&from.domain, |to| &to.domain).clone();
    let (kind, key) = if to.is_some() { (Kind::Command, "ada") } else { (Kind::Event, "") };
    let origin = Origin {
        shard: from.clone(),
        actor: name("Actor"),
        key: "a".to_owned(),
        sequence,
        version: if to.is_some() { 0 } else { sequence },
        store,
    };
    Envelope {
        id,
        kind,
        name: name(message),
        version: 1,
        domain,
        to,
        key: key.to_owned(),
        actor: None,
        origin: Some(origin),
        correlation: id,
        causation: None,
        time: Timestamp::from_millis(0),
        deadline: None,
        wants: ReplyMode::Nothing,
        traceparent: None,
        headers: Vec::new(),
        shape: None,
        codec: Codec::Bincode,
        payload: b"\x01\x02t1".to_vec().into(),
    }
}

/// A client that may publish everything.
struct UntrustedClient {
    client: async_nats::Client,
    context: jetstream::Context,
}

impl UntrustedClient {
    async fn connect(server: &NatsServer) -> Self {
        let client = async_nats::connect(server.url()).await.expect("connects");
        Self { context: jetstream::new(client.clone()), client }
    }

    async fn write(&self, envelope: &Envelope) {
        let origin = envelope.origin.as_ref().expect("an actor's");
        let (from, name) = (&origin.shard, &envelope.name);
        let subject = match &envelope.to {
            Some(to) => format!("whizbang.cmd.{}.{}.{}.{}", to.domain, to.shard, from.domain, from.shard),
            None => format!("whizbang.evt.{}.{}.{name}", from.domain, from.shard),
        };
        let packet = Packet::from_envelope(envelope).expect("can be written");
        let taken = self.context.publish_with_headers(subject, headers(&packet), packet.payload).await;
        taken.expect("writes").await.expect("is acknowledged");
    }

    async fn tell(&self, notification: &Notification) {
        let subject = match notification {
            Notification::Committed { from, to, .. } => {
                format!("whizbang.done.{}.{}.{}.{}", from.domain, from.shard, to.domain, to.shard)
            }
            Notification::Head { shard, .. } => format!("whizbang.head.{}.{}", shard.domain, shard.shard),
        };
        let packet = Packet::from_notification(notification);
        self.client.publish_with_headers(subject, headers(&packet), packet.payload).await.expect("writes");
    }

    /// Contradicts existing messages of the services and announces messages that do not exist.
    async fn forge(&self) {
        for number in 1..=3 {
            self.write(&forged("Withdrawn", &adas(), number, None, None)).await;
            self.write(&forged("Withdraw", &sagas(), number, Some(adas()), None)).await;
        }
        for ahead in 0..4 {
            // Only the identity of the store distinguishes this event from the next true one.
            self.write(&forged("Withdrawn", &adas(), 10 + ahead, None, Some(STRANGE))).await;
            self.write(&forged("Withdraw", &sagas(), 4 + ahead, Some(adas()), Some(STRANGE))).await;
        }
        self.write(&forged("Withdrawn", &adas(), 1 << 40, None, None)).await;
        self.write(&forged("Withdraw", &sagas(), 1 << 40, Some(adas()), None)).await;
        for through in [4, 5, 6, 1 << 40, u64::MAX] {
            self.tell(&Notification::Committed { from: sagas(), to: adas(), through }).await;
            self.tell(&Notification::Head { shard: adas(), position: through.saturating_add(100) }).await;
        }
        self.client.flush().await.expect("is sent");
    }
}

fn headers(packet: &Packet) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in &packet.headers {
        map.insert(name.as_ref(), value.as_str());
    }
    map
}

/// The results: balances, the outcomes of the sagas, and the length of the log of ada's shard.
type Results = (u64, u64, Vec<String>, usize);

async fn a_day(release: Release, is_quiet: bool) -> Results {
    let server = NatsServer::start(release);
    let money = MemoryStore::new();
    let accounts = Node::builder("accounts", money.clone()).aggregate::<Account>().bridge(bridge(&server.url()).await);
    let accounts = accounts.start().await.expect("starts");
    let transfers = Node::builder("transfers", MemoryStore::new()).saga::<Transfer>();
    let transfers = transfers.bridge(bridge(&server.url()).await).start().await.expect("starts");
    let stranger = UntrustedClient::connect(&server).await;
    let client = transfers.client();
    client.send(deposit("ada", 100)).await.expect("is handled");
    for part in [names(0, 3), names(3, 5)] {
        for name in &part {
            client.send(transfer(name, "ada", "bob", 1)).await.expect("begins");
        }
        for name in &part {
            until(name, async || client.send(outcome(name)).await.is_ok_and(|outcome| outcome == "done")).await;
        }
        // Forge before the second part: the forgeries at known sequences contradict the first part, and those ahead are present when
        // the true messages arrive.
        if !is_quiet {
            stranger.forge().await;
        }
    }
    let idle = async { tokio::join!(accounts.wait_idle(), transfers.wait_idle()) };
    tokio::time::timeout(Duration::from_secs(30), idle)
        .await
        .expect("the nodes do not wait for positions that do not exist");
    if !is_quiet {
        assert!(accounts.metrics().commands_dropped > 0 && transfers.metrics().events_dropped > 0);
        let named = |node: &Node| node.health().reasons.iter().any(|reason| reason.contains(&STRANGE.to_string()));
        assert!(named(&accounts) && named(&transfers), "{:?} {:?}", accounts.health(), transfers.health());
    }
    assert!(accounts.health().ready && transfers.health().ready, "{:?} {:?}", accounts.health(), transfers.health());
    let mut ended = Vec::new();
    for name in names(0, 8) {
        ended.push(client.send(outcome(&name)).await.expect("is handled"));
    }
    let ada = client.send(deposit("ada", 0)).await.expect("is handled");
    let bob = client.send(deposit("bob", 0)).await.expect("is handled");
    transfers.stop().await.expect("stops");
    accounts.stop().await.expect("stops");
    let logs = ShardLog::read_domain::<Bank>(&money).await.expect("the store can be read");
    assert!(logs.iter().all(|log| log.dead_letters.is_empty()));
    let length = logs.iter().map(|log| log.events.len()).sum();
    (ada, bob, ended, length)
}

#[test]
fn forgeries_over_nats_have_no_effect() {
    for release in BOTH {
        run(async {
            let quiet = a_day(release, true).await;
            assert_eq!((quiet.0, quiet.1), (92, 8));
            assert_eq!(a_day(release, false).await, quiet);
        });
    }
}

/// A forged watermark claims, while the receiver is down, that it has committed everything.
#[test]
fn forged_watermark_over_nats_discards_nothing() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let money = MemoryStore::new();
            let accounts = async || {
                let node = Node::builder("accounts", money.clone()).aggregate::<Account>();
                node.bridge(bridge(&server.url()).await).start().await.expect("starts")
            };
            let first = accounts().await;
            first.client().send(deposit("ada", 100)).await.expect("is handled");
            first.stop().await.expect("stops");
            let transfers = Node::builder("transfers", MemoryStore::new()).saga::<Transfer>();
            let transfers = transfers.bridge(bridge(&server.url()).await).start().await.expect("starts");
            let client = transfers.client();
            for name in names(0, 5) {
                client.send(transfer(&name, "ada", "bob", 1)).await.expect("begins");
            }
            let stranger = UntrustedClient::connect(&server).await;
            for through in 1..=5 {
                stranger.tell(&Notification::Committed { from: sagas(), to: adas(), through }).await;
            }
            stranger.client.flush().await.expect("is sent");
            // The broker loses the messages, so that only the sender has them.
            let commands = stranger.context.get_stream("whizbang_commands_bank").await.expect("a stream");
            until("the commands", async || commands.get_info().await.is_ok_and(|info| info.state.messages > 0)).await;
            commands.purge().await.expect("is emptied");
            let accounts = accounts().await;
            for name in names(0, 5) {
                until(&name, async || client.send(outcome(&name)).await.is_ok_and(|outcome| outcome == "done")).await;
            }
            assert_eq!(client.send(deposit("ada", 0)).await.expect("is handled"), 95);
            transfers.stop().await.expect("stops");
            accounts.stop().await.expect("stops");
        });
    }
}
