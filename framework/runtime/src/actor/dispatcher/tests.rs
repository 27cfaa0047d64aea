//! The live actors of a thread: their permits, and which of them are passivated.

use std::collections::BTreeSet;

use super::super::tests::*;
use super::*;
use crate::router::{DedupKey, LocalRoutes, Submission};
use crate::tests::{Account, Deposit};
use whizbang_core::clock::Timestamp;
use whizbang_core::store::StoreError;

/// A dispatcher of accounts with its open shards 0 and 1.
fn accounts() -> (Rc<Dispatcher>, [Rc<OwnedShard>; 2]) {
    let context = context();
    let name = |name| Name::from_static(name).unwrap();
    let dispatcher = Dispatcher::new(Rc::clone(&context), ActorType::of::<Account>(), name("bank"), name("account"), 2);
    let shards = [0, 1].map(|shard| open(&context, shard));
    shards.iter().for_each(|shard| dispatcher.open(shard));
    (dispatcher, shards)
}

/// Adds the live actor of a key. It handles nothing, because no task runs before the end of the test.
fn add(dispatcher: &Rc<Dispatcher>, shard: &Rc<OwnedShard>, key: &str) -> Rc<LiveActor> {
    let live = (dispatcher.new_live)(Rc::clone(dispatcher), Rc::clone(shard), Rc::from(key));
    let entry = RegistryEntry { addr: Mailbox(Rc::clone(&live)).start(), live: Rc::downgrade(&live) };
    dispatcher.registry.borrow_mut().add(Rc::from(key), entry);
    live
}

/// Returns which of the keys are live.
fn live(dispatcher: &Rc<Dispatcher>, keys: impl IntoIterator<Item = u64>) -> Vec<u64> {
    let registry = dispatcher.registry.borrow();
    let live: Vec<u64> = keys.into_iter().filter(|key| registry.get(&key.to_string()).is_some()).collect();
    assert_eq!(live.len(), dispatcher.live_count());
    live
}

#[test]
fn idle_actors_are_passivated_after_their_sweeps() {
    on_paused_time(async {
        let (dispatcher, [shard, _]) = accounts();
        for key in 0..=10 {
            let live = add(&dispatcher, &shard, &key.to_string());
            live.last_sweep.set(key);
            live.queued.set(u32::from(key == 1));
        }
        dispatcher.context.sweeps.set(7);
        dispatcher.passivate_idle(8, 100);
        assert_eq!(live(&dispatcher, 0..=10).len(), 11, "the node is too young");
        dispatcher.context.sweeps.set(10);
        dispatcher.passivate_idle(8, 100);
        assert_eq!(live(&dispatcher, 0..=10), [1, 3, 4, 5, 6, 7, 8, 9, 10], "1 is busy");
        assert_eq!(dispatcher.context.counts.passivations.get(), 2);
    });
}

#[test]
fn actors_over_the_limit_are_passivated_oldest_first() {
    on_paused_time(async {
        // The last sweeps of the keys, and the keys that remain below each cap.
        let sweeps = [3, 2, 1, 1, 2, 2, 4, 0];
        let busy = 7;
        let remaining: [(usize, &[u64]); 5] = [
            (8, &[0, 1, 2, 3, 4, 5, 6, 7]),
            (7, &[0, 1, 3, 4, 5, 6, 7]),
            (6, &[0, 1, 4, 5, 6, 7]),
            (3, &[0, 6, 7]),
            (0, &[7]),
        ];
        for (cap, expected) in remaining {
            let (dispatcher, [shard, _]) = accounts();
            for (key, sweep) in (0..).zip(sweeps) {
                let live = add(&dispatcher, &shard, &key.to_string());
                live.last_sweep.set(sweep);
                live.queued.set(u32::from(key == busy));
            }
            dispatcher.passivate_idle(1000, cap);
            assert_eq!(live(&dispatcher, 0..8), expected, "{cap}");
            assert_eq!(dispatcher.context.counts.passivations.get() as usize, 8 - expected.len());
        }
    });
}

#[test]
fn activation_over_the_limit_passivates_the_longest_idle() {
    on_paused_time(async {
        // The number of live actors, and those that remain after one more is activated. The limit is 10.
        for (actors, gone) in [(9, 0), (10, 1), (11, 2), (13, 2)] {
            let (dispatcher, [shard, _]) = accounts();
            for key in 0..actors {
                // Used in the reverse order, the busy ones first.
                let live = add(&dispatcher, &shard, &key.to_string());
                live.last_use.set(100 - key);
                live.queued.set(u32::from(key >= actors - 2));
            }
            dispatcher.passivate_over_limit();
            let expected: Vec<u64> = (0..actors - 2 - gone).chain(actors - 2..actors).collect();
            assert_eq!(live(&dispatcher, 0..actors), expected);
        }
        let (dispatcher, [shard, _]) = accounts();
        (0..12).for_each(|key| add(&dispatcher, &shard, &key.to_string()).queued.set(1));
        dispatcher.passivate_over_limit();
        assert_eq!(dispatcher.live_count(), 12, "all are busy");
    });
}

#[test]
fn failures_of_a_passivated_actor_are_kept() {
    on_paused_time(async {
        let (dispatcher, [shard, _]) = accounts();
        let failing = add(&dispatcher, &shard, "a");
        add(&dispatcher, &shard, "b");
        failing.actor.borrow_mut().count_refused_turn(&StoreError::OutOfTurn { shard: bank(0), expected: 1 });
        drop(failing);
        let gone = dispatcher.registry.borrow_mut().extract(|_| true);
        dispatcher.passivate(gone);
        let backlog = dispatcher.backlogs.get(0).unwrap();
        assert_eq!(["a", "b"].map(|key| backlog.take_failures(key).is_failing()), [true, false]);
    });
}

#[test]
fn permits_count_what_waits_for_an_actor() {
    on_paused_time(async {
        let (dispatcher, [shard, _]) = accounts();
        let live = add(&dispatcher, &shard, "a");
        dispatcher.context.sweeps.set(5);
        let state = || (live.queued.get(), live.queued_bytes.get(), dispatcher.context.in_flight.get());
        let inline = dispatcher.new_permit(&live, None);
        let permits = [70, 30].map(|bytes| dispatcher.new_permit(&live, Some((QueuedKind::Callers, bytes))));
        assert_eq!((state(), live.last_sweep.get(), live.last_use.get()), ((3, 100, 3), 5, 2));
        let [first, second] = permits;
        drop(first);
        assert_eq!(state(), (2, 30, 2));
        drop((inline, second));
        assert_eq!(state(), (0, 0, 0));
    });
}

#[test]
fn capacity_is_bounded_for_thread_and_key() {
    on_paused_time(async {
        let (dispatcher, [shard, _]) = accounts();
        let live = add(&dispatcher, &shard, "a");
        for (in_flight, expected) in [(0, true), (9, true), (10, false), (11, false)] {
            dispatcher.context.in_flight.set(in_flight);
            assert_eq!(dispatcher.has_capacity(), expected, "{in_flight}");
            live.queued.set(u32::try_from(in_flight).unwrap());
            assert_eq!(dispatcher.key_has_capacity(&live, 1), expected, "{in_flight}");
            assert_eq!(dispatcher.find_unoccupied("a").is_some(), expected, "{in_flight}");
        }
        live.queued.set(1);
        for (bytes, expected) in [(MAX_QUEUED_BYTES_PER_KEY - 5, true), (MAX_QUEUED_BYTES_PER_KEY - 4, false)] {
            live.queued_bytes.set(bytes);
            assert_eq!(dispatcher.key_has_capacity(&live, 5), expected);
        }
        live.mailbox_len.set(1);
        assert!(dispatcher.find_unoccupied("a").is_none() && dispatcher.find_unoccupied("b").is_none());
    });
}

/// Delivers a command to the key `a` of shard 0, and returns its outcome if it is refused.
fn refusal(dispatcher: &Rc<Dispatcher>, key: DedupKey, bytes: usize) -> Option<Outcome> {
    let (sender, mut receiver) = tokio::sync::oneshot::channel();
    let key_text = (0..).map(|n| format!("a{n}")).find(|key| shard_of(key, 2) == 0).unwrap();
    let envelope = Envelope { key: key_text, payload: vec![0; bytes].into(), ..command(1, Timestamp::default()) };
    let completion = Box::new(move |outcome| drop(sender.send(outcome)));
    dispatcher.deliver(Delivery::new(crate::router::Action::Handle, envelope, key, completion));
    receiver.try_recv().ok()
}

#[test]
fn closed_or_full_threads_refuse_commands() {
    on_paused_time(async {
        type Change = fn(&Dispatcher, &OwnedShard);
        // The change, and the refusals of a caller's command and of a timer.
        let cases: [(Change, &str, &str); 6] = [
            (|_, _| {}, "None", "None"),
            (|dispatcher, _| dispatcher.context.stopped.set(true), "Some(Stopped)", "Some(Stopped)"),
            (|dispatcher, _| dispatcher.context.draining.set(true), "Some(Stopped)", "None"),
            (|dispatcher, _| dispatcher.context.in_flight.set(10), "Some(Busy)", "None"),
            (|_, shard| shard.begin_moving(), "Some(Moved)", "Some(Moved)"),
            (|_, shard| shard.begin_reopening(), "Some(Stopped)", "Some(Stopped)"),
        ];
        for (change, caller, timer) in cases {
            // Once for a key that is not live, and once for a live one.
            for is_live in [false, true] {
                let (dispatcher, [shard, _]) = accounts();
                if is_live {
                    assert!(refusal(&dispatcher, DedupKey::Internal, 0).is_none());
                }
                change(&dispatcher, &shard);
                assert_eq!(format!("{:?}", refusal(&dispatcher, DedupKey::MessageId, 0)), caller);
                assert_eq!(format!("{:?}", refusal(&dispatcher, DedupKey::Internal, 0)), timer);
                let busy = u64::from(caller == "Some(Busy)");
                assert_eq!(dispatcher.context.counts.busy.get(), busy);
            }
        }
    });
}

#[test]
fn command_runs_inline_only_on_an_open_and_idle_thread() {
    on_paused_time(async {
        let (dispatcher, _) = accounts();
        let mut routes = LocalRoutes::default();
        ActorType::of::<Account>().routes.iter().for_each(|add| add(&dispatcher, &mut routes));
        let account = (0..).map(|n| format!("a{n}")).find(|key| shard_of(key, 2) == 0).unwrap();
        let endpoint = routes.endpoint::<Deposit>().unwrap();
        let send = || endpoint.submit(Deposit { account: account.clone(), cents: 1 }, None, None);
        let Submission::Pending(reply) = send() else { panic!("it is not live yet") };
        assert_eq!(reply.await.unwrap().ok(), Some(1));
        let context = &dispatcher.context;
        let is_inline = || match send() {
            Submission::Done(reply) => reply.is_ok(),
            _ => false,
        };
        assert!(is_inline());
        let changes: [fn(&Dispatcher, bool); 4] = [
            |dispatcher, on| dispatcher.context.stopped.set(on),
            |dispatcher, on| dispatcher.context.draining.set(on),
            |dispatcher, on| dispatcher.context.in_flight.set(if on { 10 } else { 0 }),
            |dispatcher, on| dispatcher.context.inline_running.set(on),
        ];
        for (nth, change) in changes.iter().enumerate() {
            change(&dispatcher, true);
            assert!(!is_inline(), "{nth}");
            run_ready().await;
            change(&dispatcher, false);
            assert!(is_inline(), "{nth}");
        }
        // If the store commits later, a turn of an idle thread is queued first.
        dispatcher.commits_at_once.set(false);
        assert!(!is_inline());
        run_ready().await;
        context.in_flight.set(1);
        assert!(is_inline());
        context.in_flight.set(0);
    });
}

#[test]
fn busy_key_refuses_callers_alone() {
    on_paused_time(async {
        let (dispatcher, _) = accounts();
        dispatcher.context.in_flight.set(0);
        assert!(refusal(&dispatcher, DedupKey::Internal, 7).is_none());
        let of_key = dispatcher.registry.borrow().values().next().unwrap().live.upgrade().unwrap();
        of_key.queued.set(10);
        dispatcher.context.in_flight.set(1);
        assert!(matches!(refusal(&dispatcher, DedupKey::MessageId, 0), Some(Outcome::Busy)));
        assert!(refusal(&dispatcher, DedupKey::Internal, 0).is_none());
        let queued = (of_key.queued.get(), of_key.queued_bytes.get(), of_key.mailbox_len.get());
        assert_eq!((queued, dispatcher.context.counts.activations.get()), ((11, 7, 2), 1));
    });
}

#[test]
fn closed_shard_ends_its_actors_and_refuses_what_waits() {
    on_paused_time(async {
        for resets in [false, true] {
            let (dispatcher, [closed, kept]) = accounts();
            let outcomes = Rc::<RefCell<Vec<String>>>::default();
            for (key, shard) in [("1", &closed), ("2", &kept)] {
                let actor = add(&dispatcher, shard, key);
                let sink = Rc::clone(&outcomes);
                let completion = Box::new(move |outcome| sink.borrow_mut().push(format!("{key} {outcome:?}")));
                let envelope = command(1, Timestamp::default());
                let delivery = Delivery::new(crate::router::Action::Handle, envelope, DedupKey::Internal, completion);
                let waiting = Delivered { delivery, permit: dispatcher.new_permit(&actor, None) };
                actor.actor.borrow_mut().back_off.get_or_insert_default().push_unrecorded(waiting);
            }
            if resets {
                dispatcher.reset();
                assert_eq!(
                    (outcomes.take(), live(&dispatcher, 1..=2)),
                    (vec!["1 Stopped".into(), "2 Stopped".into()], vec![])
                );
            } else {
                closed.lose();
                dispatcher.close_shard(0);
                assert_eq!((outcomes.take(), live(&dispatcher, 1..=2)), (vec!["1 Moved".to_owned()], vec![2]));
                let open: BTreeSet<u16> =
                    dispatcher.backlogs.all().iter().map(|backlog| backlog.shard.id.shard).collect();
                assert_eq!((open, dispatcher.backlogs.shards()), (BTreeSet::from([1]), 2));
                dispatcher.close_shard(0);
                dispatcher.open_shard(0);
                assert_eq!(dispatcher.backlogs.all().len(), 2);
            }
        }
    });
}
