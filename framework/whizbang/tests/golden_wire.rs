//! Everything that leaves a node is encoded as in `golden/wire.txt`, byte for byte, and is read from there.
//!
//! The file has a section for each packet: its name, its headers, an empty line and the payload in hexadecimal digits. A section
//! never changes, because nodes of older versions and clients in other languages read and write these bytes. To add the section of
//! a new kind of packet, run this test with `GOLDEN=append`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use whizbang::bridge::claim::Claim;
use whizbang::bridge::subject::{Address, Namespace};
use whizbang::bridge::wire::Packet;
use whizbang::bridge::{NodeCard, Notification, Page, Request, RequestError, Response, StoreCard};
use whizbang::clock::Timestamp;
use whizbang::message::{
    Codec, Envelope, Fingerprint, Kind, MessageId, Name, Origin, ReplyMode, Run, ShardId, StoreId,
};

/// The maximum size of a response; no sample is truncated.
const MAX_BYTES: usize = 1 << 20;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn shard(domain: &str, number: u16) -> ShardId {
    ShardId::new(name(domain), number)
}

fn id(number: u128) -> MessageId {
    MessageId::from_u128(0x0193_6b2c_5a00_7000_8000_0000_0000_0000 + number)
}

fn store() -> StoreId {
    StoreId::from_u128(0x00c0_ffee_0123_4567_89ab_cdef_0000_0001)
}

fn origin(sequence: u64, version: u64) -> Origin {
    Origin {
        shard: shard("shop", 11),
        actor: name("Order"),
        key: "order 7/ü".to_owned(),
        sequence,
        version,
        store: Some(store()),
    }
}

/// A message with as few headers as possible.
fn plain(kind: Kind, payload: &'static str) -> Envelope {
    let mut envelope =
        Envelope::new(id(1), kind, name("bank"), name("Deposit"), Timestamp::from_millis(1_732_900_000_123));
    envelope.codec = Codec::Json;
    envelope.key = "ada".to_owned();
    envelope.payload = Bytes::from_static(payload.as_bytes());
    envelope
}

/// A command of an actor with all headers.
fn full() -> Envelope {
    let mut command = plain(Kind::Command, "");
    command.version = 3;
    command.shape = Some(Fingerprint::from_u64(0x0123_4567_89ab_cdef));
    command.to = Some(shard("bank", 4095));
    command.key = "ada%\"\r\n é".to_owned();
    command.actor = Some(name("Account"));
    command.origin = Some(origin(u64::MAX, 0));
    command.correlation = id(2);
    command.causation = Some(id(3));
    command.deadline = Some(Timestamp::from_millis(1_732_900_030_123));
    command.wants = ReplyMode::Reply;
    command.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    // Decoded headers are sorted by their names.
    command.headers =
        vec![("tracestate".to_owned(), "a=1".to_owned()), ("x-tenant".to_owned(), "acme, inc".to_owned())];
    command.codec = Codec::Bincode;
    command.payload = Bytes::from_static(&[0, 1, 2, 0x7F, 0x80, 0xFF]);
    command
}

/// An event as a log holds it.
fn event(sequence: u64) -> Envelope {
    let mut event = plain(Kind::Event, r#"{"cents":500}"#);
    event.name = name("Deposited");
    event.domain = name("shop");
    event.key = String::new();
    event.origin = Some(origin(sequence, 3));
    event
}

fn reply() -> Envelope {
    let mut reply = plain(Kind::Reply, r#"{"Err":{"code":"bank.overdrawn","text":"no cover"}}"#);
    reply.to = Some(shard("shop", 11));
    reply.actor = Some(name("Order"));
    reply.causation = Some(id(3));
    reply.origin = Some(Origin { shard: shard("bank", 2), actor: name("Account"), ..origin(9, 0) });
    reply
}

fn envelopes() -> Vec<(&'static str, Envelope)> {
    let wanting = |wants| Envelope { wants, origin: Some(origin(1, 0)), ..plain(Kind::Command, "{}") };
    vec![
        ("command of a client", plain(Kind::Command, r#"{"account":"ada","cents":500}"#)),
        ("command with every header", full()),
        ("command that wants a rejection", wanting(ReplyMode::Rejection)),
        ("event", event(12)),
        ("event with every header", Envelope { kind: Kind::Event, ..full() }),
        ("query", Envelope { key: String::new(), ..plain(Kind::Query, "null") }),
        ("document", plain(Kind::Document, "[1,2]")),
        ("reply", reply()),
    ]
}

fn requests() -> Vec<(&'static str, Request)> {
    let (from, to) = (shard("shop", 11), shard("bank", 300));
    let shape = Fingerprint::from_u64(0xFEDC_BA98_7654_3210);
    vec![
        ("request: command", Request::Command(plain(Kind::Command, "{}"))),
        ("request: query", Request::Query(Envelope { key: String::new(), ..plain(Kind::Query, "null") })),
        ("request: events", Request::Events { shard: from.clone(), after: 127, limit: 1024 }),
        ("request: outbox", Request::Outbox { from: from.clone(), to: to.clone(), after: 128, limit: u32::MAX }),
        ("request: watermark", Request::Watermark { from: from.clone(), to: to.clone() }),
        ("request: sent", Request::Sent { from: from.clone(), to: to.clone(), through: u64::MAX }),
        ("request: shape of an event", Request::Shape { from: from.clone(), to: None, shape }),
        ("request: shape of a command", Request::Shape { from, to: Some(to), shape }),
    ]
}

fn responses() -> Vec<(String, Response)> {
    let page = Page::new(vec![event(12), Envelope { shape: full().shape, ..event(13) }], 20).store(Some(store()));
    let outbox = Page::new(vec![full(), reply()], 9).committed(Some(7)).store(Some(store())).of_store();
    let text = || "why\nit failed".to_owned();
    let refusals = [
        RequestError::Busy,
        RequestError::NotHere,
        RequestError::Full,
        RequestError::Unhandled(text()),
        RequestError::Undecodable(text()),
        RequestError::Shape(text()),
        RequestError::UnknownShape,
        RequestError::Conflict,
        RequestError::Expired,
        RequestError::IdInFuture,
        RequestError::Late,
        RequestError::DeadLetter(text()),
        RequestError::Failed(text()),
        RequestError::Unknown(text()),
    ];
    let mut responses = vec![
        ("response: reply".to_owned(), Response::Reply(Bytes::from_static(br#"{"Ok":500}"#))),
        ("response: no envelopes".to_owned(), Response::envelopes(Vec::new(), 0)),
        ("response: events".to_owned(), Response::Envelopes(page)),
        ("response: outbox".to_owned(), Response::Envelopes(outbox)),
        ("response: watermark".to_owned(), Response::Watermark { through: 300, store: Some(store()) }),
        ("response: watermark without a store".to_owned(), Response::watermark(0)),
        ("response: shape".to_owned(), Response::Shape(r#"{"a":"u64"}"#.to_owned())),
    ];
    responses.extend(
        refusals
            .into_iter()
            .map(|refusal| (format!("response: refused, {}", refusal.code_and_text().0), Response::Refused(refusal))),
    );
    responses
}

fn notifications() -> Vec<(&'static str, Notification)> {
    let (from, to) = (shard("shop", 11), shard("bank", 300));
    vec![
        ("notification: committed", Notification::Committed { from: from.clone(), to, through: 16_384 }),
        ("notification: head", Notification::Head { shard: from, position: u64::MAX }),
    ]
}

fn claims() -> Vec<(&'static str, Claim)> {
    let start = StoreCard::new(store(), Run { epoch: 3, nonce: u64::MAX });
    let held = Claim::of(&NodeCard::new(name("bank")).store(start.clone()), &start);
    vec![("claim", held.clone()), ("claim that was released", held.released(true))]
}

fn addresses() -> Vec<Address> {
    let (from, to) = (shard("shop", 11), shard("bank", 300));
    vec![
        Address::Direct { to: to.clone(), from: Some(from.clone()) },
        Address::Direct { to: to.clone(), from: None },
        Address::Event { shard: from.clone(), name: name("Ordered") },
        Address::Events(from.clone()),
        Address::CommandRequest { domain: name("bank"), shard: Some(300) },
        Address::CommandRequest { domain: name("bank"), shard: None },
        Address::QueryRequest { domain: name("bank"), name: name("Balance") },
        Address::EventsRequest(from.clone()),
        Address::OutboxRequest { from: from.clone(), to: to.clone() },
        Address::WatermarkRequest { from: from.clone(), to: to.clone() },
        Address::Committed { from: from.clone(), to },
        Address::Head(from),
    ]
}

/// The name and the present encoding of each sample. A claim and the subjects are payloads without headers.
fn encoded() -> Vec<(String, Packet)> {
    let bare = |payload: Vec<u8>| Packet { headers: Vec::new(), payload: payload.into() };
    let subjects: Vec<String> = addresses().iter().map(|address| Namespace::default().subject(address)).collect();
    let mut samples: Vec<(String, Packet)> = Vec::new();
    for (name, envelope) in envelopes() {
        samples.push((name.to_owned(), Packet::from_envelope(&envelope).unwrap()));
    }
    samples.push(("pack of events".to_owned(), Packet::from_events(&[event(12), event(13)])));
    for (name, request) in requests() {
        samples.push((name.to_owned(), Packet::from_request(&request).unwrap()));
    }
    for (name, response) in responses() {
        samples.push((name, Packet::from_response(&response, MAX_BYTES)));
    }
    for (name, notification) in notifications() {
        samples.push((name.to_owned(), Packet::from_notification(&notification)));
    }
    for (name, claim) in claims() {
        samples.push((name.to_owned(), bare(claim.to_bytes().unwrap())));
    }
    samples.push(("subjects".to_owned(), bare(subjects.join("\n").into_bytes())));
    samples
}

fn section(name: &str, packet: &Packet) -> String {
    let mut text = format!("== {name}\n");
    for (name, value) in &packet.headers {
        writeln!(text, "{name}: {value}").unwrap();
    }
    text.push('\n');
    for row in packet.payload.chunks(32) {
        text.extend(row.iter().map(|byte| format!("{byte:02x}")));
        text.push('\n');
    }
    text
}

/// Reads the packets of the file by their names.
fn golden() -> BTreeMap<String, Packet> {
    let text = std::fs::read_to_string(path()).unwrap_or_default();
    let mut packets = BTreeMap::new();
    for section in text.split("== ").skip(1) {
        let (name, rest) = section.split_once('\n').unwrap();
        let (head, payload) = rest.split_once("\n\n").unwrap_or(("", rest));
        let headers = head.lines().filter_map(|line| line.split_once(": "));
        let digits: String = payload.split_whitespace().collect();
        let bytes =
            digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
        let packet = Packet {
            headers: headers.map(|(name, value)| (Cow::Owned(name.to_owned()), value.to_owned())).collect(),
            payload: bytes.collect::<Vec<u8>>().into(),
        };
        assert_eq!(packets.insert(name.to_owned(), packet), None, "{name} occurs twice");
    }
    packets
}

fn path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/wire.txt")
}

#[test]
fn packets_are_encoded_as_in_the_golden_file() {
    let (mut samples, golden) = (encoded(), golden());
    if std::env::var_os("GOLDEN").is_some_and(|mode| mode == "append") {
        let missing = samples.iter().filter(|(name, _)| !golden.contains_key(name));
        let added: String = missing.map(|(name, packet)| section(name, packet)).collect();
        let text = std::fs::read_to_string(path()).unwrap_or_default();
        std::fs::write(path(), text + &added).unwrap();
        samples.retain(|(name, _)| golden.contains_key(name));
    }
    for (name, packet) in &samples {
        let known = golden.get(name).unwrap_or_else(|| panic!("no section `{name}`: add it with GOLDEN=append"));
        assert_eq!(section(name, packet), section(name, known), "the encoding has changed");
    }
    let unknown: Vec<_> = golden.keys().filter(|name| samples.iter().all(|(known, _)| known != *name)).collect();
    assert!(unknown.is_empty(), "sections without a sample: {unknown:?}");
}

#[test]
fn golden_packets_are_decoded_to_their_values() {
    let golden = golden();
    for (name, envelope) in envelopes() {
        assert_eq!(golden[name].envelope().unwrap(), envelope, "{name}");
    }
    let pack = &golden["pack of events"];
    let headers: Vec<(&str, &str)> = pack.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(Packet::read_events(&headers, pack.payload.clone()).unwrap(), [event(12), event(13)]);
    for (name, request) in requests() {
        assert_eq!(golden[name].request().unwrap(), request, "{name}");
    }
    for (name, response) in responses() {
        assert_eq!(golden[&name].response().unwrap(), response, "{name}");
    }
    for (name, notification) in notifications() {
        assert_eq!(golden[name].notification().unwrap(), notification, "{name}");
    }
    for (name, claim) in claims() {
        assert_eq!(Claim::parse(&golden[name].payload).unwrap(), claim, "{name}");
    }
    let subjects = String::from_utf8(golden["subjects"].payload.to_vec()).unwrap();
    let parsed: Option<Vec<Address>> = subjects.lines().map(|subject| Namespace::default().parse(subject)).collect();
    assert_eq!(parsed.unwrap(), addresses());
}
