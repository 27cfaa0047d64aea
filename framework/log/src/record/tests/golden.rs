//! Records have the bytes in `golden.txt`, which never change: logs of older versions are read forever.
//!
//! The file has a line for each record: its name and its bytes in hexadecimal digits.

use super::*;
use whizbang_core::store::Watermark;

/// The records of all kinds. The turns have every part of the format and every mark.
fn records() -> Vec<(&'static str, Vec<u8>)> {
    let bank = ShardId::new(name("bank"), 300);
    let id = MessageId::from_u128(0x018b_cfe5_6800_7000_8000_0000_0000_0001);
    let turn = |mark| {
        let turn = Turn {
            actor: &name("Account"),
            key: "ada",
            stream: StreamHint::default(),
            number: 1,
            version: 0,
            time: Timestamp::from_millis(1_700_000_000_000),
            id,
            correlation: id,
            traceparent: None,
            headers: &[],
            mark,
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
        bytes
    };
    let direct = Source { shard: bank.clone(), kind: SourceKind::Direct };
    let events = Source { shard: bank.clone(), kind: SourceKind::Events { subscriber: name("Saga") } };
    let written_by = |write: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        write(&mut bytes);
        bytes
    };
    vec![
        ("turn with everything", written().0),
        ("turn without a mark", turn(Mark::None)),
        ("turn of a caller", turn(Mark::Outside { digest: 7 })),
        ("turn of an actor's message", turn(Mark::From { source: &direct, sequence: 130, floor: 128 })),
        ("turn of a timer", turn(Mark::Timer { name: "pay" })),
        ("watermark", written_by(&|into| write_advance(into, &Watermark { source: events.clone(), through: 9 }, 5, 6))),
        ("progress of a destination", written_by(&|into| write_sent(into, &bank, 1 << 40, 5, 6))),
        ("opening", written_by(&|into| write_opened(into, &bank, 1024, 5, u64::MAX))),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &str) -> Vec<u8> {
    digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Returns the content of the file. Read when the test runs, so that a new line needs no new build.
fn golden() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/record/tests/golden.txt")).unwrap()
}

#[test]
fn records_have_the_bytes_of_the_golden_file() {
    let lines: Vec<String> = records().iter().map(|(name, bytes)| format!("{name}: {}", hex(bytes))).collect();
    assert_eq!(lines.join("\n") + "\n", golden());
}

#[test]
fn golden_records_are_read() {
    let mut turns = 0;
    for line in golden().lines() {
        let (name, digits) = line.split_once(": ").unwrap();
        let bytes = Bytes::from(unhex(digits));
        assert!(reads_record(&bytes), "{name}");
        let (_, _, record) = Record::read(&bytes, 5_000).unwrap();
        turns += usize::from(matches!(record, Record::Turn(_)));
    }
    assert_eq!(turns, 5);
}
