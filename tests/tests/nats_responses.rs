//! Responses to requests: a service may write them to the inboxes of callers, and only to those that it was asked from.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, ServerError};
use futures_util::StreamExt;
use tokio::sync::watch;
use whizbang::bridge::nats::{NatsBridge, NatsBuilder, NatsPermissions, StreamSetup};
use whizbang::bridge::subject::Namespace;
use whizbang::bridge::wire::Packet;
use whizbang::bridge::{Bridge, BridgeError, NodeCard, Request, Response};
use whizbang::testing::bridge::cases::sample::{event, external_command, shard};
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, named, service};
use whizbang::testing::bridge::{SHARDS, run};
use whizbang_tests::nats::{NatsConfig, NatsServer, Release};
use whizbang_tests::until;

const BOTH: [Release; 2] = [Release::Distribution, Release::Pinned];
const OWN_INBOX: &str = "_INBOX_whizbang_evil.own";

fn bank() -> NodeCard {
    service("bank").owning(named("bank"), SHARDS)
}

fn shop() -> NodeCard {
    service("e-shop").owning(named("shop"), SHARDS).subscribing(named("bank"), SHARDS, [named("Happened")])
}

/// Starts a server with a user for each service, which has its runtime permissions, and with all streams.
async fn guarded(release: Release) -> NatsServer {
    guarded_by_hand(release, |_| {}).await
}

/// Starts a server where the permissions of the bank were changed by hand.
async fn guarded_by_hand(release: Release, change: impl Fn(&mut NatsPermissions)) -> NatsServer {
    let cards = [bank(), shop(), service("evil").owning(named("evil"), SHARDS)];
    let namespace = Namespace::default();
    let mut all = cards.iter().map(|card| NatsPermissions::runtime(card, &namespace)).collect::<Vec<_>>();
    change(&mut all[0]);
    let (mut blocks, mut users) = (String::new(), "  { user: operator, password: operator }\n".to_owned());
    for permissions in all.into_iter().chain([NatsPermissions::setup(&cards, &namespace)]) {
        blocks += &permissions.to_string();
        let name = &permissions.identity;
        users += &format!("  {{ user: \"{name}\", password: \"secret of {name}\", permissions: $WHIZBANG_{name} }}\n");
    }
    let server = NatsServer::start_with(release, NatsConfig::authorization(&format!("{blocks}users: [\n{users}]")));
    login(&server, "setup").set_up(&cards).await.expect("sets up");
    server
}

fn login(server: &NatsServer, identity: &str) -> NatsBuilder {
    NatsBridge::builder(&server.url()).user(identity, format!("secret of {identity}"))
}

/// Starts a node that responds to a command with its payload, once it is permitted.
async fn start(server: &NatsServer, card: NodeCard, permitted: watch::Receiver<bool>) -> TestNode {
    let responder = move |asked: Request| -> futures_util::future::BoxFuture<'static, Response> {
        let mut permitted = permitted.clone();
        Box::pin(async move {
            permitted.wait_for(|permitted| *permitted).await.expect("the test is running");
            match asked {
                Request::Command(envelope) => Response::Reply(envelope.payload),
                _ => Response::watermark(0),
            }
        })
    };
    let builder = login(server, card.service.as_str()).stream_setup(StreamSetup::Existing);
    let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
    let behavior = NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() };
    TestNode::attach(bridge, card, behavior).await.expect("attaches")
}

/// Connects with the login of `evil`. Returns the client and the number of its permission violations.
async fn hostile(server: &NatsServer) -> (Client, Arc<AtomicUsize>) {
    let denied = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&denied);
    let options = ConnectOptions::with_user_and_password("evil".into(), "secret of evil".into())
        .custom_inbox_prefix("_INBOX_whizbang_evil")
        .event_callback(move |event| {
            let is_denial = matches!(event, Event::ServerError(ServerError::Other(ref text)) if text.to_lowercase().contains("permissions violation"));
            counter.fetch_add(usize::from(is_denial), Ordering::Relaxed);
            async {}
        });
    (options.connect(server.url()).await.expect("connects"), denied)
}

/// A service that sends requests to itself chooses their reply subjects. Being asked does not permit to publish there.
#[test]
fn request_to_oneself_permits_no_publish() {
    for release in BOTH {
        run(async {
            let server = guarded(release).await;
            let (_permit, permitted) = watch::channel(true);
            let bank_node = start(&server, bank(), permitted.clone()).await;
            let shop_node = start(&server, shop(), permitted).await;
            let (client, denied) = hostile(&server).await;
            let mut expected = 0;
            for own in ["whizbang.ask.evil.cmd.0", "whizbang.done.evil.0.evil.0", OWN_INBOX] {
                let mut asked = client.subscribe(own).await.expect("subscribes");
                for target in [
                    "whizbang.evt.bank.0.Happened",
                    "whizbang.cmd.shop.0.bank.0",
                    "whizbang.claim.bank",
                    "whizbang.done.shop.0.bank.0",
                    "whizbang.head.bank.0",
                    "whizbang.refused.bank",
                    "_INBOX_whizbang_bank.x.r.1",
                    "_INBOX.other",
                    "$JS.API.STREAM.DELETE.whizbang_events_bank",
                ] {
                    client.publish_with_reply(own, target, "{}".into()).await.expect("writes");
                    let request = asked.next().await.expect("its own request");
                    let target = request.reply.expect("the reply subject");
                    client.publish(target.clone(), "forged".into()).await.expect("writes");
                    expected += 1;
                    let all = async {
                        while denied.load(Ordering::Relaxed) < expected {
                            client.flush().await.expect("flushes");
                            tokio::task::yield_now().await;
                        }
                    };
                    assert!(
                        tokio::time::timeout(Duration::from_secs(10), all).await.is_ok(),
                        "{target} was not denied"
                    );
                }
            }
            // The bank and its stream are as before: its own event is the only one.
            bank_node.bridge.publish(event(&shard("bank", 0), 1)).await.expect("publishes");
            shop_node.wait_until("the bank's event", |got| got.events.len() == 1).await;
            for node in [bank_node, shop_node] {
                assert_eq!(node.bridge.health().refused, 0);
                node.inspect(|got| assert!(got.direct.is_empty() && got.notifications.is_empty()));
                node.stop().await;
            }
        });
    }
}

/// Waits until the server has processed everything that the client has written.
async fn round_trip(client: &Client) {
    let mut own = client.subscribe(OWN_INBOX).await.expect("subscribes");
    client.publish(OWN_INBOX, "".into()).await.expect("writes");
    own.next().await.expect("its own message");
}

async fn forge_response(client: &Client, reply_subject: String) {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("whizbang-answer", "reply");
    client.publish_with_headers(reply_subject, headers, "forged".into()).await.expect("writes");
}

/// A service that is asked knows the reply subject of that request. It may publish to all inboxes for responses, but it cannot
/// compute the reply subject of another request.
#[test]
fn reply_subject_reveals_no_other_reply_subject() {
    for release in BOTH {
        run(async {
            let server = guarded(release).await;
            let (permit, permitted) = watch::channel(false);
            let (bank, shop) =
                (start(&server, bank(), permitted.clone()).await, start(&server, shop(), permitted).await);
            let (client, denied) = hostile(&server).await;
            let mut asked = client.subscribe("whizbang.ask.evil.>").await.expect("subscribes");
            round_trip(&client).await;
            let ask = |command| shop.bridge.request(Request::Command(command), Duration::from_secs(20));
            let hostile_responder = async {
                let request = asked.next().await.expect("a request");
                let reply = request.reply.expect("a reply subject").to_string();
                forge_response(&client, reply.clone()).await;
                reply
            };
            let (answer, known) = tokio::join!(ask(external_command(&shard("evil", 0), 1)), hostile_responder);
            assert_eq!(answer.expect("an answer"), Response::Reply("forged".into()), "this request was for it");
            assert!(!known.starts_with("_INBOX_whizbang_e-shop"), "{known} reveals the private inbox");
            // The shop asks the bank, which does not respond yet. Each number is tried with the known token.
            let (rest, token) = known.rsplit_once('.').expect("a token");
            let (prefix, number) = rest.rsplit_once('.').expect("a number");
            let first: u64 = number.parse().expect("a number");
            let command = external_command(&shard("bank", 1), 2);
            let reply = Response::Reply(command.payload.clone());
            let guessing = async {
                bank.wait_until("the request", |received| received.requests.len() == 1).await;
                for number in first..first + 1_000 {
                    for guess in [format!("{number}.{token}"), format!("{number}.{number:016x}"), format!("{number}")] {
                        forge_response(&client, format!("{prefix}.{guess}")).await;
                    }
                }
                round_trip(&client).await;
                permit.send_replace(true);
            };
            let (answer, ()) = tokio::join!(ask(command), guessing);
            assert_eq!(answer.expect("an answer"), reply);
            assert_eq!(denied.load(Ordering::Relaxed), 0, "the server permits all these responses");
            bank.stop().await;
            shop.stop().await;
        });
    }
}

/// The requester chooses the inbox of the response. One that the server denies is not handled and logged again for each request.
#[test]
fn request_with_a_denied_inbox_is_dropped() {
    for release in BOTH {
        run(async {
            let server = guarded(release).await;
            let (_permit, permitted) = watch::channel(true);
            let bank = start(&server, bank(), permitted).await;
            let (client, _) = hostile(&server).await;
            let command = external_command(&shard("bank", 1), 1);
            let packet = Packet::from_envelope(&command).expect("can be written");
            let mut headers = async_nats::HeaderMap::new();
            for (name, value) in &packet.headers {
                headers.insert(&**name, value.as_str());
            }
            let ask = async |reply: String| {
                let (to, headers, payload) = ("whizbang.ask.bank.cmd.1", headers.clone(), packet.payload.clone());
                client.publish_with_reply_and_headers(to, reply, headers, payload).await.expect("writes");
            };
            let denied = async |expected| {
                until("the denied responses", async || {
                    client.flush().await.expect("flushes");
                    bank.bridge.health().denied_responses == expected
                })
                .await;
            };
            ask("_INBOX_foreign.first".to_owned()).await;
            denied(1).await;
            for number in 0..100 {
                ask(format!("_INBOX_foreign.{number}.x")).await;
            }
            denied(101).await;
            // A wrong inbox beside those of the services stops no response to them.
            ask("_INBOX_whizbang.x".to_owned()).await;
            denied(102).await;
            // Neither does the first token of the bank's own inboxes, which is not a sign of incomplete permissions.
            ask("_INBOX_whizbang_bank".to_owned()).await;
            denied(103).await;
            let notes = bank.bridge.health().notes;
            assert!(notes.len() == 1 && notes[0].contains("below `_INBOX_foreign`:"), "{notes:?}");
            bank.inspect(|received| assert_eq!(received.requests.len(), 3, "the first request of each inbox"));
            // An inbox of its own is answered, from the same client.
            let own = "_INBOX_whizbang.evil.own";
            let mut responses = client.subscribe(own).await.expect("subscribes");
            ask(own.to_owned()).await;
            let response = tokio::time::timeout(Duration::from_secs(10), responses.next()).await;
            assert_eq!(response.expect("in time").expect("a response").payload, packet.payload);
            assert_eq!(bank.bridge.health().denied_responses, 103);
            bank.stop().await;
        });
    }
}

/// JetStream acknowledges a message at its reply subject, which the sender chooses. Older servers execute that acknowledgement as a
/// request, if the subject is one of their API: the permissions of the sender are not checked for it.
#[test]
fn acknowledgement_is_a_request_only_on_older_servers() {
    for release in BOTH {
        run(async {
            let server = guarded(release).await;
            let operator = async_nats::ConnectOptions::with_user_and_password("operator".into(), "operator".into());
            let operator = operator.connect(server.url()).await.expect("connects");
            let context = async_nats::jetstream::new(operator);
            for _ in 0..3 {
                let sent = context.publish("whizbang.cmd.bank.0.outside", "{}".into()).await.expect("sends");
                sent.await.expect("is kept");
            }
            let (hostile, _) = hostile(&server).await;
            for api in ["STREAM.MSG.DELETE", "STREAM.PURGE", "STREAM.DELETE", "STREAM.UPDATE", "CONSUMER.CREATE"] {
                for _ in 0..5 {
                    let target = format!("$JS.API.{api}.whizbang_commands_bank");
                    let publish = hostile.publish_with_reply("whizbang.evt.evil.0.Happened", target, "{}".into());
                    publish.await.expect("writes");
                }
            }
            // The acknowledgement of a later message follows those of the earlier ones.
            hostile.request("whizbang.evt.evil.0.Happened", "{}".into()).await.expect("an acknowledgement");
            let mut stream = context.get_stream("whizbang_commands_bank").await.expect("a stream");
            let messages = stream.info().await.expect("its state").state.messages;
            match release {
                Release::Distribution => assert_eq!(messages, 0, "nats-server 2.9 executes them"),
                Release::Pinned => assert_eq!(messages, 3),
            }
        });
    }
}

/// A node that is not permitted to respond would be silent for its callers. Its start names the inbox.
#[test]
fn missing_permission_to_respond_is_named_at_attach() {
    for release in BOTH {
        for own_inboxes in [&["_INBOX_whizbang.e-shop.>"][..], &[]] {
            run(async {
                let server = guarded_by_hand(release, |bank| {
                    bank.publish.retain(|subject| subject != "_INBOX_whizbang.*.>");
                    bank.publish.extend(own_inboxes.iter().map(|inbox| (*inbox).to_owned()));
                })
                .await;
                let builder = login(&server, "bank").stream_setup(StreamSetup::Existing);
                let bridge: Arc<dyn Bridge> = Arc::new(builder.connect().await.expect("connects"));
                match TestNode::attach(bridge, bank(), NodeBehavior::default()).await.map(drop) {
                    Err(BridgeError::Refused { reason, .. }) => {
                        assert!(reason.contains("`_INBOX_whizbang.bank."), "{reason}");
                    }
                    other => panic!("{other:?}"),
                }
            });
        }
    }
}

/// Permissions that list the services one by one, and forget one: its requests get no response, and the node says so.
#[test]
fn denied_responses_to_a_service_are_noted() {
    for release in BOTH {
        run(async {
            let server = guarded_by_hand(release, |bank| {
                bank.publish.retain(|subject| subject != "_INBOX_whizbang.*.>");
                bank.publish.extend(["bank", "evil"].map(|service| format!("_INBOX_whizbang.{service}.>")));
            })
            .await;
            let (_permit, permitted) = watch::channel(true);
            let bank = start(&server, bank(), permitted.clone()).await;
            let shop = start(&server, shop(), permitted).await;
            assert_eq!(bank.bridge.health().notes, Vec::<String>::new());
            let command = external_command(&shard("bank", 1), 1);
            let asked = shop.bridge.request(Request::Command(command.clone()), Duration::from_secs(1)).await;
            assert!(matches!(asked, Err(BridgeError::NoResponse { .. })), "{asked:?}");
            let health = bank.bridge.health();
            assert!(health.notes.len() == 1 && health.notes[0].contains("`_INBOX_whizbang.e-shop`"), "{health:?}");
            assert_eq!((health.denied_responses, health.issues), (1, Vec::new()), "it stays ready");
            // Another service is answered.
            let (client, _) = hostile(&server).await;
            let mut responses = client.subscribe("_INBOX_whizbang.evil.own").await.expect("subscribes");
            let packet = Packet::from_envelope(&command).expect("can be written");
            let mut headers = async_nats::HeaderMap::new();
            for (name, value) in &packet.headers {
                headers.insert(&**name, value.as_str());
            }
            let (to, inbox) = ("whizbang.ask.bank.cmd.1", "_INBOX_whizbang.evil.own");
            client.publish_with_reply_and_headers(to, inbox, headers, packet.payload).await.expect("writes");
            tokio::time::timeout(Duration::from_secs(10), responses.next())
                .await
                .expect("in time")
                .expect("a response");
            bank.stop().await;
            shop.stop().await;
        });
    }
}

/// A permission that is used first when the node runs: the node names the subject, whether or not a message waits for it.
#[test]
fn denied_subject_of_a_running_node_is_noted() {
    for release in BOTH {
        for denied in ["$JS.API.CONSUMER.MSG.NEXT.whizbang_commands_bank.bank", "whizbang.evt.bank.>"] {
            run(async {
                let server = guarded_by_hand(release, |bank| bank.publish.retain(|subject| subject != denied)).await;
                let (_permit, permitted) = watch::channel(true);
                let bank = start(&server, bank(), permitted).await;
                if denied.contains("evt") {
                    let published = bank.bridge.publish(event(&shard("bank", 0), 1)).await;
                    assert!(matches!(published, Err(BridgeError::Refused { .. })), "{published:?}");
                }
                let named = denied.trim_end_matches(".>");
                until("a note", async || bank.bridge.health().notes.iter().any(|note| note.contains(named))).await;
                assert_eq!(bank.bridge.health().issues, Vec::<String>::new());
                bank.bridge.abandon();
            });
        }
    }
}
