//! Round trips of every encoding, and decoding of invalid bytes.

use std::borrow::Cow;

use bytes::Bytes;
use proptest::prelude::*;

use super::Packet;
use whizbang_core::bridge::{BridgeError, Notification, Page, Request, RequestError, Response};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{
    Codec, Envelope, Fingerprint, Kind, MAX_PAYLOAD_BYTES, MessageId, Name, Origin, ReplyMode, ShardId, StoreId,
};

fn name() -> impl Strategy<Value = Name> {
    "[A-Za-z0-9_-]{1,64}".prop_map(|text| Name::new(&text).unwrap())
}

fn shard() -> impl Strategy<Value = ShardId> {
    (name(), any::<u16>()).prop_map(|(domain, shard)| ShardId::new(domain, shard))
}

/// Generates any text of 1 to 256 bytes.
fn key() -> impl Strategy<Value = String> {
    any::<String>().prop_map(|mut text| {
        while text.len() > 256 {
            text.pop();
        }
        if text.is_empty() { "\r\n%".to_owned() } else { text }
    })
}

fn moment() -> impl Strategy<Value = Timestamp> {
    (0..=whizbang_core::clock::rfc3339::MAX.as_millis()).prop_map(Timestamp::from_millis)
}

fn id() -> impl Strategy<Value = MessageId> {
    any::<u128>().prop_map(MessageId::from_u128)
}

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![Kind::Command, Kind::Event, Kind::Query, Kind::Document, Kind::Reply])
}

fn origin() -> impl Strategy<Value = Origin> {
    (shard(), name(), key(), 1..=u64::MAX, any::<u64>(), store()).prop_map(
        |(shard, actor, key, sequence, version, store)| Origin { shard, actor, key, sequence, version, store },
    )
}

fn store() -> impl Strategy<Value = Option<StoreId>> {
    prop::option::of(any::<u128>().prop_map(StoreId::from_u128))
}

fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::btree_map("x-[A-Za-z0-9.~^-]{1,20}", "([!-~é🦀]([ -~é🦀]{0,30}[!-~é🦀])?)?", 0..8)
        .prop_map(|map| map.into_iter().collect())
}

fn traceparent() -> impl Strategy<Value = Option<String>> {
    prop::option::of("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}".prop_map(|text| text))
}

fn payload() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from)
}

fn envelope() -> impl Strategy<Value = Envelope> {
    let place = (prop::option::of(shard()), prop_oneof![Just(String::new()), key()], prop::option::of(name()));
    let ids = (id(), id(), prop::option::of(id()));
    let times = (moment(), prop::option::of(moment()));
    let wants = prop::sample::select(vec![ReplyMode::Nothing, ReplyMode::Rejection, ReplyMode::Reply]);
    let codec = prop::sample::select(vec![Codec::Bincode, Codec::Json]);
    let shape = prop::option::of(any::<u64>().prop_map(Fingerprint::from_u64));
    let what = (kind(), name(), any::<u32>(), shape, name(), prop::option::of(origin()));
    (place, ids, times, what, (wants, codec, traceparent(), headers(), payload())).prop_map(
        |(
            (to, key, actor),
            (id, correlation, causation),
            (time, deadline),
            (kind, name, version, shape, domain, origin),
            (wants, codec, traceparent, headers, payload),
        )| Envelope {
            id,
            kind,
            name,
            version,
            shape,
            domain,
            to,
            key,
            actor,
            origin,
            correlation,
            causation,
            time,
            deadline,
            wants,
            traceparent,
            headers,
            codec,
            payload,
        },
    )
}

fn asked() -> impl Strategy<Value = Request> {
    prop_oneof![
        envelope().prop_map(|mut envelope| {
            envelope.kind = Kind::Command;
            Request::Command(envelope)
        }),
        envelope().prop_map(|mut envelope| {
            envelope.kind = Kind::Query;
            Request::Query(envelope)
        }),
        (shard(), any::<u64>(), any::<u32>()).prop_map(|(shard, after, limit)| Request::Events { shard, after, limit }),
        (shard(), shard(), any::<u64>(), any::<u32>()).prop_map(|(from, to, after, limit)| Request::Outbox {
            from,
            to,
            after,
            limit
        }),
        (shard(), shard()).prop_map(|(from, to)| Request::Watermark { from, to }),
        (shard(), shard(), any::<u64>()).prop_map(|(from, to, through)| Request::Sent { from, to, through }),
        (shard(), prop::option::of(shard()), any::<u64>()).prop_map(|(from, to, shape)| Request::Shape {
            from,
            to,
            shape: Fingerprint::from_u64(shape)
        }),
    ]
}

fn refusal() -> impl Strategy<Value = RequestError> {
    prop_oneof![
        prop::sample::select(vec![
            RequestError::Busy,
            RequestError::NotHere,
            RequestError::Full,
            RequestError::Conflict,
            RequestError::Expired,
            RequestError::IdInFuture,
            RequestError::Late,
            RequestError::UnknownShape
        ]),
        any::<String>().prop_map(RequestError::Unhandled),
        any::<String>().prop_map(RequestError::Undecodable),
        any::<String>().prop_map(RequestError::Shape),
        any::<String>().prop_map(RequestError::DeadLetter),
        any::<String>().prop_map(RequestError::Failed),
        any::<String>().prop_map(RequestError::Unknown),
    ]
}

fn answer() -> impl Strategy<Value = Response> {
    prop_oneof![
        payload().prop_map(Response::Reply),
        (prop::collection::vec(envelope(), 0..5), any::<u64>(), any::<Option<u64>>(), store()).prop_map(
            |(envelopes, last, committed, store)| Response::Envelopes(
                Page::new(envelopes, last).committed(committed).store(store).of_store()
            )
        ),
        (any::<u64>(), store()).prop_map(|(through, store)| Response::Watermark { through, store }),
        refusal().prop_map(Response::Refused),
    ]
}

fn notification() -> impl Strategy<Value = Notification> {
    prop_oneof![
        (shard(), shard(), any::<u64>()).prop_map(|(from, to, through)| Notification::Committed { from, to, through }),
        (shard(), any::<u64>()).prop_map(|(shard, position)| Notification::Head { shard, position }),
    ]
}

/// Generates a corrupted packet: one header changed, dropped, repeated or added, bytes cut or flipped.
fn broken(packet: Packet) -> impl Strategy<Value = Packet> {
    let size = packet.headers.len();
    (0..6u8, 0..size.max(1), any::<String>(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        move |(how, at, text, index, byte)| {
            let mut packet = packet.clone();
            match how {
                0 if at < packet.headers.len() => packet.headers[at].1 = text,
                1 if at < packet.headers.len() => drop(packet.headers.remove(at)),
                2 if at < packet.headers.len() => packet.headers.push(packet.headers[at].clone()),
                3 => packet.headers.push((Cow::Owned(text.clone()), text)),
                4 => packet.payload = packet.payload.slice(..index.index(packet.payload.len() + 1)),
                _ if !packet.payload.is_empty() => {
                    let mut bytes = packet.payload.to_vec();
                    let at = index.index(bytes.len());
                    bytes[at] ^= byte | 1;
                    packet.payload = bytes.into();
                }
                _ => {}
            }
            packet
        },
    )
}

/// Returns true if a result is a value, or an error that a decoder may return.
fn read_or_refused<T>(result: Result<T, BridgeError>) -> bool {
    matches!(result, Ok(_) | Err(BridgeError::Malformed { .. } | BridgeError::Oversize { .. }))
}

proptest! {
    #[test]
    fn envelope_round_trips_through_headers(envelope in envelope()) {
        let packet = Packet::from_envelope(&envelope).unwrap();
        for (name, value) in &packet.headers {
            prop_assert!(!value.contains(['\r', '\n', '\0']), "{name}: {value:?}");
        }
        prop_assert_eq!(packet.envelope().unwrap(), envelope);
    }

    #[test]
    fn request_round_trips(asked in asked()) {
        prop_assert_eq!(Packet::from_request(&asked).unwrap().request().unwrap(), asked);
    }

    #[test]
    fn response_round_trips(answer in answer()) {
        let packet = Packet::from_response(&answer, 1024 * 1024);
        prop_assert_eq!(packet.response().unwrap(), answer);
    }

    #[test]
    fn oversize_list_is_truncated_to_the_limit(
        envelopes in prop::collection::vec(envelope(), 0..8),
        max in 64usize..8192,
    ) {
        let packet = Packet::from_response(&Response::Envelopes(Page::new(envelopes.clone(), 77).of_store()), max);
        prop_assert!(packet.size() <= max.max(96), "{} > {max}", packet.size());
        let Response::Envelopes(Page { envelopes: front, last: 77, .. }) = packet.response().unwrap() else { panic!("another answer") };
        prop_assert!(Page::new(envelopes, 77).of_store().envelopes.starts_with(&front));
    }

    #[test]
    fn notification_round_trips(sent in notification()) {
        prop_assert_eq!(Packet::from_notification(&sent).notification().unwrap(), sent);
    }

    #[test]
    fn corrupted_packets_are_decoded_or_rejected(
        packet in prop_oneof![
            envelope().prop_map(|envelope| Packet::from_envelope(&envelope).unwrap()),
            asked().prop_map(|asked| Packet::from_request(&asked).unwrap()),
            answer().prop_map(|answer| Packet::from_response(&answer, 1024 * 1024)),
            notification().prop_map(|sent| Packet::from_notification(&sent)),
        ].prop_flat_map(broken)
    ) {
        prop_assert!(read_or_refused(packet.envelope()));
        prop_assert!(read_or_refused(packet.request()));
        prop_assert!(read_or_refused(packet.response()));
        prop_assert!(read_or_refused(packet.notification()));
    }

    #[test]
    fn arbitrary_bytes_are_decoded_or_rejected(
        what in prop::sample::select(vec!["envelopes", "watermark", "reply", "busy", "unknown", "else"]),
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let bytes = Bytes::from(bytes);
        prop_assert!(read_or_refused(Packet::read_response(&[("whizbang-answer", what)], bytes.clone())));
        prop_assert!(read_or_refused(Packet::read_request(&[("whizbang-frame", "asked")], bytes.clone())));
        prop_assert!(read_or_refused(Packet::read_notification(&[("whizbang-frame", "tidings")], bytes)));
    }
}

fn sample() -> Envelope {
    Envelope {
        id: MessageId::from_u128(7),
        kind: Kind::Command,
        name: Name::new("Deposit").unwrap(),
        version: 1,
        shape: None,
        domain: Name::new("bank").unwrap(),
        to: Some(ShardId::new(Name::new("bank").unwrap(), 3)),
        key: "ada".to_owned(),
        actor: None,
        origin: None,
        correlation: MessageId::from_u128(7),
        causation: None,
        time: Timestamp::from_millis(0),
        deadline: None,
        wants: ReplyMode::Nothing,
        traceparent: None,
        headers: Vec::new(),
        codec: Codec::Json,
        payload: Bytes::from_static(b"{}"),
    }
}

fn refused_because(packet: &Packet) -> String {
    match packet.envelope() {
        Err(BridgeError::Malformed { reason }) => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn minimal_headers_make_a_command() {
    let id = MessageId::from_u128(9);
    let id_text = id.to_string();
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", id_text.as_str()),
        ("ce-type", "bank.Deposit"),
        ("ce-source", "/python"),
        ("ce-kind", "command"),
        ("ce-subject", "ada"),
        ("ce-datacontenttype", "application/json; charset=utf-8"),
        ("tracestate", "vendor=1"),
    ];
    let envelope = Packet::read_envelope(headers, Bytes::from_static(b"{}")).unwrap();
    assert_eq!((envelope.id, envelope.correlation), (id, id));
    assert_eq!((envelope.key.as_str(), envelope.version, &envelope.to, &envelope.origin), ("ada", 1, &None, &None));
    assert_eq!(envelope.headers, [("tracestate".to_owned(), "vendor=1".to_owned())]);
}

#[test]
fn missing_or_repeated_header_is_named() {
    for name in ["ce-specversion", "ce-id", "ce-type", "ce-source", "ce-kind", "ce-datacontenttype"] {
        let mut packet = Packet::from_envelope(&sample()).unwrap();
        packet.headers.retain(|(known, _)| known != name);
        assert_eq!(refused_because(&packet), format!("header `{name}` is missing"));
    }
    let good = Packet::from_envelope(&sample()).unwrap();
    for (name, value) in &good.headers {
        let mut packet = good.clone();
        packet.headers.push((name.clone(), value.clone()));
        assert_eq!(refused_because(&packet), format!("header `{name}` occurs twice"));
    }
}

#[test]
fn invalid_header_values_are_rejected_by_name() {
    for (name, value) in [
        ("ce-specversion", "0.3"),
        ("ce-id", "1"),
        ("ce-type", "Deposit"),
        ("ce-type", "bank.>"),
        ("ce-type", "bank.Deposit.more"),
        ("ce-kind", "Command"),
        ("ce-datacontenttype", "text/plain"),
        ("ce-subject", "%ff"),
        ("ce-partitionkey", "bank"),
        ("ce-partitionkey", "bank/65536"),
        ("ce-partitionkey", "bank/+1"),
        ("ce-time", "yesterday"),
        ("ce-schemaversion", "-1"),
        ("ce-correlationid", "x"),
        ("ce-domain", "shop"),
        ("ce-sequence", "1e3"),
        ("ce-wants", "all"),
    ] {
        let mut packet = Packet::from_envelope(&sample()).unwrap();
        packet.headers.retain(|(known, _)| known != name);
        packet.headers.push((Cow::Borrowed(name), value.to_owned()));
        let reason = refused_because(&packet);
        assert!(reason.contains(name), "{name} = {value}: {reason}");
    }
}

#[test]
fn event_with_contradictory_shards_is_rejected() {
    let mut event = sample();
    event.kind = Kind::Event;
    event.key = String::new();
    event.to = None;
    event.origin = Some(Origin {
        shard: ShardId::new(Name::new("bank").unwrap(), 3),
        actor: Name::new("Account").unwrap(),
        key: "ada".to_owned(),
        sequence: 12,
        version: 4,
        store: Some(StoreId::from_u128(0xAB)),
    });
    let mut packet = Packet::from_envelope(&event).unwrap();
    assert_eq!(packet.envelope().unwrap(), event);
    for (name, value) in &mut packet.headers {
        if name == "ce-partitionkey" {
            *value = "bank/4".to_owned();
        }
    }
    assert!(refused_because(&packet).contains("different shards"));
}

#[test]
fn broker_command_headers_are_dropped_and_rejected() {
    let mut packet = Packet::from_envelope(&sample()).unwrap();
    packet.headers.push((Cow::Borrowed("Nats-Rollup"), "all".to_owned()));
    packet.headers.push((Cow::Borrowed("nats-msg-id"), "1".to_owned()));
    assert_eq!(packet.envelope().unwrap(), sample());

    for (name, value) in [("Nats-Rollup", "all"), ("ce-id", "x"), ("a b", "x"), ("x", "a\r\nb"), ("", "x"), ("é", "x")]
    {
        let mut envelope = sample();
        envelope.headers = vec![(name.to_owned(), value.to_owned())];
        assert!(matches!(Packet::from_envelope(&envelope), Err(BridgeError::Malformed { .. })), "{name}: {value}");
    }
}

#[test]
fn sizes_are_checked_when_encoding_and_decoding() {
    let mut envelope = sample();
    envelope.payload = vec![0; MAX_PAYLOAD_BYTES + 1].into();
    assert!(matches!(
        Packet::from_envelope(&envelope),
        Err(BridgeError::Oversize { bytes, limit: MAX_PAYLOAD_BYTES }) if bytes == MAX_PAYLOAD_BYTES + 1
    ));
    let mut packet = Packet::from_envelope(&sample()).unwrap();
    packet.payload = vec![0; MAX_PAYLOAD_BYTES + 1].into();
    assert!(matches!(packet.envelope(), Err(BridgeError::Oversize { .. })));

    let mut envelope = sample();
    envelope.headers = (0..65).map(|at| (format!("x-{at}"), String::new())).collect();
    assert!(Packet::from_envelope(&envelope).is_err());
    envelope.headers = vec![("x".to_owned(), "a".repeat(16 * 1024))];
    assert!(matches!(Packet::from_envelope(&envelope), Err(BridgeError::Oversize { .. })));
    envelope.headers.clear();
    envelope.key = "k".repeat(257);
    assert!(Packet::from_envelope(&envelope).is_err());
}

#[test]
fn false_length_in_a_frame_is_rejected_before_allocation() {
    // Version 1, last position 0, 2^60 envelopes.
    let bytes = Bytes::from_static(&[1, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10]);
    assert!(matches!(
        Packet::read_response(&[("whizbang-answer", "envelopes")], bytes),
        Err(BridgeError::Malformed { .. })
    ));
}

#[test]
fn invalid_trace_context_is_ignored() {
    let mut packet = Packet::from_envelope(&sample()).unwrap();
    packet.headers.push((Cow::Borrowed("traceparent"), "00-XYZ".to_owned()));
    assert_eq!(packet.envelope().unwrap(), sample());
}
