//! Progress of windows: commits, refusals, retries and stalls, at their boundaries.

use super::*;
use whizbang_core::message::Name;

fn bank(shard: u16) -> ShardId {
    ShardId::new(Name::from_static("bank").unwrap(), shard)
}

/// Adds a window in which 1 to `offered` are in flight.
fn add_window(windows: &SendWindows, to: &ShardId, offered: u64) {
    let mut window = SendWindow::from(0);
    (1..=offered).for_each(|sequence| window.offer(sequence, 1));
    windows.windows.borrow_mut().insert(to.clone(), window);
}

/// Returns the last sequences forwarded and committed.
fn state(windows: &SendWindows, to: &ShardId) -> (u64, u64) {
    windows.windows.borrow().get(to).map(|window| (window.offered, window.committed)).unwrap()
}

#[test]
fn commit_frees_the_bytes_of_committed_entries() {
    on_paused_time(async {
        let mut window = SendWindow::from(0);
        [10, 20, 30].iter().zip(1..).for_each(|(bytes, sequence)| window.offer(sequence, *bytes));
        for (through, bytes) in [(0, 60), (1, 50), (2, 30), (2, 30), (3, 0)] {
            window.commit(through);
            assert_eq!((window.bytes, window.offered, window.committed), (bytes, 3, through));
        }
    });
}

#[test]
fn commit_clears_refusal_and_probe_once_it_reaches_them() {
    on_paused_time(async {
        let mut window = SendWindow::from(0);
        (1..=9).for_each(|sequence| window.offer(sequence, 1));
        (window.refused, window.probe) = (Some(7), Some(7));
        window.commit(6);
        assert_eq!((window.refused, window.probe), (Some(7), Some(7)));
        window.commit(7);
        assert_eq!((window.refused, window.probe), (None, None));
    });
}

#[test]
fn only_an_answer_below_its_note_shows_exaggeration() {
    on_paused_time(async {
        let (windows, to) = windows(9);
        windows.committed(&to, 9, || 9);
        assert!(!windows.confirm(&to, 8, 8), "the note was true when it was sent");
        assert_eq!((state(&windows, &to), windows.confirmed(&to)), ((9, 9), 8));
        assert!(!windows.confirm(&to, 9, 9));
        assert!(!windows.confirm(&to, 8, 9), "an old answer, overtaken by that to a later request");
        assert_eq!((state(&windows, &to), windows.confirmed(&to)), ((9, 9), 9));
    });
}

#[test]
fn refusal_of_a_committed_entry_is_ignored() {
    on_paused_time(async {
        let (windows, to) = windows(9);
        windows.committed(&to, 3, || 9);
        windows.refused(&to, 3);
        tokio::time::sleep(FIRST_RETRY).await;
        let found = windows.check_stalled(|_| true, |_| {});
        assert_eq!((found.restarted, found.to_query), (false, vec![(to, 9)]));
    });
}

#[test]
fn note_up_to_the_last_sent_entry_needs_no_read() {
    on_paused_time(async {
        let (windows, to) = windows(5);
        tokio::time::advance(FIRST_RETRY / 2).await;
        assert_eq!(windows.committed(&to, 4, || panic!("the head is not needed")), ConfirmationCheck::Advanced);
        assert_eq!(windows.next_retry(|_| true), Some(instant() + FIRST_RETRY), "progress begins the delay again");
        assert_eq!(windows.committed(&to, 5, || panic!("the head is not needed")), ConfirmationCheck::Advanced);
        assert_eq!((windows.next_retry(|_| true), windows.confirmed(&to)), (None, 0));
    });
}

#[test]
fn retry_on_request_is_skipped_if_entries_were_just_sent() {
    on_paused_time(async {
        let next = |windows: &SendWindows| windows.next_retry(|_| true);
        for (waited, is_soon) in [(749, false), (750, true)].map(|(ms, soon)| (Duration::from_millis(ms), soon)) {
            let (queried, to) = windows(2);
            let (restarted, _) = windows(2);
            let first = instant() + FIRST_RETRY;
            queried.query_soon(&to);
            restarted.restart_if_stalled(&to);
            assert_eq!((next(&queried), next(&restarted)), (Some(first), Some(first)), "just sent");
            tokio::time::advance(FIRST_RETRY).await;
            for windows in [&queried, &restarted] {
                windows.check_stalled(|_| true, |_| {});
            }
            let due = instant() + 2 * FIRST_RETRY;
            assert_eq!((next(&queried), next(&restarted)), (Some(due), Some(due)));
            // From a quarter of a second before it is due, it would be due soon without a request.
            tokio::time::advance(waited).await;
            queried.query_soon(&to);
            restarted.restart_if_stalled(&to);
            let expected = if is_soon { (Some(due), Some(due)) } else { (Some(instant()), None) };
            assert_eq!((next(&queried), next(&restarted)), expected, "{waited:?}");
        }
    });
}

#[test]
fn checks_concern_matching_destinations_in_flight() {
    on_paused_time(async {
        let (windows, to) = windows(2);
        let (other, idle) = (bank(4), bank(5));
        add_window(&windows, &other, 7);
        add_window(&windows, &idle, 0);
        let began = instant();
        windows.query_all_soon(|shard| *shard == other || *shard == idle);
        let next = |to: &ShardId| windows.next_retry(|shard| shard == to);
        assert_eq!((next(&to), next(&other), next(&idle)), (Some(began + FIRST_RETRY), Some(began), None));
        let found = windows.check_stalled(|shard| *shard != to, |_| {});
        assert_eq!((found.to_query, found.next), (vec![(other.clone(), 7)], Some(began + 2 * FIRST_RETRY)));
        tokio::time::advance(FIRST_RETRY).await;
        assert_eq!(windows.restart_stalled(|shard| *shard == idle, |_| {}), (false, None));
        let next = Some(began + 2 * FIRST_RETRY);
        assert_eq!(windows.restart_stalled(|shard| *shard == other, |_| {}), (false, next), "not due yet");
        assert_eq!(windows.restart_stalled(|shard| *shard == to, |_| {}), (true, Some(began + 3 * FIRST_RETRY)));
        assert_eq!((state(&windows, &to), state(&windows, &other)), ((0, 0), (7, 0)));
    });
}

#[test]
fn windows_restart_alone_or_together() {
    on_paused_time(async {
        let (windows, to) = windows(5);
        add_window(&windows, &bank(4), 6);
        windows.committed(&to, 2, || 5);
        windows.restart(&to);
        assert_eq!((state(&windows, &to), state(&windows, &bank(4))), ((2, 2), (6, 0)));
        windows.restart_all();
        assert_eq!(state(&windows, &bank(4)), (0, 0));
    });
}

#[test]
fn moved_destination_is_sent_to_without_delay() {
    on_paused_time(async {
        let (windows, to) = windows(2);
        assert!(!windows.reroute(&bank(4)));
        tokio::time::advance(FIRST_RETRY).await;
        windows.restart_stalled(|_| true, |_| {});
        add_window(&windows, &bank(5), 2);
        windows.stop(&bank(5));
        assert!(windows.reroute(&to) && !windows.reroute(&bank(5)));
        windows.windows.borrow_mut().get_mut(&to).unwrap().offer(1, 1);
        assert_eq!(windows.next_retry(|_| true), Some(instant() + FIRST_RETRY));
        assert!(windows.reroute(&to));
        assert_eq!(state(&windows, &to), (0, 0));
    });
}

/// Looks at a window whenever it is due. Returns the times of the first looks in milliseconds, each with the number of reports.
async fn looks(mut look: impl FnMut(&SendWindows, &mut dyn FnMut(&ShardId)) -> Option<Instant>) -> Vec<(u128, u32)> {
    let (windows, to) = windows(1);
    let (began, mut all) = (instant(), Vec::new());
    let mut next = windows.next_retry(|_| true);
    while let Some(due) = next.filter(|_| all.len() < 8) {
        tokio::time::sleep_until(due).await;
        let mut reports = 0;
        next = look(&windows, &mut |stalled| {
            assert_eq!(*stalled, to);
            reports += 1;
        });
        all.push(((instant() - began).as_millis(), reports));
        windows.windows.borrow_mut().get_mut(&to).unwrap().offered = 1;
    }
    all
}

#[test]
fn stall_is_reported_once_after_the_longest_delay() {
    on_paused_time(async {
        let expected = [500, 1500, 3500, 7500, 15_500, 25_500, 35_500, 45_500].map(|at| (at, u32::from(at == 25_500)));
        assert_eq!(looks(|windows, stalled| windows.check_stalled(|_| true, stalled).next).await, expected);
        assert_eq!(looks(|windows, stalled| windows.restart_stalled(|_| true, stalled).1).await, expected);
    });
}

#[test]
fn forgotten_windows_name_those_that_were_reported() {
    on_paused_time(async {
        let (windows, to) = windows(5);
        for (shard, is_stalled) in [(4, true), (5, false)] {
            add_window(&windows, &bank(shard), 1);
            windows.windows.borrow_mut().get_mut(&bank(shard)).unwrap().stalled = is_stalled;
        }
        // Without a window before.
        windows.stop(&bank(6));
        assert_eq!((windows.has(&bank(6)), windows.begin_confirming(&bank(6))), (true, None));
        assert_eq!(windows.reset(), [bank(4), bank(6)]);
        assert!(!windows.has(&to) && windows.reset().is_empty());
    });
}
