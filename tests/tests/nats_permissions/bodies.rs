//! Bodies of requests that create streams and consumers: with the permission to create them each has its effect on another service,
//! and with runtime permissions each request is denied.
//!
//! The server checks the name of a stream only, never the body.

use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;
use serde_json::{Value, json};
use whizbang::bridge::nats::NatsPermissions;
use whizbang::bridge::subject::Namespace;
use whizbang::testing::bridge::cases::sample::{event, shard};
use whizbang::testing::bridge::run;
use whizbang_tests::nats::{NatsServer, Release, Violations};

use crate::{bank, cards, evil, login, server_with, start};

/// The only stream of the hostile service.
const OWN: &str = "whizbang_events_evil";

/// The effect of a body on the bank.
#[derive(Clone, Copy, Debug)]
enum Effect {
    /// The stream receives the bank's events.
    CopiesEvents,
    /// The stream receives requests to the bank.
    CapturesRequests,
    /// An event of the hostile service appears as one of the bank.
    WritesEvent,
}

/// Returns the requests: a name, the effect, and the configurations of the stream and of its consumer.
fn requests() -> [(&'static str, Effect, Value, Option<Value>); 4] {
    let (events, forged) = (["whizbang.evt.evil.>"], "whizbang.evt.bank.0.Happened");
    let stream = |config: Value| {
        let mut whole = json!({ "name": OWN, "storage": "file" });
        whole.as_object_mut().expect("an object").extend(config.as_object().expect("an object").clone());
        whole
    };
    let consumer = json!({ "stream_name": OWN, "config": {
        "name": "evil", "durable_name": "evil", "ack_policy": "none", "deliver_policy": "all", "deliver_subject": forged,
    } });
    [
        ("sources", Effect::CopiesEvents, stream(json!({ "sources": [{ "name": "whizbang_events_bank" }] })), None),
        ("mirror", Effect::CopiesEvents, stream(json!({ "mirror": { "name": "whizbang_events_bank" } })), None),
        ("subjects", Effect::CapturesRequests, stream(json!({ "subjects": ["whizbang.ask.bank.>"] })), None),
        ("deliver subject", Effect::WritesEvent, stream(json!({ "subjects": events })), Some(consumer)),
    ]
}

async fn connect(server: &NatsServer, user: &str, violations: Option<&mut Violations>) -> Client {
    let password = if user == "operator" { user.to_owned() } else { format!("secret of {user}") };
    let mut options = async_nats::ConnectOptions::with_user_and_password(user.into(), password);
    if user != "operator" {
        options = options.custom_inbox_prefix("_INBOX_whizbang_evil");
    }
    if let Some(violations) = violations {
        let callback;
        (callback, *violations) = Violations::watch();
        options = options.event_callback(callback);
    }
    options.connect(server.url()).await.expect("connects")
}

/// Calls the API of JetStream and returns its response.
async fn call(client: &Client, request: &str, body: &str) -> Value {
    let answer = client.request(format!("$JS.API.{request}"), body.to_owned().into()).await.expect("an answer");
    serde_json::from_slice(&answer.payload).expect("JSON")
}

/// Waits until the hostile service has the effect.
async fn takes_effect(effect: Effect, operator: &Client, creator: &Client) {
    // A server delivers the messages of a consumer only to a subject with a subscription without wildcards.
    let mut events = operator.subscribe("whizbang.evt.bank.0.Happened").await.expect("subscribes");
    operator.flush().await.expect("flushes");
    match effect {
        Effect::CopiesEvents => {}
        Effect::CapturesRequests => operator.publish("whizbang.ask.bank.cmd.0", "x".into()).await.expect("writes"),
        Effect::WritesEvent => creator.publish("whizbang.evt.evil.0.Happened", "x".into()).await.expect("writes"),
    }
    let reached = async {
        if matches!(effect, Effect::WritesEvent) {
            assert!(events.next().await.is_some());
            return;
        }
        while call(operator, &format!("STREAM.INFO.{OWN}"), "").await["state"]["messages"] == 0 {
            whizbang_tests::poll_interval().await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), reached).await.is_ok(), "{effect:?}: no effect");
}

#[test]
fn hostile_bodies_need_a_permission_to_create_streams() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let ns = Namespace::default();
            let mut creator = NatsPermissions::for_card(&evil(), &ns);
            creator.identity = "creator".to_owned();
            let runtime = [bank(), evil()].map(|card| NatsPermissions::runtime(&card, &ns));
            let server =
                server_with(release, runtime.into_iter().chain([creator, NatsPermissions::setup(&cards(), &ns)]));
            login(&server, "setup").set_up(&[bank()]).await.expect("sets up");
            let bank_node = start(&server, bank()).await;
            bank_node.bridge.publish(event(&shard("bank", 0), 1)).await.expect("publishes");
            let (_, mut violations) = Violations::watch();
            let hostile = connect(&server, "evil", Some(&mut violations)).await;
            let (creator, operator) =
                (connect(&server, "creator", None).await, connect(&server, "operator", None).await);
            for (name, effect, stream, consumer) in requests() {
                let create =
                    [(format!("STREAM.CREATE.{OWN}"), Some(stream)), (format!("CONSUMER.CREATE.{OWN}.evil"), consumer)];
                let create = || create.iter().filter_map(|(request, body)| Some((request, body.as_ref()?.to_string())));
                // No stream of this name exists, so that only the permissions can prevent it.
                for (request, body) in create() {
                    hostile.publish(format!("$JS.API.{request}"), body.into()).await.expect("writes");
                    violations.expect(&hostile, &format!("{name}: {request}")).await;
                }
                let info = call(&operator, &format!("STREAM.INFO.{OWN}"), "").await;
                assert_eq!(info["error"]["code"], 404, "{name}: {info}");
                // The control: the permission to create it suffices.
                for (request, body) in create() {
                    let answer = call(&creator, request, &body).await;
                    assert!(answer["error"].is_null(), "{name}: {answer}");
                }
                takes_effect(effect, &operator, &creator).await;
                call(&operator, &format!("STREAM.DELETE.{OWN}"), "").await;
            }
            println!("{release:?}: {} requests denied", violations.assert_no_more());
            bank_node.stop().await;
        });
    }
}

/// A permission to create a stream restricts only its name: with this permission every message can be read.
#[test]
fn permission_to_create_streams_is_permission_to_read_all() {
    for release in [Release::Distribution, Release::Pinned] {
        run(async {
            let ns = Namespace::default();
            let server = server_with(
                release,
                [
                    NatsPermissions::runtime(&bank(), &ns),
                    NatsPermissions::for_card(&evil(), &ns),
                    NatsPermissions::setup(&cards(), &ns),
                ],
            );
            login(&server, "setup").set_up(&[bank()]).await.expect("sets up");
            let bank_node = start(&server, bank()).await;
            bank_node.bridge.publish(event(&shard("bank", 0), 1)).await.expect("publishes");
            for identity in ["evil", "setup"] {
                let (inbox, name) = (format!("_INBOX_whizbang_{identity}"), "whizbang_events_evil");
                let user = async_nats::ConnectOptions::with_user_and_password(
                    identity.into(),
                    format!("secret of {identity}"),
                );
                let client = user.custom_inbox_prefix(inbox.clone()).connect(server.url()).await.expect("connects");
                let mut leak = client.subscribe(format!("{inbox}.leak")).await.expect("subscribes");
                // A copy of the bank's events, and a consumer that sends them to the identity's own inbox.
                let copy =
                    format!(r#"{{"name":"{name}","storage":"file","sources":[{{"name":"whizbang_events_bank"}}]}}"#);
                let consumer = format!(
                    r#"{{"stream_name":"{name}","config":{{"name":"evil","durable_name":"evil","ack_policy":"none","deliver_policy":"all","deliver_subject":"{inbox}.leak"}}}}"#
                );
                let consumed = format!("CONSUMER.CREATE.{name}.evil");
                for (request, body) in [(format!("STREAM.CREATE.{name}"), copy), (consumed, consumer)] {
                    let answer = client.request(format!("$JS.API.{request}"), body.into()).await.expect("answers");
                    assert!(!String::from_utf8_lossy(&answer.payload).contains("error"), "{identity}: {answer:?}");
                }
                let read =
                    tokio::time::timeout(Duration::from_secs(20), futures_util::StreamExt::next(&mut leak)).await;
                let read = read.expect("in time").expect("an event of the bank");
                assert!(read.headers.is_some_and(|headers| headers.get("whizbang-frame").is_some()), "{identity}");
                let operator = async_nats::ConnectOptions::with_user_and_password("operator".into(), "operator".into());
                let operator = operator.connect(server.url()).await.expect("connects");
                operator.request(format!("$JS.API.STREAM.DELETE.{name}"), "".into()).await.expect("deletes");
            }
            bank_node.stop().await;
        });
    }
}
