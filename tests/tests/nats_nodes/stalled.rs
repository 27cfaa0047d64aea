//! Consumers that do not deliver all messages of their stream, in nodes that may not create consumers: the nodes report them, and the
//! steps of docs/running.md repair them.

use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, Context, consumer};
use futures_util::StreamExt;
use whizbang::bridge::NodeCard;
use whizbang::bridge::nats::{NatsBridge, NatsBuilder, NatsPermissions, StreamSetup};
use whizbang::bridge::subject::Namespace;
use whizbang::prelude::*;
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsConfig, NatsServer, Release};

use crate::bank::{Account, Transfer, deposit, outcome, transfer};
use crate::{BOTH, until};

const STREAM: &str = "whizbang_commands_bank";
const STEP: &str = "nats consumer rm whizbang_commands_bank accounts`, then the setup";

/// A server with a login for each identity, and two services that create nothing.
struct Guarded {
    server: NatsServer,
    cards: [NodeCard; 2],
    money: MemoryStore,
}

impl Guarded {
    async fn start(release: Release) -> Self {
        let card = async |node: whizbang::NodeBuilder| {
            let node = node.start().await.expect("starts");
            let card = node.card().clone();
            node.stop().await.expect("stops");
            card
        };
        let cards = [
            card(Node::builder("accounts", MemoryStore::new()).aggregate::<Account>()).await,
            card(Node::builder("transfers", MemoryStore::new()).saga::<Transfer>()).await,
        ];
        let ns = Namespace::default();
        let permissions = cards.iter().map(|card| NatsPermissions::runtime(card, &ns));
        let (mut block, mut users) = (String::new(), String::new());
        for permissions in permissions.chain([NatsPermissions::setup(&cards, &ns)]) {
            let name = &permissions.identity;
            block += &permissions.to_string();
            users += &format!("  {{ user: {name}, password: {name}, permissions: $WHIZBANG_{name} }}\n");
        }
        users += "  { user: operator, password: operator }\n";
        let config = NatsConfig::authorization(&format!("{block}users: [\n{users}]"));
        let guarded = Self { server: NatsServer::start_with(release, config), cards, money: MemoryStore::new() };
        guarded.set_up().await;
        guarded
    }

    fn login(&self, identity: &str) -> NatsBuilder {
        let login = NatsBridge::builder(&self.server.url()).user(identity, identity);
        login.ack_wait(Duration::from_secs(1)).stream_setup(StreamSetup::Existing)
    }

    async fn set_up(&self) {
        self.login("setup").set_up(&self.cards).await.expect("sets up");
    }

    async fn accounts(&self) -> Node {
        let bridge = self.login("accounts").connect().await.expect("connects");
        let node = Node::builder("accounts", self.money.clone()).aggregate::<Account>().bridge(bridge);
        node.start().await.expect("starts")
    }

    async fn transfers(&self) -> Node {
        let bridge = self.login("transfers").connect().await.expect("connects");
        let node = Node::builder("transfers", MemoryStore::new()).saga::<Transfer>().bridge(bridge);
        node.start().await.expect("starts")
    }

    async fn teller(&self) -> Client {
        let bridge = self.login("operator").connect().await.expect("connects");
        Client::connect("teller", bridge).await.expect("attaches")
    }

    async fn operator(&self) -> Context {
        let login = ConnectOptions::with_user_and_password("operator".to_owned(), "operator".to_owned());
        jetstream::new(login.connect(self.server.url()).await.expect("connects"))
    }

    /// The steps of the operator.
    async fn repair(&self) {
        let stream = self.operator().await.get_stream(STREAM).await.expect("a stream");
        stream.delete_consumer("accounts").await.expect("deletes");
        self.set_up().await;
    }
}

async fn messages(operator: &Context) -> u64 {
    let mut stream = operator.get_stream(STREAM).await.expect("a stream");
    stream.info().await.expect("its state").state.messages
}

fn reports(node: &Node, part: &str) -> bool {
    node.health().reasons.iter().any(|reason| reason.contains(part))
}

/// Another client holds the one message that may be unacknowledged.
async fn hold_all_messages(operator: &Context) {
    let stream = operator.get_stream(STREAM).await.expect("a stream");
    let settings = consumer::pull::Config {
        durable_name: Some("accounts".to_owned()),
        ack_policy: consumer::AckPolicy::Explicit,
        ack_wait: Duration::from_secs(3_600),
        max_ack_pending: 1,
        ..consumer::pull::Config::default()
    };
    let consumer = stream.create_consumer(settings).await.expect("changes the consumer");
    operator.publish("whizbang.cmd.bank.1.outside", "held".into()).await.expect("sends").await.expect("is kept");
    let taken = consumer.batch().max_messages(1).expires(Duration::from_secs(10)).messages().await;
    taken.expect("messages").next().await.expect("the message").expect("a message");
}

#[test]
fn stalled_consumer_is_reported_with_the_steps_that_repair_it() {
    run(async {
        tokio::join!(stalled_consumer(Release::Distribution), stalled_consumer(Release::Pinned));
    });
}

async fn stalled_consumer(release: Release) {
    let guarded = Guarded::start(release).await;
    let operator = guarded.operator().await;
    hold_all_messages(&operator).await;
    let (accounts, transfers, teller) = (guarded.accounts().await, guarded.transfers().await, guarded.teller().await);
    assert_eq!(teller.send(deposit("ada", 1_000)).await.expect("a reply"), 1_000);
    teller.post_to_broker(deposit("bob", 7)).await.expect("is kept");
    // Posts that arrive in the meantime are no sign of life.
    let mut posts = 1;
    until("the report", async || {
        teller.post_to_broker(deposit("eve", 1)).await.expect("is kept");
        posts += 1;
        reports(&accounts, STEP)
    })
    .await;
    assert!(accounts.health().live && !accounts.health().ready, "{:?}", accounts.health());
    // Requests, and commands of actors, do not need the consumer.
    for number in 0..20 {
        transfers.client().send(transfer(&format!("t{number}"), "ada", "carol", 5)).await.expect("begins");
    }
    for number in 0..20 {
        let name = format!("t{number}");
        until("the end of a transfer", async || {
            transfers.client().send(outcome(&name)).await.is_ok_and(|outcome| outcome == "done")
        })
        .await;
    }
    assert_eq!(teller.send(deposit("carol", 0)).await.expect("a reply"), 100);
    assert_eq!(teller.send(deposit("bob", 0)).await.expect("a reply"), 0, "the post waits");
    assert!(transfers.health().ready, "{:?}", transfers.health());
    assert!(reports(&accounts, STEP), "until the operator acts: {:?}", accounts.health());
    assert_eq!(accounts.metrics().recreated_consumers, 0);
    guarded.repair().await;
    until("the posts", async || {
        let bob = teller.send(deposit("bob", 0)).await.expect("a reply");
        bob == 7 && teller.send(deposit("eve", 0)).await.is_ok_and(|eve| eve == posts - 1)
    })
    .await;
    until("a node that is ready", async || accounts.health().ready && !reports(&accounts, STEP)).await;
    until("an empty stream", async || messages(&operator).await == 0).await;
    for node in [accounts, transfers] {
        node.stop().await.expect("stops");
    }
}

/// nats-server 2.9.10 was observed to keep messages below the floor of a consumer. The state is created by restoring the messages
/// without the consumer.
#[test]
fn left_messages_are_reported_with_the_steps_that_repair_it() {
    for release in BOTH {
        run(async {
            let mut guarded = Guarded::start(release).await;
            let teller = guarded.teller().await;
            for _ in 0..50 {
                teller.post_to_broker(deposit("ada", 1)).await.expect("is kept");
            }
            guarded.server.stop();
            let copy = guarded.server.back_up();
            guarded.server.restart();
            let operator = guarded.operator().await;
            let accounts = guarded.accounts().await;
            until("an empty stream", async || messages(&operator).await == 0).await;
            assert!(!reports(&accounts, STEP), "{:?}", accounts.health());
            accounts.stop().await.expect("stops");
            guarded.server.stop();
            guarded.server.restore_messages(&copy, STREAM);
            guarded.server.restart();
            let operator = guarded.operator().await;
            let left = messages(&operator).await;
            println!("{release:?}: {left} messages left behind");
            let accounts = guarded.accounts().await;
            if left > 0 {
                until("the note", async || reports(&accounts, STEP)).await;
                assert!(accounts.health().ready, "{:?}", accounts.health());
                assert_eq!(messages(&operator).await, left);
                guarded.repair().await;
                until("an empty stream", async || messages(&operator).await == 0).await;
            } else {
                assert_eq!(release, Release::Pinned, "the older server keeps them");
            }
            until("no note", async || accounts.health().reasons.is_empty()).await;
            assert_eq!(accounts.client().send(deposit("ada", 0)).await.expect("a reply"), 50, "each was handled once");
            accounts.stop().await.expect("stops");
        });
    }
}
