//! Tests of send windows in isolation: entries in flight, notes and confirmations.

mod forwarding;
mod progress;

use super::*;
use whizbang_core::message::Name;

#[test]
fn entries_on_their_way_are_bounded_in_count_and_bytes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut window = SendWindow::from(0);
        (1..=4).for_each(|sequence| window.offer(sequence, MAX_BYTES / 4));
        assert_eq!(window.room(), 0);
        window.commit(1);
        assert_eq!(window.room(), WINDOW - 3);
        window.restart();
        assert_eq!((window.room(), window.offered), (WINDOW, 1));
        (2..).take(WINDOW as usize).for_each(|sequence| window.offer(sequence, 0));
        assert_eq!(window.room(), 0);
    });
}

#[test]
fn false_note_discards_no_entry() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let windows = SendWindows::new(Arc::default());
        let to = ShardId::new(Name::from_static("bank").unwrap(), 3);
        let mut window = SendWindow::from(0);
        (1..=9).for_each(|sequence| window.offer(sequence, 1));
        windows.windows.borrow_mut().insert(to.clone(), window);
        assert_eq!(windows.committed(&to, 7, || 9), ConfirmationCheck::Advanced);
        assert_eq!(
            (windows.unconfirmed_note(&to), windows.unstored(1)),
            (Some(7), vec![]),
            "a note alone is not stored"
        );
        assert_eq!(
            (windows.begin_confirming(&to), windows.begin_confirming(&to)),
            (Some(7), None),
            "one request at a time"
        );
        assert_eq!(windows.committed(&to, 9, || 9), ConfirmationCheck::Advanced);
        assert!(!windows.confirm(&to, 8, 7), "9 was noted after the request");
        assert_eq!((windows.unconfirmed_note(&to), windows.unstored(1)), (Some(9), vec![(to.clone(), 8)]));
        assert!(windows.confirm(&to, 8, 9));
        let windows = windows.windows.borrow();
        assert!(windows.get(&to).is_some_and(|window| (window.committed, window.offered) == (8, 8)), "9 is sent again");
    });
}

#[test]
fn accepted_entries_are_queried_and_refused_ones_resent() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let windows = SendWindows::new(Arc::default());
        let to = ShardId::new(Name::from_static("bank").unwrap(), 3);
        let mut window = SendWindow::from(0);
        (1..=9).for_each(|sequence| window.offer(sequence, 10));
        windows.windows.borrow_mut().insert(to.clone(), window);
        let look = |windows: &SendWindows| {
            let found = windows.check_stalled(|_| true, |_| {});
            (found.restarted, found.to_query.into_iter().map(|(_, sent)| sent).collect::<Vec<_>>())
        };
        assert_eq!(look(&windows), (false, vec![]), "it may still arrive");
        tokio::time::sleep(FIRST_RETRY).await;
        assert_eq!(look(&windows), (false, vec![9]));
        tokio::time::sleep(LONGEST_RETRY).await;
        assert_eq!(look(&windows), (false, vec![]), "one request at a time");
        assert!(!windows.answered(&to, 0) && windows.answered(&to, 1));
        for refused in [7, 5, 6] {
            windows.refused(&to, refused);
        }
        tokio::time::sleep(LONGEST_RETRY).await;
        assert_eq!(look(&windows), (true, vec![]));
        let offered =
            |windows: &SendWindows| windows.windows.borrow().get(&to).map(|window| (window.offered, window.bytes));
        assert_eq!(offered(&windows), Some((4, 40)));
        windows.refused(&to, 3);
        assert_eq!(windows.committed(&to, 3, || 9), ConfirmationCheck::Advanced);
        tokio::time::sleep(LONGEST_RETRY).await;
        assert_eq!(look(&windows), (false, vec![4]), "committed entries are no longer refused");
        windows.answered(&to, 0);
        windows.query_soon(&to);
        assert_eq!(look(&windows), (false, vec![4]), "queried at once on request");
    });
}

#[test]
fn stalled_window_is_reported_once_until_it_resumes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let windows = SendWindows::new(Arc::default());
        let to = ShardId::new(Name::from_static("bank").unwrap(), 3);
        windows.windows.borrow_mut().insert(to.clone(), SendWindow::from(0));
        let mut reported = 0;
        for claimed in [2, 4] {
            for _ in 0..20 {
                if let Some(window) = windows.windows.borrow_mut().get_mut(&to) {
                    window.offered = 9;
                }
                tokio::time::sleep(LONGEST_RETRY).await;
                windows.restart_stalled(|_| true, |_| reported += 1);
            }
            assert_eq!(windows.committed(&to, claimed, || 9), ConfirmationCheck::Resumed);
            assert_eq!(windows.committed(&to, claimed + 1, || 9), ConfirmationCheck::Advanced);
        }
        assert_eq!(reported, 2, "once each time");
    });
}

/// Windows with one to shard 3, in which 1 to `offered` are in flight.
fn windows(offered: u64) -> (Rc<SendWindows>, ShardId) {
    let windows = SendWindows::new(Arc::default());
    let to = ShardId::new(Name::from_static("bank").unwrap(), 3);
    let mut window = SendWindow::from(0);
    (1..=offered).for_each(|sequence| window.offer(sequence, 1));
    windows.windows.borrow_mut().insert(to.clone(), window);
    (windows, to)
}

fn on_paused_time(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test);
}

#[test]
fn only_sent_entries_can_be_committed() {
    on_paused_time(async {
        let (windows, to) = windows(5);
        let other = ShardId::new(Name::from_static("bank").unwrap(), 4);
        assert_eq!(windows.committed(&other, 3, || 3), ConfirmationCheck::Unchanged);
        assert_eq!(windows.committed(&other, 4, || 3), ConfirmationCheck::Impossible);
        assert_eq!(windows.committed(&to, 3, || 9), ConfirmationCheck::Advanced);
        assert_eq!(windows.committed(&to, 3, || 9), ConfirmationCheck::Unchanged);
        assert_eq!(windows.committed(&to, 10, || 9), ConfirmationCheck::Impossible);
        assert_eq!(
            windows.committed(&to, 9, || 9),
            ConfirmationCheck::Advanced,
            "it has fetched more than was forwarded"
        );
        assert!(windows.has(&to) && !windows.has(&other));
    });
}

#[test]
fn windows_are_drained_when_all_is_committed() {
    on_paused_time(async {
        let (windows, to) = windows(5);
        let head = |done, head| [(to.clone(), done, head)];
        assert!(!windows.is_idle(&head(0, 5)));
        assert!(windows.is_idle(&head(5, 5)), "the store knows more than the window");
        windows.committed(&to, 4, || 5);
        assert!(!windows.is_idle(&head(0, 5)) && windows.is_idle(&head(0, 4)));
    });
}

#[test]
fn watermarks_are_stored_in_steps() {
    on_paused_time(async {
        let (windows, to) = windows(9);
        windows.confirm(&to, 3, 0);
        assert!(windows.unstored(4).is_empty());
        assert_eq!(windows.unstored(3), [(to.clone(), 3)]);
        assert!(windows.unstored(0).is_empty());
        windows.confirm(&to, 4, 0);
        assert_eq!(windows.unstored(0), [(to, 4)]);
    });
}

#[test]
fn stalled_window_restarts_after_its_retry_delay() {
    on_paused_time(async {
        let (windows, to) = windows(2);
        let look = || windows.restart_stalled(|_| true, |_| {});
        let began = instant();
        assert_eq!(windows.next_retry(|_| true), Some(began + FIRST_RETRY));
        assert_eq!(windows.next_retry(|_| false), None);
        assert_eq!(look(), (false, Some(began + FIRST_RETRY)));
        tokio::time::advance(FIRST_RETRY).await;
        assert_eq!(look(), (true, Some(began + FIRST_RETRY * 3)), "the retry delay doubles");
        assert_eq!(windows.next_retry(|_| true), None, "nothing is in flight");
        // A note of the destination about entries that were not just sent.
        windows.windows.borrow_mut().get_mut(&to).unwrap().offer(1, 1);
        windows.restart_if_stalled(&to);
        assert_eq!(windows.next_retry(|_| true), None);
        windows.windows.borrow_mut().get_mut(&to).unwrap().offer(1, 1);
        windows.restart_if_stalled(&to);
        assert!(windows.next_retry(|_| true).is_some(), "it was just restarted");
    });
}

#[test]
fn stopped_window_ignores_notes_until_it_resumes() {
    on_paused_time(async {
        let (windows, to) = windows(5);
        windows.stop(&to);
        assert_eq!(windows.committed(&to, 3, || 5), ConfirmationCheck::Unchanged);
        assert_eq!(windows.begin_confirming(&to), None, "the task that stopped it keeps asking");
        windows.end_confirming(&to);
        assert_eq!(windows.begin_confirming(&to), Some(0));
        assert!(windows.resume(&to) && !windows.resume(&to));
        assert_eq!(windows.committed(&to, 3, || 5), ConfirmationCheck::Advanced);
        assert_eq!((windows.unconfirmed(), windows.unconfirmed_note(&to)), (vec![to.clone()], Some(3)));
        windows.confirm(&to, 3, 3);
        assert_eq!((windows.unconfirmed(), windows.unconfirmed_note(&to)), (vec![], None));
    });
}

/// A refused window is not read again for each attempt, only its first entry.
#[test]
fn refused_entry_is_sent_alone_until_it_is_accepted() {
    on_paused_time(async {
        let (windows, to) = windows(9);
        let window = |windows: &SendWindows| {
            windows.windows.borrow().get(&to).map(|window| (window.offered, window.room())).unwrap()
        };
        for _ in 0..3 {
            (5..=9).for_each(|sequence| windows.refused(&to, sequence));
            tokio::time::sleep(LONGEST_RETRY).await;
            assert!(windows.check_stalled(|_| true, |_| {}).restarted);
            assert_eq!(window(&windows), (4, 1), "one entry");
            windows.windows.borrow_mut().get_mut(&to).unwrap().offer(5, 1);
            assert_eq!(window(&windows), (5, 0));
        }
        assert!(!windows.accepted(&to, 4), "an earlier one");
        assert_eq!(window(&windows), (5, 0));
        assert!(windows.accepted(&to, 5) && !windows.accepted(&to, 5), "the others follow at once");
        assert_eq!(window(&windows), (5, WINDOW - 5));
        windows.refused(&to, 5);
        tokio::time::sleep(LONGEST_RETRY).await;
        windows.check_stalled(|_| true, |_| {});
        assert_eq!(windows.committed(&to, 5, || 9), ConfirmationCheck::Advanced);
        assert_eq!(window(&windows), (5, WINDOW), "a committed entry was accepted");
    });
}
