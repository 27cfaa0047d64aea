//! Messages that are only in the log, and the bound of keys.

use super::*;
use crate::actor::backlog::queues::MAX_DEFERRED;

/// The most messages of one key in memory.
const HALF: u128 = MAX_DEFERRED as u128 / 2;

impl World {
    fn in_memory(&self, key: &str) -> u128 {
        self.backlog.state.borrow().queues.get(key).map_or(0, |queue| queue.entries.len()) as u128
    }

    /// Returns the number of messages in the index of the store.
    async fn indexed(&self) -> u128 {
        self.backlog.shard.reader().dead_letters(None, usize::MAX).await.unwrap().len() as u128
    }

    /// Handles the next message of a key, which must be this one.
    async fn handle_next(&self, id: u128) {
        self.until_delivered(1).await;
        handle(self.take(id));
    }
}

#[test]
fn messages_beyond_the_memory_are_delivered_in_order() {
    on_paused_time(async {
        let mut world = World::new().await;
        let all = HALF + 600;
        world.defer("a", 1..=all);
        assert_eq!((world.in_memory("a"), world.indexed().await, world.deferred()), (HALF, HALF, all as u64));
        // A later message waits behind them although the memory has capacity by then.
        let later = all + 1..=all + 3;
        for id in 1..=all + 3 {
            world.handle_next(id).await;
            if id == 1000 {
                world.defer("a", later.clone());
                assert!(world.in_memory("a") < HALF);
            }
            // Snapshots are due in between; they must not lack anything.
            if id % 750 == 0 || id > HALF && id % 200 == 0 {
                let waiting = world.deferred();
                world = world.restarted().await;
                assert_eq!(world.deferred(), waiting, "after {id}");
            }
        }
        run_ready().await;
        assert_eq!((world.ids(), world.deferred(), world.indexed().await), (vec![], 0, 0));
        assert!(!world.backlog.has("a") && world.backlog.is_idle());
        assert_eq!(world.restarted().await.ids(), [0; 0]);
    });
}

#[test]
fn messages_beyond_the_memory_are_known_to_be_duplicates() {
    on_paused_time(async {
        let world = World::new().await;
        world.defer("a", 1..=HALF + 2);
        let turns = world.backlog.state.borrow().turns;
        world.defer("a", [HALF + 1, HALF + 2]);
        assert_eq!((world.backlog.state.borrow().turns, world.deferred()), (turns, HALF as u64 + 2));
        let world = world.restarted().await;
        world.defer("a", [HALF + 2]);
        assert_eq!(world.deferred(), HALF as u64 + 2);
    });
}

#[test]
fn one_key_leaves_half_of_the_memory_to_others() {
    on_paused_time(async {
        let world = World::new().await;
        let most = MAX_DEFERRED as u128;
        world.defer("a", 1..=most);
        world.defer("b", most + 1..=2 * most);
        world.defer("c", 2 * most + 1..=2 * most + 3);
        assert_eq!(["a", "b", "c"].map(|key| world.in_memory(key)), [HALF, HALF, 1], "the first one always is");
        assert_eq!(world.deferred(), 2 * MAX_DEFERRED as u64 + 3);
        for id in 2 * most + 1..=2 * most + 3 {
            // The later ones are read from the log, page by page.
            while !world.ids().contains(&id) {
                tokio::task::yield_now().await;
            }
            handle(world.take(id));
            run_ready().await;
        }
        assert!(!world.backlog.has("c"));
    });
}

#[test]
fn number_of_keys_with_deferred_messages_is_bounded() {
    on_paused_time(async {
        let world = World::new().await;
        // Nothing is delivered until the messages are refused.
        world.context.draining.set(true);
        let most = MAX_KEYS as u128;
        (1..=most).for_each(|id| world.defer(&id.to_string(), [id]));
        let issues = &world.context.settings.issues;
        assert_eq!(issues.reasons(), [""; 0]);
        let refused = |of: u128, id| {
            let (delivery, completed) = world.delivery(command(id, Timestamp::default()));
            let refused = world.backlog.defer(&key(&of.to_string()), delivery, ()).is_err();
            assert_eq!(refused, completed.take().is_none());
            refused
        };
        for _ in 0..2 {
            assert!(refused(most + 1, most + 1));
        }
        assert!(!refused(1, most + 2), "its key waits already");
        let why = format!(
            "{MAX_KEYS} keys of `account` in bank/0 have deferred messages: those of other keys are not accepted"
        );
        assert_eq!(issues.reasons(), [why]);
        world.context.draining.set(false);
        world.backlog.deliver_next(&key("2"));
        run_ready().await;
        handle(world.take(2));
        assert_eq!((issues.reasons(), world.deferred()), (vec![], MAX_KEYS as u64));
        assert!(!refused(most + 1, most + 3) && refused(most + 4, most + 4));
    });
}

#[test]
fn message_over_the_limit_of_parked_ones_rests() {
    on_paused_time(async {
        let world = World::new().await;
        world.defer("a", 1..=2);
        run_ready().await;
        world.backlog.rest(&key("a"), world.take(1));
        tokio::time::sleep(10 * SLOW_RETRY).await;
        assert_eq!((world.ids(), world.deferred()), (vec![], 2));
        assert!(world.backlog.is_idle() && world.context.is_idle(), "only an operator ends it");
        for _ in 0..2 {
            world.backlog.resume(&key("a"));
            run_ready().await;
            assert_eq!(world.ids(), [1], "delivered once");
        }
        handle(world.take(1));
        run_ready().await;
        assert_eq!(world.ids(), [2]);
    });
}
