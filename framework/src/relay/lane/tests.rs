//! Lanes by themselves: what is under way, what is noted, what is confirmed.

use super::*;
use crate::message::Name;

#[test]
fn entries_on_their_way_are_bounded_in_count_and_bytes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut lane = Lane::from(0);
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
        let lanes = Lanes::new(Arc::default());
        let to = ShardId::new(Name::from_static("bank").unwrap(), 3);
        let mut lane = Lane::from(0);
        (1..=9).for_each(|sequence| lane.offer(sequence, 1));
        lanes.lanes.borrow_mut().insert(to.clone(), lane);
        assert_eq!(lanes.committed(&to, 7, || 9), Claim::News);
        assert_eq!((lanes.noted(&to), lanes.unstored(1)), (Some(7), vec![]), "a note alone is not written down");
        assert_eq!((lanes.begins_asking(&to), lanes.begins_asking(&to)), (Some(7), None), "one question at a time");
        assert_eq!(lanes.committed(&to, 9, || 9), Claim::News);
        assert!(!lanes.confirm(&to, 8, 7), "9 was noted after the question");
        assert_eq!((lanes.noted(&to), lanes.unstored(1)), (Some(9), vec![(to.clone(), 8)]));
        assert!(lanes.confirm(&to, 8, 9));
        let lanes = lanes.lanes.borrow();
        assert!(lanes.get(&to).is_some_and(|lane| (lane.committed, lane.offered) == (8, 8)), "9 is handed on again");
    });
}

#[test]
fn taken_entries_are_asked_about_and_refused_ones_handed_on_again() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let lanes = Lanes::new(Arc::default());
        let to = ShardId::new(Name::from_static("bank").unwrap(), 3);
        let mut lane = Lane::from(0);
        (1..=9).for_each(|sequence| lane.offer(sequence, 10));
        lanes.lanes.borrow_mut().insert(to.clone(), lane);
        let look = |lanes: &Lanes| {
            let found = lanes.suspicion(|_| true, |_| {});
            (found.restarted, found.doubtful.into_iter().map(|(_, sent)| sent).collect::<Vec<_>>())
        };
        assert_eq!(look(&lanes), (false, vec![]), "it may still come");
        tokio::time::sleep(PATIENCE).await;
        assert_eq!(look(&lanes), (false, vec![9]));
        tokio::time::sleep(LONGEST).await;
        assert_eq!(look(&lanes), (false, vec![]), "one question at a time");
        assert!(!lanes.answered(&to, 0) && lanes.answered(&to, 1));
        for refused in [7, 5, 6] {
            lanes.refused(&to, refused);
        }
        tokio::time::sleep(LONGEST).await;
        assert_eq!(look(&lanes), (true, vec![]));
        let offered = |lanes: &Lanes| lanes.lanes.borrow().get(&to).map(|lane| (lane.offered, lane.bytes));
        assert_eq!(offered(&lanes), Some((4, 40)));
        lanes.refused(&to, 3);
        assert_eq!(lanes.committed(&to, 3, || 9), Claim::News);
        tokio::time::sleep(LONGEST).await;
        assert_eq!(look(&lanes), (false, vec![4]), "what is committed was not refused");
        lanes.answered(&to, 0);
        lanes.doubt(&to);
        assert_eq!(look(&lanes), (false, vec![4]), "doubted, it is asked about at once");
    });
}

#[test]
fn lane_without_progress_is_reported_once_until_it_resumes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let lanes = Lanes::new(Arc::default());
        let to = ShardId::new(Name::from_static("bank").unwrap(), 3);
        lanes.lanes.borrow_mut().insert(to.clone(), Lane::from(0));
        let mut reported = 0;
        for claimed in [2, 4] {
            for _ in 0..20 {
                if let Some(lane) = lanes.lanes.borrow_mut().get_mut(&to) {
                    lane.offered = 9;
                }
                tokio::time::sleep(LONGEST).await;
                lanes.impatience(|_| true, |_| reported += 1);
            }
            assert_eq!(lanes.committed(&to, claimed, || 9), Claim::Resumed);
            assert_eq!(lanes.committed(&to, claimed + 1, || 9), Claim::News);
        }
        assert_eq!(reported, 2, "once each time");
    });
}
