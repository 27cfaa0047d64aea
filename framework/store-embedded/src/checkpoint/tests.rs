//! Tests of checkpoints.

use std::io::ErrorKind;

use super::*;
use crate::tests::memory_disk::MemoryDisk;
use whizbang_core::message::Name;

fn hasher() -> StreamHasher {
    StreamHasher::new(1)
}

fn shard(number: u16) -> ShardId {
    ShardId::new(Name::new("bank").unwrap(), number)
}

fn place(batch: u64) -> BatchLocation {
    BatchLocation { segment: 2, offset: 700, batch }
}

fn snapshots(number: u64) -> HashMap<Stream, SnapshotLocation> {
    let location = |nth| SnapshotLocation { file: nth, offset: nth * 10, length: nth + 100, turn: nth + 1000 };
    (0..number).map(|nth| (Stream::from_halves(nth, number), location(nth))).collect()
}

/// Returns the pieces of a checkpoint of two shards that were committed up to 100 and 200.
fn pieces(last: Option<BatchLocation>) -> Vec<Vec<u8>> {
    let mut head = Vec::new();
    encode_head(&mut head, &hasher(), last, (3, 77), 2);
    let shards = (0..2).map(|number| {
        let mut piece = Vec::new();
        let mut index = Index::new(hasher());
        index.commit(100 * (u64::from(number) + 1));
        encode_shard(&mut piece, &shard(number), 4, 5 + u64::from(number), &mut index);
        while index.save_next(&mut piece) {}
        encode_snapshots(&mut piece, &snapshots(u64::from(number) * 3));
        piece
    });
    std::iter::once(head).chain(shards).collect()
}

fn write(memory: &MemoryDisk, number: u64, last: Option<BatchLocation>) -> u64 {
    let mut writer = CheckpointWriter::begin(&memory.disk()).unwrap();
    pieces(last).iter().for_each(|piece| writer.write(piece).unwrap());
    writer.finish(number).unwrap()
}

fn load(memory: &MemoryDisk) -> Checkpoint {
    newest(&memory.disk(), &hasher()).unwrap()
}

#[test]
fn checkpoint_is_read_as_it_was_written() {
    let memory = MemoryDisk::default();
    for last in [Some(place(1)), Some(place(9)), None] {
        write(&memory, 1, last);
        let saved = load(&memory);
        assert_eq!((saved.number, saved.last, saved.snapshots), (1, last, (3, 77)));
        let shards = saved.shards.iter().map(|shard| (&shard.id, shard.shards, shard.epoch, shard.index.committed()));
        assert!(shards.eq([(&shard(0), 4, 5, 100), (&shard(1), 4, 6, 200)]));
        assert_eq!(saved.shards[0].snapshots, HashMap::new());
        assert_eq!(saved.shards[1].snapshots, snapshots(3));
    }
}

#[test]
fn checkpoint_is_durable_before_it_gets_its_name() {
    let memory = MemoryDisk::default();
    let lengths: Vec<usize> = pieces(None).iter().map(Vec::len).collect();
    let [head, first, second] = lengths[..] else { panic!("three pieces") };
    let all = head + first + second;
    assert_eq!(write(&memory, 12, None), all as u64);
    let calls = [
        "create index.new".to_owned(),
        format!("write index.new 0+{head}"),
        format!("write index.new {head}+{first}"),
        format!("write index.new {}+{second}", head + first),
        format!("write index.new {all}+4"),
        "sync index.new".to_owned(),
        "rename index.new index-0000000012".to_owned(),
        "sync".to_owned(),
        "names".to_owned(),
    ];
    assert_eq!(memory.take_calls(), calls);
}

#[test]
fn only_older_checkpoints_are_removed() {
    let memory = MemoryDisk::default();
    for name in ["index-0000000001", "index-0000000002", "index-0000000004", "indexes"] {
        memory.put(name, b"");
    }
    write(&memory, 3, None);
    assert_eq!(memory.names(), ["index-0000000003", "index-0000000004", "indexes"]);
}

#[test]
fn unusable_checkpoint_is_skipped_and_its_number_kept() {
    let memory = MemoryDisk::default();
    assert_eq!((load(&memory).number, load(&memory).shards.len()), (0, 0));
    write(&memory, 3, Some(place(5)));
    let older = memory.bytes("index-0000000003");
    write(&memory, 10, Some(place(8)));
    memory.put("index-0000000003", &older);
    let whole = memory.bytes("index-0000000010");
    assert_eq!(
        (load(&memory).number, load(&memory).last),
        (10, Some(place(8))),
        "the newest one, not the last by name"
    );
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 4;
        memory.put("index-0000000010", &damaged);
        assert_eq!((load(&memory).number, load(&memory).last), (10, Some(place(5))), "byte {at}");
    }
    memory.put("index-0000000010", &whole);
    memory.fail("open index-0000000010", ErrorKind::PermissionDenied);
    assert_eq!((load(&memory).number, load(&memory).last), (10, Some(place(5))));
    memory.fail("open", ErrorKind::PermissionDenied);
    assert_eq!((load(&memory).number, load(&memory).last), (10, None));
    memory.fail("names", ErrorKind::PermissionDenied);
    assert!(newest(&memory.disk(), &hasher()).is_err());
}

/// Returns the content with a valid checksum.
fn summed(mut content: Vec<u8>) -> Vec<u8> {
    let sum = crc32fast::hash(&content);
    content.extend_from_slice(&sum.to_le_bytes());
    content
}

#[test]
fn valid_checksum_makes_no_checkpoint() {
    let content = pieces(Some(place(1))).concat();
    assert!(read(&summed(content.clone()), &hasher()).is_ok());
    assert!(read(&summed(content.clone()), &StreamHasher::new(2)).is_err(), "another seed");
    assert!(read(&summed([&content[..], &[0]].concat()), &hasher()).is_err(), "trailing bytes");
    let mut other = content.clone();
    other[7] ^= 1;
    assert!(read(&summed(other), &hasher()).is_err(), "another version");
    for length in 0..content.len() {
        assert!(read(&summed(content[..length].to_vec()), &hasher()).is_err(), "cut to {length}");
    }
    assert!(read(b"abc", &hasher()).is_err());
}

#[test]
fn unfinished_checkpoint_is_removed_and_overwritten() {
    let memory = MemoryDisk::default();
    let mut writer = CheckpointWriter::begin(&memory.disk()).unwrap();
    writer.write(&[1; 5000]).unwrap();
    assert_eq!(memory.names(), ["index.new"]);
    write(&memory, 1, Some(place(1)));
    assert_eq!((memory.names(), load(&memory).last), (vec!["index-0000000001".to_owned()], Some(place(1))));
    drop(CheckpointWriter::begin(&memory.disk()).unwrap());
    remove_unfinished(&memory.disk());
    assert_eq!(memory.names(), ["index-0000000001"]);
}
