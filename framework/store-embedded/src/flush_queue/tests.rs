//! Tests of the queue of flushes.

use super::*;
use whizbang_core::message::ShardId;
use whizbang_log::index::{Index, StreamHasher};

fn queue() -> FlushQueue {
    FlushQueue::new(0, 100)
}

fn shard() -> Arc<Shard> {
    let id = ShardId::new(name(), 0);
    Arc::new(Shard::new(id, 1, 0, 0, 1, Index::new(StreamHasher::new(1))))
}

fn name() -> Name {
    Name::new("Balances").unwrap()
}

fn view() -> View {
    View { schema: 1, checkpoint: Vec::new(), bytes: bytes::Bytes::new() }
}

fn stream(number: usize) -> Stream {
    Stream::from_halves(number as u64, 0)
}

/// Returns the maintenance that is due: ids, ids to drop, checkpoint.
fn maintenance(queue: &FlushQueue) -> Option<(bool, Option<Timestamp>, bool)> {
    match queue.take()? {
        Job::Maintain { write_ids, forget, checkpoint } => Some((write_ids, forget, checkpoint)),
        Job::Snapshot(..) | Job::View(..) => panic!("maintenance was expected"),
    }
}

const CHECKPOINT: Option<(bool, Option<Timestamp>, bool)> = Some((false, None, true));

#[test]
fn checkpoint_is_due_once_at_its_threshold() {
    let queue = queue();
    for (bytes, due) in [(60, false), (39, false), (1, true), (1, false), (10, false), (900, false)] {
        queue.add_growth(bytes);
        assert_eq!(maintenance(&queue), CHECKPOINT.filter(|_| due), "{bytes} bytes, {} so far", queue.growth());
    }
    assert_eq!((queue.growth(), queue.take_growth(), queue.growth()), (1011, 1011, 0));
    queue.set_threshold(200);
    queue.add_growth(150);
    assert_eq!(maintenance(&queue), None);
    queue.add_growth(51);
    assert_eq!(maintenance(&queue), CHECKPOINT, "it is passed as well as reached");
}

#[test]
fn returned_growth_makes_a_checkpoint_due_earlier() {
    let queue = FlushQueue::new(30, 100);
    assert_eq!(queue.take_growth(), 30);
    queue.return_growth(70);
    assert_eq!((queue.growth(), maintenance(&queue)), (70, None), "it requests nothing");
    queue.add_growth(29);
    assert_eq!(maintenance(&queue), None);
    queue.add_growth(1);
    assert_eq!(maintenance(&queue), CHECKPOINT);
    queue.request_checkpoint();
    assert_eq!(maintenance(&queue), CHECKPOINT);
}

#[test]
fn snapshots_beyond_the_limit_are_refused() {
    let (queue, shard) = (queue(), shard());
    for number in 0..MAX_QUEUED_SNAPSHOTS {
        assert!(queue.enqueue_snapshot(&shard, stream(number)), "{number}");
    }
    assert!(!queue.enqueue_snapshot(&shard, stream(0)));
    // A view does not count as a snapshot.
    let _saved = queue.enqueue_view(&name(), 1, view());
    for number in 0..2 {
        assert!(matches!(queue.take(), Some(Job::Snapshot(_, found)) if found == stream(number)), "oldest first");
        assert!(queue.enqueue_snapshot(&shard, stream(5000 + number)), "there is room for one");
        assert!(!queue.enqueue_snapshot(&shard, stream(0)));
    }
    for number in 2..MAX_QUEUED_SNAPSHOTS {
        assert!(matches!(queue.take(), Some(Job::Snapshot(_, found)) if found == stream(number)));
    }
    assert!(matches!(queue.take(), Some(Job::View(found, 1, ..)) if found == name()));
    assert!(matches!(queue.take(), Some(Job::Snapshot(_, found)) if found == stream(5000)));
    assert!(matches!(queue.take(), Some(Job::Snapshot(_, found)) if found == stream(5001)));
    assert!(queue.take().is_none());
    assert!(queue.enqueue_snapshot(&shard, stream(1)));
}

#[test]
fn maintenance_comes_after_snapshots_and_views() {
    let (queue, time) = (queue(), Timestamp::from_millis(7));
    queue.forget_ids(time);
    queue.request_checkpoint();
    assert!(queue.enqueue_snapshot(&shard(), stream(1)));
    assert!(matches!(queue.take(), Some(Job::Snapshot(..))));
    assert_eq!(maintenance(&queue), Some((false, Some(time), true)));
    assert_eq!(maintenance(&queue), None, "each request is done once");
    queue.forget_ids(time);
    assert_eq!(maintenance(&queue), Some((false, Some(time), false)));
}

#[test]
fn ids_are_written_when_enough_are_in_memory() {
    let queue = queue();
    for _ in 1..IDS_IN_MEMORY {
        queue.count_id();
    }
    assert_eq!(maintenance(&queue), None);
    queue.count_id();
    assert_eq!(maintenance(&queue), Some((true, None, false)));
    for _ in 1..IDS_IN_MEMORY {
        queue.count_id();
    }
    queue.reset_ids();
    queue.count_id();
    assert_eq!(maintenance(&queue), None, "the count starts again");
}

#[test]
fn stopped_queue_does_its_work_and_accepts_no_more() {
    let (queue, shard) = (queue(), shard());
    let mut saved = queue.enqueue_view(&name(), 1, view());
    queue.stop();
    let mut refused = queue.enqueue_view(&name(), 2, view());
    assert!(matches!(refused.try_recv(), Ok(Err(StoreError::Closed))));
    assert!(!queue.enqueue_snapshot(&shard, stream(1)));
    assert!(queue.wait());
    assert!(saved.try_recv().is_err(), "it is not done yet");
    let Some(Job::View(_, 1, _, sender)) = queue.take() else { panic!("the view waits") };
    sender.send(Ok(())).unwrap();
    assert!(matches!(saved.try_recv(), Ok(Ok(()))));
    assert!(!queue.wait() && queue.take().is_none());
}

#[test]
fn each_kind_of_work_ends_a_wait() {
    let shard = shard();
    type AddWork<'a> = Box<dyn Fn(&FlushQueue) + Sync + 'a>;
    let kinds: [(&str, AddWork<'_>); 5] = [
        ("snapshot", Box::new(|queue| assert!(queue.enqueue_snapshot(&shard, stream(1))))),
        ("view", Box::new(|queue| drop(queue.enqueue_view(&name(), 1, view())))),
        ("checkpoint", Box::new(FlushQueue::request_checkpoint)),
        ("ids to drop", Box::new(|queue| queue.forget_ids(Timestamp::from_millis(1)))),
        ("ids to write", Box::new(|queue| (0..IDS_IN_MEMORY).for_each(|_| queue.count_id()))),
    ];
    for (kind, add) in kinds {
        let queue = queue();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.wait());
            add(&queue);
            assert!(waiting.join().unwrap(), "{kind}");
        });
        assert!(queue.wait() && queue.take().is_some() && queue.take().is_none(), "{kind}");
        queue.stop();
        assert!(!queue.wait(), "{kind}");
    }
}
