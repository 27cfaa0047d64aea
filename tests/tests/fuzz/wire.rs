//! Input from a broker: packets, requests, responses, notifications, subjects.

use std::collections::BTreeMap;

use bytes::Bytes;
use whizbang::bridge::subject::{Address, Namespace};
use whizbang::bridge::wire::Packet;
use whizbang::bridge::{Notification, Request, RequestError, Response};
use whizbang::clock::Timestamp;
use whizbang::message::{Codec, Envelope, Kind, MessageId, Name, Origin, ReplyMode, Shape, ShardId, StoreId};
use whizbang::testing::decoders::{self, flatten};
use whizbang_tests::Fuzz;

/// A type with each kind of part that a shape has.
#[derive(serde::Deserialize)]
#[expect(dead_code, reason = "only its shape is used")]
struct Fixture {
    number: u64,
    texts: Vec<Option<String>>,
    pairs: BTreeMap<String, (u8, [i16; 3])>,
    state: State,
}

#[derive(serde::Deserialize)]
#[expect(dead_code, reason = "only its shape is used")]
enum State {
    Open,
    Shipped { at: u64 },
    Cancelled(String, bool),
}

/// The maximum length of a response in these tests, in bytes.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

fn name(text: &str) -> Name {
    Name::new(text).expect("a sample's name")
}

fn shard(number: u16) -> ShardId {
    ShardId::new(name("bank"), number)
}

fn envelopes() -> Vec<Envelope> {
    let time = Timestamp::from_millis(1_700_000_000_123);
    let command = Envelope {
        id: MessageId::from_u128(0x018c_251e_f000_7abc_8def_0123_4567_89ab),
        kind: Kind::Command,
        name: name("Deposit"),
        version: 1,
        shape: None,
        domain: name("bank"),
        to: Some(shard(3)),
        key: "Zürich/ada %".into(),
        actor: None,
        origin: None,
        correlation: MessageId::from_u128(7),
        causation: None,
        time,
        deadline: Some(time),
        wants: ReplyMode::Reply,
        traceparent: None,
        headers: Vec::new(),
        codec: Codec::Json,
        payload: Bytes::from_static(br#"{"account":"ada","cents":5}"#),
    };
    let store = Some(StoreId::from_u128(0xAB));
    let origin = Origin { shard: shard(9), actor: name("account"), key: "ada".into(), sequence: 12, version: 4, store };
    let event = Envelope {
        kind: Kind::Event,
        to: None,
        origin: Some(origin),
        causation: Some(MessageId::from_u128(8)),
        deadline: None,
        wants: ReplyMode::Nothing,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        headers: vec![("x-tenant".into(), "blue".into())],
        codec: Codec::Bincode,
        payload: Bytes::from_static(&[0, 1, 255]),
        ..command.clone()
    };
    let reply = Envelope { kind: Kind::Reply, actor: Some(name("saga")), to: Some(shard(0)), ..event.clone() };
    let query = Envelope { kind: Kind::Query, to: None, key: String::new(), ..command.clone() };
    vec![command, event, reply, query]
}

#[test]
fn corrupt_packet_is_rejected_or_is_an_envelope() {
    let samples = envelopes().into_iter().map(|envelope| flatten(&Packet::from_envelope(&envelope).expect("a sample")));
    Fuzz::new("packet", samples).run(decoders::envelope);
}

#[test]
fn corrupt_request_is_rejected_or_is_a_request() {
    let [command, .., query] = &envelopes()[..] else { panic!("four samples") };
    let requests = [
        Request::Command(command.clone()),
        Request::Query(query.clone()),
        Request::Events { shard: shard(3), after: u64::MAX, limit: 500 },
        Request::Outbox { from: shard(3), to: shard(1_023), after: 300, limit: 1 },
        Request::Watermark { from: shard(3), to: shard(4) },
        Request::Shape { from: shard(3), to: Some(shard(4)), shape: whizbang::message::Fingerprint::from_u64(5) },
    ];
    let samples = requests.iter().map(|request| flatten(&Packet::from_request(request).expect("a sample")));
    Fuzz::new("asked", samples).run(decoders::request);
}

#[test]
fn corrupt_response_is_rejected_or_is_a_response() {
    let responses = [
        Response::Reply(Bytes::from_static(b"{\"Ok\":5}")),
        Response::envelopes(envelopes(), 77),
        Response::envelopes(Vec::new(), 0),
        Response::watermark(u64::MAX),
        Response::Refused(RequestError::Busy),
        Response::Refused(RequestError::Unhandled("no handler of `Deposit`".into())),
    ];
    let samples = responses.iter().map(|response| flatten(&Packet::from_response(response, MAX_RESPONSE_BYTES)));
    Fuzz::new("answer", samples).run(decoders::response);
}

#[test]
fn corrupt_pack_is_rejected_or_is_a_pack() {
    let [_, event, reply, _] = &envelopes()[..] else { panic!("four samples") };
    let packs = [vec![event.clone()], vec![event.clone(), event.clone(), reply.clone()]];
    assert!(!decoders::pack(&flatten(&Packet::from_events(&[]))), "a pack without events");
    Fuzz::new("pack", packs.iter().map(|events| flatten(&Packet::from_events(events)))).run(decoders::pack);
}

#[test]
fn corrupt_notification_is_rejected_or_is_a_notification() {
    let notifications = [
        Notification::Committed { from: shard(3), to: shard(4), through: 1 << 40 },
        Notification::Head { shard: shard(3), position: 300 },
    ];
    let samples = notifications.iter().map(|notification| flatten(&Packet::from_notification(notification)));
    Fuzz::new("tidings", samples).run(decoders::notification);
}

#[test]
fn corrupt_subject_is_rejected_or_names_one_address() {
    let namespace = Namespace::default();
    let addresses = [
        Address::Direct { to: shard(3), from: Some(shard(4)) },
        Address::Direct { to: shard(3), from: None },
        Address::Event { shard: shard(3), name: name("Deposited") },
        Address::Events(shard(3)),
        Address::CommandRequest { domain: name("bank"), shard: Some(3) },
        Address::QueryRequest { domain: name("bank"), name: name("Balance") },
        Address::EventsRequest(shard(3)),
        Address::Committed { from: shard(3), to: shard(4) },
        Address::Head(shard(3)),
    ];
    let samples: Vec<_> = addresses.iter().map(|address| namespace.subject(address).into_bytes()).collect();
    Fuzz::new("subject", samples).run(decoders::subject);
}

#[test]
fn corrupt_claim_is_rejected_or_is_a_claim() {
    let claim = |service: &str, released: &str| {
        let store = "00112233445566778899aabbccddeeff";
        format!(r#"{{"service":"{service}","store":"{store}","run":{{"epoch":3,"nonce":17}}{released}}}"#).into_bytes()
    };
    let samples = [claim("bank", ""), claim("Zürich", r#","released":true"#)];
    Fuzz::new("claim", samples).run(decoders::claim);
}

#[test]
fn corrupt_jetstream_response_is_rejected_or_read() {
    let samples = [
        r#"{"stream":"whizbang_events_bank","seq":7,"duplicate":false}"#,
        r#"{"type":"io.nats.jetstream.api.v1.x","error":{"code":404,"err_code":10059,"description":"stream not found"}}"#,
        r#"{"message":{"subject":"a.b","seq":9,"hdrs":"TkFUUy8xLjANCmNlLWlkOiAxDQoNCg==","data":"AQID","time":"x"}}"#,
        r#"{"num_pending":3,"num_ack_pending":1,"delivered":{"consumer_seq":5},"ack_floor":{"consumer_seq":4}}"#,
    ];
    Fuzz::new("jetstream", samples.map(|sample| sample.as_bytes().to_vec())).run(decoders::stream_response);
}

#[test]
fn corrupt_json_request_is_rejected_or_is_a_request() {
    let subject = Namespace::default().subject(&Address::EventsRequest(shard(3)));
    let samples = [r#"{"after":41,"names":["Lent","Returned"]}"#, r#"{"after":18446744073709551615}"#];
    let samples = samples.map(|payload| format!("{subject}\n{payload}").into_bytes());
    Fuzz::new("json-request", samples).run(decoders::json_request);
}

#[test]
fn corrupt_shape_is_rejected_or_is_a_shape() {
    let samples = [Shape::of::<Fixture>(Codec::Json), Shape::of::<Fixture>(Codec::Bincode)];
    Fuzz::new("shape", samples.map(|shape| shape.to_text().into_bytes())).run(decoders::shape);
}
