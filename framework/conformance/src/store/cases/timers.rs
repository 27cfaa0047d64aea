//! Timers: set, replaced, cleared, fired.
//!
//! Timers belong to turns: one is set, cleared or fired by a commit, and no other call changes it. The owner of the shard
//! asks for those that are due.

use super::super::turn_builder::{id, shard};
use super::super::{Fixture, Owner, TurnBuilder};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::Codec;
use whizbang_core::store::TimerCursor;

/// Returns a time, in milliseconds after the epoch of the clock.
fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

/// Returns key, name and due time of the due timers.
fn due(owner: &Owner, now: u64, limit: usize) -> Vec<(String, String, u64)> {
    let timers = owner.reader.timers_due(at(now), limit);
    timers.into_iter().map(|timer| (timer.key, timer.name, timer.due.as_millis())).collect()
}

/// Due timers are returned earliest first, up to now and up to the limit.
///
/// One that is returned too early would fire early; one that is left out would never fire.
pub async fn timer_is_due_at_its_time(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    assert_eq!(owner.reader.next_timer(), None);
    owner.commit(&TurnBuilder::new("Saga", "a", 1).set("late", 300).set("early", 100)).await;
    owner.commit(&TurnBuilder::new("Saga", "b", 2).set("middle", 200)).await;
    assert_eq!(owner.reader.next_timer(), Some(at(100)));
    assert_eq!(due(&owner, 99, 10), []);
    let timers = owner.reader.timers_due(at(100), 10);
    let [timer] = &timers[..] else { panic!("{} timers", timers.len()) };
    assert_eq!((timer.actor.as_str(), timer.key.as_str(), timer.name.as_str()), ("Saga", "a", "early"));
    assert_eq!((timer.turn, timer.due, timer.version, timer.codec), (1, at(100), 4, Codec::Json));
    assert_eq!((&timer.payload[..], timer.correlation), (&b"\"wake\""[..], id(99)));
    let names = |limit| due(&owner, 300, limit).into_iter().map(|(_, name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(10), ["early", "middle", "late"]);
    assert_eq!(names(2), ["early", "middle"]);
    assert_eq!(names(0), Vec::<String>::new());
}

/// The second setting replaces the first, and contains the turn that set it.
///
/// A timer that was moved must fire once, at its new time, and under the turn that moved it.
pub async fn timer_set_again_replaces_the_first(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    owner.commit(&TurnBuilder::new("Saga", "a", 1).set("pay", 100)).await;
    owner.commit(&TurnBuilder::new("Saga", "a", 2).at(2, 0).set("pay", 500)).await;
    assert_eq!(due(&owner, 499, 10), []);
    assert_eq!(owner.reader.next_timer(), Some(at(500)));
    assert_eq!(owner.reader.timers_due(at(500), 10)[0].turn, 2);
    owner.commit(&TurnBuilder::new("Saga", "a", 3).at(3, 0).set("pay", 50)).await;
    assert_eq!(due(&owner, 1_000, 10), [("a".to_owned(), "pay".to_owned(), 50)]);
}

/// Firing removes a timer; the same turn may set it again.
///
/// A timer that stays would fire again after a restart.
pub async fn fired_or_cleared_timer_is_removed(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    owner.commit(&TurnBuilder::new("Saga", "a", 1).set("one", 1).set("two", 2).set("three", 3)).await;
    owner.commit(&TurnBuilder::new("Saga", "a", 2).at(2, 0).clear("two").clear("never")).await;
    owner.commit(&TurnBuilder::new("Saga", "a", 3).at(3, 0).rang("one")).await;
    owner.commit(&TurnBuilder::new("Saga", "a", 4).at(4, 0).rang("three").set("three", 30)).await;
    assert_eq!(due(&owner, 100, 10), [("a".to_owned(), "three".to_owned(), 30)]);
    let turns = owner.load("Saga", "a").await.turns;
    assert_eq!(turns[2].timer.as_deref(), Some("one"));
}

/// The name of a timer is unique only within one actor.
///
/// All actors of a saga type use the same names of timers.
pub async fn timers_of_different_actors_are_separate(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    owner.commit(&TurnBuilder::new("Saga", "a", 1).set("pay", 1)).await;
    owner.commit(&TurnBuilder::new("Saga", "b", 2).set("pay", 1)).await;
    owner.commit(&TurnBuilder::new("Other", "a", 3).set("pay", 1)).await;
    owner.commit(&TurnBuilder::new("Saga", "a", 4).at(2, 0).clear("pay")).await;
    let left: Vec<_> = owner.reader.timers_due(at(1), 10).into_iter().map(|timer| (timer.actor, timer.key)).collect();
    assert_eq!(left.len(), 2);
    assert!(left.iter().any(|(actor, key)| (actor.as_str(), key.as_str()) == ("Saga", "b")));
    assert!(left.iter().any(|(actor, key)| (actor.as_str(), key.as_str()) == ("Other", "a")));
}

/// Timers of one type are found after a cursor, whatever timers of other types are due before them.
///
/// A node reads the timers of a type that it has just begun to host, without those of all other types.
pub async fn timers_of_one_actor_type_are_read_page_by_page(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    for turn in 1..=5 {
        owner.commit(&TurnBuilder::new("Gone", &format!("g{turn}"), turn).set("pay", turn)).await;
        owner.commit(&TurnBuilder::new("Saga", &format!("s{turn}"), turn + 10).set("pay", 100 + turn)).await;
    }
    let saga = whizbang_core::message::Name::from_static("Saga").expect("a name");
    let mut after = TimerCursor::default();
    let mut keys = Vec::new();
    loop {
        let page = owner.reader.timers_of(&saga, after, at(104), 2);
        let Some((last, _)) = page.due.last() else {
            assert_eq!(page.next, Some(at(105)));
            break;
        };
        assert!(page.due.len() <= 2 && page.next.is_some());
        after = *last;
        keys.extend(page.due.into_iter().map(|(_, timer)| timer.key));
    }
    assert_eq!(keys, ["s1", "s2", "s3", "s4"]);
    let mut counts: Vec<_> =
        owner.reader.timer_counts().into_iter().map(|(actor, count)| (actor.to_string(), count)).collect();
    counts.sort();
    assert_eq!(counts, [("Gone".to_owned(), 5), ("Saga".to_owned(), 5)]);
    owner.commit(&TurnBuilder::new("Saga", "s1", 20).at(2, 0).rang("pay")).await;
    assert_eq!(owner.reader.timers_of(&saga, TimerCursor::default(), at(200), 10).due.len(), 4);
    assert_eq!(owner.reader.timers_of(&saga, after, at(200), 10).due.len(), 1);
}
