//! Deferred messages: their order, their deliveries, and what is left after a failure.

mod over_limit;
mod records;
mod unloadable;

use super::super::tests::*;
use super::*;
use crate::inbox::QueuedKind;
use futures_util::FutureExt as _;
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Origin, ReplyMode};
use whizbang_core::store::{Source, SourceKind};
use whizbang_log::memory::MemoryStore;

/// A backlog, and the deliveries that it has made.
struct World {
    store: MemoryStore,
    context: Rc<ThreadContext>,
    backlog: Rc<Backlog>,
    delivered: Rc<RefCell<Vec<Delivery>>>,
    progress: Rc<Progress>,
}

/// The tracker of the source, with the sequences of which it was told.
#[derive(Default)]
struct Progress {
    appended: RefCell<Vec<u64>>,
    known: RefCell<Vec<u64>>,
}

impl SequenceTracker for Progress {
    fn watermark_after(&self, sequence: u64) -> u64 {
        sequence
    }

    fn mark_appended(&self, sequence: u64) {
        self.appended.borrow_mut().push(sequence);
    }

    fn mark_known(&self, sequence: u64) {
        self.known.borrow_mut().push(sequence);
    }
}

/// The outcome of a delivery, once it has one.
type Completed = Rc<RefCell<Option<Outcome>>>;

fn key(key: &str) -> Rc<str> {
    Rc::from(key)
}

fn id(id: u128) -> MessageId {
    MessageId::from_u128(id)
}

fn done() -> Outcome {
    Outcome::Done(Bytes::new(), Codec::Bincode)
}

/// Handles a message as its actor does: its turn is appended, and committed.
fn handle(delivery: Delivery) {
    append(&delivery);
    (delivery.completion)(done());
}

fn append(delivery: &Delivery) {
    let DedupKey::Sequence { sequence, tracker, .. } = &delivery.dedup_key else { panic!("{delivery:?}") };
    tracker.mark_appended(*sequence);
}

impl World {
    async fn new() -> Self {
        Self::with(MemoryStore::new(), context()).await
    }

    async fn with(store: MemoryStore, context: Rc<ThreadContext>) -> Self {
        let shard = open_in(&store, &context, 0);
        let delivered = Rc::<RefCell<Vec<Delivery>>>::default();
        let sink = Rc::clone(&delivered);
        let deliver: Deliver = Rc::new(move |delivery| sink.borrow_mut().push(delivery));
        let backlog = Backlog::new(&context, &shard, &Name::from_static("account").unwrap(), &deliver);
        Rc::clone(&backlog).load_deferred().await.unwrap();
        Self { store, context, backlog, delivered, progress: Rc::default() }
    }

    /// Returns the world after a restart of the node, with the first deliveries.
    async fn restarted(self) -> Self {
        let world = Self::with(self.store.clone(), context()).await;
        world.backlog.deliver_deferred();
        run_ready().await;
        world
    }

    fn delivery(&self, message: Envelope) -> (Delivery, Completed) {
        let completed = Completed::default();
        let to = Rc::clone(&completed);
        let dedup_key = DedupKey::Sequence {
            source: Rc::new(Source { shard: bank(1), kind: SourceKind::Direct }),
            sequence: u64::try_from(message.id.as_u128()).unwrap(),
            tracker: Rc::clone(&self.progress) as _,
        };
        let completion = Box::new(move |outcome| drop(to.borrow_mut().replace(outcome)));
        (Delivery::new(Action::Handle, message, dedup_key, completion), completed)
    }

    fn defer_message(&self, key: &Rc<str>, message: Envelope) -> Completed {
        let (delivery, completed) = self.delivery(message);
        assert!(self.backlog.defer(key, delivery, ()).is_ok());
        completed
    }

    /// Defers commands with these ids, which are their sequences as well.
    fn defer(&self, key: &str, ids: impl IntoIterator<Item = u128>) {
        for id in ids {
            let completed = self.defer_message(&Rc::from(key), command(id, Timestamp::default()));
            assert!(matches!(*completed.borrow(), Some(Outcome::Done(..))), "it is in the log");
        }
    }

    /// Returns the ids of the messages that are delivered and not taken.
    fn ids(&self) -> Vec<u128> {
        self.delivered.borrow().iter().map(|delivery| delivery.envelope.id.as_u128()).collect()
    }

    /// Runs tasks until this many messages are delivered.
    async fn until_delivered(&self, count: usize) {
        while self.delivered.borrow().len() < count {
            tokio::task::yield_now().await;
        }
    }

    fn take(&self, id: u128) -> Delivery {
        let at = self.ids().iter().position(|delivered| *delivered == id).unwrap();
        self.delivered.borrow_mut().remove(at)
    }

    /// Returns the number of deferred messages according to the metrics.
    fn deferred(&self) -> u64 {
        self.context.counts.deferred.get()
    }
}

#[test]
fn reserved_actor_type_is_a_valid_name() {
    assert!(Name::from_static(DEFERRED).is_ok());
}

#[test]
fn messages_of_a_key_are_delivered_one_after_the_other() {
    on_paused_time(async {
        let world = World::new().await;
        assert!(!world.backlog.has("a") && world.backlog.is_idle());
        world.defer("a", 1..=3);
        world.defer("b", [4]);
        run_ready().await;
        assert_eq!((world.ids(), world.deferred()), (vec![1, 4], 4));
        assert_eq!(*world.progress.appended.borrow(), [1, 2, 3, 4]);
        assert!(world.backlog.has("a") && !world.backlog.has("c") && !world.backlog.is_idle());
        let first = world.take(1);
        assert!(matches!(first.action, Action::Handle) && !is_fresh(&first));
        append(&first);
        run_ready().await;
        assert_eq!((world.ids(), world.deferred()), (vec![4, 2], 3), "from the append on, before the commit");
        (first.completion)(done());
        for id in [2, 4, 3] {
            handle(world.take(id));
            run_ready().await;
        }
        assert_eq!((world.ids(), world.deferred(), world.backlog.has("a")), (vec![], 0, false));
        assert!(world.backlog.is_idle() && world.context.is_idle());
        assert_eq!(world.restarted().await.ids(), [0; 0]);
    });
}

#[test]
fn unfinished_messages_are_delivered_after_a_restart() {
    on_paused_time(async {
        let world = World::new().await;
        world.defer("a", 1..=4);
        run_ready().await;
        handle(world.take(1));
        run_ready().await;
        let second = world.take(2);
        append(&second);
        (second.completion)(Outcome::Unknown(broken()));
        let world = world.restarted().await;
        assert_eq!((world.ids(), world.deferred()), (vec![2], 3), "its commit is not known");
        // Its own dedup state shows that it was handled.
        let DedupKey::Sequence { source, sequence, tracker } = world.take(2).dedup_key else { panic!("no sequence") };
        assert_eq!((source.shard.clone(), sequence), (bank(1), 2));
        tracker.mark_known(sequence);
        run_ready().await;
        assert_eq!((world.ids(), world.deferred()), (vec![3], 2));
        assert!(tracker.is_near_start(2) && tracker.is_deferred());
    });
}

#[test]
fn message_that_is_not_handled_is_delivered_again_later() {
    on_paused_time(async {
        let world = World::new().await;
        world.defer("a", [1, 2]);
        run_ready().await;
        (world.take(1).completion)(Outcome::Busy);
        assert!(world.backlog.is_idle(), "it waits for its retry");
        tokio::time::sleep(SLOW_RETRY - Duration::from_millis(1)).await;
        assert_eq!(world.ids(), [0; 0]);
        tokio::time::sleep(Duration::from_millis(2)).await;
        run_ready().await;
        assert_eq!(world.ids(), [1]);
        handle(world.take(1));
        run_ready().await;
        assert_eq!((world.ids(), world.deferred()), (vec![2], 1));
    });
}

#[test]
fn deferred_message_that_arrives_again_is_known() {
    on_paused_time(async {
        let world = World::new().await;
        world.defer("a", [1, 2]);
        world.defer("a", [2]);
        run_ready().await;
        assert_eq!((world.deferred(), world.context.counts.duplicates.get()), (2, 1));
        assert_eq!((world.progress.appended.take(), world.progress.known.take()), (vec![1, 2], vec![2]));
        let (delivery, _) = world.delivery(command(3, Timestamp::default()));
        let refused = world.backlog.defer(&key("a"), Delivery { dedup_key: DedupKey::Internal, ..delivery }, 7);
        assert!(matches!(refused, Err((_, 7, StoreError::Closed))), "it has no sequence");
    });
}

#[test]
fn message_in_back_off_is_deferred_once() {
    on_paused_time(async {
        let world = World::new().await;
        let (delivery, completed) = world.delivery(command(1, Timestamp::default()));
        let (delivery, deferred) = world.backlog.defer_current(&key("a"), delivery);
        assert!(deferred.is_ok() && !is_fresh(&delivery));
        assert!(matches!(completed.take(), Some(Outcome::Done(..))), "its source may continue");
        let (delivery, deferred) = world.backlog.defer_current(&key("a"), delivery);
        assert!(deferred.is_ok() && world.deferred() == 1);
        let (other, completed) = world.delivery(command(2, Timestamp::default()));
        let (other, deferred) = world.backlog.defer_current(&key("a"), other);
        assert!(deferred.is_ok() && is_fresh(&other) && completed.take().is_none(), "the key has deferred messages");
        world.defer("a", [3]);
        run_ready().await;
        assert_eq!((world.ids(), world.deferred()), (vec![], 2), "the actor has the first one");
        handle(delivery);
        run_ready().await;
        assert_eq!(world.ids(), [3]);
        assert_eq!(world.restarted().await.ids(), [3]);
    });
}

#[test]
fn discarded_message_is_not_delivered_and_its_sender_is_told() {
    on_paused_time(async {
        let world = World::new().await;
        let origin = |wants| {
            let (shard, actor, key) = (bank(1), Name::from_static("transfer").unwrap(), "t".to_owned());
            let origin = Some(Origin { shard, actor, key, sequence: 2, version: 0, store: None });
            Envelope { origin, wants, ..command(2, Timestamp::default()) }
        };
        world.defer("a", [1]);
        world.defer_message(&key("a"), origin(ReplyMode::Reply));
        world.defer("a", [3, 4]);
        run_ready().await;
        let discard = |message, envelope| world.backlog.discard(&key("a"), id(message), envelope);
        assert!(matches!(discard(1, None), Some(Err(Outcome::Busy))), "its actor has it");
        assert!(discard(9, None).is_none() && world.backlog.discard(&key("b"), id(1), None).is_none());
        assert!(matches!(discard(3, None), Some(Ok(_))) && world.context.is_clean());
        let found = world.backlog.find(&key("a"), id(2)).unwrap().await.unwrap();
        assert!(world.backlog.find(&key("a"), id(3)).is_none() && world.backlog.find(&key("b"), id(2)).is_none());
        let (action, envelope) = found.unwrap();
        assert_eq!((action, envelope.id, &*envelope.key), (Action::Handle, id(2), "a"));
        assert!(matches!(discard(2, Some(&envelope)), Some(Ok(_))) && !world.context.is_clean());
        let sent = world.backlog.shard.reader().outbox(&bank(1), 0, 9).await.unwrap();
        let [rejection] = &sent[..] else { panic!("{sent:?}") };
        assert_eq!((rejection.envelope.kind, rejection.envelope.causation), (Kind::Reply, Some(id(2))));
        assert_eq!(world.deferred(), 2);
        handle(world.take(1));
        run_ready().await;
        assert_eq!((world.ids(), world.restarted().await.ids()), (vec![4], vec![4]));
    });
}

#[test]
fn discarded_message_makes_way_for_the_next_one() {
    on_paused_time(async {
        let world = World::new().await;
        let event = Envelope { kind: Kind::Event, wants: ReplyMode::Reply, ..command(2, Timestamp::default()) };
        world.defer("a", [1]);
        world.defer_message(&key("a"), event.clone());
        world.defer("a", [3]);
        run_ready().await;
        (world.take(1).completion)(Outcome::Busy);
        assert!(matches!(world.backlog.discard(&key("a"), id(1), None), Some(Ok(_))));
        run_ready().await;
        assert_eq!(world.ids(), [2], "without the wait for the first one");
        (world.take(2).completion)(Outcome::Busy);
        assert!(matches!(world.backlog.discard(&key("a"), id(2), Some(&event)), Some(Ok(_))));
        assert!(world.context.is_clean(), "an event has no reply");
        run_ready().await;
        assert_eq!(world.ids(), [3]);
    });
}

#[test]
fn deliveries_of_an_earlier_opening_change_nothing() {
    on_paused_time(async {
        let world = World::new().await;
        world.defer("a", [1, 2]);
        run_ready().await;
        let (old, generation) = (world.take(1), world.backlog.generation());
        world.backlog.reset();
        assert_eq!((world.deferred(), world.backlog.has("a"), world.backlog.is_loaded()), (0, false, false));
        assert_eq!(world.backlog.generation(), generation + 1);
        let (refused, _) = world.delivery(command(3, Timestamp::default()));
        assert!(world.backlog.defer(&key("a"), refused, ()).is_err(), "the queues are not loaded");
        for _ in 0..2 {
            Rc::clone(&world.backlog).load_deferred().await.unwrap();
        }
        assert_eq!((world.deferred(), world.backlog.is_loaded()), (2, true), "loaded once");
        world.backlog.deliver_deferred();
        run_ready().await;
        assert_eq!(world.ids(), [1]);
        append(&old);
        (old.completion)(Outcome::Busy);
        tokio::time::sleep(2 * SLOW_RETRY).await;
        assert_eq!((world.ids(), world.deferred()), (vec![1], 2));
        handle(world.take(1));
        run_ready().await;
        assert_eq!(world.ids(), [2]);
    });
}

#[test]
fn reads_of_an_earlier_opening_deliver_nothing() {
    on_paused_time(async {
        let world = World::new().await;
        world.defer("a", [1]);
        let world = World::with(world.store.clone(), context()).await;
        // The message is not in memory, so the delivery reads it first.
        world.backlog.deliver_next(&key("a"));
        world.backlog.reset();
        run_ready().await;
        assert_eq!(world.ids(), [0; 0]);
        Rc::clone(&world.backlog).load_deferred().await.unwrap();
        world.backlog.deliver_next(&key("a"));
        run_ready().await;
        assert_eq!(world.ids(), [1]);
    });
}

#[test]
fn nothing_is_delivered_while_the_shard_closes() {
    on_paused_time(async {
        let world = World::new().await;
        world.context.draining.set(true);
        world.defer("a", [1]);
        run_ready().await;
        assert_eq!((world.ids(), world.deferred()), (vec![], 1));
        assert!(world.backlog.is_idle());
        world.context.draining.set(false);
        assert!(!world.backlog.is_idle());
        world.backlog.deliver_next(&key("a"));
        run_ready().await;
        assert_eq!(world.ids(), [1]);
    });
}

#[test]
fn messages_of_the_log_wait_for_capacity() {
    on_paused_time(async {
        let world = World::new().await;
        world.defer("a", [1]);
        let world = World::with(world.store.clone(), context()).await;
        let full = 1 << 30;
        world.context.queued.add(QueuedKind::Messages, full);
        world.backlog.deliver_deferred();
        tokio::time::sleep(10 * MIN_WAIT).await;
        assert_eq!(world.ids(), [0; 0]);
        world.context.queued.remove(QueuedKind::Messages, full);
        tokio::time::sleep(2 * MIN_WAIT).await;
        run_ready().await;
        assert_eq!(world.ids(), [1]);
        // A thread that drains does not wait.
        world.context.queued.add(QueuedKind::Messages, full);
        world.context.draining.set(true);
        assert!(world.backlog.wait_for_capacity().now_or_never().is_some());
    });
}
