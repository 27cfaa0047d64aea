//! Keys that are listed after repeated failures, and unlisted when they are served.

use super::super::tests::*;
use super::*;

/// Fails `times` times with `error`, and returns the listed keys.
fn refuse(key: &mut StuckKey, context: &Rc<ThreadContext>, error: &StoreError, times: u32) -> Vec<String> {
    for _ in 0..times {
        key.refused(context, error, || "bank/0/account/ada".to_owned(), || "turns of `ada`".to_owned());
    }
    context.settings.issues.stuck_keys()
}

fn out_of_turn() -> StoreError {
    StoreError::OutOfTurn { shard: bank(0), expected: 3 }
}

#[test]
fn key_is_listed_from_the_third_failure_until_it_is_served() {
    let (context, mut key) = (context(), StuckKey::default());
    assert!(!key.is_failing());
    assert_eq!(refuse(&mut key, &context, &out_of_turn(), 2), [""; 0]);
    assert!(key.is_failing());
    let text = "the store refuses turns of `ada`: version conflict in shard bank/0: expected turn 3";
    assert_eq!(refuse(&mut key, &context, &out_of_turn(), 1), [text]);
    assert_eq!(refuse(&mut key, &context, &out_of_turn(), 5), [text]);
    assert_eq!(context.counts.stuck_keys.get(), 1);
    let mut other = StuckKey::default();
    for _ in 0..3 {
        other.unreadable(&context, &broken(), || "bank/0/account/bob".to_owned(), || "the outbox".to_owned());
    }
    assert_eq!(context.counts.stuck_keys.get(), 2);
    assert!(
        context
            .settings
            .issues
            .stuck_keys()
            .contains(&"failed to read the outbox: flushing failed: planned".to_owned())
    );
    key.served();
    assert_eq!((key.is_failing(), context.counts.stuck_keys.get()), (false, 1));
    drop(other);
    assert_eq!((context.counts.stuck_keys.get(), context.settings.issues.stuck_keys()), (0, vec![]));
    key.served();
    assert_eq!(refuse(&mut key, &context, &out_of_turn(), 2), [""; 0], "counted from the beginning");
}

#[test]
fn store_that_accepts_nothing_is_not_the_fault_of_a_key() {
    let (context, mut key) = (context(), StuckKey::default());
    assert_eq!(refuse(&mut key, &context, &broken(), 5), [""; 0]);
    // Turns of other keys were accepted in between.
    context.counts.turns.one();
    assert_eq!(refuse(&mut key, &context, &broken(), 1).len(), 1);
}

#[test]
fn failures_of_one_turn_or_of_a_closed_shard_do_not_count() {
    let (context, mut key) = (context(), StuckKey::default());
    let fenced = StoreError::Fenced { shard: bank(0), mine: 1, current: 2 };
    for error in [StoreError::Oversize { bytes: 2, limit: 1 }, StoreError::Closed, fenced] {
        assert_eq!(refuse(&mut key, &context, &error, 4), [""; 0]);
        assert!(!key.is_failing(), "{error}");
    }
}

#[test]
fn layer_may_delay_a_key_for_a_while() {
    on_paused_time(async {
        let (context, mut key) = (context(), StuckKey::default());
        let delay = |key: &mut StuckKey| {
            key.delayed(&context, || "bank/0/account/ada layer".to_owned(), || "a message of `ada`".to_owned());
            context.settings.issues.stuck_keys()
        };
        for _ in 0..5 {
            assert_eq!(delay(&mut key), [""; 0]);
        }
        tokio::time::advance(BUSY_FOR - Duration::from_millis(1)).await;
        assert_eq!(delay(&mut key), [""; 0]);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(delay(&mut key), ["a layer has refused a message of `ada` for 10 s"]);
    });
}
