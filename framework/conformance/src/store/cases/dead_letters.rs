//! Dead letters: listed until they are resolved.
//!
//! A dead letter is a note of the turn that gave up, so it is durable with that turn. The list of a shard contains those that
//! no later turn has resolved.

use super::super::turn_builder::{dead_letter_note, id, shard};
use super::super::{Fixture, Owner, TurnBuilder};
use whizbang_core::store::Note;

/// Returns number and error of all listed dead letters, in the order of the list.
async fn listed(owner: &Owner) -> Vec<(u128, String)> {
    let letters = owner.reader.dead_letters(None, 100).await.unwrap();
    letters.into_iter().map(|letter| (letter.envelope.id.as_u128(), letter.actor.to_string())).collect()
}

/// A dead letter is listed as it was written, until a turn of its actor resolves it.
///
/// An operator reads the list, redrives or discards each entry, and relies on both the error and the original message.
/// A resolved one that stays listed would be redriven twice.
pub async fn dead_letter_is_listed_until_resolved(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    assert_eq!(owner.reader.dead_letters(None, 10).await.unwrap(), []);
    owner.commit(&TurnBuilder::new("Account", "ada", 1).note(dead_letter_note("Account", "ada", 5))).await;
    let found = owner.reader.dead_letters(None, 10).await.unwrap();
    assert_eq!(
        found.into_iter().map(|found| Note::DeadLetter(Box::new(found))).collect::<Vec<_>>(),
        [dead_letter_note("Account", "ada", 5)]
    );
    owner.commit(&TurnBuilder::new("Account", "ada", 2).at(2, 0).note(Note::Resolved { message: id(6) })).await;
    assert_eq!(listed(&owner).await.len(), 1);
    owner.commit(&TurnBuilder::new("Account", "ada", 3).at(3, 0).note(Note::Resolved { message: id(5) })).await;
    assert_eq!(listed(&owner).await, []);
}

/// A page begins after an id and is not longer than requested.
///
/// A list of many dead letters is read page by page, while others are added and resolved.
pub async fn dead_letters_are_read_in_pages_by_id(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    for number in [7, 3, 9, 1, 5] {
        let key = format!("key-{number}");
        owner.commit(&TurnBuilder::new("Account", &key, number).note(dead_letter_note("Account", &key, number))).await;
    }
    for limit in [0usize, 1, 2, 4, 5, 100] {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = owner.reader.dead_letters(after, limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(last.envelope.id);
            found.extend(page.into_iter().map(|letter| letter.envelope.id));
        }
        let all = [1, 3, 5, 7, 9].map(id);
        assert_eq!(found, if limit == 0 { &[][..] } else { &all[..] }, "at most {limit}");
    }
}

/// One event may fail at two actors; each resolves its own dead letter.
///
/// Otherwise the redrive at one subscriber would hide the failure at the other.
pub async fn message_may_be_dead_letter_of_two_actors(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    owner.commit(&TurnBuilder::new("Account", "ada", 1).note(dead_letter_note("Account", "ada", 5))).await;
    owner.commit(&TurnBuilder::new("Saga", "ada", 1).note(dead_letter_note("Saga", "ada", 5))).await;
    assert_eq!(listed(&owner).await.len(), 2);
    // The next page begins after the id, so a page never ends between the two.
    let page = owner.reader.dead_letters(None, 1).await.unwrap();
    assert_eq!(page.len(), 2);
    assert_eq!(owner.reader.dead_letters(Some(id(5)), 1).await.unwrap(), []);
    owner.commit(&TurnBuilder::new("Account", "ada", 2).at(2, 0).note(Note::Resolved { message: id(5) })).await;
    assert_eq!(listed(&owner).await, [(id(5).as_u128(), "Saga".to_owned())]);
}
