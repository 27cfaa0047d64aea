//! Tests of the preallocation of segments.

use std::io::ErrorKind;
use std::thread;

use super::*;
use crate::EmbeddedStore;
use crate::segment::FIRST_OFFSET;
use crate::tests::memory_disk::MemoryDisk;
use crate::tests::test_log::TestLog;
use crate::tests::test_store::{bank, small, turn};
use whizbang_conformance::store::{Owner, run};
use whizbang_core::clock::{Clock, monotonic};
use whizbang_core::store::Store;

fn preallocator(log: &TestLog) -> (Preallocator, Arc<WriteBuffer>) {
    let segments = Arc::new(log.open());
    let buffer = WriteBuffer::new(log.segment(1), FIRST_OFFSET, None, NextSegment::Pending, "at".to_owned());
    let buffer = Arc::new(buffer);
    let salts = IdSource::seeded(Clock::system(), 1);
    (Preallocator::new(Arc::clone(&buffer), segments, small(), salts), buffer)
}

#[test]
fn next_segment_is_made_once() {
    let log = TestLog::new(&[4096]);
    let (preallocator, buffer) = preallocator(&log);
    log.disk.take_calls();
    assert!(preallocator.preallocate() && preallocator.preallocate());
    assert_eq!(log.disk.take_calls_of("create").len(), 1);
    assert!(buffer.has_spare() && log.disk.names().contains(&"log-0000000002".to_owned()));
}

#[test]
fn failed_creation_is_reported_to_appends() {
    let log = TestLog::new(&[4096]);
    let (preallocator, buffer) = preallocator(&log);
    let spare = || buffer.tail.lock().spare.clone();
    log.disk.fail("create", ErrorKind::PermissionDenied);
    assert!(!preallocator.preallocate());
    assert!(matches!(spare(), NextSegment::Failed(StoreError::Io { .. })));
    log.disk.repair();
    log.disk.set_size(Some(5000));
    assert!(!preallocator.preallocate());
    assert!(matches!(spare(), NextSegment::Failed(StoreError::Full { at }) if at == "at"));
    log.disk.set_size(None);
    assert!(preallocator.preallocate() && buffer.has_spare());
}

#[test]
fn attempts_after_a_failure_have_a_pause_between_them() {
    let log = TestLog::new(&[4096]);
    let (preallocator, buffer) = preallocator(&log);
    log.disk.fail("create", ErrorKind::Other);
    log.disk.take_calls();
    let request = || {
        buffer.tail.lock().segment_requested = true;
        buffer.segment_requested.notify_all();
    };
    thread::scope(|scope| {
        let running = scope.spawn(|| preallocator.run());
        let begun = monotonic();
        while log.disk.threads_of("create").len() < 2 {
            request();
            thread::yield_now();
        }
        let between = begun.elapsed();
        log.disk.repair();
        while !buffer.has_spare() {
            request();
            thread::yield_now();
        }
        buffer.close();
        running.join().unwrap();
        assert!(between >= PAUSE);
    });
}

#[test]
fn appends_leave_the_creation_to_its_thread() {
    let memory = MemoryDisk::default();
    let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open_on(memory.disk(), &small(), None).unwrap());
    memory.take_calls();
    run(async {
        let mut owner = Owner::take(&store, &bank(0)).await;
        for number in 1..=6 {
            owner.commit(&turn("a", number, 2500)).await;
        }
        memory.set_size(Some(0));
        // The next segment may exist already.
        let error = loop {
            match owner.try_commit(&turn("a", owner.reader.position() + 1, 2500)).await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, StoreError::Full { .. }), "{error}");
        assert!(matches!(&store.issues()[..], [StoreError::Full { .. }]));
        memory.set_size(None);
        let number = owner.reader.position() + 1;
        while owner.try_commit(&turn("a", number, 2500)).await.is_err() {
            tokio::task::yield_now().await;
        }
        assert!(store.issues().is_empty());
        store.close().await.unwrap();
    });
    let threads = memory.threads_of("create log.new");
    assert!(threads.len() > 3 && threads.iter().all(|thread| thread == "whizbang-alloc"), "{threads:?}");
}
