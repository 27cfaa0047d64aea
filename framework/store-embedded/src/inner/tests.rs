//! Tests of the parts that threads share.

use std::io::ErrorKind;

use super::*;
use crate::EmbeddedStore;
use crate::tests::memory_disk::MemoryDisk;
use crate::tests::test_store::{append, bank, commit, now, open, own, small, turn, turns};
use whizbang_core::clock::Timestamp;
use whizbang_core::store::Store as _;

fn damage(file: &str, offset: u64) -> StoreError {
    StoreError::Corrupt { file: file.into(), offset, reason: "testing".to_owned() }
}

#[test]
fn each_damaged_place_is_remembered_once() {
    let store = open(&MemoryDisk::default());
    store.inner.record_damage(&StoreError::Closed);
    assert!(store.issues().is_empty());
    for _ in 0..3 {
        store.inner.record_damage(&damage("one", 1));
        LogSource::record_damage(&*store.inner, &damage("one", 2));
        store.inner.record_damage(&damage("two", 1));
    }
    assert_eq!(store.issues().len(), 3);
    (10..22).for_each(|offset| store.inner.record_damage(&damage("one", offset)));
    assert_eq!(store.issues().len(), 15);
    (30..40).for_each(|offset| store.inner.record_damage(&damage("one", offset)));
    assert_eq!(store.issues().len(), MAX_KNOWN_ISSUES);
    let found = store.issues();
    assert!(matches!(&found[15], StoreError::Corrupt { offset: 30, .. }), "the first ones are kept");
}

#[test]
fn epochs_rise_above_all_earlier_ones() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let claim = |number: u16, above: Epoch| store.inner.claim_shard(&bank(number), 4, above).unwrap().1;
    assert_eq!([claim(0, 0), claim(0, 0), claim(0, 10), claim(0, 3), claim(0, 12)], [1, 2, 11, 12, 13]);
    assert_eq!([claim(3, 7), claim(3, 0)], [8, 9]);
    store.step();
    let reopened = open(&memory.copy());
    let claim = |number: u16| reopened.inner.claim_shard(&bank(number), 4, 0).unwrap();
    assert_eq!([claim(0).1, claim(3).1, claim(1).1], [14, 10, 1]);
    assert_eq!(claim(3).0.tag, 1, "its number in the log stays");
    assert_eq!(reopened.inner.shards().len(), 3);
}

#[test]
fn wrong_numbers_of_shards_change_nothing() {
    let store = open(&MemoryDisk::default());
    for (number, shards) in [(4, 4), (5, 4), (0, 0)] {
        let refused = store.inner.claim_shard(&bank(number), shards, 0).map(drop);
        assert!(matches!(refused, Err(StoreError::Shards { .. })), "{number} of {shards}");
    }
    assert!(store.inner.shards().is_empty() && store.inner.write_buffer.is_idle());
    store.inner.claim_shard(&bank(3), 4, 0).unwrap();
    for shards in [3, 5, 8] {
        let refused = store.inner.claim_shard(&bank(0), shards, 0).map(drop);
        assert!(matches!(refused, Err(StoreError::Shards { found: 4, wanted, .. }) if wanted == shards));
    }
    assert_eq!(store.inner.shards().len(), 1);
    store.inner.claim_shard(&bank(0), 4, 0).unwrap();
}

#[test]
fn largest_turn_just_fits_into_a_segment() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    // A segment without its header, the headers of a batch and a frame, and a mark.
    let most = 4096 - 512 - 24 - 8 - 24;
    assert_eq!(store.inner.largest_turn(), most);
    let bound = |length: usize| turn("a", 1, length).write(whizbang_log::record::turn_bound);
    let length = (0..most).rfind(|length| bound(*length) == most).unwrap();
    let refused = owner.append(&turn("a", 1, length + 1));
    assert!(matches!(refused, Err(StoreError::Oversize { bytes, limit }) if (bytes, limit) == (most + 1, most)));
    for number in 1..=3 {
        append(&mut owner, "a", number, length);
        store.step();
    }
    let reopened = open(&memory.copy());
    assert_eq!(turns(&own(&reopened, 0), "a"), 3);
}

#[test]
fn threads_of_actors_write_while_flushes_are_fast() {
    let stepped = open(&MemoryDisk::default());
    let threads = EmbeddedStore::open_on(MemoryDisk::default().disk(), &small(), None).unwrap();
    for slow in [false, true] {
        stepped.inner.write_buffer.set_slow(slow);
        threads.inner.write_buffer.set_slow(slow);
        assert_eq!(stepped.inner.write_mode(), WriteMode::Inline);
        assert_eq!(threads.inner.write_mode(), if slow { WriteMode::Thread } else { WriteMode::Inline });
    }
}

#[test]
fn turn_alone_is_written_by_its_thread() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    for number in 1..=3 {
        let appended = owner.append_alone(&turn("a", number, 10)).unwrap();
        assert!(appended.committed);
        assert_eq!(owner.listener.through(), appended.ticket);
    }
    // Another thread is writing: it is woken instead.
    let writer = store.inner.writer.lock();
    let appended = owner.append_alone(&turn("a", 4, 10)).unwrap();
    assert!(!appended.committed);
    drop(writer);
    store.step();
    assert_eq!((owner.listener.through(), turns(&owner, "a")), (appended.ticket, 4));
    memory.fail("sync log-", ErrorKind::Other);
    let appended = owner.append_alone(&turn("a", 5, 10)).unwrap();
    assert!(!appended.committed && owner.listener.error().is_some());
    assert!(owner.append_alone(&turn("a", 6, 10)).is_err());
    assert_eq!(turns(&owner, "a"), 4);
}

#[test]
fn ids_are_unknown_unless_all_are_indexed() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let ids = &store.inner.ids;
    ids.write(vec![(IdHash(1, 2), 77)], 100, Timestamp::from_millis(1)).unwrap();
    assert_eq!(store.inner.older_turns(IdHash(1, 2)), Some(vec![77]));
    assert_eq!(store.inner.older_turns(IdHash(1, 3)), Some(Vec::new()));
    memory.fail("read ids-", ErrorKind::Other);
    assert_eq!(store.inner.older_turns(IdHash(1, 2)), None, "the stream is read instead");
    memory.repair();
    ids.reset(100);
    assert_eq!(store.inner.older_turns(IdHash(1, 2)), None);
    ids.reset(0);
    assert_eq!(store.inner.older_turns(IdHash(1, 2)), Some(Vec::new()));
}

#[test]
fn reads_run_on_their_own_thread_if_there_is_one() {
    let (sender, receiver) = mpsc::channel();
    let job = |sender: &mpsc::Sender<Option<String>>| -> ReadJob {
        let sender = sender.clone();
        Box::new(move || sender.send(std::thread::current().name().map(str::to_owned)).unwrap())
    };
    let stepped = open(&MemoryDisk::default());
    assert!(stepped.inner.spawn_read(job(&sender)).is_some(), "the caller runs it");
    let threads = EmbeddedStore::open_on(MemoryDisk::default().disk(), &small(), None).unwrap();
    assert!(threads.inner.spawn_read(job(&sender)).is_none());
    assert_eq!(receiver.recv().unwrap().as_deref(), Some("whizbang-read"));
    assert_eq!(threads.inner.long_reads().unwrap().available_permits(), crate::pages::LONG_READS);
}

#[test]
fn snapshot_that_finds_no_place_is_dropped() {
    let store = open(&MemoryDisk::default());
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=1);
    owner.snapshot("Account", "a", 1, b"one");
    let shard = Arc::clone(&store.inner.shards()[0]);
    assert_eq!(shard.state.lock().pending.len(), 1, "it waits to be written");
    store.step();
    assert_eq!((shard.state.lock().pending.len(), shard.stored.read().len()), (0, 1));
    store.inner.flush_queue.stop();
    owner.snapshot("Account", "a", 1, b"two");
    assert!(shard.state.lock().pending.is_empty());
    assert_eq!(now(owner.load("Account", "a")).snapshot.unwrap().bytes, "one");
}

#[test]
fn committed_snapshots_of_all_shards_are_enqueued() {
    let store = open(&MemoryDisk::default());
    let mut owners = [own(&store, 0), own(&store, 1)];
    for owner in &mut owners {
        append(owner, "a", 1, 10);
        owner.snapshot("Account", "a", 1, b"one");
    }
    store.inner.enqueue_all_snapshots();
    assert!(store.inner.flush_queue.take().is_none(), "their turns are not committed");
    while store.inner.writer.lock().step() {}
    store.inner.enqueue_all_snapshots();
    store.flusher.step(&store.inner);
    let stored: Vec<_> = store.inner.shards().iter().map(|shard| shard.stored.read().len()).collect();
    assert_eq!(stored, [1, 1]);
}
