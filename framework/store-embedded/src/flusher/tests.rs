//! Tests of the flusher.

use std::io::ErrorKind;

use super::*;
use crate::EmbeddedStore;
use crate::tests::memory_disk::MemoryDisk;
use crate::tests::test_store::{append, bank, commit, kill, now, open, own, turns};
use bytes::Bytes;
use whizbang_core::store::Store as _;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn view(number: u32) -> View {
    View { schema: number, checkpoint: Vec::new(), bytes: Bytes::new() }
}

/// Returns the work that is due: none or maintenance, and whether it includes a checkpoint.
fn is_checkpoint_due(store: &EmbeddedStore) -> bool {
    match store.inner.flush_queue.take() {
        Some(Job::Maintain { checkpoint, .. }) => checkpoint,
        Some(_) => panic!("other work waits"),
        None => false,
    }
}

#[test]
fn view_has_one_owner_at_a_time() {
    let store = open(&MemoryDisk::default());
    let (one, two) = (name("One"), name("Two"));
    assert_eq!(
        [store.flusher.claim_view(&one), store.flusher.claim_view(&one), store.flusher.claim_view(&two)],
        [1, 2, 1]
    );
    let save = |projection: &Name, epoch, number| now(store.save_view(projection, epoch, view(number)));
    save(&one, 2, 5).unwrap();
    let refused = save(&one, 1, 6);
    assert!(matches!(refused, Err(StoreError::ViewTaken { mine: 1, current: 2, .. })), "{refused:?}");
    assert_eq!(now(store.view(&one)).unwrap(), Some(view(5)));
    // The caller is the owner since an earlier run.
    save(&name("Three"), 9, 7).unwrap();
    assert_eq!(store.flusher.claim_view(&name("Three")), 10);
}

#[test]
fn only_ids_of_committed_turns_leave_memory() {
    let store = open(&MemoryDisk::default());
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=3);
    append(&mut owner, "a", 4, 10);
    let committed = store.inner.write_buffer.committed();
    store.flusher.maintain_ids(&store.inner, true, None);
    let runs = &store.inner.ids;
    assert_eq!((runs.len(), runs.through()), (1, committed));
    let is_found = |number: u64| {
        let id = turn_id(number);
        now(owner.reader.find_turn(&name("Account"), "a", id)).unwrap().map(|turn| turn.number)
    };
    assert_eq!([1, 2, 3, 4].map(is_found), [Some(1), Some(2), Some(3), None]);
    let in_memory = |number: u64| {
        let shard = &store.inner.shards()[0];
        let state = shard.state.lock();
        let stream = state.index.stream("Account", "a");
        !state.index.turns_with_id(state.index.id(stream, turn_id(number))).is_empty()
    };
    store.step();
    assert_eq!([1, 2, 3, 4].map(is_found), [Some(1), Some(2), Some(3), Some(4)]);
    assert_eq!([1, 2, 3, 4].map(in_memory), [false, false, false, true]);
    store.flusher.maintain_ids(&store.inner, false, Some(Timestamp::from_millis(u64::MAX)));
    assert_eq!((runs.len(), [1, 4].map(is_found)), (0, [None, Some(4)]), "expired ids are dropped");
}

/// Returns the id of the message that a turn has handled.
fn turn_id(number: u64) -> whizbang_core::message::MessageId {
    crate::tests::test_store::turn("a", number, 1).write(|turn| turn.id)
}

#[test]
fn failed_run_keeps_the_ids_in_memory() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=1);
    memory.fail("sync ids", ErrorKind::StorageFull);
    store.flusher.maintain_ids(&store.inner, true, None);
    assert_eq!(store.inner.ids.len(), 0);
    assert!(now(owner.reader.find_turn(&name("Account"), "a", turn_id(1))).unwrap().is_some());
    memory.repair();
    store.flusher.maintain_ids(&store.inner, true, None);
    assert_eq!(store.inner.ids.len(), 1);
}

#[test]
fn failed_checkpoint_returns_half_of_the_growth() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=5);
    store.inner.flush_queue.take_growth();
    store.inner.flush_queue.return_growth(1001);
    memory.fail("rename index.new", ErrorKind::Other);
    store.checkpoint();
    assert_eq!(store.inner.flush_queue.growth(), 500);
    assert!(!memory.names().iter().any(|name| name.starts_with("index")), "the partial file is removed");
    memory.repair();
    store.checkpoint();
    assert_eq!(store.inner.flush_queue.growth(), 0);
    assert!(memory.names().contains(&"index-0000000001".to_owned()));
}

#[test]
fn next_checkpoint_is_due_after_a_multiple_of_its_size() {
    let memory = MemoryDisk::default();
    let config = crate::tests::test_store::small().checkpoint_bytes(600);
    let store = Arc::new(EmbeddedStore::open_on(memory.disk(), &config, Some(1)).unwrap());
    let mut owner = own(&store, 0);
    let due_after = |bytes: u64| {
        store.checkpoint();
        store.inner.flush_queue.add_growth(bytes - 1);
        assert!(!is_checkpoint_due(&store), "{bytes}");
        store.inner.flush_queue.add_growth(1);
        assert!(is_checkpoint_due(&store), "{bytes}");
    };
    // Without the checksum.
    let size = |number: u64| memory.bytes(&format!("index-{number:010}")).len() as u64 - 4;
    store.checkpoint();
    assert!(size(1) * CHECKPOINT_GROWTH < 600, "{}", size(1));
    due_after(600);
    for key in 0..60 {
        append(&mut owner, &format!("key-{key}"), 1, 10);
    }
    while store.inner.writer.lock().step() {}
    store.checkpoint();
    assert!(size(3) * CHECKPOINT_GROWTH > 600, "{}", size(3));
    due_after(size(3) * CHECKPOINT_GROWTH);
    let indexes: Vec<_> = memory.names().into_iter().filter(|name| name.starts_with("index")).collect();
    assert_eq!(indexes, ["index-0000000004"]);
}

#[test]
fn closing_writes_a_checkpoint_if_it_saves_time() {
    let config = crate::tests::test_store::small().checkpoint_bytes(1600);
    for (growth, is_written) in [(0, false), (99, false), (100, true), (1599, true)] {
        let memory = MemoryDisk::default();
        let store = EmbeddedStore::open_on(memory.disk(), &config, Some(1)).unwrap();
        store.inner.flush_queue.add_growth(growth);
        assert_eq!(store.flusher.should_checkpoint(&store.inner), is_written, "{growth}");
        now(store.close()).unwrap();
        assert_eq!(memory.names().contains(&"index-0000000001".to_owned()), is_written, "{growth}");
    }
}

#[test]
fn shard_whose_opening_is_not_durable_is_not_saved() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=2);
    store.inner.claim_shard(&bank(1), 4, 0).unwrap();
    store.checkpoint();
    let reopened = open(&kill(&memory));
    assert_eq!(reopened.inner.shards().len(), 1);
    assert_eq!(turns(&own(&reopened, 0), "a"), 2);
    store.step();
    store.checkpoint();
    assert_eq!(open(&kill(&memory)).inner.shards().len(), 2);
}

/// Returns the file, the live and the dead bytes of the snapshots, as the flusher counts them.
fn sizes(store: &EmbeddedStore) -> (u64, u64, u64) {
    let state = store.flusher.state.lock();
    (store.inner.snapshots.end().0, state.live, state.dead)
}

/// Returns the length of the stored snapshot of a stream, and its turn.
fn stored(store: &EmbeddedStore, key: &str) -> Option<(u64, u64)> {
    let shard = Arc::clone(&store.inner.shards()[0]);
    let stream = shard.state.lock().index.stream("Account", key);
    shard.stored.read().get(&stream).map(|stored| (stored.length, stored.turn))
}

#[test]
fn replaced_snapshots_are_counted_and_compacted() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    for key in ["a", "b"] {
        commit(&store, &mut owner, key, 1..=4);
    }
    let mut save = |key: &str, turn: u64| {
        owner.snapshot("Account", key, turn, b"a snapshot");
        store.step();
        stored(&store, key).unwrap().0
    };
    let (first, other) = (save("a", 1), save("b", 1));
    assert_eq!(sizes(&store), (1, first + other, 0));
    let second = save("a", 2);
    assert_eq!(sizes(&store), (1, second + other, first));
    // A limit is reached: nothing happens before it is exceeded.
    store.flusher.state.lock().dead = MAX_DEAD_BYTES - second;
    save("a", 3);
    assert_eq!(sizes(&store), (1, second + other, MAX_DEAD_BYTES));
    store.checkpoint();
    assert_eq!(sizes(&store).0, 1);
    save("b", 2);
    assert_eq!(sizes(&store), (2, second + other, 0));
    assert_eq!((stored(&store, "a").unwrap().1, stored(&store, "b").unwrap().1), (3, 2));
    let files: Vec<_> = memory.names().into_iter().filter(|name| name.starts_with("snapshots")).collect();
    assert_eq!(files, ["snapshots-0000000002"]);
    let reopened = open(&kill(&memory));
    assert_eq!(sizes(&reopened), (2, second + other, 0));
    let owner = own(&reopened, 0);
    for (key, turn) in [("a", 3), ("b", 2)] {
        let loaded = now(owner.load("Account", key));
        assert_eq!((loaded.snapshot.unwrap().turn, loaded.turns.len()), (turn, 4 - turn as usize));
    }
}

#[test]
fn live_snapshots_raise_the_limit_of_the_dead_ones() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=4);
    owner.snapshot("Account", "a", 1, b"one");
    store.step();
    let length = stored(&store, "a").unwrap().0;
    for (dead, file) in [(2 * MAX_DEAD_BYTES - length, 1), (2 * MAX_DEAD_BYTES, 2)] {
        *store.flusher.state.lock() = FlusherState { checkpoint: 9, live: 2 * MAX_DEAD_BYTES, dead };
        owner.snapshot("Account", "a", 2, b"two");
        store.step();
        assert_eq!(sizes(&store).0, file, "{dead}");
    }
}

#[test]
fn unreadable_snapshot_is_left_out_of_the_new_file() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=2);
    owner.snapshot("Account", "a", 1, b"one");
    store.step();
    store.flusher.state.lock().dead = MAX_DEAD_BYTES + 1;
    memory.fail("read snapshots-", ErrorKind::Other);
    store.checkpoint();
    memory.repair();
    assert_eq!((sizes(&store), stored(&store, "a")), ((2, 0, 0), None));
    assert_eq!(now(owner.load("Account", "a")).turns.len(), 2);
}

#[test]
fn snapshots_are_durable_before_their_checkpoint() {
    let memory = MemoryDisk::default();
    let store = open(&memory);
    let mut owner = own(&store, 0);
    commit(&store, &mut owner, "a", 1..=1);
    owner.snapshot("Account", "a", 1, b"one");
    store.step();
    memory.take_calls();
    store.checkpoint();
    let calls = memory.take_calls();
    let at = |call: &str| calls.iter().position(|found| found == call).unwrap_or_else(|| panic!("{call}: {calls:?}"));
    assert!(at("sync snapshots-0000000001") < at("rename index.new index-0000000001"));
    assert!(at("sync ids.new") < at("rename index.new index-0000000001"));
}
