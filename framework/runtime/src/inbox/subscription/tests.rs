//! Tests of a subscription; the test plays its owner and subscribers.

mod fixture;

use bytes::Bytes;

use super::super::queued_bytes::MAX_QUEUED_BYTES;
use super::*;
use crate::inbox::QueuedKind;
use fixture::*;

#[test]
fn source_without_subscribers_is_not_read() {
    run(async {
        let all = Fixture::new(&[]);
        all.source.advance_head(5);
        all.source.start_filling();
        turn().await;
        assert!(all.questions() == 0 && all.source.is_idle() && all.source.is_suspended());
    });
}

#[test]
fn event_is_settled_after_its_last_subscriber() {
    run(async {
        let (all, some, none) = (Taken::new(3, ""), Taken::new(9, "bank"), Taken::new(5, "other"));
        let test = Fixture::new(&[some.clone(), all.clone(), none.clone()]);
        test.live(event(4));
        assert_eq!((all.positions(), some.positions(), none.positions()), (vec![4], vec![4], vec![]));
        assert!(!test.source.is_idle());
        some.finish();
        assert!(test.settled().is_empty() && !test.source.is_idle());
        all.finish();
        assert_eq!(test.settled(), [4]);
        assert!(test.source.is_idle());
        assert_eq!(test.source.unstored().iter().map(|(.., watermark)| *watermark).collect::<Vec<_>>(), [9, 3, 5]);
        let nowhere = Envelope { origin: None, ..event(0) };
        test.live(nowhere);
        assert_eq!((test.settled(), all.positions()), (vec![0], vec![]));
        assert_eq!(test.questions(), 0);
    });
}

#[test]
fn events_in_flight_are_bounded_in_count() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        let most = IN_FLIGHT as u64;
        test.log_reaches(most + 3);
        (1..=most + 1).for_each(|position| test.live(event(position)));
        turn().await;
        assert_eq!(subscriber.positions().len(), IN_FLIGHT);
        subscriber.finish();
        turn().await;
        assert_eq!(subscriber.positions().len(), IN_FLIGHT);
        (0..5).for_each(|_| subscriber.finish());
        turn().await;
        assert_eq!(subscriber.positions().last(), Some(&(most + 3)));
    });
}

#[test]
fn events_in_flight_are_bounded_in_bytes() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        let large = |position| Envelope { payload: Bytes::from(vec![0; MAX_BYTES / 2]), ..event(position) };
        *test.owner.log.borrow_mut() = (1..=6).map(large).collect();
        test.source.advance_head(6);
        turn().await;
        assert_eq!(subscriber.positions(), [1, 2]);
        for last in 3..=6 {
            subscriber.finish();
            turn().await;
            assert_eq!(subscriber.positions(), [last - 1, last]);
        }
        test.live(large(7));
        turn().await;
        assert_eq!(subscriber.positions(), [5, 6], "live events respect the bound too");
    });
}

#[test]
fn gap_is_read_from_the_log_in_pages() {
    run(async {
        let subscriber = Taken::new(2, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        let last = 2 + 2 * PAGE as u64;
        test.log_reaches(last + 1);
        test.live(event(last + 1));
        test.live(event(last));
        assert_eq!(test.monitor.counts.gaps.get(), 1);
        assert!(!test.source.is_idle());
        turn().await;
        assert_eq!(subscriber.positions(), (3..=last + 1).collect::<Vec<_>>());
        let asked: Vec<_> = test.owner.asked.borrow().iter().map(|(after, most, _)| (*after, *most)).collect();
        assert_eq!(asked[..2], [(2, PAGE), (2 + PAGE as u64, PAGE)]);
        assert!(asked.len() <= 3, "{asked:?}");
        (3..=last + 1).for_each(|_| subscriber.finish());
        assert!(test.source.is_idle());
    });
}

#[test]
fn silent_owner_is_asked_again() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        test.log_reaches(2);
        test.owner.silent.set(2);
        test.source.advance_head(2);
        turn().await;
        assert_eq!((test.questions(), subscriber.positions()), (1, vec![]));
        pass(Duration::from_secs(60)).await;
        pass(Duration::from_secs(60)).await;
        assert_eq!((test.questions(), subscriber.positions()), (3, vec![1, 2]));
        // The first wait is short, and each is longer than the one before.
        let asked = test.owner.asked.borrow();
        assert!(asked[1].2 > asked[0].2 && asked[2].2 > asked[1].2);
    });
}

#[test]
fn paused_subscription_settles_and_dispatches_nothing() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        test.live(event(1));
        test.live(event(3));
        assert!(test.settled().is_empty());
        test.source.pause();
        assert_eq!(test.settled(), [3]);
        test.live(event(2));
        assert_eq!((test.settled(), subscriber.positions()), (vec![2], vec![1]));
        test.source.advance_head(8);
        turn().await;
        assert!(test.questions() == 0 && test.source.is_idle());
    });
}

#[test]
fn suspended_subscription_resumes_after_reopening() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        test.live(event(1));
        test.source.suspend();
        assert!(test.source.is_suspended() && test.source.is_idle());
        test.live(event(2));
        assert_eq!((test.settled(), subscriber.positions()), (vec![2], vec![1]));
        test.source.reopen();
        test.source.set_subscribers(vec![Box::new(Taken { watermark: 1, ..subscriber.clone() })]);
        assert!(!test.source.is_suspended());
        // Events in flight when it was suspended no longer count.
        test.live(event(2));
        subscriber.finish();
        assert!(!test.source.is_idle());
        subscriber.finish();
        assert!(test.source.is_idle());
    });
}

#[test]
fn old_positions_are_checked_at_a_bounded_rate() {
    run(async {
        let subscriber = Taken::new(5, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        test.log_reaches(5);
        // Not remembered, so it may differ from the dispatched event.
        test.live(event(4));
        turn().await;
        assert_eq!((test.settled(), test.questions(), test.monitor.counts.duplicates.get()), (vec![4], 2, 1));
        (0..10).for_each(|_| test.live(event(4)));
        test.source.advance_head(3);
        turn().await;
        assert_eq!(test.questions(), 2);
        pass(CHECK_INTERVAL + Duration::from_millis(1)).await;
        test.source.advance_head(3);
        turn().await;
        assert_eq!(test.questions(), 4);
        assert!(test.source.is_idle() && test.issues.reasons().is_empty());
        // Neither a remembered event nor the last position is in doubt.
        test.live(event(6));
        pass(CHECK_INTERVAL + Duration::from_millis(1)).await;
        test.live(event(6));
        test.source.advance_head(6);
        turn().await;
        assert_eq!(test.questions(), 4);
    });
}

#[test]
fn owner_with_diverged_log_is_not_read() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        *test.owner.log.borrow_mut() = vec![other(1), other(2)];
        test.live(event(1));
        test.live(event(1));
        subscriber.finish();
        assert_eq!(test.monitor.counts.events_dropped.get(), 0);
        test.live(other(1));
        test.live(event(2));
        assert_eq!((test.settled(), test.monitor.counts.events_dropped.get()), (vec![1, 1, 1], 1));
        turn().await;
        assert_eq!((test.settled(), subscriber.positions()), (vec![2], vec![]));
        assert!(test.source.is_suspended() && test.source.is_idle());
        assert_eq!(test.issues.reasons().len(), 1);
        test.live(event(2));
        assert_eq!((test.settled(), subscriber.positions()), (vec![2], vec![]));
        // The log is restored; the owner is asked after a while at the latest.
        test.log_reaches(2);
        pass(CHECK_INTERVAL).await;
        pass(Duration::from_secs(31)).await;
        assert_eq!(subscriber.positions(), [2]);
        assert!(!test.source.is_suspended() && test.issues.reasons().is_empty());
    });
}

/// Nothing needs the events, so health does not report their log.
#[test]
fn suspended_subscription_leaves_no_report() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        *test.owner.log.borrow_mut() = vec![other(1)];
        test.live(event(1));
        subscriber.finish();
        test.live(other(1));
        turn().await;
        assert_eq!(test.issues.reasons().len(), 1);
        test.source.suspend();
        assert!(test.issues.reasons().is_empty(), "{:?}", test.issues.reasons());
    });
}

#[test]
fn activity_of_diverged_owner_triggers_a_check() {
    run(async {
        for told_by_event in [true, false] {
            let subscriber = Taken::new(3, "");
            let test = Fixture::new(std::slice::from_ref(&subscriber));
            test.log_reaches(2);
            test.source.advance_head(2);
            turn().await;
            assert!(test.source.is_suspended());
            let before = test.questions();
            pass(CHECK_INTERVAL).await;
            assert_eq!(test.questions(), before);
            test.log_reaches(4);
            if told_by_event {
                test.live(event(4));
            } else {
                test.source.advance_head(4);
            }
            turn().await;
            assert!(!test.source.is_suspended());
            assert_eq!(subscriber.positions(), [4]);
        }
    });
}

#[test]
fn claims_above_the_log_are_checked_at_a_bounded_rate() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        test.log_reaches(1);
        test.live(event(9));
        turn().await;
        assert_eq!((subscriber.positions(), test.settled()), (vec![1], vec![9]));
        assert_eq!((test.questions(), test.monitor.counts.events_dropped.get()), (1, 1));
        subscriber.finish();
        assert!(test.source.is_idle());
        test.source.advance_head(8);
        turn().await;
        assert_eq!(test.questions(), 1);
        pass(CHECK_INTERVAL + Duration::from_millis(1)).await;
        assert!(test.questions() == 2 && test.source.is_idle());
    });
}

/// The claimed head was above the event before the request, so the event itself raises nothing.
#[test]
fn forged_event_that_arrives_during_a_request_is_dropped() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        let (source, settled) = (Rc::clone(&test.source), Rc::clone(&test.settled));
        let arrival = move || source.event(other(1 << 40), Box::new(move || settled.borrow_mut().push(1 << 40)));
        test.owner.meanwhile.set(Some(Box::new(arrival)));
        test.source.advance_head(u64::MAX);
        turn().await;
        assert_eq!((test.questions(), test.settled()), (1, vec![]), "the next request waits");
        pass(CHECK_INTERVAL + Duration::from_millis(1)).await;
        assert_eq!((test.questions(), test.settled()), (2, vec![1 << 40]));
        assert_eq!(test.monitor.counts.events_dropped.get(), 1);
        assert!(test.source.is_idle() && subscriber.positions().is_empty());
    });
}

#[test]
fn held_event_is_replaced_by_the_logged_one() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        test.log_reaches(3);
        test.live(other(2));
        test.live(event(3));
        turn().await;
        assert_eq!((subscriber.positions(), test.settled()), (vec![1, 2, 3], vec![2, 3]));
        assert_eq!(test.monitor.counts.events_dropped.get(), 1);
    });
}

#[test]
fn event_acknowledged_before_its_commit_is_read_from_the_log() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        (0..2).for_each(|_| test.live(event(1)));
        assert_eq!((test.settled(), subscriber.positions()), (vec![1], vec![1]), "the broker forgets it");
        // The process ends before the commit.
        let restarted = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&restarted));
        test.log_reaches(1);
        test.source.start_filling();
        turn().await;
        assert_eq!(restarted.positions(), [1]);
    });
}

#[test]
fn full_thread_leaves_events_in_the_log() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        test.queued.add(QueuedKind::Messages, MAX_QUEUED_BYTES);
        test.log_reaches(3);
        (1..=3).for_each(|sequence| test.live(event(sequence)));
        turn().await;
        assert_eq!(subscriber.positions(), [1], "one is always in flight");
        for next in 2..=3 {
            subscriber.finish();
            turn().await;
            assert_eq!(subscriber.positions(), [next], "only its own events wake it up");
        }
    });
}

#[test]
fn held_events_respect_the_in_flight_bound() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        test.owner.silent.set(usize::MAX);
        let most = IN_FLIGHT as u64;
        (1..most).for_each(|position| test.live(event(position)));
        test.live(event(most + 1));
        test.live(event(most));
        assert_eq!(subscriber.positions().len(), IN_FLIGHT);
        // The next settled event frees one slot.
        subscriber.finish();
        test.live(event(most + 2));
        assert_eq!(subscriber.positions().len(), IN_FLIGHT - 1);
        assert!(!test.source.is_idle());
    });
}

#[test]
fn forged_events_trigger_checks_at_a_bounded_rate() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        test.log_reaches(1);
        test.live(event(1));
        test.live(other(1));
        turn().await;
        // One request checks the log, one reads on.
        assert_eq!(test.questions(), 2);
        for round in 2..5 {
            (0..10).for_each(|_| test.live(other(1)));
            turn().await;
            assert_eq!(test.questions(), 2 * (round - 1));
            pass(CHECK_INTERVAL + Duration::from_millis(1)).await;
            assert_eq!(test.questions(), 2 * round);
        }
        assert!(test.issues.reasons().is_empty());
        assert_eq!(test.monitor.counts.events_dropped.get(), 31);
    });
}

#[test]
fn log_shorter_than_dispatched_has_diverged() {
    run(async {
        let subscriber = Taken::new(5, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        test.log_reaches(2);
        test.live(event(9));
        turn().await;
        assert!(test.source.is_suspended());
        assert_eq!((test.settled(), test.issues.reasons().len()), (vec![9], 1));
    });
}

#[test]
fn short_pages_are_followed_by_more_requests() {
    run(async {
        let subscriber = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&subscriber));
        test.log_reaches(5);
        test.owner.short.set(Some(2));
        test.source.advance_head(5);
        turn().await;
        assert_eq!((subscriber.positions(), test.questions()), (vec![1, 2, 3, 4, 5], 3));
        // An owner that withholds announced events is not asked endlessly.
        test.log_reaches(8);
        test.owner.short.set(Some(0));
        test.source.advance_head(8);
        turn().await;
        assert_eq!((subscriber.positions().len(), test.questions()), (5, 4));
        assert!(!test.source.is_idle());
    });
}
