//! The bound for the size of a turn, and the records that are not turns.

use bytes::Bytes;

use super::*;
use crate::record::{MarkRecord, Names, Record, Sent, SourceRecord};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, Envelope, Fingerprint, Kind, MessageId, Name, Origin, ReplyMode};
use whizbang_core::store::{DeadLetterReason, EventWrite, OutboxWrite, StreamHint};

/// The texts of a turn. Each is a name or a text without a limit.
const TEXTS: [&str; 35] = [
    "actor",
    "key",
    "reply",
    "trace context",
    "source domain",
    "subscriber",
    "fired timer",
    "event",
    "event payload",
    "turn header",
    "turn header value",
    "outbox domain",
    "timer",
    "timer payload",
    "cleared timer",
    "letter actor",
    "letter key",
    "letter error",
    "own note",
    "sent name",
    "sent domain",
    "sent to",
    "sent key",
    "sent actor",
    "sent origin key",
    "sent trace context",
    "sent header",
    "sent header value",
    "sent payload",
    "dead name",
    "dead origin domain",
    "dead origin actor",
    "dead origin key",
    "dead header",
    "dead payload",
];

/// The length of a long text. The length of a long name is the longest allowed one.
const LONG: usize = 20_000;

/// The bound may be above the size by this: numbers count with their greatest length.
const SURPLUS: usize = 1_500;

/// Makes the texts of a turn: the ones that `is_long` names are long.
struct Texts<'a>(&'a dyn Fn(&str) -> bool);

impl Texts<'_> {
    fn text(&self, label: &str) -> String {
        assert!(TEXTS.contains(&label), "{label}");
        if (self.0)(label) { "x".repeat(LONG) } else { String::new() }
    }

    fn name(&self, label: &str) -> Name {
        let length = self.text(label).len().clamp(1, Name::MAX_BYTES);
        Name::new(&"n".repeat(length)).unwrap()
    }
}

/// Returns a message whose numbers have their greatest length.
fn envelope(texts: &Texts<'_>, origin: Origin, label: impl Fn(&str) -> String) -> Envelope {
    let known = |part: &str| Some(label(part)).filter(|label| TEXTS.contains(&label.as_str()));
    let text = |part: &str| known(part).map_or_else(String::new, |label| texts.text(&label));
    let name = |part: &str| known(part).map_or_else(|| Name::from_static("n").unwrap(), |label| texts.name(&label));
    Envelope {
        id: MessageId::from_u128(u128::MAX),
        kind: Kind::Command,
        name: name("name"),
        version: u32::MAX,
        shape: Some(Fingerprint::from_u64(u64::MAX)),
        domain: name("domain"),
        to: Some(ShardId::new(name("to"), u16::MAX)),
        key: text("key"),
        actor: Some(name("actor")),
        origin: Some(origin),
        correlation: MessageId::from_u128(u128::MAX - 1),
        causation: Some(MessageId::from_u128(u128::MAX - 2)),
        time: Timestamp::from_millis(u64::MAX),
        deadline: Some(Timestamp::from_millis(u64::MAX)),
        wants: ReplyMode::Reply,
        traceparent: Some(text("trace context")),
        headers: vec![(text("header"), text("header value"))],
        codec: Codec::Json,
        payload: Bytes::from(text("payload")),
    }
}

/// Returns the size of a turn's record and its bound.
fn size_and_bound(texts: &Texts<'_>) -> (usize, usize) {
    let origin = |domain, actor, key| Origin {
        shard: ShardId::new(domain, u16::MAX),
        actor,
        key,
        sequence: u64::MAX,
        version: u64::MAX,
        store: None,
    };
    let short = || Name::from_static("n").unwrap();
    let to = ShardId::new(texts.name("outbox domain"), u16::MAX);
    let sent_origin = origin(short(), short(), texts.text("sent origin key") + "another key");
    let sent = envelope(texts, sent_origin, |part| format!("sent {part}"));
    let dead_origin =
        origin(texts.name("dead origin domain"), texts.name("dead origin actor"), texts.text("dead origin key"));
    let letter = DeadLetter {
        actor: texts.name("letter actor"),
        key: texts.text("letter key"),
        reason: DeadLetterReason::Attempts,
        error: texts.text("letter error"),
        attempts: u32::MAX,
        time: Timestamp::from_millis(u64::MAX),
        envelope: envelope(texts, dead_origin, |part| format!("dead {part}")),
    };
    let subscriber = texts.name("subscriber");
    let source =
        Source { shard: ShardId::new(texts.name("source domain"), u16::MAX), kind: SourceKind::Events { subscriber } };
    let text = |label: &str| texts.text(label);
    let (key, reply, traceparent, fired) = (text("key"), text("reply"), text("trace context"), text("fired timer"));
    let (event, event_payload, timer, timer_payload) =
        (text("event"), text("event payload"), text("timer"), text("timer payload"));
    let cleared = text("cleared timer");
    let turn = Turn {
        actor: &texts.name("actor"),
        key: &key,
        stream: StreamHint::default(),
        number: u64::MAX,
        version: u64::MAX,
        time: Timestamp::from_millis(u64::MAX),
        id: MessageId::from_u128(u128::MAX),
        correlation: MessageId::from_u128(1),
        traceparent: Some(&traceparent),
        headers: &[(text("turn header"), text("turn header value"))],
        mark: match fired.is_empty() {
            true => Mark::From { source: &source, sequence: u64::MAX, floor: u64::MAX },
            false => Mark::Timer { name: &fired },
        },
        reply: reply.as_bytes(),
        reply_codec: Codec::Json,
        events: &[EventWrite {
            name: &event,
            version: u32::MAX,
            codec: Codec::Json,
            payload: event_payload.as_bytes(),
        }],
        outbox: &[OutboxWrite { to: &to, envelope: &sent }],
        timers: &[
            TimerWrite::Set {
                name: &timer,
                due: Timestamp::from_millis(u64::MAX),
                version: u32::MAX,
                codec: Codec::Json,
                payload: timer_payload.as_bytes(),
            },
            TimerWrite::Clear { name: &cleared },
        ],
        notes: &[
            Note::DeadLetter(Box::new(letter)),
            Note::Own(Bytes::from(text("own note"))),
            Note::Attempt { message: MessageId::from_u128(1), attempt: u32::MAX },
            Note::Resolved { message: MessageId::from_u128(1) },
            Note::Ended,
        ],
    };
    let sent = [Sent { sequence: u64::MAX, before: 1 }];
    let far = u64::MAX;
    let place =
        RecordContext { tag: u32::MAX, epoch: far, location: far, stream: 1, position: far, events: 1, sent: &sent };
    let mut bytes = Vec::new();
    write_turn(&mut bytes, &turn, &place);
    (bytes.len(), turn_bound(&turn))
}

/// A turn above the limit would be a record without a reader, and a bound far above the size refuses turns below the limit.
#[test]
fn bound_is_a_little_above_the_size() {
    let check = |case: &str, is_long: &dyn Fn(&str) -> bool| {
        let (size, bound) = size_and_bound(&Texts(is_long));
        assert!((size..=size + SURPLUS).contains(&bound), "{case}: bound {bound} for {size} bytes");
        size
    };
    let short = check("no long text", &|_| false);
    for long in TEXTS {
        let size = check(long, &|label| label == long);
        assert!(size >= short + Name::MAX_BYTES - 1 || long == "fired timer", "{long} is not in the record");
    }
    check("all texts, a source", &|label| label != "fired timer");
    check("all texts, a timer", &|_| true);
}

#[test]
fn direct_source_needs_no_subscriber() {
    let domain = Name::new(&"d".repeat(Name::MAX_BYTES)).unwrap();
    let source = Source { shard: ShardId::new(domain, u16::MAX), kind: SourceKind::Direct };
    let mut bytes = Vec::new();
    encode_source(&mut bytes, &source);
    assert!((bytes.len()..bytes.len() + 40).contains(&source_bound(&source)));
}

fn read(bytes: &[u8]) -> (u32, Epoch, Record<'_>) {
    Record::read(bytes, 1).unwrap()
}

#[test]
fn progress_is_read_as_it_was_written() {
    let shard = ShardId::new(Name::from_static("bank").unwrap(), u16::MAX);
    for (subscriber, kind) in
        [("", SourceKind::Direct), ("Saga", SourceKind::Events { subscriber: Name::from_static("Saga").unwrap() })]
    {
        let watermark = Watermark { source: Source { shard: shard.clone(), kind }, through: u64::MAX };
        let mut bytes = Vec::new();
        write_advance(&mut bytes, &watermark, 3, 1 << 40);
        let (tag, epoch, Record::Advance { source, through }) = read(&bytes) else { panic!("another kind") };
        assert_eq!((tag, epoch, through), (3, 1 << 40, u64::MAX));
        assert_eq!(source, SourceRecord { domain: "bank", shard: u16::MAX, subscriber });
        assert_eq!(source.to_source(&mut Names::default()).unwrap(), watermark.source);
    }
    let mut bytes = Vec::new();
    write_sent(&mut bytes, &shard, 1 << 50, 4, 5);
    let (4, 5, Record::Sent { domain, shard: number, through }) = read(&bytes) else { panic!("another record") };
    assert_eq!((domain, number, through), ("bank", u16::MAX, 1 << 50));
    let mut bytes = Vec::new();
    write_opened(&mut bytes, &shard, 300, 6, 7);
    let (6, 7, Record::Opened { domain, shard: number, shards }) = read(&bytes) else { panic!("another record") };
    assert_eq!((domain, number, shards), ("bank", u16::MAX, 300));
}

/// Every combination of the parts that a record may omit.
#[test]
fn omitted_parts_are_read_as_absent() {
    let (bank, saga) = (Name::from_static("bank").unwrap(), Name::from_static("Saga").unwrap());
    let source = Source { shard: ShardId::new(bank.clone(), 3), kind: SourceKind::Events { subscriber: saga.clone() } };
    let id = MessageId::from_u128(77);
    let headers = [("tenant".to_owned(), "acme".to_owned())];
    let events = [EventWrite { name: "Deposited", version: 2, codec: Codec::Json, payload: b"12" }; 2];
    let timers = [TimerWrite::Clear { name: "pay" }];
    let notes = [Note::Attempt { message: id, attempt: 3 }];
    let marks = [
        (Mark::None, MarkRecord::None),
        (Mark::Outside { digest: u64::MAX }, MarkRecord::Outside { digest: u64::MAX }),
        (
            Mark::From { source: &source, sequence: 9, floor: 8 },
            MarkRecord::From {
                source: SourceRecord { domain: "bank", shard: 3, subscriber: "Saga" },
                sequence: 9,
                floor: 8,
            },
        ),
        (Mark::Timer { name: "pay" }, MarkRecord::Timer { name: "pay" }),
    ];
    for parts in 0..1 << 7u32 {
        let has = |part: u32| parts & 1 << part != 0;
        let list = |part| if has(part) { usize::MAX } else { 0 };
        for (mark, expected) in &marks {
            let turn = Turn {
                actor: &saga,
                key: "ada",
                stream: StreamHint::default(),
                number: 3,
                version: 5,
                time: Timestamp::from_millis(6),
                id,
                correlation: if has(0) { MessageId::from_u128(78) } else { id },
                traceparent: has(1).then_some("00-a"),
                headers: headers.get(..list(2).min(1)).unwrap(),
                mark: mark.clone(),
                reply: if has(3) { b"yes" } else { b"" },
                reply_codec: if has(3) { Codec::Json } else { Codec::Bincode },
                events: events.get(..list(4).min(2)).unwrap(),
                outbox: &[],
                timers: timers.get(..list(5).min(1)).unwrap(),
                notes: notes.get(..list(6).min(1)).unwrap(),
            };
            let place =
                RecordContext { tag: 1, epoch: 2, location: 100, stream: 90, position: 40, events: 95, sent: &[] };
            let mut bytes = Vec::new();
            write_turn(&mut bytes, &turn, &place);
            let bytes = Bytes::from(bytes);
            let (1, 2, Record::Turn(read)) = Record::read(&bytes, 100).unwrap() else { panic!("another record") };
            let head = (read.actor, read.key, read.number, read.version, read.time, read.stream, read.position);
            assert_eq!(head, ("Saga", "ada", 3, 5, turn.time, 90, 40), "{parts:b}");
            assert_eq!((read.id, read.correlation, read.mark), (id, turn.correlation, *expected), "{parts:b}");
            assert_eq!((read.traceparent, read.headers()), (turn.traceparent, turn.headers.to_vec()), "{parts:b}");
            assert_eq!((read.reply, read.reply_codec), (turn.reply, turn.reply_codec), "{parts:b}");
            assert_eq!((read.events_count(), read.events_before), (turn.events.len(), 95 * u64::from(has(4))));
            assert_eq!((read.outbox_count(), read.outbox().count()), (0, 0), "{parts:b}");
            assert_eq!(read.timers().collect::<Vec<_>>(), turn.timers, "{parts:b}");
            let stored = read.to_turn(&bytes, &mut Names::default()).unwrap();
            assert_eq!((stored.notes, stored.timers.len()), (turn.notes.to_vec(), turn.timers.len()), "{parts:b}");
            assert!(stored.events.iter().zip(1..).all(|(event, nth)| {
                (event.position, event.stream_version) == (40 + nth, 5 + nth) && event.payload == "12"
            }));
        }
    }
}
