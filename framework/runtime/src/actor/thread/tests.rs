//! The context of a thread: refusals by time, what is in flight, closing, and the report of a failed store.

use super::super::tests::*;
use super::*;
use crate::actor::commits::CommitFailure;
use crate::router::{Action, SequenceTracker};
use futures_util::FutureExt as _;
use whizbang_core::store::{Source, SourceKind};

/// A tracker of a source that is at its start up to this sequence.
struct StartOf(u64);

impl SequenceTracker for StartOf {
    fn watermark_after(&self, _sequence: u64) -> u64 {
        0
    }

    fn mark_appended(&self, _sequence: u64) {}

    fn mark_known(&self, _sequence: u64) {}

    fn is_near_start(&self, sequence: u64) -> bool {
        sequence <= self.0
    }
}

const MILLI: Duration = Duration::from_millis(1);

#[test]
fn unanswered_messages_before_the_start_may_have_begun() {
    let (context, _) = context_at_start();
    let source = Rc::new(Source { shard: bank(1), kind: SourceKind::Direct });
    let sequence = |sequence| DedupKey::Sequence { source: Rc::clone(&source), sequence, tracker: Rc::new(StartOf(5)) };
    let begun = |envelope: &Envelope, key| {
        let delivery = Delivery::new(Action::Handle, envelope.clone(), key, Box::new(|_| {}));
        context.may_have_begun(&delivery)
    };
    let earlier = command(1, START.before(MILLI));
    let document = Envelope { kind: Kind::Document, ..earlier.clone() };
    let awaited = Envelope { deadline: Some(START), ..earlier.clone() };
    assert!(begun(&earlier, sequence(5)) && !begun(&earlier, sequence(6)));
    assert!(begun(&earlier, DedupKey::MessageId) && !begun(&awaited, DedupKey::MessageId));
    assert!(begun(&document, DedupKey::Internal) && !begun(&earlier, DedupKey::Internal));
    for time in [START, START.after(MILLI)] {
        let later = command(1, time);
        assert!(!begun(&later, sequence(1)) && !begun(&later, DedupKey::MessageId) && !context.predates_start(&later));
    }
}

#[test]
fn ids_are_refused_outside_of_their_time() {
    let (context, clock) = context_at_start();
    let id = context.ids.message_id_at(START);
    clock.set(START.after(REMEMBER));
    assert!(context.refuse_expired_id(id).is_none() && context.dedup_horizon() == START);
    clock.set(START.after(REMEMBER + MILLI));
    assert!(matches!(context.refuse_expired_id(id), Some(Outcome::Expired)));
    assert!(context.refuse_expired_id(MessageId::from_idempotency_key("bank", "a", "k")).is_none(), "without a time");
    let now = context.ids.clock().now();
    let made = |time| Envelope { id: context.ids.message_id_at(time), ..command(1, now) };
    assert!(context.refuse_new(&made(now.after(MAX_CLOCK_SKEW))).is_none());
    let refused = context.refuse_new(&made(now.after(MAX_CLOCK_SKEW + MILLI)));
    assert!(matches!(refused, Some(Outcome::IdInFuture)));
}

#[test]
fn command_is_late_behind_its_deadline() {
    let (context, clock) = context_at_start();
    let late = |deadline| context.refuse_new(&Envelope { deadline, ..command(1, START) });
    assert!(late(None).is_none() && late(Some(START)).is_none() && late(Some(START.after(MILLI))).is_none());
    clock.set(START.after(MILLI));
    assert!(matches!(late(Some(START)), Some(Outcome::Late)));
}

#[test]
fn guards_count_until_they_are_dropped() {
    let context = context();
    let shard = open(&context, 0);
    let counted = || {
        let (turns, jobs) = (context.in_flight.get(), context.jobs.get());
        assert_eq!((turns as u64, jobs as u64), (context.counts.in_flight.get(), context.counts.jobs.get()));
        assert_eq!(context.is_idle(), turns + jobs == 0);
        assert_eq!(shard.is_drained(), turns + jobs == 0);
        (turns, jobs, shard.in_flight.get(), context.is_alone())
    };
    assert_eq!(counted(), (0, 0, 0, false));
    let first = context.track_in_flight(&shard);
    assert_eq!(counted(), (1, 0, 1, true));
    let (second, third) = (context.track_in_flight(&shard), context.track_in_flight(&shard));
    let (job, other_job) = (context.track_job(&shard), context.track_job(&shard));
    assert_eq!(counted(), (3, 2, 5, false));
    drop(third);
    assert_eq!(counted(), (2, 2, 4, false));
    drop(second);
    drop(job);
    assert_eq!(counted(), (1, 1, 2, true));
    drop(first);
    assert_eq!(counted(), (0, 1, 1, false));
    drop(other_job);
    assert_eq!(counted(), (0, 0, 0, false));
}

#[test]
fn turn_before_an_open_commit_is_not_alone() {
    let context = context();
    let shard = open(&context, 0);
    let _turn = context.track_in_flight(&shard);
    context.after_ticket(&shard, 1, |_| {});
    assert!(!context.is_alone() && !shard.is_drained());
    context.commits.committed(1);
    assert!(context.complete_commits().now_or_never().is_none());
    assert!(context.is_alone());
}

#[test]
fn message_that_waits_for_the_store_keeps_its_bytes() {
    let context = context();
    let shard = open(&context, 0);
    let mut waiting = context.track_in_flight(&shard).holding(QueuedKind::Messages, 7);
    let bytes = || (context.queued.of(QueuedKind::Messages), context.queued.of(QueuedKind::Unrecorded));
    assert_eq!((bytes(), context.in_flight.get(), shard.in_flight.get()), ((7, 0), 1, 1));
    for _ in 0..2 {
        waiting.wait_unrecorded();
        assert_eq!((bytes(), context.in_flight.get(), shard.in_flight.get()), ((0, 7), 0, 0));
    }
    drop(waiting);
    assert_eq!((bytes(), context.in_flight.get(), shard.in_flight.get()), ((0, 0), 0, 0));
}

#[test]
fn waiting_tasks_wake_when_nothing_is_in_flight() {
    on_paused_time(async {
        let context = context();
        let (kept, moving) = (open(&context, 0), open(&context, 1));
        let (turn, job) = (context.track_in_flight(&moving), context.track_job(&kept));
        moving.begin_moving();
        let mut drained = Box::pin(context.idle.wait_until(|| moving.is_drained()));
        let mut idle = Box::pin(context.idle.wait_until(|| context.is_idle()));
        assert!((&mut drained).now_or_never().is_none() && (&mut idle).now_or_never().is_none());
        drop(turn);
        assert!((&mut drained).now_or_never().is_some(), "its last turn has ended");
        assert!((&mut idle).now_or_never().is_none());
        drop(job);
        assert!((&mut idle).now_or_never().is_some());
    });
}

#[test]
fn waiting_task_wakes_at_the_last_commit_of_a_moving_shard() {
    on_paused_time(async {
        let context = context();
        let moving = open(&context, 1);
        for ticket in [1, 2] {
            context.after_ticket(&moving, ticket, |_| {});
        }
        moving.begin_moving();
        let mut drained = Box::pin(context.idle.wait_until(|| moving.is_drained()));
        assert!((&mut drained).now_or_never().is_none());
        for (ticket, is_last) in [(1, false), (2, true)] {
            context.commits.committed(ticket);
            assert!(context.complete_commits().now_or_never().is_none());
            assert_eq!((&mut drained).now_or_never().is_some(), is_last);
        }
    });
}

#[test]
fn work_ends_when_its_shard_closes() {
    on_paused_time(async {
        let close: [fn(&ThreadContext, &OwnedShard); 3] = [
            |context, _| context.draining.set(true),
            |context, _| context.stopped.set(true),
            |_, shard| shard.begin_moving(),
        ];
        for close in close {
            let context = context();
            let (shard, other) = (open(&context, 0), open(&context, 1));
            let began = instant();
            Rc::clone(&context).sleep_unless_closing(Rc::clone(&shard), Duration::from_secs(3)).await;
            assert_eq!(began.elapsed(), Duration::from_secs(3));
            let mut sleeps = Box::pin(Rc::clone(&context).sleep_unless_closing(Rc::clone(&shard), REMEMBER));
            let mut closes = Box::pin(context.closes(&shard));
            assert!((&mut sleeps).now_or_never().is_none() && (&mut closes).now_or_never().is_none());
            context.drain_started.notify_waiters();
            assert!(
                (&mut sleeps).now_or_never().is_none() && (&mut closes).now_or_never().is_none(),
                "of another shard"
            );
            assert!(!context.is_closing(&shard));
            close(&context, &shard);
            context.drain_started.notify_waiters();
            assert!(context.is_closing(&shard));
            assert!((&mut sleeps).now_or_never().is_some() && (&mut closes).now_or_never().is_some());
            assert_eq!(context.is_closing(&other), !shard.is_leaving());
        }
    });
}

#[test]
fn dirty_shard_is_listed_once_until_it_is_taken() {
    let context = context();
    let (one, other) = (open(&context, 0), open(&context, 1));
    assert!(context.is_clean());
    for shard in [&one, &other, &one] {
        context.mark_dirty(shard);
    }
    assert!(!context.is_clean() && context.relay.notified().now_or_never().is_some());
    let taken: Vec<_> = context.take_dirty().iter().map(|shard| shard.id.shard).collect();
    assert_eq!((taken, context.is_clean()), (vec![0, 1], true));
    context.mark_dirty(&one);
    assert_eq!(context.take_dirty().len(), 1);
}

#[test]
fn panic_outside_of_user_code_reopens_the_shards() {
    let context = context();
    let error = context.report_panic(ACTOR_TASK, "planned");
    assert!(error_chain(&error).to_string().contains("planned"), "{error}");
    assert_eq!(context.panics.get(), 1);
    assert!(context.user_code.failed_tasks().iter().any(|task| task.contains("planned; reopening the shards")));
    assert!(context.commits.take_failure().is_some());
    context.panics_handled();
    assert_eq!(context.user_code.failed_tasks(), [""; 0]);
}

#[test]
fn panic_of_a_store_is_an_error_of_its_call() {
    let context = context();
    let panics = context.call_store("read", async { if true { panic!("planned") } else { Ok(1) } });
    assert!(matches!(panics.now_or_never(), Some(Err(StoreError::Io { .. }))));
    assert_eq!(context.user_code.failed_tasks().len(), 1);
    assert!(matches!(context.call_store("read", async { Ok(7) }).now_or_never(), Some(Ok(7))));
    assert_eq!(context.user_code.failed_tasks().len(), 0);
    let failed = context.call_store("read", async { Err::<(), _>(StoreError::Closed) }).now_or_never();
    assert!(matches!(failed, Some(Err(StoreError::Closed))));
}

#[test]
fn failing_store_is_reported_until_every_thread_commits() {
    on_paused_time(async {
        let shared = settings();
        let (one, other) = (context_of(shared.clone()), context_of(shared.clone()));
        one.report_append_error(&StoreError::Oversize { bytes: 2, limit: 1 });
        assert_eq!(shared.issues.reasons(), [""; 0], "it concerns one turn");
        for context in [&one, &one, &other] {
            context.report_append_error(&broken());
        }
        assert_eq!(shared.issues.reasons(), ["failed to commit: flushing failed: planned"]);
        one.report_commit();
        assert_eq!(shared.issues.reasons().len(), 1, "the other thread fails");
        other.reopening.set(true);
        other.report_commit();
        assert_eq!(shared.issues.reasons().len(), 1, "its shards are closed");
        other.reopening.set(false);
        other.report_commit();
        assert_eq!(shared.issues.reasons(), [""; 0]);
        other.report_commit();
        one.report_append_error(&broken());
        assert_eq!(shared.issues.reasons().len(), 1, "it fails again");
    });
}

#[test]
fn report_of_a_failed_store_ends_without_a_commit() {
    on_paused_time(async {
        let context = context();
        let reasons = || context.settings.issues.reasons().len();
        context.report_append_error(&broken());
        tokio::time::sleep(STORE_ISSUE_FOR / 2).await;
        context.report_append_error(&broken());
        tokio::time::sleep(STORE_ISSUE_FOR - MILLI).await;
        assert_eq!(reasons(), 1, "counted from the last failure");
        context.reopening.set(true);
        tokio::time::sleep(2 * MILLI).await;
        assert_eq!(reasons(), 1, "the shards are closed");
        context.reopening.set(false);
        tokio::time::sleep(STORE_ISSUE_FOR + MILLI).await;
        assert_eq!(reasons(), 0);
        // The task that watches has ended; the next failure starts another one.
        run_ready().await;
        context.report_append_error(&broken());
        assert_eq!(reasons(), 1);
        tokio::time::sleep(STORE_ISSUE_FOR + MILLI).await;
        assert_eq!(reasons(), 0);
    });
}

#[test]
fn fenced_append_closes_its_shard_alone() {
    on_paused_time(async {
        let context = context();
        let (lost, kept) = (open(&context, 0), open(&context, 1));
        let error = StoreError::Fenced { shard: lost.id.clone(), mine: lost.epoch(), current: lost.epoch() + 1 };
        context.report_append_error(&error);
        assert!(lost.is_lost() && kept.is_open() && context.settings.issues.reasons().is_empty());
        let Some(CommitFailure::Fenced(fences)) = context.complete_commits().now_or_never() else { panic!("no fence") };
        assert_eq!(fences.len(), 1);
        assert!(context.complete_commits().now_or_never().is_none(), "reported once");
    });
}
