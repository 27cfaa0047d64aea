//! Tests of a receive window; the test plays its actors, its sender and the receiving shard.

use bytes::Bytes;
use futures_util::future::FutureExt as _;

use super::super::queued_bytes::MAX_QUEUED_BYTES;
use super::*;
use crate::inbox::QueuedKind;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, Kind, MessageId, Name, Origin};

/// Actors that keep deliveries until the test settles them.
#[derive(Default)]
struct Actors(RefCell<Vec<Delivery>>);

impl ActorEndpoint for Actors {
    fn deliver(&self, delivery: Delivery) {
        self.0.borrow_mut().push(delivery);
    }

    fn key_of(&self, _: &Envelope) -> Result<Option<String>, String> {
        Ok(None)
    }

    fn live_count(&self) -> usize {
        0
    }

    fn passivate_idle(&self, _: u64, _: usize) {}

    fn reset(&self) {}
}

struct Fixture {
    window: Rc<ReceiveWindow>,
    actors: Rc<Actors>,
    /// Number of times that requests were started.
    request_missing: Rc<Cell<usize>>,
    /// Committed sequence at each confirmation.
    committed: Rc<RefCell<Vec<u64>>>,
    counts: Arc<Counts>,
    issues: Arc<HealthIssues>,
    queued: Rc<QueuedBytes>,
    /// Outcomes of messages.
    settled: Rc<RefCell<Vec<(u64, AckOutcome)>>>,
}

fn shard(number: u16) -> ShardId {
    ShardId::new(Name::from_static("bank").unwrap(), number)
}

/// The message that the sender sent under this sequence.
fn message(sequence: u64) -> Envelope {
    let name = Name::from_static("bank").unwrap();
    let id = MessageId::from_u128(u128::from(sequence) + 1_000);
    let origin = Origin { shard: shard(0), actor: name.clone(), key: "ada".into(), sequence, version: 0, store: None };
    let envelope = Envelope::new(id, Kind::Command, name.clone(), name, Timestamp::from_millis(0));
    Envelope { origin: Some(origin), ..envelope }
}

/// Another message under the same sequence.
fn other(sequence: u64) -> Envelope {
    Envelope { id: MessageId::from_u128(7), ..message(sequence) }
}

fn done() -> Outcome {
    Outcome::Done(Bytes::new(), Codec::Bincode)
}

impl Fixture {
    /// A window that has admitted everything up to `floor`.
    fn new(watermark: u64) -> Self {
        let actors = Rc::new(Actors::default());
        let request_missing = Rc::new(Cell::new(0));
        let committed: Rc<RefCell<Vec<u64>>> = Rc::default();
        let (counts, issues) = (Arc::<Counts>::default(), Arc::<HealthIssues>::default());
        let endpoints: EndpointLookup = {
            let actors = Rc::clone(&actors);
            Rc::new(move |_| Some((Rc::clone(&actors) as Rc<dyn ActorEndpoint>, Action::Handle)))
        };
        let asking: RequestMissing = {
            let request_missing = Rc::clone(&request_missing);
            Rc::new(move |_| request_missing.set(request_missing.get() + 1))
        };
        let told: Committed = {
            let committed = Rc::clone(&committed);
            Rc::new(move |window| committed.borrow_mut().push(window.through()))
        };
        let both = (shard(0), shard(1));
        let queued = Rc::<QueuedBytes>::default();
        let context =
            WindowContext { counts: Arc::clone(&counts), issues: Arc::clone(&issues), queued: Rc::clone(&queued) };
        let window = ReceiveWindow::new(both, watermark, endpoints, asking, told, context);
        Self { window, actors, request_missing, committed, counts, issues, queued, settled: Rc::default() }
    }

    fn admit(&self, envelope: Envelope) {
        let settled = Rc::clone(&self.settled);
        let sequence = sequence_of(&envelope);
        self.window.admit(envelope, Box::new(move |how| settled.borrow_mut().push((sequence, how))));
    }

    /// Returns the outcomes since the last call.
    fn settled(&self) -> Vec<(u64, AckOutcome)> {
        self.settled.take()
    }

    /// Settles the delivery at `index` of those that wait.
    fn finish(&self, index: usize, outcome: Outcome) {
        let delivery = self.actors.0.borrow_mut().remove(index);
        (delivery.completion)(outcome);
    }

    /// Returns the sequences that wait in the actors.
    fn delivered(&self) -> Vec<u64> {
        self.actors.0.borrow().iter().map(|delivery| sequence_of(&delivery.envelope)).collect()
    }
}

#[test]
fn messages_in_flight_are_bounded_in_count() {
    let all = Fixture::new(0);
    let most = IN_FLIGHT as u64;
    (1..=most + 1).for_each(|sequence| all.admit(message(sequence)));
    assert_eq!(all.settled(), [(most + 1, AckOutcome::Retry)]);
    assert_eq!(all.delivered().len(), IN_FLIGHT);
    all.finish(0, done());
    assert_eq!(all.settled(), [(1, AckOutcome::Ack)]);
    all.admit(message(most + 1));
    assert_eq!((all.settled(), all.delivered().len()), (vec![], IN_FLIGHT));
}

#[test]
fn messages_in_flight_are_bounded_in_bytes() {
    let all = Fixture::new(0);
    let large = |sequence| Envelope { payload: Bytes::from(vec![0; MAX_BYTES / 2]), ..message(sequence) };
    (1..=3).for_each(|sequence| all.admit(large(sequence)));
    assert_eq!((all.settled(), all.delivered()), (vec![(3, AckOutcome::Retry)], vec![1, 2]));
    for sequence in 3..6 {
        all.finish(0, done());
        all.admit(large(sequence));
        all.admit(large(sequence + 1));
        assert_eq!(all.settled(), [(sequence - 2, AckOutcome::Ack), (sequence + 1, AckOutcome::Retry)]);
    }
    // A single message may exceed the bound.
    let alone = Fixture::new(0);
    alone.admit(Envelope { payload: Bytes::from(vec![0; MAX_BYTES + 1]), ..message(1) });
    assert_eq!(alone.delivered(), [1]);
}

#[test]
fn full_thread_leaves_messages_with_their_sender() {
    let all = Fixture::new(0);
    all.queued.add(QueuedKind::Messages, MAX_QUEUED_BYTES);
    (1..=2).for_each(|sequence| all.admit(message(sequence)));
    assert_eq!((all.settled(), all.delivered()), (vec![(2, AckOutcome::Retry)], vec![1]), "one is always in flight");
    all.queued.remove(QueuedKind::Messages, 1);
    all.admit(message(2));
    assert_eq!((all.settled(), all.delivered()), (vec![], vec![1, 2]));
}

#[test]
fn only_committed_messages_are_acked() {
    let all = Fixture::new(10);
    (11..=14).for_each(|sequence| all.admit(message(sequence)));
    assert_eq!((all.window.through(), all.window.has_none_in_flight()), (10, false));
    all.finish(1, Outcome::DeadLetter("it failed".into()));
    assert_eq!((all.settled(), all.window.through()), (vec![(12, AckOutcome::Ack)], 10));
    all.finish(0, done());
    assert_eq!((all.settled(), all.window.through()), (vec![(11, AckOutcome::Ack)], 12));
    all.finish(0, Outcome::Stopped);
    all.finish(0, Outcome::Busy);
    assert_eq!(all.settled(), [(13, AckOutcome::Retry), (14, AckOutcome::Retry)]);
    assert_eq!((all.window.through(), all.window.has_none_in_flight()), (12, false));
    assert_eq!(*all.committed.borrow(), [10, 12]);
}

#[test]
fn duplicate_is_settled_like_its_first_delivery() {
    let all = Fixture::new(0);
    all.admit(message(1));
    all.admit(message(1));
    assert_eq!((all.settled(), all.counts.duplicates.get()), (vec![(1, AckOutcome::Retry)], 1));
    assert!(all.committed.borrow().is_empty());
    all.finish(0, done());
    all.admit(message(1));
    assert_eq!(all.settled(), [(1, AckOutcome::Ack), (1, AckOutcome::Ack)]);
    // Confirmed again: the sender would not have sent it if it knew.
    assert_eq!((all.committed.borrow().len(), all.counts.duplicates.get()), (2, 2));
    let nowhere = Envelope { origin: None, ..message(0) };
    all.admit(nowhere);
    assert_eq!((all.settled(), all.delivered()), (vec![(0, AckOutcome::Ack)], vec![]));
}

#[test]
fn early_message_waits_for_missing_ones() {
    let all = Fixture::new(0);
    assert!(all.window.is_idle());
    all.admit(message(2));
    all.admit(message(4));
    assert_eq!((all.delivered(), all.request_missing.get(), all.counts.gaps.get()), (vec![], 1, 1));
    assert!(!all.window.is_idle() && all.window.has_none_in_flight());
    let question = all.window.missing_range().unwrap();
    assert_eq!((question.after, question.conflicting), (0, None));
    all.admit(message(1));
    assert_eq!((all.delivered(), all.window.missing_range().unwrap().after), (vec![1, 2], 2));
    assert!(all.window.answered(all.window.missing_range().unwrap(), vec![message(3)], 4));
    assert_eq!((all.delivered(), all.window.missing_range()), (vec![1, 2, 3, 4], None));
    all.window.end_requests();
    all.admit(message(9));
    assert_eq!((all.request_missing.get(), all.counts.gaps.get()), (2, 2));
    // No progress and no conflict: requested again only later.
    assert!(!all.window.answered(all.window.missing_range().unwrap(), vec![], 9));
    all.window.release_held();
    assert_eq!((all.settled(), all.window.missing_range()), (vec![(9, AckOutcome::Retry)], None));
}

#[test]
fn message_missing_from_the_log_is_dropped() {
    let all = Fixture::new(0);
    all.admit(other(2));
    all.admit(message(5));
    let question = all.window.missing_range().unwrap();
    all.admit(message(4));
    // The sender's log ends at 3 and contains another message at 2; 4 arrived after the request.
    assert!(all.window.answered(question, vec![message(1), message(2), message(3)], 3));
    assert_eq!(all.settled(), [(2, AckOutcome::Ack), (5, AckOutcome::Ack)]);
    assert_eq!((all.delivered(), all.counts.commands_dropped.get()), (vec![1, 2, 3, 4], 2));
    assert_eq!(all.actors.0.borrow()[1].envelope.id, message(2).id);
}

#[test]
fn responses_respect_the_in_flight_bound() {
    let all = Fixture::new(0);
    all.admit(Envelope { payload: Bytes::from(vec![0; MAX_BYTES]), ..message(1) });
    all.finish(0, done());
    all.admit(message(3));
    let large = Envelope { payload: Bytes::from(vec![0; MAX_BYTES]), ..message(2) };
    assert!(all.window.answered(all.window.missing_range().unwrap(), vec![large, message(3)], 4));
    assert_eq!(all.window.last.get(), 3);
    all.admit(message(4));
    assert_eq!(all.settled(), [(1, AckOutcome::Ack), (4, AckOutcome::Retry)]);
    assert!(!all.window.answered(MissingRange { after: 3, conflicting: None, mark: 0 }, vec![message(4)], 4));
    assert_eq!(all.delivered(), [2, 3]);
}

#[test]
fn conflict_is_decided_by_the_sender() {
    let all = Fixture::new(0);
    all.admit(message(1));
    all.finish(0, done());
    all.settled();
    all.admit(other(1));
    assert_eq!((all.settled(), all.request_missing.get()), (vec![(1, AckOutcome::Ack)], 1));
    assert_eq!((all.counts.commands_dropped.get(), all.counts.duplicates.get()), (1, 0));
    // Until the answer, only the sender's log is read.
    all.admit(message(2));
    assert_eq!((all.settled(), all.request_missing.get()), (vec![(2, AckOutcome::Retry)], 1));
    let question = all.window.missing_range().unwrap();
    assert_eq!((question.after, question.conflicting), (0, Some(1)));
    // Its log ends with the suspect message.
    assert!(all.window.answered(question, vec![message(1)], 1));
    assert!(all.issues.reasons().is_empty());
    // Refused messages are requested.
    let question = all.window.missing_range().unwrap();
    assert_eq!((question.after, question.conflicting), (1, None));
    assert!(all.window.answered(question, vec![message(2)], 2));
    assert_eq!((all.delivered(), all.window.missing_range()), (vec![2], None));
}

#[test]
fn sender_with_older_log_is_refused() {
    for answer in [(vec![other(1)], 1), (vec![], 0)] {
        let all = Fixture::new(0);
        all.admit(message(1));
        all.finish(0, done());
        all.admit(message(3));
        all.settled();
        all.admit(other(1));
        let question = all.window.missing_range().unwrap();
        assert!(all.window.answered(question, answer.0, answer.1));
        assert_eq!(all.settled(), [(1, AckOutcome::Ack), (3, AckOutcome::Retry)]);
        assert_eq!(all.issues.reasons().len(), 1);
        all.admit(message(2));
        assert_eq!((all.settled(), all.delivered()), (vec![(2, AckOutcome::Retry)], vec![]));
        assert!(!all.window.is_idle());
        // The log is restored.
        assert!(all.window.answered(all.window.missing_range().unwrap(), vec![message(1)], 3));
        assert!(all.issues.reasons().is_empty());
        all.admit(message(2));
        assert_eq!(all.delivered(), [2]);
    }
}

#[test]
fn conflicts_are_checked_at_a_bounded_rate() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let all = Fixture::new(0);
        let missing = MissingRange { after: 0, conflicting: None, mark: 0 };
        let doubt = MissingRange { conflicting: Some(1), ..missing };
        assert!(all.window.wait_to_request(&doubt).now_or_never().is_some(), "the first request does not wait");
        assert!(
            all.window.wait_to_request(&missing).now_or_never().is_some(),
            "requests for missing messages do not wait"
        );
        let before = Instant::now();
        all.window.wait_to_request(&doubt).await;
        assert_eq!(before.elapsed(), CHECK_INTERVAL);
        // A sender with a diverged log is asked when something arrives from it, and otherwise rarely.
        all.window.report_divergence(1);
        let before = Instant::now();
        all.window.wait_to_request(&doubt).await;
        assert_eq!(before.elapsed(), CHECK_INTERVAL + RECHECK_INTERVAL);
        all.admit(message(1));
        let before = Instant::now();
        all.window.wait_to_request(&doubt).await;
        assert_eq!(before.elapsed(), CHECK_INTERVAL);
    });
}

#[test]
fn watermark_is_reported_to_the_store_once() {
    let all = Fixture::new(4);
    assert!(all.window.unstored().is_none());
    all.admit(message(5));
    all.admit(message(6));
    let DedupKey::Sequence { source, tracker: watermark, .. } = all.actors.0.borrow()[0].dedup_key.clone() else {
        panic!("it has a sequence")
    };
    watermark.mark_known(5);
    assert!(!all.window.is_idle());
    let watermark = all.window.unstored().unwrap();
    assert_eq!((watermark.through, &watermark.source), (5, &*source));
    assert!(all.window.unstored().is_none());
}

#[test]
fn closed_window_leaves_no_report() {
    let all = Fixture::new(0);
    all.admit(message(1));
    all.window.report_divergence(1);
    assert_eq!(all.issues.reasons().len(), 1);
    all.window.close();
    assert!(all.issues.reasons().is_empty(), "{:?}", all.issues.reasons());
}
