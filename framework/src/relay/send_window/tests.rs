//! Tests of send windows in isolation: entries in flight, notes and confirmations.

use super::*;
use crate::message::Name;

#[test]
fn entries_on_their_way_are_bounded_in_count_and_bytes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut lane = SendWindow::from(0);
        (1..=4).for_each(|sequence| lane.offer(sequence, BYTES / 4));
        assert_eq!(lane.room(), 0);
        lane.commit(1);
        assert_eq!(lane.room(), WINDOW - 3);
        lane.restart();
        assert_eq!((lane.room(), lane.offered), (WINDOW, 1));
        (2..).take(WINDOW as usize).for_each(|sequence| lane.offer(sequence, 0));
        assert_eq!(lane.room(), 0);
    });
}

#[test]
fn false_note_forgets_nothing() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let lanes = SendWindows::new(Arc::default());
        let to = ShardId::new(Name::from_static("bank").unwrap(), 3);
        let mut lane = SendWindow::from(0);
        (1..=9).for_each(|sequence| lane.offer(sequence, 1));
        lanes.lanes.borrow_mut().insert(to.clone(), lane);
        assert_eq!(lanes.committed(&to, 7, || 9), ConfirmationCheck::News);
        assert_eq!((lanes.noted(&to), lanes.unstored(1)), (Some(7), vec![]), "a note alone is not stored");
        assert_eq!((lanes.begins_asking(&to), lanes.begins_asking(&to)), (Some(7), None), "one request at a time");
        assert_eq!(lanes.committed(&to, 9, || 9), ConfirmationCheck::News);
        assert!(!lanes.confirm(&to, 8, 7), "9 was noted after the request");
        assert_eq!((lanes.noted(&to), lanes.unstored(1)), (Some(9), vec![(to.clone(), 8)]));
        assert!(lanes.confirm(&to, 8, 9));
        let lanes = lanes.lanes.borrow();
        assert!(lanes.get(&to).is_some_and(|lane| (lane.committed, lane.offered) == (8, 8)), "9 is sent again");
    });
}

#[test]
fn taken_entries_are_asked_about_and_refused_ones_handed_on_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let lanes = SendWindows::new(Arc::default());
        let to = ShardId::new(Name::from_static("bank").unwrap(), 3);
        let mut lane = SendWindow::from(0);
        (1..=9).for_each(|sequence| lane.offer(sequence, 10));
        lanes.lanes.borrow_mut().insert(to.clone(), lane);
        let look = |lanes: &SendWindows| {
            let found = lanes.suspicion(|_| true, |_| {});
            (found.restarted, found.doubtful.into_iter().map(|(_, sent)| sent).collect::<Vec<_>>())
        };
        assert_eq!(look(&lanes), (false, vec![]), "it may still arrive");
        tokio::time::sleep(PATIENCE).await;
        assert_eq!(look(&lanes), (false, vec![9]));
        tokio::time::sleep(LONGEST).await;
        assert_eq!(look(&lanes), (false, vec![]), "one request at a time");
        assert!(!lanes.answered(&to, 0) && lanes.answered(&to, 1));
        for refused in [7, 5, 6] {
            lanes.refused(&to, refused);
        }
        tokio::time::sleep(LONGEST).await;
        assert_eq!(look(&lanes), (true, vec![]));
        let offered = |lanes: &SendWindows| lanes.lanes.borrow().get(&to).map(|lane| (lane.offered, lane.bytes));
        assert_eq!(offered(&lanes), Some((4, 40)));
        lanes.refused(&to, 3);
        assert_eq!(lanes.committed(&to, 3, || 9), ConfirmationCheck::News);
        tokio::time::sleep(LONGEST).await;
        assert_eq!(look(&lanes), (false, vec![4]), "committed entries are no longer refused");
        lanes.answered(&to, 0);
        lanes.doubt(&to);
        assert_eq!(look(&lanes), (false, vec![4]), "queried at once on request");
    });
}

#[test]
fn lane_without_progress_is_reported_once_until_it_resumes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let lanes = SendWindows::new(Arc::default());
        let to = ShardId::new(Name::from_static("bank").unwrap(), 3);
        lanes.lanes.borrow_mut().insert(to.clone(), SendWindow::from(0));
        let mut reported = 0;
        for claimed in [2, 4] {
            for _ in 0..20 {
                if let Some(lane) = lanes.lanes.borrow_mut().get_mut(&to) {
                    lane.offered = 9;
                }
                tokio::time::sleep(LONGEST).await;
                lanes.impatience(|_| true, |_| reported += 1);
            }
            assert_eq!(lanes.committed(&to, claimed, || 9), ConfirmationCheck::Resumed);
            assert_eq!(lanes.committed(&to, claimed + 1, || 9), ConfirmationCheck::News);
        }
        assert_eq!(reported, 2, "once each time");
    });
}

/// Windows with one to shard 3, in which 1 to `offered` are in flight.
fn lanes(offered: u64) -> (Rc<SendWindows>, ShardId) {
    let lanes = SendWindows::new(Arc::default());
    let to = ShardId::new(Name::from_static("bank").unwrap(), 3);
    let mut lane = SendWindow::from(0);
    (1..=offered).for_each(|sequence| lane.offer(sequence, 1));
    lanes.lanes.borrow_mut().insert(to.clone(), lane);
    (lanes, to)
}

fn on_paused_time(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test);
}

#[test]
fn only_what_was_sent_can_be_committed() {
    on_paused_time(async {
        let (lanes, to) = lanes(5);
        let other = ShardId::new(Name::from_static("bank").unwrap(), 4);
        assert_eq!(lanes.committed(&other, 3, || 3), ConfirmationCheck::Known);
        assert_eq!(lanes.committed(&other, 4, || 3), ConfirmationCheck::Impossible);
        assert_eq!(lanes.committed(&to, 3, || 9), ConfirmationCheck::News);
        assert_eq!(lanes.committed(&to, 3, || 9), ConfirmationCheck::Known);
        assert_eq!(lanes.committed(&to, 10, || 9), ConfirmationCheck::Impossible);
        assert_eq!(lanes.committed(&to, 9, || 9), ConfirmationCheck::News, "it has fetched more than was forwarded");
        assert!(lanes.has(&to) && !lanes.has(&other));
    });
}

#[test]
fn lanes_rest_when_all_that_was_sent_is_committed() {
    on_paused_time(async {
        let (lanes, to) = lanes(5);
        let head = |done, head| [(to.clone(), done, head)];
        assert!(!lanes.is_at_rest(&head(0, 5)));
        assert!(lanes.is_at_rest(&head(5, 5)), "the store knows more than the window");
        lanes.committed(&to, 4, || 5);
        assert!(!lanes.is_at_rest(&head(0, 5)) && lanes.is_at_rest(&head(0, 4)));
    });
}

#[test]
fn the_store_is_told_in_steps() {
    on_paused_time(async {
        let (lanes, to) = lanes(9);
        lanes.confirm(&to, 3, 0);
        assert!(lanes.unstored(4).is_empty());
        assert_eq!(lanes.unstored(3), [(to.clone(), 3)]);
        assert!(lanes.unstored(0).is_empty());
        lanes.confirm(&to, 4, 0);
        assert_eq!(lanes.unstored(0), [(to, 4)]);
    });
}

#[test]
fn lane_without_progress_starts_again_when_its_patience_ends() {
    on_paused_time(async {
        let (lanes, to) = lanes(2);
        let look = || lanes.impatience(|_| true, |_| {});
        let began = instant();
        assert_eq!(lanes.next_impatience(|_| true), Some(began + PATIENCE));
        assert_eq!(lanes.next_impatience(|_| false), None);
        assert_eq!(look(), (false, Some(began + PATIENCE)));
        tokio::time::advance(PATIENCE).await;
        assert_eq!(look(), (true, Some(began + PATIENCE * 3)), "the retry delay doubles");
        assert_eq!(lanes.next_impatience(|_| true), None, "nothing is in flight");
        // A note of the destination about entries that were not just sent.
        lanes.lanes.borrow_mut().get_mut(&to).unwrap().offer(1, 1);
        lanes.hurry_to(&to);
        assert_eq!(lanes.next_impatience(|_| true), None);
        lanes.lanes.borrow_mut().get_mut(&to).unwrap().offer(1, 1);
        lanes.hurry_to(&to);
        assert!(lanes.next_impatience(|_| true).is_some(), "it was just restarted");
    });
}

#[test]
fn stopped_lane_takes_no_note_until_it_resumes() {
    on_paused_time(async {
        let (lanes, to) = lanes(5);
        lanes.stop(&to);
        assert_eq!(lanes.committed(&to, 3, || 5), ConfirmationCheck::Known);
        assert_eq!(lanes.begins_asking(&to), None, "the task that stopped it keeps asking");
        lanes.asked(&to);
        assert_eq!(lanes.begins_asking(&to), Some(0));
        assert!(lanes.resume(&to) && !lanes.resume(&to));
        assert_eq!(lanes.committed(&to, 3, || 5), ConfirmationCheck::News);
        assert_eq!((lanes.unconfirmed(), lanes.noted(&to)), (vec![to.clone()], Some(3)));
        lanes.confirm(&to, 3, 3);
        assert_eq!((lanes.unconfirmed(), lanes.noted(&to)), (vec![], None));
    });
}
