//! Changes of a saga's steps have the bytes in `golden.txt`, which never change: they are notes in the log.
//!
//! The file has a line for each change: its name and its bytes in hexadecimal digits.

use super::*;
use whizbang_core::message::Codec;

fn changes() -> Vec<(&'static str, CompensationChange)> {
    let command = MessageId::from_u128(0x0193_6b2c_5a00_7000_8000_0000_0000_0001);
    let planned = |key: &str| PlannedCommand {
        domain: "stock".to_owned(),
        shard: 1023,
        key: key.to_owned(),
        name: "Release".to_owned(),
        version: 300,
        codec: 1,
        payload: b"{}".to_vec(),
        shape: None,
    };
    vec![
        ("step", CompensationChange::Step { command, undo: planned("order 7/ü") }),
        ("done", CompensationChange::Done { command }),
        ("rejected", CompensationChange::Rejected { command }),
        ("begin", CompensationChange::Begin { finally: vec![planned("a"), planned("")] }),
        ("sent", CompensationChange::Sent { command }),
        ("undone", CompensationChange::Undone { command }),
        ("retry", CompensationChange::Retry { command }),
        ("finished", CompensationChange::Finished),
        ("given up", CompensationChange::GivenUp { command }),
        ("restarted", CompensationChange::Restarted),
        ("shape of a step", CompensationChange::StepShape { command, shape: u64::MAX }),
        ("shapes of the final commands", CompensationChange::FinalShapes { shapes: vec![None, Some(7)] }),
    ]
}

/// The content of the file.
const GOLDEN: &str = include_str!("golden.txt");

#[test]
fn changes_have_the_bytes_of_the_golden_file() {
    let line = |(name, change): &(&str, CompensationChange)| {
        let mut bytes = Vec::new();
        Codec::Bincode.encode(change, &mut bytes).unwrap();
        format!("{name}: {}\n", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    assert_eq!(changes().iter().map(line).collect::<String>(), GOLDEN);
}

#[test]
fn golden_changes_are_read_as_their_values() {
    let lines: Vec<_> = GOLDEN.lines().map(|line| line.split_once(": ").unwrap()).collect();
    assert_eq!(lines.len(), changes().len());
    for ((name, change), (golden, digits)) in changes().into_iter().zip(lines) {
        let bytes =
            digits.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
        let read: CompensationChange = Codec::Bincode.decode(&bytes.collect::<Vec<_>>()).unwrap();
        assert_eq!((golden, read), (name, change));
    }
}
