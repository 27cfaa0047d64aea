//! Services with the permissions generated from their cards: they work, and everything else is denied.

mod bodies;

use std::sync::Arc;
use std::time::Duration;

use whizbang::bridge::nats::{NatsBridge, NatsBuilder, NatsPermissions, StreamSetup};
use whizbang::bridge::subject::Namespace;
use whizbang::bridge::wire::Packet;
use whizbang::bridge::{Bridge, BridgeError, NodeCard, Notification, Request, Response};
use whizbang::message::{Envelope, Fingerprint, Kind};
use whizbang::testing::bridge::cases::sample::{command, effects, event, external_command, shard};
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, named, service};
use whizbang::testing::bridge::{SHARDS, run};
use whizbang_tests::nats::{NatsConfig, NatsServer, Release, Violations};

fn bank() -> NodeCard {
    service("bank").owning(named("bank"), SHARDS).answering(named("bank"), named("Total"))
}

fn shop() -> NodeCard {
    service("e-shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")])
}

/// Returns the card of a hostile service. It subscribes to its own events, so that it has a consumer of each kind.
fn evil() -> NodeCard {
    service("evil").owning(named("evil"), SHARDS).subscribing(named("evil"), SHARDS, [named("Happened")])
}

fn cards() -> [NodeCard; 3] {
    [bank(), shop(), evil()]
}

/// Starts a server with one user per service and its runtime permissions, and with the streams that the setup user has created.
async fn guarded(release: Release) -> NatsServer {
    let namespace = Namespace::default();
    let permissions = cards().map(|card| NatsPermissions::runtime(&card, &namespace));
    let server = server_with(release, permissions.into_iter().chain([NatsPermissions::setup(&cards(), &namespace)]));
    login(&server, "setup").set_up(&cards()).await.expect("sets up");
    server
}

fn server_with(release: Release, permissions: impl IntoIterator<Item = NatsPermissions>) -> NatsServer {
    let mut block = String::new();
    let mut users = String::new();
    for permissions in permissions {
        block += &permissions.to_string();
        let name = &permissions.identity;
        users += &format!("  {{ user: \"{name}\", password: \"secret of {name}\", permissions: $WHIZBANG_{name} }}\n");
    }
    users += "  { user: operator, password: operator }\n";
    NatsServer::start_with(release, NatsConfig::authorization(&format!("{block}users: [\n{users}]")))
}

fn login(server: &NatsServer, identity: &str) -> NatsBuilder {
    NatsBridge::builder(&server.url()).user(identity, format!("secret of {identity}"))
}

async fn start(server: &NatsServer, card: NodeCard) -> TestNode {
    start_as(server, card, StreamSetup::Existing).await
}

async fn start_as(server: &NatsServer, card: NodeCard, setup: StreamSetup) -> TestNode {
    let responder = |asked: Request| -> futures_util::future::BoxFuture<'static, Response> {
        Box::pin(async move {
            match asked {
                Request::Command(envelope) | Request::Query(envelope) => Response::Reply(envelope.payload),
                Request::Events { .. } | Request::Outbox { .. } => Response::envelopes(Vec::new(), 0),
                Request::Watermark { .. } | Request::Sent { .. } => Response::watermark(3),
                Request::Shape { .. } => Response::Shape("shapes".to_owned()),
            }
        })
    };
    let name = card.service.to_string();
    let builder = login(server, &name).stream_setup(setup);
    let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
    let behavior = NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() };
    TestNode::attach(bridge, card, behavior).await.expect("attaches")
}

#[test]
fn service_works_with_the_permissions_of_its_card() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let server = guarded(release).await;
            let shop = start(&server, shop()).await;
            let bank = start(&server, bank()).await;
            let (from, to) = (shard("bank", 1), shard("shop", 2));
            bank.bridge.send(command(&from, &to, 1)).await.expect("sends");
            let mut reply = command(&to, &from, 1);
            (reply.kind, reply.domain) = (Kind::Reply, named("shop"));
            shop.bridge.send(reply).await.expect("replies");
            bank.bridge.publish(event(&from, 1)).await.expect("publishes");
            shop.wait_until("command and event", |got| got.direct.len() == 1 && got.events.len() == 1).await;
            bank.wait_until("reply", |got| got.direct.len() == 1).await;
            let ask = |asked| shop.bridge.request(asked, Duration::from_secs(10));
            let asked = external_command(&from, 5);
            let reply = Response::Reply(asked.payload.clone());
            assert_eq!(ask(Request::Command(asked.clone())).await.expect("asks"), reply);
            let query = Envelope { kind: Kind::Query, name: named("Total"), to: None, ..asked };
            assert_eq!(ask(Request::Query(query.clone())).await.expect("asks"), Response::Reply(query.payload.clone()));
            let empty = Response::envelopes(Vec::new(), 0);
            let events = Request::Events { shard: from.clone(), after: 0, limit: 1 };
            assert_eq!(ask(events).await.expect("asks"), empty);
            let outbox = Request::Outbox { from: from.clone(), to: to.clone(), after: 0, limit: 1 };
            assert_eq!(ask(outbox).await.expect("asks"), empty);
            let watermark = Request::Watermark { from: to.clone(), to: from.clone() };
            assert_eq!(ask(watermark).await.expect("asks"), Response::watermark(3));

            // The same permissions suffice to request the shapes of messages.
            for to in [None, Some(to.clone())] {
                let shapes = Request::Shape { from: from.clone(), to, shape: Fingerprint::from_u64(1) };
                assert_eq!(ask(shapes).await.expect("asks"), Response::Shape("shapes".to_owned()));
            }
            let head = Notification::Head { shard: from.clone(), position: 1 };
            shop.retry_until("head", || bank.bridge.notify(head.clone()), |got| got.notifications.contains(&head))
                .await;
            let mark = Notification::Committed { from, to, through: 1 };
            bank.retry_until("mark", || shop.bridge.notify(mark.clone()), |got| got.notifications.contains(&mark))
                .await;
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn every_foreign_publish_and_subscribe_is_denied() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let server = guarded(release).await;
            let (bank_node, shop_node) = (start(&server, bank()).await, start(&server, shop()).await);
            bank_node.bridge.publish(event(&shard("bank", 0), 1)).await.expect("publishes");
            let (callback, mut violations) = Violations::watch();
            let hostile =
                async_nats::ConnectOptions::with_user_and_password("e-shop".into(), "secret of e-shop".into())
                    .custom_inbox_prefix("_INBOX_whizbang_e-shop")
                    .event_callback(callback)
                    .connect(server.url())
                    .await
                    .expect("connects");
            for subject in [
                // Events, heads and commands from the bank, and from no owned domain.
                "whizbang.evt.bank.0.Happened",
                "whizbang.head.bank.0",
                "whizbang.cmd.shop.0.bank.0",
                "whizbang.cmd.bank.0.bank.0",
                "whizbang.done.shop.0.bank.0",
                "whizbang.done.other.0.bank.0",
                "whizbang.ask.bank.out.0.other.0",
                "whizbang.ask.bank.mark.0.other.0",
                "whizbang.ask.other.evt.0",
                // Refused messages of other services, and their inboxes.
                "whizbang.refused.bank",
                "_INBOX_whizbang_bank.x.r.1",
                "_INBOX.other",
                // Streams and consumers of other services.
                "$JS.API.STREAM.DELETE.whizbang_events_bank",
                "$JS.API.STREAM.PURGE.whizbang_events_bank",
                "$JS.API.STREAM.UPDATE.whizbang_events_bank",
                "$JS.API.STREAM.CREATE.whizbang_events_bank",
                // The service must not create or change its own streams either: the body of the request determines the subjects, and the
                // server checks only the name.
                "$JS.API.STREAM.CREATE.whizbang_events_shop",
                "$JS.API.STREAM.UPDATE.whizbang_commands_shop",
                "$JS.API.STREAM.DELETE.whizbang_commands_shop",
                "$JS.API.STREAM.PURGE.whizbang_commands_shop",
                "$JS.API.CONSUMER.CREATE.whizbang_commands_shop.e-shop",
                "$JS.API.CONSUMER.CREATE.whizbang_commands_shop",
                "$JS.API.CONSUMER.DURABLE.CREATE.whizbang_commands_shop.e-shop",
                "$JS.API.CONSUMER.DELETE.whizbang_commands_shop.e-shop",
                "$JS.API.STREAM.MSG.GET.whizbang_events_bank",
                "$JS.API.STREAM.SNAPSHOT.whizbang_commands_shop",
                "$JS.API.STREAM.RESTORE.whizbang_commands_shop",
                "$JS.API.STREAM.CREATE.whizbang_events_other",
                "$JS.API.STREAM.MSG.DELETE.whizbang_events_bank",
                "$JS.API.STREAM.MSG.GET.whizbang_commands_bank",
                "$JS.API.DIRECT.GET.whizbang_commands_bank",
                "$JS.API.STREAM.NAMES",
                "$JS.API.STREAM.LIST",
                "$JS.API.INFO",
                "$JS.API.CONSUMER.CREATE.whizbang_commands_bank",
                "$JS.API.CONSUMER.CREATE.whizbang_commands_bank.e-shop",
                "$JS.API.CONSUMER.CREATE.whizbang_events_bank",
                "$JS.API.CONSUMER.CREATE.whizbang_events_bank.bank",
                "$JS.API.CONSUMER.DURABLE.CREATE.whizbang_events_bank.x",
                "$JS.API.CONSUMER.DELETE.whizbang_commands_bank.bank",
                "$JS.API.CONSUMER.MSG.NEXT.whizbang_commands_bank.bank",
                "$JS.ACK.whizbang_commands_bank.bank.1.1.1.1700000000000000000.0",
                "$SYS.REQ.SERVER.PING",
                "whizbang",
                "other.evt.bank.0.Happened",
            ] {
                hostile.publish(subject, "x".into()).await.expect("writes");
                violations.expect(&hostile, &format!("publishing to {subject}")).await;
            }
            let mut subscriptions = Vec::new();
            for subject in [
                ">",
                "*",
                "whizbang.>",
                "whizbang.*.bank.>",
                "whizbang.cmd.bank.>",
                "whizbang.cmd.shop.>",
                "whizbang.evt.bank.>",
                "whizbang.ask.bank.>",
                "whizbang.done.bank.>",
                "whizbang.head.other.*",
                "whizbang.qry.bank.Total",
                "whizbang.refused.>",
                "_INBOX.>",
                "_INBOX_whizbang_bank.>",
                "$JS.>",
                "$JS.ACK.>",
                "$SYS.>",
            ] {
                subscriptions.push(hostile.subscribe(subject).await.expect("writes"));
                violations.expect(&hostile, &format!("subscribing to {subject}")).await;
            }
            bank_node.inspect(|r| assert!(r.direct.is_empty() && r.notifications.is_empty() && r.requests.is_empty()));
            shop_node.inspect(|got| assert!(got.direct.is_empty() && got.notifications.is_empty()));
            let denied = violations.assert_no_more();
            println!("{release:?}: {denied} foreign publishes and subscribes denied");
            bank_node.stop().await;
            shop_node.stop().await;
        });
    }
}

#[test]
fn missing_permission_is_named_at_attach() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let server = guarded(release).await;
            // The shop's user, with a card that owns the bank's domain.
            let builder = login(&server, "e-shop").stream_setup(StreamSetup::Existing);
            let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
            let thief = service("e-shop").owning(named("bank"), SHARDS);
            let attached = TestNode::attach(bridge, thief, NodeBehavior::default()).await;
            match attached.map(|_| ()) {
                Err(BridgeError::Refused { reason, .. }) => assert!(reason.contains("_bank"), "{reason}"),
                other => panic!("{other:?}"),
            }
        });
    }
}

#[test]
fn denied_publish_fails_immediately() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let server = guarded(release).await;
            let (bank, shop) = (start(&server, bank()).await, start(&server, shop()).await);
            let start = tokio::time::Instant::now();
            let forged = shop.bridge.send(command(&shard("bank", 0), &shard("bank", 1), 1)).await;
            assert!(matches!(&forged, Err(BridgeError::Refused { .. })), "{forged:?}");
            let forged = shop.bridge.publish(event(&shard("bank", 0), 1)).await;
            assert!(matches!(&forged, Err(BridgeError::Refused { .. })), "{forged:?}");
            assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
            bank.inspect(|got| assert_eq!(effects(&got.direct).len(), 0));
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn node_that_creates_its_streams_works_with_its_permissions() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let permissions = [bank(), shop()].map(|card| NatsPermissions::for_card(&card, &Namespace::default()));
            let server = server_with(release, permissions);
            // Start the subscriber first: it waits for a stream that it must not create.
            let shop = start_as(&server, shop(), StreamSetup::Create).await;
            let bank = start_as(&server, bank(), StreamSetup::Create).await;
            bank.bridge.publish(event(&shard("bank", 1), 1)).await.expect("publishes");
            shop.wait_until("the event", |got| got.events.len() == 1).await;
            let last = bank.bridge.last_published(&shard("bank", 1)).await.expect("reads");
            assert_eq!(last.map(|last| last.position), Some(1));
            bank.stop().await;
            shop.stop().await;
        });
    }
}

#[test]
fn missing_setup_is_refused_by_name() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let permissions = [NatsPermissions::runtime(&bank(), &Namespace::default())];
            let server = server_with(release, permissions);
            let builder = login(&server, "bank").stream_setup(StreamSetup::Existing);
            let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
            match TestNode::attach(bridge, bank(), NodeBehavior::default()).await.map(|_| ()) {
                Err(BridgeError::Refused { reason, .. }) => {
                    assert!(reason.contains("whizbang_events_bank") && reason.contains("set_up"), "{reason}");
                }
                other => panic!("{other:?}"),
            }
        });
    }
}

/// Requests of a service with its runtime permissions, with hostile bodies and reply subjects: none changes a stream, and no other
/// service handles a message because of them.
#[test]
fn hostile_bodies_change_no_stream_and_reach_no_service() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let server = guarded(release).await;
            let (bank_node, shop_node) = (start(&server, bank()).await, start(&server, shop()).await);
            let (callback, mut violations) = Violations::watch();
            let hostile = async_nats::ConnectOptions::with_user_and_password("evil".into(), "secret of evil".into())
                .custom_inbox_prefix("_INBOX_whizbang_evil")
                .event_callback(callback)
                .connect(server.url())
                .await
                .expect("connects");
            let operator = async_nats::ConnectOptions::with_user_and_password("operator".into(), "operator".into());
            let operator = operator.connect(server.url()).await.expect("connects");
            // The configurations, the consumers and the first messages: a purge or a deletion changes the last.
            let state = async || {
                let answer = operator.request("$JS.API.STREAM.LIST", "".into()).await.expect("an answer");
                let list: serde_json::Value = serde_json::from_slice(&answer.payload).expect("JSON");
                let streams = list["streams"].as_array().expect("streams").clone();
                let first = |stream: &serde_json::Value| {
                    let is_log = stream["config"]["name"].as_str().is_some_and(|name| name.contains("_events_"));
                    is_log.then(|| stream["state"]["first_seq"].clone())
                };
                let state = |stream: &serde_json::Value| {
                    format!("{} {} {:?}", stream["config"], stream["state"]["consumer_count"], first(stream))
                };
                let mut states: Vec<_> = streams.iter().map(state).collect();
                states.sort_unstable();
                states
            };
            let own = "whizbang_events_evil";
            bank_node.bridge.publish(event(&shard("bank", 0), 1)).await.expect("publishes");
            hostile.request("whizbang.evt.evil.0.Happened", "x".into()).await.expect("is acknowledged");
            let before = state().await;
            let republish = r#""republish":{"src":"whizbang.evt.evil.*.*","dest":"whizbang.evt.bank.{{wildcard(1)}}.{{wildcard(2)}}"}"#;
            let bodies = [
                format!(r#"{{"name":"{own}","subjects":["whizbang.evt.evil.>"],{republish}}}"#),
                format!(r#"{{"name":"{own}","subjects":["whizbang.ask.bank.>"]}}"#),
                format!(r#"{{"name":"{own}","subjects":["_INBOX_whizbang_bank.>"]}}"#),
                format!(r#"{{"name":"{own}","sources":[{{"name":"whizbang_events_bank"}}]}}"#),
                format!(r#"{{"name":"{own}","mirror":{{"name":"whizbang_commands_bank"}}}}"#),
                format!(
                    r#"{{"name":"{own}","subjects":["x"],"subject_transform":{{"src":">","dest":"whizbang.evt.bank.0.Happened"}}}}"#
                ),
                format!(
                    r#"{{"stream_name":"{own}","config":{{"durable_name":"evil","deliver_subject":"whizbang.evt.bank.0.Happened"}}}}"#
                ),
                r#"{"seq":1}"#.to_owned(),
                "{}".to_owned(),
            ];
            for api in ["STREAM.CREATE", "STREAM.UPDATE", "STREAM.PURGE", "STREAM.DELETE", "STREAM.MSG.DELETE"] {
                for body in &bodies {
                    hostile.publish(format!("$JS.API.{api}.{own}"), body.clone().into()).await.expect("writes");
                    violations.expect(&hostile, &format!("{api} {body}")).await;
                }
            }
            for api in ["CONSUMER.CREATE", "CONSUMER.DURABLE.CREATE", "CONSUMER.DELETE"] {
                for body in &bodies {
                    hostile.publish(format!("$JS.API.{api}.{own}.evil"), body.clone().into()).await.expect("writes");
                    violations.expect(&hostile, &format!("{api} {body}")).await;
                }
            }
            // Responses of the API, and deliveries, to a subject of another service instead of an inbox.
            let forged = Packet::from_envelope(&event(&shard("bank", 0), 1)).expect("can be written");
            let mut headers = async_nats::HeaderMap::new();
            for (name, value) in &forged.headers {
                headers.append(name.as_ref(), value.as_str());
            }
            for _ in 0..10 {
                hostile
                    .publish_with_headers("whizbang.cmd.evil.0.outside", headers.clone(), forged.payload.clone())
                    .await
                    .expect("writes");
            }
            hostile.flush().await.expect("flushes");
            for target in ["whizbang.evt.bank.0.Happened", "whizbang.cmd.shop.0.bank.0", "whizbang.head.bank.0"] {
                for request in [
                    format!("$JS.API.STREAM.INFO.{own}"),
                    format!("$JS.API.STREAM.MSG.GET.{own}"),
                    "$JS.API.CONSUMER.MSG.NEXT.whizbang_commands_evil.evil".to_owned(),
                ] {
                    hostile.publish_with_reply(request, target, "1".into()).await.expect("writes");
                }
            }
            hostile.flush().await.expect("flushes");
            // The bank's own events are the only ones that arrive.
            bank_node.bridge.publish(event(&shard("bank", 1), 1)).await.expect("publishes");
            shop_node.wait_until("the bank's events", |got| got.events.len() >= 2).await;
            assert_eq!(state().await, before);
            // The messages that the API wrote to two streams are undecodable or contradict their subject.
            shop_node
                .retry_until("six refused", || std::future::ready(Ok(())), |_| shop_node.bridge.health().refused == 6)
                .await;
            shop_node.inspect(|got| {
                assert_eq!(got.events.len(), 2, "{:?}", got.events);
                assert!(got.direct.is_empty() && got.notifications.is_empty(), "{:?}", got.notifications);
            });
            bank_node.inspect(|r| assert!(r.direct.is_empty() && r.notifications.is_empty() && r.requests.is_empty()));
            violations.assert_no_more();
            // The control: a purge would be seen.
            operator.request(format!("$JS.API.STREAM.PURGE.{own}"), "".into()).await.expect("an answer");
            assert_ne!(state().await, before);
            bank_node.stop().await;
            shop_node.stop().await;
        });
    }
}

#[test]
fn client_queries_and_posts_with_the_permissions_of_its_card() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let ns = Namespace::default();
            let client = || service("cashier");
            let server = server_with(
                release,
                [
                    NatsPermissions::runtime(&bank(), &ns),
                    NatsPermissions::runtime(&client(), &ns),
                    NatsPermissions::setup(&cards(), &ns),
                ],
            );
            login(&server, "setup").set_up(&[bank()]).await.expect("sets up");
            let bank = start(&server, bank()).await;
            let cashier = start(&server, client()).await;
            let to = shard("bank", 1);
            let ask = |asked| cashier.bridge.request(asked, Duration::from_secs(10));
            let asked = external_command(&to, 5);
            let reply = Response::Reply(asked.payload.clone());
            assert_eq!(ask(Request::Command(asked.clone())).await.expect("asks"), reply);
            let query = Envelope { kind: Kind::Query, name: named("Total"), to: None, ..asked.clone() };
            assert_eq!(ask(Request::Query(query)).await.expect("asks"), Response::Reply(asked.payload));
            cashier.bridge.send(external_command(&to, 6)).await.expect("posts");
            bank.wait_until("the posted command", |got| got.direct.len() == 1).await;
            // It sends for no shard and reads no events.
            for refused in [
                cashier.bridge.send(command(&shard("shop", 0), &to, 1)).await,
                cashier.bridge.publish(event(&to, 1)).await,
                ask(Request::Events { shard: to.clone(), after: 0, limit: 1 }).await.map(drop),
            ] {
                assert!(matches!(refused, Err(BridgeError::Refused { .. })), "{refused:?}");
            }
            bank.stop().await;
            cashier.stop().await;
        });
    }
}
