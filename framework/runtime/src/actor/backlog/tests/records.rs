//! The log records of deferred messages: read again, with and without a snapshot, and bounded.

use super::super::record::{MAX_SNAPSHOT_MESSAGES, SCHEMA, SNAPSHOT_EVERY};
use super::*;
use whizbang_core::store::Snapshot;

/// One deferred message: id, source, sequence, whether it is parked.
type Entry = (u128, Source, u64, bool);

impl World {
    /// Returns the turn of the stored snapshot.
    async fn snapshot(&self) -> Option<u64> {
        let backlog = &self.backlog;
        let stored = backlog.shard.reader().load(&backlog.deferred, &backlog.actor).await.unwrap();
        stored.snapshot.map(|snapshot| snapshot.turn)
    }

    fn turns(&self) -> u64 {
        self.backlog.state.borrow().turns
    }

    /// Returns what is deferred, for each key in its order.
    fn contents(&self) -> Vec<(String, Vec<Entry>)> {
        let state = self.backlog.state.borrow();
        let mut all: Vec<_> = state
            .queues
            .iter()
            .map(|(key, queue)| {
                let entry =
                    |entry: &Deferred| (entry.id.as_u128(), (*entry.source).clone(), entry.sequence, entry.parked);
                (key.to_string(), queue.entries.iter().map(entry).collect())
            })
            .collect();
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }
}

#[test]
fn snapshot_is_saved_unless_too_many_messages_wait() {
    on_paused_time(async {
        let world = World::new().await;
        let most = MAX_SNAPSHOT_MESSAGES as u128;
        world.context.draining.set(true);
        world.defer("a", 1..=u128::from(SNAPSHOT_EVERY));
        assert_eq!(world.snapshot().await, None);
        world.defer("a", u128::from(SNAPSHOT_EVERY) + 1..=most);
        assert_eq!(world.snapshot().await, Some(MAX_SNAPSHOT_MESSAGES as u64 - SNAPSHOT_EVERY));
        world.defer("a", [most + 1]);
        assert_eq!(world.snapshot().await, Some(MAX_SNAPSHOT_MESSAGES as u64), "before the next turn");
        world.defer("a", most + 2..=most + u128::from(SNAPSHOT_EVERY) + 1);
        assert_eq!(world.snapshot().await, Some(MAX_SNAPSHOT_MESSAGES as u64), "too many wait");
        let (turns, contents) = (world.turns(), world.contents());
        let world = World::with(world.store.clone(), context()).await;
        assert_eq!((world.turns(), world.contents()), (turns, contents));
    });
}

#[test]
fn messages_between_append_and_commit_are_in_snapshots() {
    on_paused_time(async {
        let world = World::new().await;
        // Each is the first one of its key, so that all are delivered.
        let ids = 1..=u128::from(SNAPSHOT_EVERY);
        ids.clone().for_each(|id| world.defer(&format!("key-{id}"), [id]));
        world.until_delivered(1024).await;
        ids.clone().for_each(|id| append(&world.take(id)));
        assert_eq!(world.deferred(), 0);
        world.defer("last", [9999]);
        assert_eq!(world.snapshot().await, Some(SNAPSHOT_EVERY));
        let world = World::with(world.store.clone(), context()).await;
        assert_eq!(world.deferred(), SNAPSHOT_EVERY + 1, "none of them is released");
    });
}

#[test]
fn messages_between_append_and_commit_count_for_the_limit() {
    on_paused_time(async {
        let world = World::new().await;
        let turns = MAX_SNAPSHOT_MESSAGES as u128 + u128::from(SNAPSHOT_EVERY);
        (1..=turns).for_each(|id| world.defer(&format!("key-{id}"), [id]));
        world.until_delivered(turns as usize).await;
        world.delivered.take().iter().for_each(append);
        assert_eq!(world.deferred(), 0);
        world.defer("last", [turns + 1]);
        assert_eq!(world.snapshot().await, Some(MAX_SNAPSHOT_MESSAGES as u64));
    });
}

#[test]
fn contents_are_the_same_with_and_without_a_snapshot() {
    on_paused_time(async {
        let world = World::new().await;
        let events = Rc::new(Source {
            shard: bank(1),
            kind: SourceKind::Events { subscriber: Name::from_static("account").unwrap() },
        });
        for n in 1..=SNAPSHOT_EVERY + 40 {
            let (mut delivery, _) = world.delivery(command(n.into(), Timestamp::default()));
            if n % 3 == 0 {
                let tracker = Rc::clone(&world.progress) as _;
                delivery.dedup_key = DedupKey::Sequence { source: Rc::clone(&events), sequence: n, tracker };
            }
            assert!(world.backlog.defer(&key(&format!("k{}", n % 7)), delivery, ()).is_ok());
            if n % 11 == 0 {
                run_ready().await;
                for delivery in world.delivered.take() {
                    handle(delivery);
                }
            }
        }
        let contents = world.contents();
        assert!(world.snapshot().await.is_some() && contents.len() > 3);
        let turns = world.turns();
        let again = World::with(world.store.clone(), context()).await;
        assert_eq!((again.turns(), again.contents()), (turns, contents.clone()));
        // A snapshot of another schema is not used, so the whole stream is read.
        let snapshot = Snapshot { turn: turns, version: 0, schema: SCHEMA + 1, bytes: Bytes::new() };
        let Backlog { shard, deferred, actor, .. } = &*again.backlog;
        shard.writer.borrow_mut().save_snapshot(deferred, actor, snapshot);
        let again = World::with(world.store.clone(), context()).await;
        assert_eq!((again.turns(), again.contents()), (turns, contents));
    });
}

/// Reading the turns before a snapshot would cost more the longer a service runs.
#[test]
fn snapshot_replaces_the_turns_before_it() {
    on_paused_time(async {
        let world = World::new().await;
        world.defer("a", 1..=3);
        let saved = |n: u64, parked| ("b".to_owned(), id(n.into()), "bank".to_owned(), 1u16, false, n, parked);
        let mut bytes = Vec::new();
        Codec::Bincode.encode(&vec![saved(7, true), saved(8, false)], &mut bytes).unwrap();
        let snapshot = Snapshot { turn: 2, version: 0, schema: SCHEMA, bytes: bytes.into() };
        let Backlog { shard, deferred, actor, .. } = &*world.backlog;
        shard.writer.borrow_mut().save_snapshot(deferred, actor, snapshot);
        let world = World::with(world.store.clone(), context()).await;
        let source = Source { shard: bank(1), kind: SourceKind::Direct };
        let restored = vec![(7, source.clone(), 7, true), (8, source.clone(), 8, false)];
        let read = vec![(3, source, 3, false)];
        assert_eq!(world.contents(), [("a".to_owned(), read), ("b".to_owned(), restored)]);
        assert_eq!(world.turns(), 3);
    });
}

#[test]
fn message_without_a_key_keeps_its_reason() {
    on_paused_time(async {
        let world = World::new().await;
        let (delivery, _) = world.delivery(command(1, Timestamp::default()));
        let refused = Action::DeadLetter("no key".to_owned());
        assert!(world.backlog.defer(&key("a"), Delivery { action: refused.clone(), ..delivery }, ()).is_ok());
        world.defer("b", [2]);
        let world = world.restarted().await;
        assert_eq!((world.take(1).action, world.take(2).action), (refused, Action::Handle));
    });
}

#[test]
fn message_of_several_actor_types_is_read_for_its_own() {
    on_paused_time(async {
        let world = World::new().await;
        let deliver: Deliver = Rc::new(|_| {});
        let other = Name::from_static("an-other").unwrap();
        let other = Backlog::new(&world.context, &world.backlog.shard, &other, &deliver);
        Rc::clone(&other).load_deferred().await.unwrap();
        let (delivery, _) = world.delivery(command(1, Timestamp::default()));
        let refused = Action::DeadLetter("of the other type".to_owned());
        assert!(other.defer(&key("x"), Delivery { action: refused.clone(), ..delivery }, ()).is_ok());
        world.defer("a", [1]);
        world.defer("b", [2]);
        let read = async |backlog: &Backlog, key: &str, message| {
            backlog.read(key, id(message), None).await.unwrap().map(|(action, envelope)| (action, envelope.key))
        };
        assert_eq!(read(&world.backlog, "a", 1).await, Some((Action::Handle, "a".to_owned())));
        assert_eq!(read(&other, "x", 1).await, Some((refused, "x".to_owned())));
        assert_eq!((read(&world.backlog, "b", 1).await, read(&world.backlog, "x", 1).await), (None, None));
        assert_eq!(read(&world.backlog, "b", 2).await, Some((Action::Handle, "b".to_owned())));
        assert_eq!((read(&world.backlog, "a", 0).await, read(&world.backlog, "b", 3).await), (None, None));
    });
}
