//! Keys that cannot be loaded: retried, parked, reported, and delivered once they load.

use super::super::unloadable::{MAX_PASSIVATED, SLOWEST_RETRY};
use super::*;
use crate::actor::stuck_key::StuckKey;
use whizbang_core::retry::Retry;
use whizbang_core::store::DeadLetterReason;

const MILLI: Duration = Duration::from_millis(1);

/// A failure that a retry does not change.
fn damaged() -> StoreError {
    StoreError::OutOfTurn { shard: bank(0), expected: 1 }
}

impl World {
    async fn with_retry(retry: Retry) -> Self {
        let mut settings = settings();
        settings.retry = retry.into();
        Self::with(MemoryStore::new(), context_of(settings)).await
    }

    /// Fails to load the key `a` for a message.
    fn fail(&self, delivery: Delivery, error: &StoreError) {
        assert!(self.backlog.defer_unloadable(&key("a"), delivery, (), error).is_ok());
    }

    fn fail_to_load(&self, name: &str, times: u32) {
        (0..times).for_each(|_| self.backlog.failed_to_load(&key(name), &broken()));
    }

    async fn reasons(&self) -> Vec<DeadLetterReason> {
        let letters = self.backlog.shard.reader().dead_letters(None, 10).await.unwrap();
        letters.into_iter().map(|letter| letter.reason).collect()
    }
}

#[test]
fn unloadable_key_is_retried_and_then_parked() {
    on_paused_time(async {
        let retry = Retry { attempts: 2, first: Duration::ZERO, longest: Duration::ZERO };
        for (error, is_retried) in [(broken(), true), (damaged(), false)] {
            let world = World::with_retry(retry).await;
            let (first, completed) = world.delivery(command(1, Timestamp::default()));
            world.fail(first, &error);
            world.defer("a", [2]);
            assert!(matches!(completed.take(), Some(Outcome::Done(..))), "its source continues");
            assert_eq!((world.reasons().await, world.deferred()), (vec![DeadLetterReason::Deferred; 2], 2));
            assert!(!world.context.is_idle(), "a node that stops waits for the retry");
            tokio::time::sleep(MIN_WAIT + MILLI).await;
            run_ready().await;
            assert_eq!(world.ids(), [1]);
            world.fail(world.take(1), &error);
            let parked = vec![DeadLetterReason::Unloadable, DeadLetterReason::Deferred];
            assert_eq!((world.reasons().await, world.context.counts.dead_letters.get()), (parked.clone(), 1));
            assert!(world.context.is_idle() && world.backlog.is_idle());
            tokio::time::sleep(SLOW_RETRY - MILLI).await;
            assert_eq!(world.ids(), [0; 0]);
            tokio::time::sleep(2 * MILLI).await;
            run_ready().await;
            assert_eq!(world.ids().len(), usize::from(is_retried));
            if is_retried {
                world.fail(world.take(1), &error);
                assert_eq!(
                    (world.reasons().await, world.context.counts.dead_letters.get()),
                    (parked, 1),
                    "listed once"
                );
            }
            world.fail_to_load("a", 1);
            world.backlog.loaded(&key("a"));
            run_ready().await;
            assert_eq!(world.ids(), [1], "as soon as the key loads");
            handle(world.take(1));
            run_ready().await;
            assert_eq!(world.ids(), [2]);
            let world = world.restarted().await;
            assert_eq!(world.ids(), [2]);
        }
    });
}

#[test]
fn parked_message_is_marked_after_a_restart() {
    on_paused_time(async {
        let world = World::with_retry(Retry::NEVER).await;
        let (first, _) = world.delivery(command(1, Timestamp::default()));
        world.fail(first, &damaged());
        world.defer("a", [2]);
        assert_eq!(world.context.counts.dead_letters.get(), 1, "with its only attempt");
        let mut settings = settings();
        settings.retry = Retry::NEVER.into();
        let world = World::with(world.store.clone(), context_of(settings)).await;
        world.backlog.deliver_deferred();
        run_ready().await;
        world.fail(world.take(1), &damaged());
        assert_eq!(world.context.counts.dead_letters.get(), 0, "it was listed before");
        assert_eq!(world.reasons().await, [DeadLetterReason::Unloadable, DeadLetterReason::Deferred]);
    });
}

#[test]
fn unloadable_keys_show_until_they_are_loaded() {
    on_paused_time(async {
        let world = World::new().await;
        let issues = &world.context.settings.issues;
        world.backlog.loaded(&key("a"));
        assert_eq!((world.context.counts.unloadable.get(), world.backlog.rests("a")), (0, false));
        world.fail_to_load("a", 2);
        world.fail_to_load("b", 1);
        assert_eq!((world.context.counts.unloadable.get(), issues.keys().len()), (2, 2));
        assert!(
            issues
                .keys()
                .contains(&"key `a` of `account` in bank/0 cannot be loaded: flushing failed: planned".to_owned())
        );
        world.backlog.loaded(&key("c"));
        world.backlog.loaded(&key("a"));
        assert_eq!((world.context.counts.unloadable.get(), issues.keys().len()), (1, 1));
        assert!(!world.backlog.rests("a") && world.backlog.rests("b"));
        world.backlog.reset();
        assert_eq!((world.context.counts.unloadable.get(), issues.keys().len()), (0, 0));
    });
}

#[test]
fn timers_leave_an_unloadable_key_alone_for_a_while() {
    on_paused_time(async {
        let retry = Retry { attempts: 5, first: Duration::from_secs(4), longest: Duration::from_secs(3600) };
        let soon = Retry { first: MILLI, ..retry };
        for (retry, failures, wait) in [(soon, 1, SLOW_RETRY), (retry, 10, SLOWEST_RETRY)] {
            let world = World::with_retry(retry).await;
            world.fail_to_load("a", failures);
            assert!(world.backlog.rests("a") && !world.backlog.rests("b"));
            tokio::time::advance(wait - MILLI).await;
            assert!(world.backlog.rests("a"));
            tokio::time::advance(MILLI).await;
            assert!(!world.backlog.rests("a"), "{wait:?}");
        }
        // From half of 4 s * 2^4 to all of it.
        let world = World::with_retry(retry).await;
        world.fail_to_load("a", 5);
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(world.backlog.rests("a"));
    });
}

#[test]
fn unread_message_shows_until_it_is_read() {
    on_paused_time(async {
        let world = World::new().await;
        world.defer("a", [1]);
        let stuck = || world.context.settings.issues.stuck_keys();
        for listed in [0, 0, 1] {
            world.backlog.failed_to_read(&key("a"), &broken());
            assert_eq!(stuck().len(), listed);
        }
        let text = "failed to read the next message of key `a` of `account` in bank/0: flushing failed: planned";
        assert_eq!(stuck(), [text]);
        world.backlog.message_read("a");
        assert_eq!(stuck(), [""; 0]);
    });
}

#[test]
fn number_of_unloadable_keys_is_bounded() {
    on_paused_time(async {
        let world = World::new().await;
        (0..MAX_KEYS).for_each(|n| world.fail_to_load(&n.to_string(), 1));
        world.fail_to_load("more", 1);
        assert!(!world.backlog.rests("more") && world.backlog.rests("7"));
        assert_eq!(world.context.counts.unloadable.get(), MAX_KEYS as u64);
        tokio::time::advance(SLOW_RETRY).await;
        world.fail_to_load("7", 1);
        assert!(world.backlog.rests("7") && !world.backlog.rests("8"), "a known key is counted");
    });
}

#[test]
fn failures_of_passivated_keys_are_kept_once_and_bounded() {
    on_paused_time(async {
        let world = World::new().await;
        assert!(!world.backlog.take_failures("0").is_failing());
        for n in 0..=MAX_PASSIVATED {
            let mut failures = StuckKey::default();
            failures.refused(&world.context, &damaged(), String::new, String::new);
            world.backlog.keep_failures(&key(&n.to_string()), failures);
        }
        let mut taken = |n: usize| world.backlog.take_failures(&n.to_string()).is_failing();
        assert_eq!([0, MAX_PASSIVATED - 1, MAX_PASSIVATED].map(&mut taken), [true, true, false]);
        assert!(!taken(0), "taken before");
    });
}
