//! The store in memory: the conformance suite of all stores, and its fault injection.
#![cfg(feature = "testing")]

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt, ready};
use proptest::prelude::*;
use whizbang::MemoryStore;
use whizbang::clock::{Clock, Timestamp};
use whizbang::message::{Codec, Envelope, Kind, MessageId, Name, ReplyMode, ShardId};
use whizbang::store::memory::CommitControl;
use whizbang::store::{DeadLetter, DeadLetterReason, Member, MemberId, Note, Source, SourceKind, Store, StoreError};
use whizbang::testing::store::{Fixture, Owner, RecordingListener, SharedFixture, TurnBuilder, run};

#[derive(Default)]
struct Memory(MemoryStore);

impl Fixture for Memory {
    fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
        ready(Arc::new(self.0.clone()) as Arc<dyn Store>).boxed()
    }
}

whizbang::store_suite!(Memory::default());

/// A store whose commits take time.
mod delayed {
    use super::*;
    use whizbang::testing::store::cases;

    struct Delayed(MemoryStore);

    impl Delayed {
        fn new() -> Self {
            let (store, control) = MemoryStore::faulty();
            control.hold();
            tokio::task::spawn_local(async move {
                loop {
                    tokio::task::yield_now().await;
                    control.commit(1);
                }
            });
            Self(store)
        }
    }

    impl Fixture for Delayed {
        fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
            ready(Arc::new(self.0.clone()) as Arc<dyn Store>).boxed()
        }
    }

    #[test]
    fn pending_append_is_found_or_refused() {
        run(async { cases::pending_append_is_found_or_refused(&Delayed::new()).await });
    }
}

mod shared {
    use super::*;

    struct Shared(MemoryStore);

    impl Shared {
        fn new() -> Self {
            Self(MemoryStore::shared(&Clock::system()))
        }
    }

    impl Fixture for Shared {
        fn store(&self) -> BoxFuture<'_, Arc<dyn Store>> {
            ready(Arc::new(self.0.clone()) as Arc<dyn Store>).boxed()
        }
    }

    impl SharedFixture for Shared {
        fn second(&self) -> BoxFuture<'_, Arc<dyn Store>> {
            self.store()
        }
    }

    whizbang::store_suite!(Shared::new());
    whizbang::lease_suite!(Shared::new());

    /// Appends that wait for their commit while the shard is taken are lost, and their writer is notified.
    mod held {
        use super::*;

        #[test]
        fn uncommitted_appends_are_fenced_by_a_takeover() {
            run(async {
                let (clock, time) = Clock::manual(Timestamp::from_millis(1_000));
                let store = MemoryStore::shared(&clock);
                let control = store.commit_control();
                let store = Arc::new(store) as Arc<dyn Store>;
                let leases = store.leases().unwrap();
                let member = |id| Member::new(MemberId::from_u128(id), Name::new("bank").unwrap(), "node");
                let ttl = Duration::from_secs(2);
                leases.renew(&member(1), ttl).await.unwrap();
                let listener = Arc::new(RecordingListener::default());
                let (lost, kept) = (shard("bank", 0), shard("bank", 1));
                let take =
                    |id: u128, shard| Owner::lease_with(&store, MemberId::from_u128(id), shard, Arc::clone(&listener));
                let mut old = take(1, &lost).await.unwrap();
                let mut other = take(1, &kept).await.unwrap();
                old.commit(&turn("ada", 1)).await;
                control.hold();
                let fenced = old.append(&turn("ada", 2)).unwrap();
                let good = other.append(&turn("bob", 1)).unwrap();
                time.advance(ttl);
                leases.renew(&member(2), ttl).await.unwrap();
                let young = Owner::lease(&store, MemberId::from_u128(2), &lost).await.unwrap();
                assert_eq!((control.waiting(), young.load("Account", "ada").await.turns.len()), (1, 1));
                control.resume();
                other.settled(good).await;
                let outcome = listener.until_settled(&lost, old.writer.epoch(), fenced.ticket).await;
                assert!(matches!(outcome, Err(StoreError::Fenced { .. })), "{outcome:?}");
                assert_eq!((young.reader.position(), other.reader.position()), (1, 1));
            });
        }
    }
}

fn shard(domain: &str, number: u16) -> ShardId {
    ShardId::new(Name::new(domain).unwrap(), number)
}

fn turn(key: &str, number: u64) -> TurnBuilder {
    TurnBuilder::new("Account", key, number).at(number, number - 1).event("Happened", number.to_string())
}

async fn faulty() -> (Arc<dyn Store>, CommitControl, Owner) {
    let (store, faults) = MemoryStore::faulty();
    let store = Arc::new(store) as Arc<dyn Store>;
    let owner = Owner::take(&store, &shard("bank", 0)).await;
    (store, faults, owner)
}

#[test]
fn long_stream_is_read_in_pages() {
    run(async {
        let (_, faults, mut owner) = faulty().await;
        for number in 1..=1_000 {
            owner.commit(&turn("ada", number)).await;
        }
        let actor = Name::new("Account").unwrap();
        let mut pages = owner.reader.pages(&actor, "ada", true).await.unwrap();
        let mut lengths = Vec::new();
        while let Some(length) = Some(pages.next().await.unwrap().len()).filter(|length| *length > 0) {
            lengths.push(length);
        }
        assert_eq!(lengths.iter().sum::<usize>(), 1_000);
        assert!(lengths.iter().all(|length| *length <= 256), "{lengths:?}");
        // Turns that were lost since are not read.
        let mut pages = owner.reader.pages(&actor, "ada", true).await.unwrap();
        faults.hold();
        owner.append(&turn("ada", 1_001)).unwrap();
        faults.fail(0, StoreError::Closed);
        assert!(matches!(pages.next().await, Err(StoreError::Closed)));
    });
}

#[test]
fn held_turn_is_invisible_until_committed() {
    run(async {
        let (store, faults, mut owner) = faulty().await;
        owner.commit(&turn("ada", 1)).await;
        faults.hold();
        let shop = shard("shop", 0);
        for number in 2..=4 {
            let appended = owner.append(&turn("ada", number).send(&shop, number).set("pay", number)).unwrap();
            assert!(!appended.committed);
            assert_eq!(appended.position, number);
        }
        assert_eq!((faults.waiting(), owner.reader.position()), (3, 1));
        assert_eq!(owner.load("Account", "ada").await.turns.len(), 1);
        assert_eq!((owner.reader.outbox_heads(), owner.reader.next_timer()), (vec![], None));
        assert_eq!(faults.commit(2), 2);
        assert_eq!(owner.listener.reports(), [3]);
        assert_eq!(owner.load("Account", "ada").await.turns.len(), 3);
        assert_eq!(owner.reader.outbox_heads(), [(shop, 0, 2)]);
        assert_eq!(owner.reader.next_timer(), Some(Timestamp::from_millis(3)));
        faults.resume();
        assert_eq!(owner.listener.reports(), [3, 4]);
        assert!(owner.append(&turn("ada", 5)).unwrap().committed);
        drop(store);
    });
}

#[test]
fn immediate_commit_follows_held_turns() {
    run(async {
        let (_store, faults, mut owner) = faulty().await;
        let shop = shard("shop", 0);
        faults.hold();
        owner.append(&turn("ada", 1).send(&shop, 1)).unwrap();
        faults.resume();
        // No reader has read between the two.
        assert!(owner.append(&turn("ada", 2).send(&shop, 2)).unwrap().committed);
        assert_eq!(owner.reader.outbox_heads(), [(shop, 0, 2)]);
    });
}

#[test]
fn failed_commit_loses_only_uncommitted_turns() {
    run(async {
        let (store, faults, mut owner) = faulty().await;
        owner.commit(&turn("ada", 1)).await;
        faults.hold();
        for number in 2..=5 {
            owner.append(&turn("ada", number)).unwrap();
        }
        owner.snapshot("Account", "ada", 5, b"speculative");
        faults.fail(1, StoreError::Closed);
        assert!(owner.listener.error().is_some());
        assert!(owner.listener.reports().is_empty());
        assert!(matches!(owner.append(&turn("ada", 6)), Err(StoreError::Closed)));
        let mut next = Owner::take(&store, &owner.shard).await;
        let state = next.load("Account", "ada").await;
        assert_eq!((state.turns.len(), state.snapshot), (2, None));
        for number in 3..=6 {
            next.commit(&turn("ada", number)).await;
        }
        // The snapshot of the lost fifth turn must not be used for the new fifth turn.
        assert_eq!(next.load("Account", "ada").await.snapshot, None);
        assert!(matches!(owner.append(&turn("ada", 7)), Err(StoreError::Fenced { .. })));
    });
}

#[test]
fn planned_refusals_occur_and_store_nothing() {
    run(async {
        let (_store, faults, mut owner) = faulty().await;
        faults.refuse(2, StoreError::Full { at: "here".to_owned() });
        for _ in 0..2 {
            assert!(matches!(owner.append(&turn("ada", 1)), Err(StoreError::Full { .. })));
        }
        assert_eq!(owner.commit(&turn("ada", 1)).await.position, 1);
    });
}

#[derive(Clone, Debug)]
enum Step {
    Append { key: usize, events: usize, sends: Vec<u16>, timer: Option<u64>, letter: bool, from: Option<u64> },
    Sent(u64),
    Commit(usize),
    Fail(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let append = (
        0..4usize,
        0..4usize,
        proptest::collection::vec(0..3u16, 0..4),
        proptest::option::of(0..50u64),
        any::<bool>(),
        proptest::option::of(0..100u64),
    );
    prop_oneof![
        12 => append.prop_map(|(key, events, sends, timer, letter, from)| Step::Append {
            key, events, sends, timer, letter, from
        }),
        1 => (0..30u64).prop_map(Step::Sent),
        4 => (0..5usize).prop_map(Step::Commit),
        1 => (0..5usize).prop_map(Step::Fail),
    ]
}

const KEYS: [&str; 4] = ["ada", "bob", "eve", "dan"];

/// An append that can be repeated on another store.
#[derive(Clone)]
enum Written {
    Turn(Box<TurnBuilder>),
    Sent(u64),
}

/// Returns everything that readers see.
async fn seen(owner: &Owner) -> String {
    let mut all = String::new();
    for key in KEYS {
        write!(all, "{:?}", owner.reader.history(&Name::new("Account").unwrap(), key).await.unwrap()).unwrap();
    }
    for to in 0..3 {
        write!(all, "{:?}", owner.reader.outbox(&shard("shop", to), 0, 1_000).await.unwrap()).unwrap();
    }
    let mut heads = owner.reader.outbox_heads();
    heads.sort();
    let mut streams = owner.reader.streams().await.unwrap();
    streams.sort();
    let timers = owner.reader.timers_due(Timestamp::from_millis(1_000), 1_000);
    let letters = owner.reader.dead_letters(None, 1_000).await.unwrap();
    let reader = &owner.reader;
    write!(all, "{heads:?}{streams:?}{timers:?}{letters:?}{:?}{:?}", reader.watermarks(), reader.position()).unwrap();
    write!(all, "{:?}", owner.events(0, 10_000).await).unwrap();
    all
}

fn letter(key: &str, number: u64) -> Note {
    let envelope = Envelope {
        id: MessageId::from_u128(u128::from(number)),
        kind: Kind::Event,
        name: Name::new("E").unwrap(),
        version: 1,
        shape: None,
        domain: Name::new("shop").unwrap(),
        to: None,
        key: key.to_owned(),
        actor: None,
        origin: None,
        correlation: MessageId::from_u128(1),
        causation: None,
        time: Timestamp::from_millis(1),
        deadline: None,
        wants: ReplyMode::Nothing,
        traceparent: None,
        headers: Vec::new(),
        codec: Codec::Json,
        payload: Bytes::new(),
    };
    Note::DeadLetter(Box::new(DeadLetter {
        actor: Name::new("Account").unwrap(),
        key: key.to_owned(),
        reason: DeadLetterReason::Attempts,
        error: "no".to_owned(),
        attempts: 1,
        time: Timestamp::from_millis(2),
        envelope,
    }))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// Checks the oracle itself: with commits delayed or lost, readers see the same as in a store that received the
    /// committed turns only.
    #[test]
    fn readers_see_only_committed_turns(steps in proptest::collection::vec(step(), 1..40)) {
        run(async {
            let (store, faults, mut owner) = faulty().await;
            faults.hold();
            let source = Source { shard: shard("shop", 1), kind: SourceKind::Direct };
            let (mut written, mut committed): (Vec<Written>, usize) = (Vec::new(), 0);
            for step in steps {
                match step {
                    Step::Append { key, events, sends, timer, letter: dead, from } => {
                        let of_key = written.iter().filter_map(|written| match written {
                            Written::Turn(draft) if draft.key() == KEYS[key] => Some(draft.events_count()),
                            _ => None,
                        });
                        let (number, version) = of_key.fold((1, 0), |(number, version), events| (number + 1, version + events as u64));
                        let id = written.len() as u64;
                        let mut draft = TurnBuilder::new("Account", KEYS[key], id).at(number, version);
                        for event in 0..events {
                            draft = draft.event("Happened", format!("{id}/{event}"));
                        }
                        for to in sends {
                            draft = draft.send(&shard("shop", to), id);
                        }
                        draft = match timer {
                            Some(due) if due % 5 == 0 => draft.clear("pay"),
                            Some(due) => draft.set("pay", due),
                            None => draft,
                        };
                        if dead {
                            draft = draft.note(letter(KEYS[key], id % 5));
                        } else {
                            draft = draft.note(Note::Resolved { message: MessageId::from_u128(u128::from(id % 5)) });
                        }
                        if let Some(floor) = from {
                            draft = draft.from(&source, floor, floor);
                        }
                        let appended = owner.append(&draft).unwrap();
                        prop_assert!(!appended.committed);
                        written.push(Written::Turn(Box::new(draft)));
                    }
                    Step::Sent(through) => {
                        owner.writer.sent(&shard("shop", 0), through).unwrap();
                        written.push(Written::Sent(through));
                    }
                    Step::Commit(appends) => committed += faults.commit(appends),
                    Step::Fail(kept) => {
                        committed = written.len().min(committed + kept);
                        faults.fail(kept, StoreError::Closed);
                        written.truncate(committed);
                        owner = Owner::take(&store, &owner.shard).await;
                        faults.hold();
                    }
                }
                let plain = Arc::new(MemoryStore::new()) as Arc<dyn Store>;
                let mut other = Owner::take(&plain, &owner.shard).await;
                for written in &written[..committed] {
                    match written {
                        Written::Turn(draft) => drop(other.commit(draft).await),
                        Written::Sent(through) => other.sent(&shard("shop", 0), *through).await,
                    }
                }
                prop_assert_eq!(seen(&owner).await, seen(&other).await);
            }
            Ok(())
        })?;
    }
}
