//! Logs with valid checksums and arbitrary content are read or rejected without a panic.

mod golden;
pub(crate) mod memory_disk;
pub(crate) mod test_log;
pub(crate) mod test_store;

use std::fs;
use std::path::Path;

use proptest::prelude::*;

use self::test_log::frames_of;
use super::frame::{BATCH_BYTES, BatchHead, seal_frames};
use super::segment::{BatchLocation, FIRST_OFFSET, Segment, name};
use super::{EmbeddedConfig, EmbeddedStore, scan};
use whizbang_conformance::store::{RecordingListener, TurnBuilder, run};
use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{Store, StoreError};
use whizbang_log::record::write_opened;

const SIZE: u64 = 16 * 1024;
const SALT: u64 = 7;

fn shard() -> ShardId {
    ShardId::new(Name::new("bank").unwrap(), 0)
}

/// Writes a log of one batch with these frames, whose header has the given length.
fn write(folder: &Path, mut frames: Vec<u8>, length: Option<u32>) {
    fs::write(folder.join("whizbang"), "whizbang store\nformat 1\nseed 0000000000000001\n").unwrap();
    let segment = Segment { number: 1, start: 0, size: SIZE, salt: SALT };
    let mut bytes = segment.head();
    bytes.resize(FIRST_OFFSET as usize + BATCH_BYTES, 0);
    seal_frames(&mut frames, SALT, FIRST_OFFSET + BATCH_BYTES as u64);
    let length = length.unwrap_or(frames.len() as u32);
    BatchHead { number: 1, length }.write(&mut bytes[FIRST_OFFSET as usize..], SALT, FIRST_OFFSET);
    bytes.extend_from_slice(&frames);
    bytes.resize(SIZE as usize, 0);
    fs::write(folder.join(name(1)), bytes).unwrap();
}

/// Opens a store and reads everything. Returns whether no damage was found.
fn read(folder: &Path) -> bool {
    let read = run(async {
        let config = EmbeddedConfig::default().segment_bytes(SIZE);
        let store = EmbeddedStore::open_with(folder, &config)?;
        let reader = store.open(&shard(), 1, std::sync::Arc::new(RecordingListener::default())).await?.reader;
        reader.events(0, usize::MAX).await?;
        for (actor, key) in reader.streams().await? {
            reader.history(&actor, &key).await?;
        }
        for (to, ..) in reader.outbox_heads() {
            reader.outbox(&to, 0, usize::MAX).await?;
        }
        reader.dead_letters(None, usize::MAX).await?;
        store.close().await
    });
    match read {
        Ok(()) => true,
        Err(StoreError::Corrupt { .. } | StoreError::Shards { .. }) => false,
        Err(error) => panic!("{error}"),
    }
}

fn opened() -> Vec<u8> {
    let mut record = Vec::new();
    write_opened(&mut record, &shard(), 1, 0, 1);
    record
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn forged_records_are_read_or_refused(
        records in proptest::collection::vec((1u8..6, proptest::collection::vec(any::<u8>(), 0..80)), 0..8),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let hostile = records.into_iter().map(|(kind, rest)| [vec![1, kind, 0, 1], rest].concat());
        write(folder.path(), frames_of(&[vec![opened()], hostile.collect()].concat()), None);
        read(folder.path());
    }

    #[test]
    fn forged_frames_are_read_or_refused(
        frames in proptest::collection::vec(any::<u8>(), 0..300),
        length in proptest::option::of(any::<u32>()),
    ) {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), frames, length);
        read(folder.path());
    }
}

#[test]
fn log_with_valid_contents_is_read() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), frames_of(&[opened()]), None);
    assert!(read(folder.path()));
    // So the others are rejected because of their content.
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), frames_of(&[opened(), vec![1, 9, 0, 1]]), None);
    assert!(!read(folder.path()));
}

#[test]
fn false_lengths_allocate_no_memory() {
    for length in [u32::MAX, 1 << 31, SIZE as u32, 1] {
        let folder = tempfile::tempdir().unwrap();
        let mut frames = frames_of(&[opened()]);
        frames[..4].copy_from_slice(&length.to_le_bytes());
        write(folder.path(), frames, None);
        // This is indistinguishable from an unfinished batch.
        assert!(read(folder.path()), "{length}");
    }
}

#[test]
fn pages_of_a_log_have_every_record_once() {
    let folder = tempfile::tempdir().unwrap();
    let read: Result<(), StoreError> = run(async {
        let config = EmbeddedConfig::default().segment_bytes(SIZE);
        let store = EmbeddedStore::open_with(folder.path(), &config)?;
        let mut writer = store.open(&shard(), 1, std::sync::Arc::new(RecordingListener::default())).await?.writer;
        for number in 1..=400 {
            let turn = TurnBuilder::new("account", &format!("key{number}"), number).event("Deposited", "12");
            // Each is a batch of its own while flushes are fast.
            turn.write(|turn| writer.append_alone(turn))?;
        }
        store.close().await?;
        let segments = &store.inner.segments;
        let mut whole = Vec::new();
        scan::follow(segments, BatchLocation::FIRST, |location, _| {
            whole.push(location);
            Ok(())
        })?;
        let (mut paged, mut place, mut pages) = (Vec::new(), BatchLocation::FIRST, 1);
        loop {
            let (end, is_page) = scan::follow_page(segments, place, 1, |location, _| {
                paged.push(location);
                Ok(())
            })?;
            if !is_page {
                break;
            }
            (place, pages) = (end.place, pages + 1);
        }
        assert_eq!((paged.len(), paged), (401, whole));
        assert!(pages > 2 && segments.all().len() > 2, "{pages} pages");
        Ok(())
    });
    read.unwrap();
}
