//! Lookup of turns by the id of the handled message.
//!
//! A lookup serves a caller that repeats its command. It may be slower than a commit, but must not read the whole log: stores
//! keep an index from ids to turns.

use super::super::turn_builder::{id, name, shard};
use super::super::{Fixture, Owner, TurnBuilder};

/// The number of turns in the streams: more than a store reads at once.
const TURNS: u64 = 3_000;

/// Returns the number of the turn that finished a message, if the store finds one.
async fn found(owner: &Owner, key: &str, number: u64) -> Option<u64> {
    let turn = owner.reader.find_turn(&name("Account"), key, id(number)).await.expect("the store is asked");
    turn.map(|turn| {
        assert_eq!(turn.id, id(number));
        turn.number
    })
}

/// Commits a long log of two streams, so that the lookup reads more than one page.
async fn fill(owner: &mut Owner) {
    let mut last = None;
    for turn in 1..=TURNS {
        for key in ["ada", "bob"] {
            // The ids of one stream decrease while those of the other increase.
            let number = if key == "ada" { turn } else { TURNS - turn };
            let draft =
                TurnBuilder::new("Account", key, number).at(turn, turn - 1).event("Deposited", "1").outside(turn);
            last = Some(owner.append(&draft).expect("the turn is appended"));
        }
    }
    owner.settled(last.expect("there are turns")).await;
}

/// The turn of each id is found, in its own stream and with its reply.
///
/// A client that repeats a command gets the reply of the first handling. If the turn is not found, the command is
/// handled twice.
pub async fn turn_is_found_by_the_id_of_its_message(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 1)).await;
    fill(&mut owner).await;
    for number in (1..TURNS).step_by(7) {
        assert_eq!(found(&owner, "ada", number).await, Some(number));
        assert_eq!(found(&owner, "bob", number).await, Some(TURNS - number));
    }
    assert_eq!(found(&owner, "ada", TURNS + 1).await, None, "an id that was not handled");
    assert_eq!(found(&owner, "eve", 1).await, None, "a stream that is empty");
    let reply = TurnBuilder::new("Account", "eve", 9).reply("yes").outside(77);
    owner.commit(&reply).await;
    let turn = owner.reader.find_turn(&name("Account"), "eve", id(9)).await.expect("the store is asked");
    let turn = turn.expect("the turn is found");
    assert_eq!((&turn.reply[..], turn.digest), (&b"yes"[..], Some(77)));
}

/// A turn that did not finish a message from outside is not found; of two that did, the last one is found.
///
/// A message that was handled, became a dead letter and was redriven has several turns. The last one has the reply that
/// counts.
pub async fn last_marked_turn_is_found(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 1)).await;
    owner.commit(&TurnBuilder::new("Account", "ada", 5)).await;
    assert_eq!(found(&owner, "ada", 5).await, None, "it has no mark");
    owner.commit(&TurnBuilder::new("Account", "ada", 5).at(2, 0).dead(5).outside(1)).await;
    assert_eq!(found(&owner, "ada", 5).await, Some(2));
    owner.commit(&TurnBuilder::new("Account", "ada", 5).at(3, 0).reply("late").outside(1)).await;
    assert_eq!(found(&owner, "ada", 5).await, Some(3), "the reply of a dead letter that was handled again");
    owner.commit(&TurnBuilder::new("Account", "ada", 5).at(4, 0)).await;
    assert_eq!(found(&owner, "ada", 5).await, Some(3));
}

/// Ids are found after a restart, including those of turns written since.
///
/// Clients retry most of all when a node has just failed, so this is the most frequent moment of a lookup.
pub async fn ids_are_found_after_a_restart(fixture: &impl Fixture) {
    let bank = shard("bank", 1);
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &bank).await;
    fill(&mut owner).await;
    store.close().await.expect("the store closes");
    drop((store, owner));
    for restart in 0..3u64 {
        let store = fixture.store().await;
        let mut owner = Owner::take(&store, &bank).await;
        for number in (1..TURNS).step_by(11) {
            assert_eq!(found(&owner, "ada", number).await, Some(number));
            assert_eq!(found(&owner, "bob", number).await, Some(TURNS - number));
        }
        for earlier in 0..restart {
            assert_eq!(found(&owner, "ada", 10_000 + earlier).await, Some(TURNS + 1 + earlier));
        }
        let next = TurnBuilder::new("Account", "ada", 10_000 + restart).at(TURNS + 1 + restart, TURNS).outside(1);
        owner.commit(&next).await;
        assert_eq!(found(&owner, "ada", 10_000 + restart).await, Some(TURNS + 1 + restart));
        store.close().await.expect("the store closes");
    }
}

/// Ids of turns that are still retained are found after `forget_ids`.
///
/// `forget_ids` is permission to forget older ids, to bound the memory; forgetting a retained one would handle its
/// command twice.
pub async fn retained_ids_are_not_forgotten(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 1)).await;
    fill(&mut owner).await;
    // The time of a turn is this time plus its number in milliseconds.
    let at = whizbang_core::clock::Timestamp::from_millis(1_700_000_000_000 + TURNS / 2);
    for _ in 0..3 {
        store.forget_ids(at);
    }
    for number in TURNS / 2..=TURNS {
        assert_eq!(found(&owner, "ada", number).await, Some(number));
    }
}
