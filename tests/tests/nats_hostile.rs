//! Untrusted clients on the server: forged origins, malicious reply subjects, and invalid messages.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, jetstream};
use bytes::Bytes;
use futures_util::StreamExt;
use whizbang::bridge::nats::NatsBridge;
use whizbang::bridge::wire::Packet;
use whizbang::bridge::{Bridge, Notification, Request, RequestError, Response};
use whizbang::message::{Codec, Envelope, Kind};
use whizbang::testing::bridge::cases::sample::{command, event, external_command, shard};
use whizbang::testing::bridge::node::{NodeBehavior, TestNode, named, service};
use whizbang::testing::bridge::{SHARDS, run};
use whizbang_tests::nats::{NatsConfig, NatsServer, Release};

const BOTH: [Release; 2] = [Release::Distribution, Release::Pinned];

fn headers(packet: &Packet) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in &packet.headers {
        headers.append(name.as_ref(), value.as_str());
    }
    headers
}

/// Starts a server with a higher message limit than the bridge's, and the node of a bank on it.
async fn start(release: Release) -> (NatsServer, TestNode, async_nats::Client) {
    let config = NatsConfig { max_payload: Some(4 << 20), ..NatsConfig::default() };
    let server = NatsServer::start_with(release, config);
    let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
    let responder = |asked: Request| -> futures_util::future::BoxFuture<'static, Response> {
        let Request::Command(envelope) = asked else { return Box::pin(async { Response::watermark(0) }) };
        Box::pin(async move { Response::Reply(envelope.payload) })
    };
    let behavior = NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() };
    let card = service("bank").owning(named("bank"), SHARDS).subscribing(named("shop"), SHARDS, [named("Happened")]);
    let node = TestNode::attach(bridge, card, behavior).await.expect("attaches");
    let stranger = async_nats::connect(server.url()).await.expect("connects");
    (server, node, stranger)
}

/// Returns the reason and the subject of each message that a service refused, with its size.
async fn put_aside(server: &NatsServer, count: usize) -> Vec<(String, String, usize)> {
    let context = jetstream::new(async_nats::connect(server.url()).await.expect("connects"));
    let stream = context.get_stream("whizbang_refused_bank").await.expect("a stream");
    let consumer = stream.create_consumer(jetstream::consumer::pull::Config::default()).await.expect("a consumer");
    let messages = consumer.messages().await.expect("messages").take(count);
    let read = messages.map(|message| {
        let message = message.expect("a message");
        let header = |name: &str| {
            message.headers.as_ref().and_then(|map| map.get(name)).map(ToString::to_string).unwrap_or_default()
        };
        (header("whizbang-subject"), header("whizbang-refused"), message.payload.len())
    });
    tokio::time::timeout(Duration::from_secs(20), read.collect()).await.expect("in time")
}

#[test]
fn message_that_contradicts_its_subject_is_refused() {
    for release in BOTH {
        run(async {
            let (server, node, stranger) = start(release).await;
            let (bank, shop) = (shard("bank", 1), shard("shop", 0));
            let packet = |envelope: &Envelope| Packet::from_envelope(envelope).expect("can be written");
            let reply = Envelope { kind: Kind::Reply, domain: named("shop"), ..command(&shop, &bank, 1) };
            let mut far = command(&shop, &bank, 1);
            far.to = Some(shard("bank", 4));
            let mut other = command(&shop, &bank, 1);
            other.domain = named("shop");
            let cases: Vec<(&str, Packet, &str)> = vec![
                // The origin is missing from the subject, or is another one.
                ("whizbang.cmd.bank.1.outside", packet(&command(&shop, &bank, 1)), "the origin"),
                ("whizbang.cmd.bank.1.mail.0", packet(&command(&shop, &bank, 1)), "the origin"),
                ("whizbang.cmd.bank.1.mail.0", packet(&reply), "the origin"),
                ("whizbang.cmd.bank.1.shop.0", packet(&external_command(&bank, 1)), "the origin"),
                // The destination differs from the subject or is invalid.
                ("whizbang.cmd.bank.2.shop.0", packet(&command(&shop, &bank, 1)), "the destination"),
                ("whizbang.cmd.bank.4.shop.0", packet(&far), "the destination"),
                ("whizbang.cmd.bank.99999.shop.0", packet(&command(&shop, &bank, 1)), "the subject"),
                ("whizbang.cmd.bank.1.shop", packet(&command(&shop, &bank, 1)), "the subject"),
                ("whizbang.cmd.bank.1.shop.0", packet(&other), "the domain"),
                // A reply from another service than the owner of the command.
                (
                    "whizbang.cmd.bank.1.shop.0",
                    packet(&Envelope { domain: named("mail"), ..reply.clone() }),
                    "the domain",
                ),
                // Not a command.
                ("whizbang.cmd.bank.1.shop.0", packet(&event(&shop, 1)), "the kind"),
                (
                    "whizbang.cmd.bank.1.outside",
                    packet(&Envelope { kind: Kind::Reply, ..external_command(&bank, 1) }),
                    "the kind",
                ),
                ("whizbang.cmd.bank.1.outside", Packet::default(), "ce-specversion"),
            ];
            let context = jetstream::new(stranger.clone());
            let publish = async |subject: &str, headers: HeaderMap, payload: Bytes| {
                let taken = context.publish_with_headers(subject.to_owned(), headers, payload).await.expect("writes");
                taken.await.expect("is acknowledged");
            };
            for (subject, packet, _) in &cases {
                publish(subject, headers(packet), packet.payload.clone()).await;
            }
            // Larger than a bridge accepts; only the beginning is kept.
            let large = packet(&external_command(&bank, 1));
            publish("whizbang.cmd.bank.1.outside", headers(&large), vec![0; 3 << 20].into()).await;
            let mut many = headers(&large);
            for at in 0..500 {
                many.append(format!("x-{at}").as_str(), "y".repeat(100).as_str());
            }
            publish("whizbang.cmd.bank.1.outside", many, Bytes::new()).await;
            // Headers that command the server are dropped.
            let mut rollup = headers(&large);
            rollup.append("Nats-Expected-Stream", "whizbang_commands_bank");
            publish("whizbang.cmd.bank.1.outside", rollup, large.payload.clone()).await;

            node.wait_until("the only valid message", |received| received.direct.len() == 1).await;
            let aside = put_aside(&server, cases.len() + 2).await;
            for ((subject, _, reason), found) in cases.iter().zip(&aside) {
                assert_eq!(found.0, *subject);
                assert!(found.1.contains(reason), "{subject}: {}", found.1);
            }
            let [large, many] = &aside[cases.len()..] else { panic!("{}", aside.len()) };
            assert!(large.1.contains("3145728 bytes") && large.2 <= 64 * 1024, "{large:?}");
            assert!(many.1.contains("headers"), "{many:?}");
            node.inspect(|received| {
                assert!(received.direct.len() == 1 && received.direct[0].headers.is_empty(), "{:?}", received.direct)
            });
            node.stop().await;
        });
    }
}

#[test]
fn request_without_an_inbox_reply_gets_no_response() {
    for release in BOTH {
        run(async {
            let (_server, node, stranger) = start(release).await;
            let mut traps = Vec::new();
            let subjects = ["whizbang.evt.bank.1.Happened", "$JS.API.STREAM.PURGE.whizbang_events_bank", "somewhere"];
            for subject in subjects {
                traps.push(stranger.subscribe(subject).await.expect("subscribes"));
            }
            stranger.flush().await.expect("flushes");
            let packet = Packet::from_envelope(&external_command(&shard("bank", 1), 1)).expect("can be written");
            let to = "whizbang.ask.bank.cmd.1";
            for reply in subjects {
                stranger
                    .publish_with_reply_and_headers(to, reply, headers(&packet), packet.payload.clone())
                    .await
                    .expect("writes");
            }
            // A valid request after them.
            let answer =
                stranger.request_with_headers(to, headers(&packet), packet.payload.clone()).await.expect("answers");
            assert_eq!(answer.payload, packet.payload);
            node.inspect(|received| assert_eq!(received.requests.len(), 1));
            for trap in &mut traps {
                let nothing = tokio::time::timeout(Duration::from_millis(50), trap.next()).await;
                assert!(nothing.is_err(), "{nothing:?}");
            }
            node.stop().await;
        });
    }
}

#[test]
fn invalid_requests_get_an_error_response() {
    for release in BOTH {
        run(async {
            let (_server, node, stranger) = start(release).await;
            let good = Packet::from_envelope(&external_command(&shard("bank", 1), 1)).expect("can be written");
            let sent =
                Packet::from_envelope(&command(&shard("shop", 0), &shard("bank", 1), 1)).expect("can be written");
            for (subject, packet) in [
                ("whizbang.ask.bank.cmd.1", Packet::default()),
                ("whizbang.ask.bank.cmd.2", good.clone()),
                ("whizbang.ask.bank.evt.1", good.clone()),
                ("whizbang.ask.bank.nonsense", good.clone()),
                // A caller is not an actor.
                ("whizbang.ask.bank.cmd.1", sent),
            ] {
                let answer = stranger
                    .request_with_headers(subject, headers(&packet), packet.payload.clone())
                    .await
                    .expect("answers");
                let pairs: Vec<(String, String)> = answer
                    .headers
                    .iter()
                    .flat_map(HeaderMap::iter)
                    .map(|(name, values)| (name.to_string(), values[0].to_string()))
                    .collect();
                let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
                let answer = Packet::read_response(&pairs, answer.payload).expect("an answer");
                assert!(matches!(answer, Response::Refused(RequestError::Undecodable(_))), "{subject}: {answer:?}");
            }
            node.inspect(|received| assert!(received.requests.is_empty()));
            node.stop().await;
        });
    }
}

#[test]
fn forged_notifications_are_dropped() {
    for release in BOTH {
        run(async {
            let (_server, node, stranger) = start(release).await;
            // A watermark that would make the bank discard unacknowledged entries.
            let forged = Notification::Committed { from: shard("bank", 0), to: shard("shop", 0), through: u64::MAX };
            let packet = Packet::from_notification(&forged);
            let publish = async |subject: &'static str, packet: &Packet| {
                stranger.publish_with_headers(subject, headers(packet), packet.payload.clone()).await.expect("writes");
            };
            publish("whizbang.done.bank.0.mail.0", &packet).await;
            publish("whizbang.done.bank.1.shop.0", &packet).await;
            publish("whizbang.done.bank.0.shop.0", &Packet::default()).await;
            publish("whizbang.head.shop.0", &packet).await;
            let honest = Notification::Committed { from: shard("bank", 0), to: shard("shop", 0), through: 7 };
            publish("whizbang.done.bank.0.shop.0", &Packet::from_notification(&honest)).await;
            node.wait_until("the valid notifications", |received| received.notifications.contains(&honest)).await;
            node.inspect(|received| assert_eq!(received.notifications.len(), 1));
            node.stop().await;
        });
    }
}

#[test]
fn pack_that_contradicts_its_subject_is_refused_whole() {
    for release in BOTH {
        run(async {
            let (server, node, stranger) = start(release).await;
            // The stream of the shop's events is created by the shop.
            let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
            let shop =
                TestNode::attach(bridge, service("shop").owning(named("shop"), SHARDS), NodeBehavior::default()).await;
            let shop = shop.expect("attaches");
            let (here, other) = (shard("shop", 1), shard("shop", 2));
            let good = [event(&here, 1), event(&here, 2), event(&here, 3)];
            let mut strange = event(&here, 2);
            strange.domain = named("bank");
            let cut = Packet::from_events(&good);
            let cut = Packet { payload: cut.payload.slice(..cut.payload.len() - 1), ..cut };
            let cases = [
                ("whizbang.evt.shop.1", Packet::from_events(&[event(&here, 1), event(&other, 2)]), "the origin"),
                ("whizbang.evt.shop.2", Packet::from_events(&good), "the origin"),
                ("whizbang.evt.shop.1", Packet::from_events(&[event(&here, 1), command(&here, &other, 2)]), "the kind"),
                ("whizbang.evt.shop.1", Packet::from_events(&[event(&here, 1), strange]), "the domain"),
                ("whizbang.evt.shop.1", Packet::from_events(&[]), "without events"),
                ("whizbang.evt.shop.1", cut, "truncated"),
                ("whizbang.evt.shop.1", Packet::from_envelope(&event(&here, 1)).expect("written"), "whizbang-frame"),
                ("whizbang.evt.shop.99", Packet::from_events(&good), "the origin"),
                ("whizbang.evt.shop.1.Happened", Packet::from_events(&good), "ce-specversion"),
            ];
            let context = jetstream::new(stranger);
            for (subject, packet, _) in &cases {
                let taken = context.publish_with_headers(*subject, headers(packet), packet.payload.clone()).await;
                taken.expect("writes").await.expect("is acknowledged");
            }
            // Valid events after them: three events of a page of the log are packed together.
            shop.bridge.publish_all(good.to_vec()).await.expect("publishes");
            node.wait_until("the valid events", |received| received.events.len() >= 3).await;
            node.inspect(|received| assert_eq!(received.events, good));
            for ((subject, _, reason), found) in cases.iter().zip(put_aside(&server, cases.len()).await) {
                assert_eq!(found.0, *subject);
                assert!(found.1.contains(reason), "{subject}: {} instead of {reason}", found.1);
            }
            let mut stream = context.get_stream("whizbang_events_shop").await.expect("a stream");
            let messages = stream.info().await.expect("its state").state.messages;
            assert_eq!(messages, cases.len() as u64 + 1, "three events in one message");
            shop.stop().await;
            node.stop().await;
        });
    }
}

#[test]
fn unanswered_requests_block_no_messages() {
    for release in BOTH {
        run(async {
            let server = NatsServer::start(release);
            let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
            let answers = Arc::new(tokio::sync::Semaphore::new(0));
            let held = Arc::clone(&answers);
            let responder = move |_: Request| -> futures_util::future::BoxFuture<'static, Response> {
                let held = Arc::clone(&held);
                Box::pin(async move {
                    let _never = held.acquire().await;
                    Response::Refused(RequestError::NotHere)
                })
            };
            let behavior = NodeBehavior { responder: Box::new(responder), ..NodeBehavior::default() };
            let node = TestNode::attach(bridge, service("bank").owning(named("bank"), SHARDS), behavior)
                .await
                .expect("attaches");
            let stranger = async_nats::connect(server.url()).await.expect("connects");
            let inbox = stranger.new_inbox();
            let mut told = stranger.subscribe(inbox.clone()).await.expect("subscribes");
            let packet = Packet::from_envelope(&external_command(&shard("bank", 1), 1)).expect("can be written");
            for _ in 0..5000 {
                let (to, inbox) = ("whizbang.ask.bank.cmd.1", inbox.clone());
                let asked =
                    stranger.publish_with_reply_and_headers(to, inbox, headers(&packet), packet.payload.clone());
                asked.await.expect("asks");
            }
            // Once one more request is refused as busy, the node handles its maximum.
            let busy =
                tokio::time::timeout(Duration::from_secs(20), told.next()).await.expect("in time").expect("an answer");
            let header = busy.headers.as_ref().and_then(|map| map.get("whizbang-answer")).map(ToString::to_string);
            assert_eq!(header.as_deref(), Some("busy"));
            let context = jetstream::new(stranger.clone());
            let subject = "whizbang.cmd.bank.1.outside";
            let published = context.publish_with_headers(subject, headers(&packet), packet.payload.clone()).await;
            published.expect("writes").await.expect("is acknowledged");
            node.wait_until("the command sent after them", |received| received.direct.len() == 1).await;
            answers.close();
            node.stop().await;
        });
    }
}

#[test]
fn queued_events_are_packed_up_to_a_limit() {
    run(async {
        let (server, node, stranger) = start(Release::Distribution).await;
        let bridge: Arc<dyn Bridge> = Arc::new(NatsBridge::connect(&server.url()).await.expect("connects"));
        let shop = TestNode::attach(bridge, service("shop").owning(named("shop"), SHARDS), NodeBehavior::default())
            .await
            .expect("attaches");
        let source = shard("shop", 0);
        let large =
            |position| Envelope { payload: vec![0; 1024].into(), codec: Codec::Bincode, ..event(&source, position) };
        let small = |position| Envelope { codec: Codec::Bincode, ..event(&source, position) };
        let events = (1..=300).map(small).chain((301..=400).map(large));
        shop.bridge.publish_all(events.collect()).await.expect("publishes");
        node.wait_until("all events", |received| received.events.len() == 400).await;

        let context = jetstream::new(stranger.clone());
        let mut stream = context.get_stream("whizbang_events_shop").await.expect("a stream");
        let messages = stream.info().await.expect("is looked at").state.messages;
        assert!((4..100).contains(&messages), "{messages} messages");
        let mut found = 0;
        for number in 1..=messages {
            let message = stream.get_raw_message(number).await.expect("a message");
            let pack = Packet::read_events(&[("whizbang-frame", "events")], message.payload.clone()).expect("a pack");
            assert!((2..=128).contains(&pack.len()) && message.payload.len() <= 32 * 1024, "{} events", pack.len());
            found += pack.len();
        }
        assert_eq!(found, 400);

        shop.stop().await;
        node.stop().await;
    });
}
