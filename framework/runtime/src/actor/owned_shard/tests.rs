//! The phases of an opened shard, and its timers.

use futures_util::FutureExt as _;

use super::super::tests::*;
use super::*;
use whizbang_core::store::{Source, SourceKind, Store as _};
use whizbang_log::memory::MemoryStore;

fn phase(shard: &OwnedShard) -> (bool, bool, bool, bool) {
    (shard.is_open(), shard.is_leaving(), shard.is_lost(), shard.is_reopening())
}

#[test]
fn shard_leaves_when_it_moves_and_when_it_is_lost() {
    let context = context();
    let shard = open(&context, 0);
    assert_eq!(phase(&shard), (true, false, false, false));
    assert!(matches!(shard.stopped_outcome(), Outcome::Stopped));
    shard.begin_moving();
    assert_eq!((phase(&shard), shard.generation.get()), ((false, true, false, false), 0));
    assert!(matches!(shard.stopped_outcome(), Outcome::Moved));
    for _ in 0..2 {
        shard.lose();
        assert_eq!((phase(&shard), shard.generation.get()), ((false, true, true, false), 1), "counted once");
    }
    shard.begin_moving();
    assert_eq!(phase(&shard), (false, true, true, false), "it stays lost");
    assert!(matches!(shard.unfinished_outcome(false), Outcome::Moved));
    assert!(matches!(shard.unfinished_outcome(true), Outcome::Unknown(StoreError::Closed)));
}

#[test]
fn reopened_shard_has_another_writer() {
    let (store, context) = (MemoryStore::new(), context());
    let shard = open_in(&store, &context, 0);
    let first = shard.epoch();
    shard.begin_reopening();
    assert_eq!(phase(&shard), (false, false, false, true));
    {
        let mut writer = shard.writer.borrow_mut();
        let source = Source { shard: bank(1), kind: SourceKind::Direct };
        assert!(matches!(writer.advance(&Watermark { source, through: 1 }), Err(StoreError::Closed)));
        assert!(matches!(writer.sent(&bank(1), 1), Err(StoreError::Closed)));
        assert_eq!((writer.epoch(), shard.epoch()), (first, first));
    }
    let handle = store.open(&bank(0), 2, Arc::clone(&context.commits) as _).now_or_never().unwrap().unwrap();
    let second = handle.writer.epoch();
    assert_ne!(first, second);
    shard.reopen(handle);
    assert_eq!(
        (phase(&shard), shard.epoch(), shard.writer.borrow().epoch()),
        ((true, false, false, false), second, second)
    );
}

#[test]
fn shard_is_drained_once_nothing_is_left() {
    let context = context();
    let shard = open(&context, 0);
    for count in [&shard.in_flight, &shard.pending_commits, &shard.singletons] {
        assert!(shard.is_drained());
        count.set(1);
        assert!(!shard.is_drained());
        count.set(0);
    }
    assert!(shard.is_drained());
}

#[test]
fn timer_loop_wakes_for_earlier_timers_only() {
    let context = context();
    let shard = open(&context, 0);
    let at = Timestamp::from_millis;
    // The due time, whether the loop is woken, and the earliest time set since it has looked.
    for (due, wakes, earliest) in [(50, true, 50), (50, false, 50), (60, false, 50), (49, true, 49)] {
        shard.schedule_timer(at(due), &context.timers);
        assert_eq!(context.timers.notified().now_or_never().is_some(), wakes, "{due}");
        assert_eq!(shard.next_timer.get(), Some(at(due.min(earliest))));
        assert_eq!(shard.earliest_set_timer.get(), Some(at(earliest)));
    }
    // The loop has looked, and knows a later one.
    shard.earliest_set_timer.set(None);
    shard.next_timer.set(Some(at(100)));
    shard.schedule_timer(at(90), &context.timers);
    assert_eq!((shard.next_timer.get(), shard.earliest_set_timer.get()), (Some(at(90)), Some(at(90))));
}

#[test]
fn events_are_relayed_to_subscribers_and_watching_clients() {
    let (store, context) = (MemoryStore::new(), context());
    for is_subscribed in [false, true] {
        let handle = store.open(&bank(0), 2, Arc::clone(&context.commits) as _).now_or_never().unwrap().unwrap();
        let shard = OwnedShard::new(bank(0), handle, is_subscribed);
        assert_eq!(shard.relays_events(), is_subscribed);
        let flag = Arc::new(AtomicBool::new(false));
        shard.watched_by(Arc::clone(&flag));
        assert_eq!(shard.relays_events(), is_subscribed);
        flag.store(true, Ordering::Relaxed);
        assert!(shard.relays_events());
    }
}
