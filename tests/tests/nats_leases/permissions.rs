//! A service with leased shards and its runtime permissions: it takes its own shards, and can do nothing else.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use whizbang::bridge::claim::Claim;
use whizbang::bridge::nats::{NatsBridge, NatsBuilder, NatsPermissions, StreamSetup};
use whizbang::bridge::subject::Namespace;
use whizbang::bridge::wire::Packet;
use whizbang::bridge::{Bridge, NodeCard, Notification, Request, Response, StoreCard};
use whizbang::message::{Run, StoreId};
use whizbang::testing::bridge::cases::sample::{command, event, external_command, shard};
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, service};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsConfig, NatsServer, Release, Violations};

use crate::{BOTH, bank, consumers, shop, until};

/// Starts a server with one user per service and its runtime permissions, and with the streams that the setup user has created.
async fn guarded(release: Release) -> NatsServer {
    let (namespace, cards) = (Namespace::default(), [bank(), shop()]);
    let runtime = cards.each_ref().map(|card| NatsPermissions::runtime(card, &namespace));
    let mut block = String::new();
    let mut users = String::new();
    for permissions in runtime.into_iter().chain([NatsPermissions::setup(&cards, &namespace)]) {
        block += &permissions.to_string();
        let name = &permissions.identity;
        users += &format!("  {{ user: \"{name}\", password: \"secret of {name}\", permissions: $WHIZBANG_{name} }}\n");
    }
    users += "  { user: operator, password: operator }\n";
    let server = NatsServer::start_with(release, NatsConfig::authorization(&format!("{block}users: [\n{users}]")));
    login(&server, "setup").set_up(&cards).await.expect("sets up");
    server
}

fn login(server: &NatsServer, identity: &str) -> NatsBuilder {
    NatsBridge::builder(&server.url()).user(identity, format!("secret of {identity}"))
}

async fn node(server: &NatsServer, card: NodeCard) -> TestNode {
    let responder = |asked: Request| -> BoxFuture<'static, Response> {
        Box::pin(async move {
            match asked {
                Request::Command(envelope) => Response::Reply(envelope.payload),
                _ => Response::watermark(3),
            }
        })
    };
    let builder = login(server, card.service.as_str()).stream_setup(StreamSetup::Existing);
    let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
    let behavior = NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() };
    TestNode::attach(bridge, card, behavior).await.expect("attaches")
}

async fn operator(server: &NatsServer) -> async_nats::Client {
    let options = async_nats::ConnectOptions::with_user_and_password("operator".into(), "operator".into());
    options.connect(server.url()).await.expect("connects")
}

/// Connects as the shop, without the bridge. Returns the client and its permission violations.
async fn hostile(server: &NatsServer) -> (async_nats::Client, Violations) {
    let (callback, violations) = Violations::watch();
    let client = async_nats::ConnectOptions::with_user_and_password("e-shop".into(), "secret of e-shop".into())
        .custom_inbox_prefix("_INBOX_whizbang_e-shop")
        .event_callback(callback)
        .connect(server.url())
        .await
        .expect("connects");
    (client, violations)
}

#[test]
fn leased_service_works_with_its_runtime_permissions() {
    for release in BOTH {
        run(async {
            let server = guarded(release).await;
            let bank = node(&server, bank()).await;
            let [one, two] = [node(&server, shop()).await, node(&server, shop()).await];
            let (from, to) = (shard("bank", 1), shard("shop", 2));
            for (epoch, owner, other) in [(1, &one, &two), (2, &two, &one), (3, &one, &two)] {
                other.bridge.disown(&to).await;
                owner.bridge.own(&to, epoch).await.expect("owns");
                let before = owner.inspect(|got| got.direct.len());
                bank.bridge.send(command(&from, &to, epoch)).await.expect("sends");
                owner.wait_until("its command", |got| got.direct.len() > before).await;
                let asked = external_command(&to, epoch);
                let reply = bank.bridge.request(Request::Command(asked.clone()), Duration::from_secs(10)).await;
                assert_eq!(reply.expect("a reply"), Response::Reply(asked.payload));
            }
            let mark = Notification::Committed { from: to.clone(), to: from.clone(), through: 1 };
            one.retry_until("the mark", || bank.bridge.notify(mark.clone()), |got| got.notifications.contains(&mark))
                .await;
            bank.bridge.publish(event(&from, 1)).await.expect("publishes");
            for node in [&one, &two] {
                node.wait_until("the event", |got| !got.events.is_empty()).await;
            }
            assert_eq!(consumers(&operator(&server).await, "whizbang_commands_shop").await, ["e-shop-shop-2-e3"]);
            for node in [bank, one, two] {
                node.stop().await;
            }
        });
    }
}

#[test]
fn foreign_consumers_and_filters_are_denied() {
    for release in BOTH {
        run(async {
            let server = guarded(release).await;
            let (hostile, mut violations) = hostile(&server).await;
            for subject in [
                // Consumers of other streams.
                "$JS.API.CONSUMER.CREATE.whizbang_commands_bank.x.whizbang.cmd.bank.0.>",
                "$JS.API.CONSUMER.CREATE.whizbang_commands_bank.x.whizbang.cmd.shop.0.>",
                "$JS.API.CONSUMER.CREATE.whizbang_events_bank.x.whizbang.evt.bank.>",
                "$JS.API.CONSUMER.CREATE.whizbang_events_shop.x.whizbang.cmd.shop.0.>",
                "$JS.API.CONSUMER.DELETE.whizbang_commands_bank.bank",
                "$JS.API.CONSUMER.DELETE.whizbang_events_shop.x",
                "$JS.API.CONSUMER.NAMES.whizbang_commands_bank",
                "$JS.API.CONSUMER.INFO.whizbang_commands_bank.bank",
                "$JS.API.CONSUMER.MSG.NEXT.whizbang_commands_bank.bank",
                "$JS.API.STREAM.MSG.GET.whizbang_commands_bank",
                "$JS.ACK.whizbang_commands_bank.bank.1.1.1.1700000000000000000.0",
                // Consumers of the own stream that are not those of one shard.
                "$JS.API.CONSUMER.CREATE.whizbang_commands_shop",
                "$JS.API.CONSUMER.CREATE.whizbang_commands_shop.x",
                "$JS.API.CONSUMER.CREATE.whizbang_commands_shop.x.>",
                "$JS.API.CONSUMER.CREATE.whizbang_commands_shop.x.whizbang.cmd.bank.0.>",
                "$JS.API.CONSUMER.DURABLE.CREATE.whizbang_commands_shop.x",
                // Streams.
                "$JS.API.STREAM.CREATE.whizbang_commands_shop",
                "$JS.API.STREAM.UPDATE.whizbang_commands_shop",
                "$JS.API.STREAM.PURGE.whizbang_commands_shop",
                "$JS.API.STREAM.DELETE.whizbang_commands_shop",
                "$JS.API.STREAM.MSG.DELETE.whizbang_commands_shop",
                // Events of the bank are read and not written.
                "whizbang.evt.bank.0.Happened",
            ] {
                hostile.publish(subject, "{}".into()).await.expect("writes");
                violations.expect(&hostile, &format!("publishing to {subject}")).await;
            }
            violations.assert_no_more();
        });
    }
}

/// A service may create consumers of its own stream, and their bodies are not restricted: a consumer that pushes to the subject
/// of another service, or to the API, changes no stream and delivers nothing that a node accepts.
///
/// The server delivers only to a subject with a subscription without wildcards: here to the claim of the bank, and to the
/// inbox of the hostile service as a control.
#[test]
fn hostile_consumers_change_no_stream_and_reach_no_service() {
    for release in BOTH {
        run(async {
            let server = guarded(release).await;
            let store = StoreCard::new(StoreId::from_u128(1), Run { epoch: 1, nonce: 1 });
            let bank = node(&server, bank().store(store.clone())).await;
            bank.bridge.publish(event(&shard("bank", 0), 1)).await.expect("publishes");
            let client = operator(&server).await;
            let streams = async || {
                let answer = client.request("$JS.API.STREAM.LIST", "".into()).await.expect("an answer");
                let list: Value = serde_json::from_slice(&answer.payload).expect("JSON");
                let mut found: Vec<_> = list["streams"].as_array().expect("streams").clone();
                // The stream of claims stores what is delivered to a claim, under the subject of the shop, which no node reads.
                let changes = ["whizbang_commands_shop", "whizbang_claims"];
                found.retain(|stream| changes.iter().all(|name| stream["config"]["name"] != *name));
                let state = |stream: &Value| {
                    let (config, state) = (&stream["config"], &stream["state"]);
                    format!("{config} {} {}", state["messages"], state["consumer_count"])
                };
                let mut found: Vec<_> = found.iter().map(state).collect();
                found.sort_unstable();
                found
            };
            let before = streams().await;
            assert_eq!(before.len(), 5, "{before:?}");
            let claim = async || {
                let body = r#"{"last_by_subj":"whizbang.claim.bank"}"#;
                let answer = client.request("$JS.API.STREAM.MSG.GET.whizbang_claims", body.into()).await;
                let answer: Value = serde_json::from_slice(&answer.expect("an answer").payload).expect("JSON");
                answer["message"]["data"].clone()
            };
            let claimed = claim().await;
            let (hostile, mut violations) = hostile(&server).await;
            let control = "_INBOX_whizbang_e-shop.control";
            let mut controlled = hostile.subscribe(control).await.expect("subscribes");
            let targets = [
                ("$JS.API.STREAM.DELETE.whizbang_events_bank", 0),
                ("$JS.API.STREAM.PURGE.whizbang_events_bank", 0),
                ("$JS.API.CONSUMER.DELETE.whizbang_commands_bank.bank", 0),
                ("whizbang.evt.bank.0.Happened", 0),
                ("whizbang.cmd.bank.0.outside", 0),
                ("whizbang.qry.bank.Total", 0),
                ("whizbang.claim.bank", 3),
                (control, 3),
            ];
            let rival = StoreCard::new(StoreId::from_u128(0xBAD), Run { epoch: 2, nonce: 2 });
            let rival = Claim::of(&service("rival").store(rival.clone()), &rival).to_bytes().expect("encodes");
            let packet = Packet::from_envelope(&event(&shard("bank", 0), 2)).expect("encodes");
            let mut headers = async_nats::HeaderMap::new();
            for (name, value) in &packet.headers {
                headers.append(name.as_ref(), value.as_str());
            }
            for (number, (target, _)) in targets.iter().enumerate() {
                let filter = format!("whizbang.cmd.shop.{number}.>");
                let body = json!({
                    "stream_name": "whizbang_commands_shop",
                    "config": { "durable_name": format!("x{number}"), "ack_policy": "explicit", "deliver_policy": "all",
                        "filter_subject": filter, "deliver_subject": target },
                });
                let subject = format!("$JS.API.CONSUMER.CREATE.whizbang_commands_shop.x{number}.{filter}");
                let answer = hostile.request(subject, body.to_string().into()).await.expect("an answer");
                let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
                assert!(answer["error"].is_null(), "{answer}");
                // Empty, as the API expects it, a packet of the bank, and the claim of a rival.
                let subject = format!("whizbang.cmd.shop.{number}.outside");
                hostile.publish(subject.clone(), "".into()).await.expect("writes");
                let headers = headers.clone();
                hostile.publish_with_headers(subject.clone(), headers, packet.payload.clone()).await.expect("writes");
                hostile.publish(subject, rival.clone().into()).await.expect("writes");
            }
            hostile.flush().await.expect("flushes");
            for _ in 0..3 {
                let delivered = tokio::time::timeout(Duration::from_secs(20), controlled.next()).await;
                assert!(delivered.expect("in time").is_some(), "the control is not delivered");
            }
            let asked = external_command(&shard("bank", 0), 1);
            let reply = bank.bridge.request(Request::Command(asked.clone()), Duration::from_secs(10)).await;
            assert_eq!(reply.expect("a reply"), Response::Reply(asked.payload));
            bank.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 1)).await.expect("sends");
            bank.wait_until("its own command", |got| !got.direct.is_empty()).await;
            for (number, (target, expected)) in targets.iter().enumerate() {
                let subject = format!("$JS.API.CONSUMER.INFO.whizbang_commands_shop.x{number}");
                let answer = client.request(subject, "".into()).await.expect("an answer");
                let answer: Value = serde_json::from_slice(&answer.payload).expect("JSON");
                assert_eq!(answer["delivered"]["consumer_seq"], *expected, "{target}: {answer}");
            }
            bank.inspect(|got| {
                assert_eq!(got.direct.len(), 1, "{:?}", got.direct);
                assert_eq!(got.requests.len(), 1, "{:?}", got.requests);
                assert!(got.events.is_empty() && got.notifications.is_empty());
                assert!(got.claims_lost.is_empty(), "{:?}", got.claims_lost);
            });
            // The bank's own command leaves its stream shortly after it was handled.
            until("the streams as before", async || streams().await == before).await;
            assert_eq!(claim().await, claimed);
            assert_eq!(violations.assert_no_more(), 0, "every request was permitted");
            bank.stop().await;
        });
    }
}
