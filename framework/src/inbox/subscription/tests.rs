//! Tests of a subscription; the test plays its owner and subscribers.

use std::collections::VecDeque;

use bytes::Bytes;

use super::*;
use crate::clock::Timestamp;
use crate::message::{Kind, MessageId, Origin};

/// The owner's log, and the requests it received.
#[derive(Default)]
struct Owner {
    log: RefCell<Vec<Envelope>>,
    /// Each request: position, number of events, time.
    asked: RefCell<Vec<(u64, usize, Instant)>>,
    /// Number of requests that stay unanswered.
    silent: Cell<usize>,
    /// Most events in a response, if fewer than requested.
    short: Cell<Option<usize>>,
}

/// Handles events of one name, and keeps them until the test settles them.
#[derive(Clone, Default)]
struct Taken {
    floor: u64,
    name: &'static str,
    events: Rc<RefCell<VecDeque<(u64, Done)>>>,
}

impl Subscriber for Taken {
    fn floor(&self) -> u64 {
        self.floor
    }

    fn takes(&self, event: &Name) -> bool {
        self.name.is_empty() || event.as_str() == self.name
    }

    fn handle(&self, event: &Envelope, done: Done) {
        self.events.borrow_mut().push_back((position(event), done));
    }

    fn unstored(&self) -> Vec<(ShardId, Source, u64)> {
        let lane = crate::store::SourceKind::Events { subscriber: Name::from_static("saga").unwrap() };
        vec![(shard(), Source { shard: shard(), kind: lane }, self.floor)]
    }
}

impl Taken {
    fn new(floor: u64, name: &'static str) -> Self {
        Self { floor, name, ..Self::default() }
    }

    /// Returns the positions that wait.
    fn positions(&self) -> Vec<u64> {
        self.events.borrow().iter().map(|(position, _)| *position).collect()
    }

    /// Settles the first event.
    fn finish(&self) {
        let (_, done) = self.events.borrow_mut().pop_front().unwrap();
        done();
    }
}

struct Fixture {
    feed: Rc<Subscription>,
    owner: Rc<Owner>,
    overseer: Overseer,
    standing: Arc<HealthIssues>,
    /// Live events that are settled.
    settled: Rc<RefCell<Vec<u64>>>,
}

fn shard() -> ShardId {
    ShardId::new(Name::from_static("bank").unwrap(), 0)
}

fn position(event: &Envelope) -> u64 {
    event.origin.as_ref().map_or(0, |origin| origin.sequence)
}

/// The event at this position of the owner's log.
fn event(sequence: u64) -> Envelope {
    let name = Name::from_static("bank").unwrap();
    let id = MessageId::from_u128(u128::from(sequence) + 1_000);
    let origin = Origin { shard: shard(), actor: name.clone(), key: "ada".into(), sequence, version: 1, store: None };
    let envelope = Envelope::new(id, Kind::Event, name.clone(), name, Timestamp::from_millis(0));
    Envelope { origin: Some(origin), ..envelope }
}

fn other(sequence: u64) -> Envelope {
    Envelope { id: MessageId::from_u128(7), ..event(sequence) }
}

impl Fixture {
    fn new(takers: &[Taken]) -> Self {
        let owner = Rc::new(Owner::default());
        let asked = Rc::clone(&owner);
        let pages: Pages = Rc::new(move |_, after, most| {
            asked.asked.borrow_mut().push((after, most, Instant::now()));
            let silent = asked.silent.get();
            asked.silent.set(silent.saturating_sub(1));
            let log = asked.log.borrow();
            let most = asked.short.get().unwrap_or(most);
            let page: Vec<Envelope> = log.iter().filter(|event| position(event) > after).take(most).cloned().collect();
            let head = log.last().map_or(0, position);
            Box::pin(async move { if silent > 0 { Err("no answer".to_owned()) } else { Ok((page, head)) } })
        });
        let (overseer, standing) = (crate::user_code::UserCode::new(&Arc::default()), Arc::<HealthIssues>::default());
        let feed = Subscription::new(shard(), pages, Overseer::clone(&overseer), Rc::default(), Arc::clone(&standing));
        feed.takers(takers.iter().map(|taker| Box::new(taker.clone()) as Box<dyn Subscriber>).collect());
        Self { feed, owner, overseer, standing, settled: Rc::default() }
    }

    fn live(&self, event: Envelope) {
        let settled = Rc::clone(&self.settled);
        let position = position(&event);
        self.feed.event(event, Box::new(move || settled.borrow_mut().push(position)));
    }

    fn settled(&self) -> Vec<u64> {
        self.settled.take()
    }

    fn questions(&self) -> usize {
        self.owner.asked.borrow().len()
    }

    fn log_reaches(&self, last: u64) {
        *self.owner.log.borrow_mut() = (1..=last).map(event).collect();
    }
}

/// Runs a test on paused time, with the tasks that it spawns.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

/// Runs all tasks until they wait, without advancing the time.
async fn turn() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Advances virtual time.
async fn pass(span: Duration) {
    turn().await;
    tokio::time::advance(span).await;
    turn().await;
}

#[test]
fn what_nobody_on_a_thread_takes_is_not_read_there() {
    run(async {
        let all = Fixture::new(&[]);
        all.feed.head(5);
        all.feed.fill();
        turn().await;
        assert!(all.questions() == 0 && all.feed.is_at_rest() && all.feed.is_shut());
    });
}

#[test]
fn an_event_is_settled_when_its_last_taker_is_done() {
    run(async {
        let (all, some, none) = (Taken::new(3, ""), Taken::new(9, "bank"), Taken::new(5, "other"));
        let test = Fixture::new(&[some.clone(), all.clone(), none.clone()]);
        test.live(event(4));
        assert_eq!((all.positions(), some.positions(), none.positions()), (vec![4], vec![4], vec![]));
        assert!(!test.feed.is_at_rest());
        some.finish();
        assert!(test.settled().is_empty() && !test.feed.is_at_rest());
        all.finish();
        assert_eq!(test.settled(), [4]);
        assert!(test.feed.is_at_rest());
        assert_eq!(test.feed.unstored().iter().map(|(.., floor)| *floor).collect::<Vec<_>>(), [9, 3, 5]);
        let nowhere = Envelope { origin: None, ..event(0) };
        test.live(nowhere);
        assert_eq!((test.settled(), all.positions()), (vec![0], vec![]));
        assert_eq!(test.questions(), 0);
    });
}

#[test]
fn events_in_flight_are_bounded_in_count() {
    run(async {
        let taker = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        let most = IN_FLIGHT as u64;
        test.log_reaches(most + 3);
        (1..=most + 1).for_each(|position| test.live(event(position)));
        turn().await;
        assert_eq!(taker.positions().len(), IN_FLIGHT);
        taker.finish();
        turn().await;
        assert_eq!(taker.positions().len(), IN_FLIGHT);
        (0..5).for_each(|_| taker.finish());
        turn().await;
        assert_eq!(taker.positions().last(), Some(&(most + 3)));
    });
}

#[test]
fn events_in_flight_are_bounded_in_bytes() {
    run(async {
        let taker = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        let large = |position| Envelope { payload: Bytes::from(vec![0; BYTES / 2]), ..event(position) };
        *test.owner.log.borrow_mut() = (1..=6).map(large).collect();
        test.feed.head(6);
        turn().await;
        assert_eq!(taker.positions(), [1, 2]);
        for last in 3..=6 {
            taker.finish();
            turn().await;
            assert_eq!(taker.positions(), [last - 1, last]);
        }
        test.live(large(7));
        turn().await;
        assert_eq!(taker.positions(), [5, 6], "live events respect the bound too");
    });
}

#[test]
fn a_gap_is_read_from_the_log_in_pages() {
    run(async {
        let taker = Taken::new(2, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        let last = 2 + 2 * PAGE as u64;
        test.log_reaches(last + 1);
        test.live(event(last + 1));
        test.live(event(last));
        assert_eq!(test.overseer.counts.gaps.get(), 1);
        assert!(!test.feed.is_at_rest());
        turn().await;
        assert_eq!(taker.positions(), (3..=last + 1).collect::<Vec<_>>());
        let asked: Vec<_> = test.owner.asked.borrow().iter().map(|(after, most, _)| (*after, *most)).collect();
        assert_eq!(asked[..2], [(2, PAGE), (2 + PAGE as u64, PAGE)]);
        assert!(asked.len() <= 3, "{asked:?}");
        (3..=last + 1).for_each(|_| taker.finish());
        assert!(test.feed.is_at_rest());
    });
}

#[test]
fn an_owner_that_does_not_answer_is_asked_again() {
    run(async {
        let taker = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        test.log_reaches(2);
        test.owner.silent.set(2);
        test.feed.head(2);
        turn().await;
        assert_eq!((test.questions(), taker.positions()), (1, vec![]));
        pass(Duration::from_secs(60)).await;
        pass(Duration::from_secs(60)).await;
        assert_eq!((test.questions(), taker.positions()), (3, vec![1, 2]));
        // The first wait is short, and each is longer than the one before.
        let asked = test.owner.asked.borrow();
        assert!(asked[1].2 > asked[0].2 && asked[2].2 > asked[1].2);
    });
}

#[test]
fn a_paused_feed_settles_what_comes_and_takes_nothing() {
    run(async {
        let taker = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        test.live(event(1));
        test.live(event(3));
        assert!(test.settled().is_empty());
        test.feed.pause();
        assert_eq!(test.settled(), [3]);
        test.live(event(2));
        assert_eq!((test.settled(), taker.positions()), (vec![2], vec![1]));
        test.feed.head(8);
        turn().await;
        assert!(test.questions() == 0 && test.feed.is_at_rest());
    });
}

#[test]
fn a_shut_feed_takes_again_after_it_is_opened() {
    run(async {
        let taker = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        test.live(event(1));
        test.feed.shut();
        assert!(test.feed.is_shut() && test.feed.is_at_rest());
        test.live(event(2));
        assert_eq!((test.settled(), taker.positions()), (vec![2], vec![1]));
        test.feed.reopen();
        test.feed.takers(vec![Box::new(Taken { floor: 1, ..taker.clone() })]);
        assert!(!test.feed.is_shut());
        // Events in flight when it was suspended no longer count.
        test.live(event(2));
        taker.finish();
        assert!(!test.feed.is_at_rest());
        taker.finish();
        assert!(test.feed.is_at_rest());
    });
}

#[test]
fn an_owner_is_asked_about_old_positions_at_a_bounded_rate() {
    run(async {
        let taker = Taken::new(5, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        test.log_reaches(5);
        // Not remembered, so it may differ from the dispatched event.
        test.live(event(4));
        turn().await;
        assert_eq!((test.settled(), test.questions(), test.overseer.counts.duplicates.get()), (vec![4], 2, 1));
        (0..10).for_each(|_| test.live(event(4)));
        test.feed.head(3);
        turn().await;
        assert_eq!(test.questions(), 2);
        pass(DOUBT + Duration::from_millis(1)).await;
        test.feed.head(3);
        turn().await;
        assert_eq!(test.questions(), 4);
        assert!(test.feed.is_at_rest() && test.standing.reasons().is_empty());
        // Neither a remembered event nor the last position is in doubt.
        test.live(event(6));
        pass(DOUBT + Duration::from_millis(1)).await;
        test.live(event(6));
        test.feed.head(6);
        turn().await;
        assert_eq!(test.questions(), 4);
    });
}

#[test]
fn an_owner_with_another_log_is_not_taken_from() {
    run(async {
        let taker = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        *test.owner.log.borrow_mut() = vec![other(1), other(2)];
        test.live(event(1));
        test.live(event(1));
        taker.finish();
        assert_eq!(test.overseer.counts.events_dropped.get(), 0);
        test.live(other(1));
        test.live(event(2));
        assert_eq!((test.settled(), test.overseer.counts.events_dropped.get()), (vec![1, 1, 1], 1));
        turn().await;
        assert_eq!((test.settled(), taker.positions()), (vec![2], vec![]));
        assert!(test.feed.is_shut() && test.feed.is_at_rest());
        assert_eq!(test.standing.reasons().len(), 1);
        test.live(event(2));
        assert_eq!((test.settled(), taker.positions()), (vec![2], vec![]));
        // The log is restored; the owner is asked after a while at the latest.
        test.log_reaches(2);
        pass(DOUBT).await;
        pass(Duration::from_secs(31)).await;
        assert_eq!(taker.positions(), [2]);
        assert!(!test.feed.is_shut() && test.standing.reasons().is_empty());
    });
}

#[test]
fn news_of_an_owner_with_another_log_lead_to_a_question() {
    run(async {
        for told_by_event in [true, false] {
            let taker = Taken::new(3, "");
            let test = Fixture::new(std::slice::from_ref(&taker));
            test.log_reaches(2);
            test.feed.head(2);
            turn().await;
            assert!(test.feed.is_shut());
            let before = test.questions();
            pass(DOUBT).await;
            assert_eq!(test.questions(), before);
            test.log_reaches(4);
            if told_by_event {
                test.live(event(4));
            } else {
                test.feed.head(4);
            }
            turn().await;
            assert!(!test.feed.is_shut());
            assert_eq!(taker.positions(), [4]);
        }
    });
}

#[test]
fn claims_above_the_log_are_asked_about_at_a_bounded_rate() {
    run(async {
        let taker = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        test.log_reaches(1);
        test.live(event(9));
        turn().await;
        assert_eq!((taker.positions(), test.settled()), (vec![1], vec![9]));
        assert_eq!((test.questions(), test.overseer.counts.events_dropped.get()), (1, 1));
        taker.finish();
        assert!(test.feed.is_at_rest());
        test.feed.head(8);
        turn().await;
        assert_eq!(test.questions(), 1);
        pass(DOUBT + Duration::from_millis(1)).await;
        assert!(test.questions() == 2 && test.feed.is_at_rest());
    });
}

#[test]
fn a_held_event_gives_way_to_the_one_in_the_log() {
    run(async {
        let taker = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        test.log_reaches(3);
        test.live(other(2));
        test.live(event(3));
        turn().await;
        assert_eq!((taker.positions(), test.settled()), (vec![1, 2, 3], vec![2, 3]));
        assert_eq!(test.overseer.counts.events_dropped.get(), 1);
    });
}

#[test]
fn what_was_held_waits_for_room_too() {
    run(async {
        let taker = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        test.owner.silent.set(usize::MAX);
        let most = IN_FLIGHT as u64;
        (1..most).for_each(|position| test.live(event(position)));
        test.live(event(most + 1));
        test.live(event(most));
        assert_eq!(taker.positions().len(), IN_FLIGHT);
        // The next settled event frees one slot.
        taker.finish();
        test.live(event(most + 2));
        assert_eq!(taker.positions().len(), IN_FLIGHT - 1);
        assert!(!test.feed.is_at_rest());
    });
}

#[test]
fn forged_events_lead_to_questions_at_a_bounded_rate() {
    run(async {
        let taker = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
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
            pass(DOUBT + Duration::from_millis(1)).await;
            assert_eq!(test.questions(), 2 * round);
        }
        assert!(test.standing.reasons().is_empty());
        assert_eq!(test.overseer.counts.events_dropped.get(), 31);
    });
}

#[test]
fn a_log_that_ends_before_what_was_taken_is_another_one() {
    run(async {
        let taker = Taken::new(5, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        test.log_reaches(2);
        test.live(event(9));
        turn().await;
        assert!(test.feed.is_shut());
        assert_eq!((test.settled(), test.standing.reasons().len()), (vec![9], 1));
    });
}

#[test]
fn short_answers_are_followed_by_more_questions() {
    run(async {
        let taker = Taken::new(0, "");
        let test = Fixture::new(std::slice::from_ref(&taker));
        test.log_reaches(5);
        test.owner.short.set(Some(2));
        test.feed.head(5);
        turn().await;
        assert_eq!((taker.positions(), test.questions()), (vec![1, 2, 3, 4, 5], 3));
        // An owner that withholds announced events is not asked endlessly.
        test.log_reaches(8);
        test.owner.short.set(Some(0));
        test.feed.head(8);
        turn().await;
        assert_eq!((taker.positions().len(), test.questions()), (5, 4));
        assert!(!test.feed.is_at_rest());
    });
}
