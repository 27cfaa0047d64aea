//! The store in memory at the borders of its rules: listeners, held commits, snapshots, limits.

use std::time::Duration;

use super::*;
use whizbang_conformance::store::{Owner, RecordingListener, TurnBuilder, run};
use whizbang_core::message::MessageId;
use whizbang_core::store::MAX_TURN_BYTES;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn shard(number: u16) -> ShardId {
    ShardId::new(name("bank"), number)
}

fn id(number: u64) -> MessageId {
    TurnBuilder::new("A", "", number).write(|turn| turn.id)
}

fn turn(number: u64) -> TurnBuilder {
    TurnBuilder::new("Account", "ada", number).at(number, number - 1).event("Happened", number.to_string())
}

const MS: Duration = Duration::from_millis(1);

/// The tickets of a listener must continue, and a store that is opened again and again must not grow.
#[test]
fn listener_is_forgotten_with_its_last_user() {
    run(async {
        let memory = MemoryStore::new();
        let store = Arc::new(memory.clone()) as Arc<dyn Store>;
        let known = || memory.shared.listeners.lock().len();
        let kept = Arc::new(RecordingListener::default());
        let first = Owner::take_with(&store, &shard(0), Arc::clone(&kept)).await.append(&turn(1)).unwrap();
        let Owner { writer: mut by_writer, listener, .. } = Owner::take(&store, &shard(1)).await;
        drop(listener);
        assert_eq!(known(), 2);
        drop(Owner::take(&store, &shard(2)).await);
        assert_eq!(known(), 3);
        // The next new listener drops the one without a user, and keeps those of the test and of the writer.
        let last = Owner::take(&store, &shard(3)).await;
        assert_eq!(known(), 3);
        let again = Owner::take_with(&store, &shard(0), kept).await.append(&turn(2)).unwrap();
        assert_eq!((known(), first.ticket, again.ticket), (3, 1, 2));
        let tickets = [1, 2].map(|number| turn(number).write(|turn| by_writer.append(turn)).unwrap().ticket);
        assert_eq!((tickets, last.listener.reports().len()), ([1, 2], 0));
    });
}

/// Two owners whose commits are held.
struct Held {
    store: Arc<dyn Store>,
    memory: MemoryStore,
    control: CommitControl,
    one: Owner,
    other: Owner,
}

impl Held {
    /// The first owner appends three turns, the other one two, in turn.
    async fn new() -> Self {
        let (store, control) = MemoryStore::faulty();
        let (memory, store) = (store.same_handle(), Arc::new(store) as Arc<dyn Store>);
        let (mut one, mut other) = (Owner::take(&store, &shard(0)).await, Owner::take(&store, &shard(1)).await);
        control.hold();
        for number in 1..=3 {
            assert!(!one.append(&turn(number)).unwrap().committed);
            if number < 3 {
                other.append(&turn(number)).unwrap();
            }
        }
        assert_eq!(control.waiting(), 5);
        Self { store, memory, control, one, other }
    }

    fn listener(&self) -> Arc<dyn CommitListener> {
        Arc::clone(&self.one.listener) as Arc<dyn CommitListener>
    }

    fn positions(&self) -> [u64; 2] {
        [self.one.reader.position(), self.other.reader.position()]
    }

    fn reports(&self) -> [Vec<u64>; 2] {
        [self.one.listener.reports(), self.other.listener.reports()]
    }
}

#[test]
fn held_appends_are_committed_oldest_first() {
    run(async {
        let held = Held::new().await;
        assert_eq!((held.control.commit(0), held.positions()), (0, [0, 0]));
        assert_eq!((held.control.commit(3), held.positions(), held.control.waiting()), (3, [2, 1], 2));
        assert_eq!(held.reports(), [vec![2], vec![1]], "one report for each listener");
        assert_eq!((held.control.commit(9), held.positions(), held.control.waiting()), (2, [3, 2], 0));
        assert_eq!(held.reports(), [vec![2, 3], vec![1, 2]]);
    });
}

#[test]
fn held_appends_of_one_owner_are_committed_alone() {
    run(async {
        let held = Held::new().await;
        assert_eq!((held.control.commit_of(&held.listener(), 2), held.positions()), (2, [2, 0]));
        assert_eq!((held.reports(), held.control.waiting()), ([vec![2], vec![]], 3));
        assert_eq!((held.control.commit_of(&held.listener(), 9), held.positions()), (1, [3, 0]));
        assert_eq!(held.control.commit_of(&held.listener(), 9), 0);
        assert_eq!((held.reports(), held.control.waiting()), ([vec![2, 3], vec![]], 2));
    });
}

#[test]
fn lost_owner_leaves_a_part_of_its_appends() {
    run(async {
        let mut held = Held::new().await;
        held.control.lose(&held.listener(), 1);
        assert_eq!((held.positions(), held.control.waiting()), ([1, 0], 2));
        assert_eq!((held.reports(), held.one.listener.error().is_some()), ([vec![], vec![]], false));
        assert!(matches!(held.one.append(&turn(4)), Err(StoreError::Closed)));
        held.control.resume();
        assert_eq!((held.positions(), held.reports()), ([1, 2], [vec![], vec![2]]));
        let mut next = Owner::take(&held.store, &shard(0)).await;
        assert!(next.append(&turn(2)).unwrap().committed);
        assert_eq!(next.reader.position(), 2);
    });
}

#[test]
fn failed_store_keeps_the_first_appends() {
    run(async {
        let mut held = Held::new().await;
        held.control.fail(3, StoreError::Closed);
        assert_eq!((held.positions(), held.control.waiting(), held.reports()), ([2, 1], 0, [vec![], vec![]]));
        assert!(held.one.listener.error().is_some() && held.other.listener.error().is_some());
        assert!(matches!(held.other.append(&turn(2)), Err(StoreError::Closed)));
        let mut next = Owner::take(&held.store, &shard(1)).await;
        assert!(next.append(&turn(2)).unwrap().committed, "commits are not held any longer");
    });
}

/// Without a loss nothing is read again, so the kept appends must be committed themselves.
#[test]
fn end_of_an_owner_may_keep_all_appends() {
    run(async {
        let held = Held::new().await;
        held.control.lose(&held.listener(), 3);
        assert_eq!((held.positions(), held.control.waiting(), held.reports()), ([3, 0], 2, [vec![], vec![]]));
        let held = Held::new().await;
        held.control.fail(5, StoreError::Closed);
        assert_eq!((held.positions(), held.control.waiting(), held.reports()), ([3, 2], 0, [vec![], vec![]]));
    });
}

#[test]
fn appends_of_the_present_owner_are_not_fenced() {
    run(async {
        let held = Held::new().await;
        let fence = |number, epoch| held.memory.shared.held_commits.fence(&shard(number), epoch);
        fence(0, held.one.writer.epoch());
        fence(2, 9);
        assert_eq!(held.control.waiting(), 5);
        fence(1, held.other.writer.epoch() + 1);
        assert_eq!(held.control.waiting(), 3);
        assert_eq!((held.one.listener.fenced().len(), held.other.listener.fenced().len()), (0, 1));
        held.control.resume();
        assert_eq!(held.positions(), [3, 0]);
    });
}

#[test]
fn refused_appends_have_their_error() {
    run(async {
        let (store, control) = MemoryStore::faulty();
        let mut owner = Owner::take(&(Arc::new(store) as Arc<dyn Store>), &shard(0)).await;
        control.refuse(1, StoreError::Closed);
        control.refuse(1, StoreError::NoStatements);
        let refused = [(), ()].map(|()| owner.append(&turn(1)).unwrap_err());
        assert!(matches!(refused, [StoreError::Closed, StoreError::NoStatements]), "{refused:?}");
        assert!(owner.append(&turn(1)).unwrap().committed);
    });
}

/// Returns the turn of the snapshot that is loaded, and the numbers of the turns after it.
async fn loaded(owner: &Owner) -> (Option<u64>, Vec<u64>) {
    let state = owner.load("Account", "ada").await;
    (state.snapshot.map(|snapshot| snapshot.turn), state.turns.iter().map(|turn| turn.number).collect())
}

#[test]
fn snapshot_is_used_with_the_turns_after_it() {
    run(async {
        let store = Arc::new(MemoryStore::new()) as Arc<dyn Store>;
        let mut owner = Owner::take(&store, &shard(0)).await;
        owner.snapshot("Account", "ada", 1, b"no such stream");
        for number in 1..=3 {
            owner.commit(&turn(number)).await;
        }
        assert_eq!(loaded(&owner).await, (None, vec![1, 2, 3]));
        owner.snapshot("Account", "ada", 2, b"behind the head");
        assert_eq!(loaded(&owner).await, (Some(2), vec![3]));
        owner.snapshot("Account", "ada", 4, b"no such turn");
        assert_eq!(loaded(&owner).await, (Some(2), vec![3]));
        owner.snapshot("Account", "ada", 3, b"at the head");
        assert_eq!(loaded(&owner).await, (Some(3), vec![]));
        let mut next = Owner::take(&store, &shard(0)).await;
        next.commit(&turn(4)).await;
        owner.snapshot("Account", "ada", 4, b"of an earlier owner");
        assert_eq!(loaded(&next).await, (Some(3), vec![4]));
        store.close().await.unwrap();
        next.snapshot("Account", "ada", 4, b"after the end");
        assert_eq!(loaded(&next).await, (Some(3), vec![4]));
    });
}

#[test]
fn snapshot_of_a_lost_turn_is_forgotten() {
    run(async {
        for (turn_of, kept) in [(1, true), (2, true), (3, false)] {
            let held = Held::new().await;
            let Held { store, control, one: mut owner, .. } = held;
            owner.snapshot("Account", "ada", turn_of, b"pending");
            let listener = Arc::clone(&owner.listener) as Arc<dyn CommitListener>;
            control.lose(&listener, 2);
            let mut next = Owner::take(&store, &shard(0)).await;
            next.append(&turn(3)).unwrap();
            control.resume();
            assert_eq!(loaded(&next).await.0, kept.then_some(turn_of), "the snapshot of turn {turn_of}");
        }
    });
}

#[test]
fn turn_up_to_the_limit_is_appended() {
    run(async {
        let store = Arc::new(MemoryStore::new()) as Arc<dyn Store>;
        let mut owner = Owner::take(&store, &shard(0)).await;
        let draft = |payload: usize| TurnBuilder::new("Account", "ada", 1).event("Happened", vec![0; payload]);
        let largest = MAX_TURN_BYTES - draft(0).write(crate::record::turn_bound);
        let refused = owner.append(&draft(largest + 1)).map(|_| ());
        let expected = StoreError::Oversize { bytes: MAX_TURN_BYTES + 1, limit: MAX_TURN_BYTES };
        assert_eq!(refused.map_err(|error| error.to_string()), Err(expected.to_string()));
        assert_eq!(owner.append(&draft(largest)).unwrap().position, 1);
    });
}

#[test]
fn long_stream_is_divided_into_pages() {
    run(async {
        let store = Arc::new(MemoryStore::new()) as Arc<dyn Store>;
        let mut owner = Owner::take(&store, &shard(0)).await;
        let pages = async |owner: &Owner, snapshot| {
            let mut pages = owner.reader.pages(&name("Account"), "ada", snapshot).await.unwrap();
            let (used, mut lengths) = (pages.snapshot().map(|snapshot| snapshot.turn), Vec::new());
            while let Some(length) = Some(pages.next().await.unwrap().len()).filter(|length| *length > 0) {
                lengths.push(length);
            }
            (used, lengths)
        };
        for number in 1..=257 {
            owner.commit(&turn(number)).await;
            match number {
                10 | 256 => assert_eq!(pages(&owner, true).await, (None, vec![number as usize])),
                _ => {}
            }
        }
        assert_eq!(pages(&owner, true).await, (None, vec![1, 256]));
        owner.snapshot("Account", "ada", 257, b"all");
        assert_eq!(pages(&owner, true).await, (Some(257), vec![]));
        assert_eq!(pages(&owner, false).await, (None, vec![1, 256]));
        for number in 258..=520 {
            owner.commit(&turn(number)).await;
        }
        assert_eq!(pages(&owner, true).await, (Some(257), vec![7, 256]));
        owner.snapshot("Account", "ada", 520, b"all");
        for number in 521..=525 {
            owner
                .commit(
                    &TurnBuilder::new("Account", "ada", number)
                        .at(number, number - 1)
                        .event("Happened", vec![0; 400 << 10]),
                )
                .await;
        }
        assert_eq!(pages(&owner, true).await, (Some(520), vec![2, 3]), "at 1 MiB");
    });
}

#[test]
fn ids_of_old_turns_are_forgotten() {
    run(async {
        let store = Arc::new(MemoryStore::new()) as Arc<dyn Store>;
        let mut owner = Owner::take(&store, &shard(0)).await;
        let draft = TurnBuilder::new("Account", "ada", 1).outside(7);
        owner.commit(&draft).await;
        let time = draft.write(|turn| turn.time);
        let actor = name("Account");
        store.forget_ids(time);
        assert!(owner.reader.find_turn(&actor, "ada", id(1)).await.unwrap().is_some());
        store.forget_ids(time.after(MS));
        assert!(owner.reader.find_turn(&actor, "ada", id(1)).await.unwrap().is_none());
    });
}

#[test]
fn store_describes_itself() {
    run(async {
        let store = Arc::new(MemoryStore::new()) as Arc<dyn Store>;
        assert_eq!((store.digest_key(), store.runs_statements()), (0x5EED, false), "every run is the same");
        assert!(store.durability().starts_with("in memory: "));
        assert!(MemoryStore::run_statements_by(|_| Ok(())).runs_statements());
        assert!(Owner::take(&store, &shard(0)).await.writer.commits_at_once());
        let ids = [store.identity().await.unwrap(), store.identity().await.unwrap()];
        assert!(ids[0] == ids[1] && ids[0].is_some());
        assert_ne!(MemoryStore::new().identity().await.unwrap(), ids[0]);
        for (number, shards, is_open) in [(0, 4, true), (3, 4, true), (4, 4, false), (3, 5, false), (3, 3, false)] {
            let opened = store.open(&shard(number), shards, Arc::new(RecordingListener::default())).await;
            assert_eq!(opened.is_ok(), is_open, "shard {number} of {shards}");
        }
    });
}
