//! Records are read as they were written, and corrupt records are rejected.

mod golden;

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::transfer::CopiedTurn;
use whizbang_core::clock::{Clock, Timestamp};
use whizbang_core::message::{
    Codec, Envelope, Fingerprint, IdSource, Kind, MessageId, Name, Origin, ReplyMode, ShardId,
};
use whizbang_core::store::{
    DeadLetter, DeadLetterReason, EventWrite, Mark, Note, OutboxWrite, SentMessage, Source, SourceKind, StreamHint,
    TimerWrite, Turn,
};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn envelope(to: Option<ShardId>) -> Envelope {
    Envelope {
        id: MessageId::from_u128(7),
        kind: Kind::Command,
        name: name("Deposit"),
        version: 3,
        shape: Some(Fingerprint::from_u64(0xFEED)),
        domain: name("bank"),
        to,
        key: "ada".to_owned(),
        actor: Some(name("Account")),
        origin: None,
        correlation: MessageId::from_u128(8),
        causation: Some(MessageId::from_u128(9)),
        time: Timestamp::from_millis(1_700_000_000_000),
        deadline: Some(Timestamp::from_millis(1_700_000_000_500)),
        wants: ReplyMode::Rejection,
        traceparent: Some("00-1-2-01".to_owned()),
        headers: vec![("a".to_owned(), "b".to_owned()), (String::new(), String::new())],
        codec: Codec::Json,
        payload: Bytes::from_static(b"{}"),
    }
}

/// The location of the turn with everything.
fn place() -> RecordContext<'static> {
    RecordContext {
        tag: 5,
        epoch: 6,
        location: 5_000,
        stream: 4_000,
        position: 100,
        events: 4_990,
        sent: &[Sent { sequence: 77, before: 1 }, Sent { sequence: 78, before: 5_000 }],
    }
}

/// Encodes a turn that uses every part of the format.
fn written() -> (Vec<u8>, Envelope, DeadLetter) {
    let bank = ShardId::new(name("bank"), 3);
    let sent = envelope(Some(bank.clone()));
    let mut of_job = sent.clone();
    let (actor, key) = (name("Account"), "order 7".to_owned());
    of_job.origin = Some(Origin { shard: bank.clone(), actor, key, sequence: 0, version: 0, store: None });
    let mut dead = envelope(Some(ShardId::new(name("shop"), 300)));
    dead.origin = Some(Origin {
        shard: bank.clone(),
        actor: name("A"),
        key: "k".to_owned(),
        sequence: 1 << 40,
        version: 2,
        store: None,
    });
    let letter = DeadLetter {
        actor: name("Account"),
        key: "ada".to_owned(),
        reason: DeadLetterReason::Behind,
        error: "no".to_owned(),
        attempts: 4,
        time: Timestamp::from_millis(5),
        envelope: dead,
    };
    let source = Source { shard: bank.clone(), kind: SourceKind::Events { subscriber: name("Saga") } };
    let turn = Turn {
        actor: &name("Account"),
        key: "ada",
        stream: StreamHint::default(),
        number: 12,
        version: 30,
        time: Timestamp::from_millis(1_700_000_000_001),
        id: MessageId::from_u128(u128::MAX - 5),
        correlation: MessageId::from_u128(1),
        traceparent: Some("00-a"),
        headers: &[("tenant".to_owned(), "acme".to_owned()), ("user".to_owned(), String::new())],
        mark: Mark::From { source: &source, sequence: 900, floor: 890 },
        reply: b"yes",
        reply_codec: Codec::Json,
        events: &[
            EventWrite { name: "Deposited", version: 2, codec: Codec::Bincode, payload: b"12" },
            EventWrite { name: "Seen", version: 1, codec: Codec::Json, payload: b"" },
        ],
        outbox: &[OutboxWrite { to: &bank, envelope: &sent }, OutboxWrite { to: &bank, envelope: &of_job }],
        timers: &[
            TimerWrite::Set {
                name: "pay",
                due: Timestamp::from_millis(99),
                version: 1,
                codec: Codec::Json,
                payload: b"0",
            },
            TimerWrite::Clear { name: "ship" },
        ],
        notes: &[
            Note::Attempt { message: MessageId::from_u128(2), attempt: 3 },
            Note::DeadLetter(Box::new(letter.clone())),
            Note::Resolved { message: MessageId::from_u128(4) },
            Note::Ended,
            Note::Own(Bytes::from_static(b"own")),
        ],
    };
    let mut bytes = Vec::new();
    write_turn(&mut bytes, &turn, &place());
    assert!(bytes.len() <= turn_bound(&turn));
    (bytes, sent, letter)
}

#[test]
fn turn_with_everything_is_read_as_it_was_written() {
    let (bytes, sent, letter) = written();
    let bytes = Bytes::from(bytes);
    let (tag, epoch, record) = Record::read(&bytes, 5_000).unwrap();
    assert_eq!((tag, epoch), (5, 6));
    let Record::Turn(turn) = record else { panic!("not a turn") };
    assert_eq!((turn.stream, turn.events_before), (4_000, 4_990));
    assert_eq!((turn.events_count(), turn.outbox_count()), (2, 2));
    let names = &mut Names::default();
    let stored = turn.to_turn(&bytes, names).unwrap();
    assert_eq!((stored.number, stored.version), (12, 30));
    assert_eq!(stored.from.unwrap().1, 900);
    assert_eq!(stored.events.iter().map(|event| event.position).collect::<Vec<_>>(), [101, 102]);
    assert_eq!(stored.events.iter().map(|event| event.stream_version).collect::<Vec<_>>(), [31, 32]);
    let headers = [("tenant".to_owned(), "acme".to_owned()), ("user".to_owned(), String::new())];
    assert!(stored.events.iter().all(|event| event.headers == headers), "the headers of the turn");
    assert_eq!(stored.timers, [("pay".to_owned(), true), ("ship".to_owned(), false)]);
    let summary = SentMessage { id: sent.id, kind: sent.kind, name: sent.name.clone(), wants: sent.wants };
    assert_eq!(stored.sent, [summary.clone(), summary]);
    assert_eq!(stored.notes[1], Note::DeadLetter(Box::new(letter)));
    assert_eq!(stored.notes.len(), 5);
    let from = ShardId::new(name("orders"), 1);
    let entry = turn.to_outbox_entry(turn.outbox().next().unwrap(), &from, &bytes, names).unwrap();
    let origin =
        Origin { shard: from, actor: name("Account"), key: "ada".to_owned(), sequence: 77, version: 0, store: None };
    assert_eq!(entry.envelope, Envelope { origin: Some(origin.clone()), ..sent.clone() });
    let entry = turn.to_outbox_entry(turn.outbox().nth(1).unwrap(), &origin.shard, &bytes, names).unwrap();
    let origin = Origin { key: "order 7".to_owned(), sequence: 78, ..origin };
    assert_eq!(entry.envelope, Envelope { origin: Some(origin), ..sent }, "replies go to the key of the job");
}

#[test]
fn copied_turn_has_the_same_record() {
    let (bytes, ..) = written();
    let bytes = Bytes::from(bytes);
    let shard = ShardId::new(name("orders"), 1);
    let copied = CopiedTurn::read(5_000, &bytes, None, &mut Names::default(), |tag| (tag == 5).then(|| shard.clone()));
    let (read, turn) = copied.unwrap().unwrap();
    assert_eq!((read, turn.position(), turn.events(), turn.bytes()), (shard.clone(), 102, 2, bytes.len()));
    let sent = turn.sent().map(|(to, sequence)| (to.to_string(), sequence)).collect::<Vec<_>>();
    assert_eq!(sent, [("bank/3".to_owned(), 77), ("bank/3".to_owned(), 78)]);
    let mut again = Vec::new();
    turn.write(|turn| {
        write_turn(&mut again, turn, &place());
        let origins: Vec<_> = turn.outbox.iter().map(|write| write.envelope.origin.is_some()).collect();
        assert_eq!(origins, [false, true], "a turn of the greatest size can be appended again");
    });
    assert_eq!(again, bytes);
    for count in [0, 1, 3] {
        let payloads = vec![Bytes::new(); count];
        let read = CopiedTurn::read(5_000, &bytes, Some(&payloads), &mut Names::default(), |_| Some(shard.clone()));
        assert_eq!(read.map(|_| ()), Err("the turn has another number of events"), "{count} payloads");
    }
    let unknown = CopiedTurn::read(5_000, &bytes, None, &mut Names::default(), |_| None);
    assert_eq!(unknown.map(|_| ()), Err("unknown shard"));
}

#[test]
fn time_contained_in_the_id_is_omitted_and_restored() {
    let made = Timestamp::from_millis(1_700_000_000_000);
    let id = IdSource::seeded(Clock::manual(made).0, 3).message_id();
    let lengths = [made, made.after(Duration::from_millis(1))].map(|time| {
        let turn = Turn {
            actor: &name("Account"),
            key: "ada",
            stream: StreamHint::default(),
            number: 1,
            version: 0,
            time,
            id,
            correlation: id,
            traceparent: None,
            headers: &[],
            mark: Mark::Outside { digest: 7 },
            reply: b"",
            reply_codec: Codec::Bincode,
            events: &[],
            outbox: &[],
            timers: &[],
            notes: &[],
        };
        let place = RecordContext { tag: 0, epoch: 1, location: 1, stream: 0, position: 0, events: 0, sent: &[] };
        let mut bytes = Vec::new();
        write_turn(&mut bytes, &turn, &place);
        let Ok((_, _, Record::Turn(read))) = Record::read(&bytes, 1) else { panic!("not a turn") };
        assert_eq!((read.time, read.id, read.mark), (time, id, MarkRecord::Outside { digest: 7 }));
        bytes.len()
    });
    assert_eq!(lengths[0] + 6, lengths[1]);
}

#[test]
fn truncated_turn_is_refused() {
    let (bytes, ..) = written();
    for length in 0..bytes.len() {
        assert!(Record::read(&bytes[..length], 5_000).is_err(), "cut at {length}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(Record::read(&longer, 5_000).is_err());
}

/// Reads all parts of a record.
fn read_all(bytes: Vec<u8>, location: Location) {
    let bytes = Bytes::from(bytes);
    if let Ok((_, _, Record::Turn(turn))) = Record::read(&bytes, location) {
        let names = &mut Names::default();
        let shard = ShardId::new(name("orders"), 1);
        let _ = turn.to_turn(&bytes, names);
        for entry in turn.outbox() {
            let _ = turn.to_outbox_entry(entry, &shard, &bytes, names);
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_decoded_or_rejected(bytes in proptest::collection::vec(any::<u8>(), 0..400), location in any::<u64>()) {
        read_all(bytes.clone(), location);
        // Most random bytes fail at the first two bytes, so set these to valid values.
        let mut turn = vec![FORMAT, KIND_TURN, 0, 1];
        turn.extend_from_slice(&bytes);
        read_all(turn, location);
    }

    #[test]
    fn corrupt_turn_is_read_or_refused(
        spoils in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (mut bytes, ..) = written();
        for (at, byte) in spoils {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_all(bytes, 5_000);
    }

    #[test]
    fn number_is_read_as_it_was_written(value in any::<u64>(), shift in 0..64u32) {
        let value = value >> shift;
        let mut bytes = Vec::new();
        encode::number(&mut bytes, value);
        prop_assert_eq!(decode::Decoder(&bytes).number(), Ok(value));
    }
}

#[test]
fn valid_record_is_distinguished_from_a_corrupt_one() {
    let (bytes, ..) = written();
    let bytes = Bytes::from(bytes);
    assert!(reads_record(&bytes));
    let mut progress = Vec::new();
    write_sent(&mut progress, &ShardId::new(name("bank"), 1), 7, 0, 1);
    assert!(reads_record(&Bytes::from(progress.clone())));
    progress.pop();
    assert!(!reads_record(&Bytes::from(progress)));
    // Names of the turn, of its mark, of an outbox entry and of a dead letter.
    for text in ["Account", "bank", "Deposit", "Saga"] {
        for at in (0..bytes.len()).filter(|at| bytes[*at..].starts_with(text.as_bytes())) {
            let mut corrupt = bytes.to_vec();
            corrupt[at] = b'.';
            assert!(!reads_record(&Bytes::from(corrupt)), "{text} at {at}");
        }
    }
}
