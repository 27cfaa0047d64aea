//! Every combination of the fields that an envelope may omit is read as it was written.

use super::*;
use whizbang_core::message::{Codec, Name};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

/// Returns all envelopes that differ in the presence of a field.
fn envelopes() -> impl Iterator<Item = Envelope> {
    (0..1 << 10u32).map(|parts| {
        let has = |part: u32| parts & 1 << part != 0;
        let to = [None, Some(ShardId::new(name("bank"), 3)), Some(ShardId::new(name("bank"), 4))];
        let origin = Origin {
            shard: ShardId::new(name("shop"), 300),
            actor: name("Order"),
            key: if has(9) { "order 7" } else { "ada" }.to_owned(),
            sequence: 1 << 40,
            version: 7,
            store: None,
        };
        Envelope {
            id: MessageId::from_u128(7),
            kind: Kind::Reply,
            name: name("Deposit"),
            version: 3,
            shape: has(0).then_some(Fingerprint::from_u64(0xFEED)),
            domain: name(if has(1) { "shop" } else { "bank" }),
            to: to[usize::from(has(2)) + usize::from(has(2) && has(3))].clone(),
            key: "eve".to_owned(),
            actor: has(4).then(|| name("Account")),
            origin: has(8).then_some(origin),
            correlation: MessageId::from_u128(if has(5) { 8 } else { 9 }),
            causation: has(6).then(|| MessageId::from_u128(10)),
            time: Timestamp::from_millis(1_700_000_000_000),
            deadline: has(3).then(|| Timestamp::from_millis(1_700_000_000_500)),
            wants: ReplyMode::Rejection,
            traceparent: has(7).then(|| "00-1-2-01".to_owned()),
            headers: vec![("a".to_owned(), "b".to_owned()); usize::from(has(6)) + usize::from(has(6) && has(7))],
            codec: Codec::Json,
            payload: Bytes::from_static(b"{}"),
        }
    })
}

/// Writes an envelope and reads it back.
fn again(envelope: &Envelope, given: Given<'_>, origin: Option<&Origin>) -> Envelope {
    let mut bytes = Vec::new();
    write(&mut bytes, envelope, given, origin);
    assert!(bytes.len() <= bound(envelope));
    let bytes = Bytes::from(bytes);
    let names = &mut Names::default();
    assert_eq!(read_id(&bytes), Ok(envelope.id));
    let sent = read_sent(&bytes, names).unwrap();
    assert_eq!((sent.id, sent.kind, sent.wants), (envelope.id, envelope.kind, envelope.wants));
    assert_eq!(sent.name, envelope.name);
    let longer = Bytes::from([&bytes[..], &[0]].concat());
    assert_eq!(read(&longer, &longer, given, names), Err(Malformed("trailing bytes after an envelope")));
    read(&bytes, &bytes, given, names).unwrap()
}

#[test]
fn outbox_entry_is_read_as_it_was_written() {
    let bank = ShardId::new(name("bank"), 3);
    for envelope in envelopes() {
        let given = Given { to: Some(&bank), correlation: MessageId::from_u128(9), key: Some("ada") };
        let mut read = again(&envelope, given, None);
        let sender = envelope.origin.as_ref().map(|origin| origin.key.clone()).filter(|key| key != "ada");
        assert_eq!(remove_sender(&mut read.headers), sender, "{envelope:?}");
        assert_eq!(read, Envelope { origin: None, ..envelope });
    }
}

#[test]
fn dead_letter_is_read_with_its_origin() {
    for envelope in envelopes() {
        let given = Given { to: None, correlation: MessageId::from_u128(9), key: None };
        assert_eq!(again(&envelope, given, envelope.origin.as_ref()), envelope);
    }
}

/// The fields that the record around an envelope has are not repeated.
#[test]
fn fields_of_the_record_take_no_bytes() {
    let bank = ShardId::new(name("bank"), 3);
    let size = |to: Option<&ShardId>, correlation: u128, envelope: &Envelope| {
        let mut bytes = Vec::new();
        write(&mut bytes, envelope, Given { to, correlation: MessageId::from_u128(correlation), key: None }, None);
        bytes.len()
    };
    let mut envelope = envelopes().next().unwrap();
    let least = size(Some(&bank), 9, &envelope);
    assert_eq!(size(None, 9, &envelope), least + 5, "the domain");
    assert_eq!(size(Some(&bank), 1, &envelope), least + 16, "the correlation id");
    envelope.headers = vec![("a".to_owned(), "b".to_owned())];
    assert_eq!(size(Some(&bank), 9, &envelope), least + 5, "the number of headers and one header");
    envelope.headers.clear();
    envelope.to = Some(bank.clone());
    assert_eq!(size(Some(&bank), 9, &envelope), least, "the destination");
    assert_eq!(size(None, 9, &envelope), least + 11, "the destination and the domain");
}

#[test]
fn omitted_fields_need_an_outbox_entry() {
    let bank = ShardId::new(name("bank"), 3);
    let mut envelope = envelopes().next().unwrap();
    let given = Given { to: Some(&bank), correlation: envelope.correlation, key: None };
    let read_alone = |envelope: &Envelope| {
        let mut bytes = Vec::new();
        write(&mut bytes, envelope, given, None);
        let bytes = Bytes::from(bytes);
        read(&bytes, &bytes, Given { to: None, ..given }, &mut Names::default())
    };
    assert_eq!(read_alone(&envelope), Err(Malformed("an envelope omits its domain outside of an outbox")));
    envelope.to = Some(bank.clone());
    assert_eq!(read_alone(&envelope), Err(Malformed("an envelope omits its destination outside of an outbox")));
}
