//! Tests of stores that are opened for reading.

use std::fs;

use super::*;
use crate::frame::BATCH_BYTES;
use crate::segment::FIRST_OFFSET;
use crate::tests::memory_disk::MemoryDisk;
use crate::tests::test_log::TestLog;
use crate::tests::test_store::{append, append_all, bank, commit, now, own, small, turn, turns};
use whizbang_conformance::store::Owner;
use whizbang_core::store::Store;

/// Opens a store that works only when it is stepped.
fn open(path: &Path) -> Arc<EmbeddedStore> {
    let folder: Arc<dyn Disk> = Arc::new(Folder::new(path).unwrap());
    Arc::new(EmbeddedStore::open_on(folder, &small(), Some(1)).unwrap())
}

fn read(path: &Path) -> (u64, bool) {
    let store = ReadOnlyStore::open(path).unwrap();
    (store.read(&bank(0)).map_or(0, |reader| reader.position()), store.was_in_use())
}

/// Removes the mark at the end of the log.
fn remove_mark(store: &EmbeddedStore, path: &Path) {
    let buffer = &store.inner.write_buffer;
    let segment = store.inner.segments.at(buffer.committed() - 1).unwrap();
    let end = (buffer.committed() - segment.start) as usize;
    let file = path.join(segment.name());
    let mut bytes = fs::read(&file).unwrap();
    assert!(bytes[end..end + BATCH_BYTES].iter().any(|byte| *byte != 0), "there is a mark");
    bytes[end..end + BATCH_BYTES].fill(0);
    fs::write(file, bytes).unwrap();
}

#[test]
fn last_batch_needs_a_proof_while_a_process_writes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let store = open(path);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=3);
    assert_eq!(read(path), (3, true), "a mark proves that the last batch is durable");
    remove_mark(&store, path);
    assert_eq!(read(path), (2, true));
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    assert_eq!(read(copy.path()), (3, false), "the next opening keeps it");
    // A checkpoint includes only what is durable.
    store.checkpoint();
    assert_eq!(read(path), (3, true));
    append(&mut owner, "a", 4, 10);
    assert_eq!(read(path), (3, true), "it is not written yet");
    store.step();
    assert_eq!(read(path), (4, true));
    remove_mark(&store, path);
    assert_eq!(read(path), (3, true));
    drop(owner);
    now(store.close()).unwrap();
    assert_eq!(read(path), (4, false));
}

#[test]
fn everything_durable_is_read_after_the_end_of_a_process() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=60);
    store.checkpoint();
    commit(&store, &mut owner, "b", 1..=10);
    owner.snapshot("Account", "a", 60, b"state");
    store.step();
    drop(owner);
    now(store.close()).unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let store = EmbeddedStore::read_only(folder.path()).unwrap();
    assert!(!store.was_in_use() && store.read(&bank(1)).is_none());
    let reader = store.read(&bank(0)).unwrap();
    let actor = Name::new("Account").unwrap();
    assert_eq!(reader.position(), 70);
    assert_eq!(now(reader.history(&actor, "a")).unwrap().len(), 60);
    let loaded = now(reader.load(&actor, "a")).unwrap();
    assert_eq!((loaded.snapshot, loaded.turns.len()), (None, 60), "without snapshots");
    let find = |number: u64| now(reader.find_turn(&actor, "a", turn("a", number, 1).write(|turn| turn.id))).unwrap();
    assert_eq!([1, 30, 60].map(|number| find(number).unwrap().number), [1, 30, 60]);
    assert!(find(61).is_none());
    assert_eq!(store.view(&actor).unwrap(), None);
    assert!(format!("{store:?}").contains(&folder.path().display().to_string()));
    assert_eq!(names(), before);
}

#[test]
fn long_streams_are_read_page_by_page() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut owner = own(&store, 0);
    append_all(&mut owner, "a", 1..=300);
    store.step();
    let read = EmbeddedStore::read_only(folder.path()).unwrap();
    let mut pages = now(read.read(&bank(0)).unwrap().pages(&Name::new("Account").unwrap(), "a", true)).unwrap();
    assert_eq!([now(pages.next()).unwrap().len(), now(pages.next()).unwrap().len()], [44, 256]);
}

#[test]
fn reader_rejects_every_change() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "kept").unwrap();
    let disk = ReadOnlyFolder(Folder::at(folder.path()));
    let changes = [
        disk.lock().map(drop),
        disk.create("file").map(drop),
        disk.rename("file", "other"),
        disk.remove("file"),
        Disk::sync(&disk),
        disk.open("file").unwrap().write_at(b"x", 0),
    ];
    assert!(changes.iter().all(Result::is_err), "{changes:?}");
    disk.unlock();
    assert_eq!((disk.names().unwrap(), disk.path("file")), (vec!["file".to_owned()], folder.path().join("file")));
    assert_eq!(crate::disk::read_all(&disk, "file").unwrap(), b"kept");
}

#[test]
fn unreadable_checkpoints_are_tried_a_few_times() {
    let hasher = StreamHasher::new(1);
    let memory = MemoryDisk::default();
    let tries = || {
        memory.take_calls();
        let saved = newest(&memory.disk(), &hasher).unwrap();
        (memory.take_calls_of("names").len(), saved.last)
    };
    assert_eq!(tries(), (1, None), "there is none");
    memory.put("index-0000000003", b"unreadable");
    assert_eq!(tries(), (CHECKPOINT_TRIES, None), "it may just be replaced");
    let mut bytes = Vec::new();
    let last = BatchLocation { segment: 1, offset: 512, batch: 1 };
    checkpoint::encode_head(&mut bytes, &hasher, Some(last), (0, 0), 0);
    let mut writer = checkpoint::CheckpointWriter::begin(&memory.disk()).unwrap();
    writer.write(&bytes).unwrap();
    writer.finish(4).unwrap();
    assert_eq!(tries(), (1, Some(last)));
}

#[test]
fn damage_and_missing_parts_are_refused() {
    let log = TestLog::new(&[4096, 4096]);
    let second = log.batch(1, FIRST_OFFSET, 1, &[b"one".to_vec()]);
    let end = log.batch(1, second, 2, &[b"two".to_vec()]);
    let read = |from| read_to_end(&log.disk.disk(), from).map(|(_, end)| end.place);
    let place = |offset, batch| BatchLocation { segment: 1, offset, batch };
    assert_eq!(read(BatchLocation::FIRST).unwrap(), place(end, 3));
    assert_eq!(read(place(second, 2)).unwrap(), place(end, 3));
    let short = read(place(end, 3));
    assert!(
        matches!(&short, Err(StoreError::Corrupt { reason, .. }) if reason.starts_with("the log ends")),
        "{short:?}"
    );
    log.head(1, end, 2, 0);
    log.put(1, second + 34, &[0]);
    let damaged = read(BatchLocation::FIRST);
    assert!(matches!(&damaged, Err(StoreError::Corrupt { offset, .. }) if *offset == second), "{damaged:?}");
    assert_eq!(
        read_to_end(&TestLog::new(&[]).disk.disk(), BatchLocation::FIRST).unwrap().1.place,
        BatchLocation::FIRST
    );
}

#[test]
fn reader_beside_an_idle_owner_sees_all_shards() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut owners: Vec<Owner> = (0..3).map(|number| own(&store, number)).collect();
    for (owner, count) in owners.iter_mut().zip(1..) {
        commit(&store, owner, "a", 1..=count);
    }
    let read = EmbeddedStore::read_only(folder.path()).unwrap();
    for (owner, number) in owners.iter().zip(0..) {
        let reader = read.read(&bank(number)).unwrap();
        assert_eq!((reader.position(), turns(owner, "a")), (u64::from(number) + 1, usize::from(number) + 1));
    }
}
