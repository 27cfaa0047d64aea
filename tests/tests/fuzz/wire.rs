//! What comes over a broker: packets, questions, answers, tidings, subjects.

use std::borrow::Cow;

use bytes::Bytes;
use whizbang::bridge::subject::{Namespace, Place};
use whizbang::bridge::wire::Packet;
use whizbang::bridge::{Answer, Asked, Refusal, Tidings};
use whizbang::clock::Timestamp;
use whizbang::message::{Codec, Envelope, Kind, MAX_PAYLOAD_BYTES, MessageId, Name, Origin, ShardId, Wants};
use whizbang_tests::Fuzz;

/// The most bytes an answer may have here.
const ANSWER_BYTES: usize = 1 << 20;

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
        domain: name("bank"),
        to: Some(shard(3)),
        key: "Zürich/ada %".into(),
        actor: None,
        origin: None,
        correlation: MessageId::from_u128(7),
        causation: None,
        time,
        deadline: Some(time),
        wants: Wants::Reply,
        traceparent: None,
        headers: Vec::new(),
        codec: Codec::Json,
        payload: Bytes::from_static(br#"{"account":"ada","cents":5}"#),
    };
    let origin = Origin { shard: shard(9), actor: name("account"), key: "ada".into(), sequence: 12, version: 4 };
    let event = Envelope {
        kind: Kind::Event,
        to: None,
        origin: Some(origin),
        causation: Some(MessageId::from_u128(8)),
        deadline: None,
        wants: Wants::Nothing,
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

/// A packet as text that can be spoilt: a line for each header, an empty line, the payload.
fn flat(packet: &Packet) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in &packet.headers {
        bytes.extend_from_slice(format!("{name}: {value}\n").as_bytes());
    }
    bytes.push(b'\n');
    bytes.extend_from_slice(&packet.payload);
    bytes
}

/// The packet that spoilt text stands for: headers of any content, doubled ones included.
fn unflat(input: &[u8]) -> Packet {
    let mut headers = Vec::new();
    let mut rest = input;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, behind) = (&rest[..end], &rest[end + 1..]);
        rest = behind;
        if line.is_empty() {
            break;
        }
        let line = String::from_utf8_lossy(line);
        let (name, value) = line.split_once(": ").unwrap_or((&line, ""));
        headers.push((Cow::Owned(name.to_owned()), value.to_owned()));
    }
    Packet { headers, payload: Bytes::copy_from_slice(rest) }
}

/// Whether an error can be shown: it goes into logs and onto terminals.
fn is_harmless(error: &impl ToString) -> bool {
    let said = error.to_string();
    said.len() < 2_000 && said.chars().all(|c| !c.is_control())
}

#[test]
fn a_spoilt_packet_is_refused_or_is_an_envelope() {
    let samples = envelopes().into_iter().map(|envelope| flat(&Packet::from_envelope(&envelope).expect("a sample")));
    Fuzz::new("packet", samples).run(|input| match unflat(input).envelope() {
        Ok(envelope) => {
            assert!(envelope.payload.len() <= MAX_PAYLOAD_BYTES);
            // What was read is sent on as it is: the same again at the next reader.
            let again = Packet::from_envelope(&envelope).expect("what was read can be sent on");
            assert_eq!(again.envelope().expect("what was sent on can be read"), envelope);
            true
        }
        Err(error) => {
            assert!(is_harmless(&error), "{error}");
            false
        }
    });
}

#[test]
fn a_spoilt_question_is_refused_or_is_a_question() {
    let [command, .., query] = &envelopes()[..] else { panic!("four samples") };
    let asked = [
        Asked::Command(command.clone()),
        Asked::Query(query.clone()),
        Asked::Events { shard: shard(3), after: u64::MAX, limit: 500 },
        Asked::Outbox { from: shard(3), to: shard(1_023), after: 300, limit: 1 },
        Asked::Watermark { from: shard(3), to: shard(4) },
    ];
    let samples = asked.iter().map(|asked| flat(&Packet::from_asked(asked).expect("a sample")));
    Fuzz::new("asked", samples).run(|input| match unflat(input).asked() {
        Ok(asked) => {
            let again = Packet::from_asked(&asked).expect("what was read can be asked again");
            assert_eq!(again.asked().expect("what was asked can be read"), asked);
            true
        }
        Err(error) => {
            assert!(is_harmless(&error), "{error}");
            false
        }
    });
}

#[test]
fn a_spoilt_answer_is_refused_or_is_an_answer() {
    let answers = [
        Answer::Reply(Bytes::from_static(b"{\"Ok\":5}")),
        Answer::Envelopes(envelopes(), 77),
        Answer::Envelopes(Vec::new(), 0),
        Answer::Watermark(u64::MAX),
        Answer::Refused(Refusal::Busy),
        Answer::Refused(Refusal::Unhandled("nobody takes `Deposit`".into())),
    ];
    let samples = answers.iter().map(|answer| flat(&Packet::from_answer(answer, ANSWER_BYTES)));
    Fuzz::new("answer", samples).run(|input| match unflat(input).answer() {
        Ok(answer) => {
            let again = Packet::from_answer(&answer, ANSWER_BYTES);
            assert_eq!(again.answer().expect("what was answered can be read"), answer);
            true
        }
        Err(error) => {
            assert!(is_harmless(&error), "{error}");
            false
        }
    });
}

#[test]
fn a_spoilt_pack_is_refused_or_is_a_pack() {
    let [_, event, reply, _] = &envelopes()[..] else { panic!("four samples") };
    let packs = [vec![event.clone()], vec![event.clone(), event.clone(), reply.clone()]];
    let read = |packet: &Packet| {
        let pairs: Vec<_> = packet.headers.iter().map(|(name, value)| (name.as_ref(), value.as_str())).collect();
        Packet::read_events(&pairs, packet.payload.clone())
    };
    assert!(read(&Packet::from_events(&[])).is_err(), "a pack without events");
    let samples = packs.iter().map(|events| flat(&Packet::from_events(events)));
    Fuzz::new("pack", samples).run(move |input| match read(&unflat(input)) {
        Ok(events) => {
            assert_eq!(read(&Packet::from_events(&events)).expect("what was read can be sent on"), events);
            true
        }
        Err(error) => {
            assert!(is_harmless(&error), "{error}");
            false
        }
    });
}

#[test]
fn spoilt_tidings_are_refused_or_are_tidings() {
    let tidings = [
        Tidings::Committed { from: shard(3), to: shard(4), through: 1 << 40 },
        Tidings::Head { shard: shard(3), position: 300 },
    ];
    Fuzz::new("tidings", tidings.iter().map(|tidings| flat(&Packet::from_tidings(tidings)))).run(|input| match unflat(
        input,
    )
    .tidings()
    {
        Ok(tidings) => {
            assert_eq!(Packet::from_tidings(&tidings).tidings().expect("what was told can be read"), tidings);
            true
        }
        Err(error) => {
            assert!(is_harmless(&error), "{error}");
            false
        }
    });
}

#[test]
fn a_spoilt_subject_is_refused_or_names_one_place() {
    let namespace = Namespace::default();
    let places = [
        Place::Direct { to: shard(3), from: Some(shard(4)) },
        Place::Direct { to: shard(3), from: None },
        Place::Event { shard: shard(3), name: name("Deposited") },
        Place::Events(shard(3)),
        Place::AskCommand { domain: name("bank"), shard: Some(3) },
        Place::AskQuery { domain: name("bank"), name: name("Balance") },
        Place::AskEvents(shard(3)),
        Place::Committed { from: shard(3), to: shard(4) },
        Place::Head(shard(3)),
    ];
    let samples: Vec<_> = places.iter().map(|place| namespace.subject(place).into_bytes()).collect();
    Fuzz::new("subject", samples).run(move |input| {
        let subject = String::from_utf8_lossy(input);
        let Some(place) = namespace.place(&subject) else { return false };
        // One place has one subject: whoever may write to it may not write to another by spelling it otherwise.
        assert_eq!(namespace.subject(&place), *subject);
        true
    });
}
