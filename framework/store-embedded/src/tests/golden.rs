//! The files of a store have the bytes in `golden.txt`, which never change: stores of older versions are read forever.
//!
//! The file has a line for each sample: its name and its bytes in hexadecimal digits. It has those that cannot be rebuilt from the
//! log, and views. Checkpoints, snapshots and the files of ids are caches: one of another format is written again. The records in a
//! log have a golden file in the crate `log`, and the file `whizbang` has its lines in the tests of `layout`.

use bytes::Bytes;

use super::memory_disk::MemoryDisk;
use super::{SALT, shard};
use crate::frame::{BATCH_BYTES, BatchHead, FRAME_BYTES, close_frame, records, seal_frames};
use crate::segment::{FIRST_OFFSET, Segment};
use crate::{catalog, identity, views};
use whizbang_core::message::{Name, Run, StoreId, StoreIdentity};
use whizbang_core::store::{CatalogEntry, View};

/// The location of the batch in the sample.
const LOCATION: u64 = FIRST_OFFSET;

fn stored_identity() -> StoreIdentity {
    let store = StoreIdentity::new(StoreId::from_u128(0x00c0_ffee_0123_4567_89ab_cdef_0000_0001));
    store.trying(7).0.has_won(Run { epoch: 1, nonce: 7 }).trying(u64::MAX).0
}

fn entries() -> Vec<CatalogEntry> {
    let entry = |kind: &str, name: &str, version| CatalogEntry {
        owner: "bank/Account".to_owned(),
        kind: kind.to_owned(),
        name: name.to_owned(),
        version,
        codec: 1,
        shape: r#"{"cents":"u64"}"#.to_owned(),
    };
    vec![entry("event", "Deposited", 2), entry("timer", "Pay", 1)]
}

fn view() -> View {
    View { schema: 300, checkpoint: vec![(shard(), 9), (shard(), 1 << 40)], bytes: Bytes::from_static(b"the view") }
}

/// Encodes a batch of two records.
fn batch() -> Vec<u8> {
    let mut bytes = vec![0; BATCH_BYTES];
    for record in [&b"one"[..], b"another"] {
        let start = bytes.len();
        bytes.resize(start + FRAME_BYTES, 0);
        bytes.extend_from_slice(record);
        close_frame(&mut bytes, start);
    }
    let length = u32::try_from(bytes.len() - BATCH_BYTES).unwrap();
    seal_frames(&mut bytes[BATCH_BYTES..], SALT, LOCATION + BATCH_BYTES as u64);
    BatchHead { number: 5, length }.write(&mut bytes, SALT, LOCATION);
    bytes
}

fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let memory = MemoryDisk::default();
    let name = Name::from_static("Balances").unwrap();
    identity::save(&memory.disk(), &stored_identity()).unwrap();
    catalog::save(&memory.disk(), &entries()).unwrap();
    views::save(&memory.disk(), &name, &view()).unwrap();
    let mut mark = vec![0; BATCH_BYTES];
    BatchHead { number: 5, length: 0 }.write(&mut mark, SALT, LOCATION);
    vec![
        ("head of a log file", Segment { number: 2, start: 16 << 10, size: 16 << 20, salt: SALT }.head()),
        ("batch", batch()),
        ("mark", mark),
        ("identity", memory.bytes("identity")),
        ("catalog", memory.bytes("catalog")),
        ("view-Balances", memory.bytes("view-Balances")),
    ]
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
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/tests/golden.txt")).unwrap()
}

#[test]
fn files_have_the_bytes_of_the_golden_file() {
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines: Vec<String> = samples().into_iter().map(|(name, bytes)| format!("{name}: {}", hex(bytes))).collect();
    assert_eq!(lines.join("\n") + "\n", golden());
}

#[test]
fn golden_files_are_read_as_their_values() {
    let memory = MemoryDisk::default();
    for line in golden().lines() {
        let (name, digits) = line.split_once(": ").unwrap();
        memory.put(name, &unhex(digits));
    }
    let disk = memory.disk();
    assert_eq!(identity::load(&disk).unwrap(), Some(stored_identity()));
    assert_eq!(catalog::load(&disk).unwrap(), Some(entries()));
    assert_eq!(views::load(&disk, &Name::from_static("Balances").unwrap()).unwrap(), Some(view()));
    let batch = memory.bytes("batch");
    let head = BatchHead::read(&batch, SALT, LOCATION).unwrap();
    assert_eq!((head.number, head.length as usize), (5, batch.len() - BATCH_BYTES));
    let frames = &batch[BATCH_BYTES..];
    let found = records(frames, SALT, LOCATION + BATCH_BYTES as u64).unwrap();
    assert_eq!(found.into_iter().map(|(_, range)| &frames[range]).collect::<Vec<_>>(), [&b"one"[..], b"another"]);
    let mark = BatchHead::read(&memory.bytes("mark"), SALT, LOCATION).unwrap();
    assert_eq!((mark.number, mark.length), (5, 0));
}
