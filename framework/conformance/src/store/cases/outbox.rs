//! The outbox: entries are numbered for each destination and stored until the destination has committed them.
//!
//! Sent messages are stored with the turn that sends them. Nothing but the watermark of the destination removes them, so a
//! message survives every loss at the broker.

use super::super::turn_builder::{command, id, name, shard};
use super::super::{Fixture, Owner, TurnBuilder};
use whizbang_core::message::Origin;

/// Sequences are 1, 2, 3 … for each destination, in the order of the log.
///
/// The destination recognizes lost and repeated messages by these numbers. It would wait at a gap.
pub async fn outbox_entries_are_numbered_for_each_destination(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let (shop, mail) = (shard("shop", 0), shard("mail", 3));
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    owner.commit(&TurnBuilder::new("Transfer", "a", 1).send(&shop, 1).send(&mail, 2).send(&shop, 3)).await;
    owner.commit(&TurnBuilder::new("Transfer", "b", 2)).await;
    owner.commit(&TurnBuilder::new("Transfer", "c", 3).send(&mail, 4).send(&mail, 5)).await;
    owner.commit(&TurnBuilder::new("Transfer", "d", 4).send(&shop, 6)).await;
    for (to, ids) in [(&shop, [1, 3, 6]), (&mail, [2, 4, 5])] {
        let entries = owner.reader.outbox(to, 0, 10).await.unwrap();
        assert_eq!(entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(entries.iter().map(|entry| entry.envelope.id).collect::<Vec<_>>(), ids.map(id));
    }
    let mut heads = owner.reader.outbox_heads();
    heads.sort();
    assert_eq!(heads, [(mail, 0, 3), (shop, 0, 3)]);
    assert_eq!(owner.reader.outbox(&shard("shop", 1), 0, 10).await.unwrap(), []);
}

/// The progress of a destination is recorded and never decreases; later entries stay.
///
/// An entry that is removed too early cannot be sent again after a crash of the destination: the message is lost.
pub async fn outbox_entry_is_kept_until_destination_commits(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let shop = shard("shop", 0);
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let mut draft = TurnBuilder::new("Transfer", "a", 1);
    for number in 1..=5 {
        draft = draft.send(&shop, number);
    }
    owner.commit(&draft).await;
    owner.sent(&shop, 3).await;
    assert_eq!(owner.reader.outbox_heads(), [(shop.clone(), 3, 5)]);
    owner.sent(&shop, 2).await;
    assert_eq!(owner.reader.outbox_heads(), [(shop.clone(), 3, 5)]);
    let entries = owner.reader.outbox(&shop, 3, 10).await.unwrap();
    assert_eq!(entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [4, 5]);
    owner.sent(&shop, 5).await;
    assert_eq!(owner.reader.outbox_heads(), [(shop.clone(), 5, 5)]);
    assert_eq!(owner.reader.outbox(&shop, 5, 10).await.unwrap(), []);
    owner.commit(&TurnBuilder::new("Transfer", "b", 2).send(&shop, 6)).await;
    assert_eq!(owner.reader.outbox_heads(), [(shop, 5, 6)]);
}

/// Pages are correct at every start, whatever else was sent in between.
///
/// After an outage a destination may have to catch up thousands of messages, page by page.
pub async fn every_page_of_a_long_outbox_is_correct(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let (shop, mail) = (shard("shop", 0), shard("mail", 1));
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let mut last = None;
    for turn in 0..600u64 {
        let mut draft = TurnBuilder::new("Transfer", "a", turn).at(turn + 1, 0).send(&shop, 2 * turn + 1);
        if turn % 7 == 0 {
            draft = draft.send(&mail, turn);
        }
        last = Some(owner.append(&draft.send(&shop, 2 * turn + 2)).unwrap());
    }
    owner.settled(last.unwrap()).await;
    for after in (0..1_210).step_by(23).chain([255, 256, 257, 511, 512, 513, 1_199, 1_200]) {
        for limit in [0usize, 1, 5, 300] {
            let page = owner.reader.outbox(&shop, after, limit).await.unwrap();
            assert_eq!(page.len() as u64, 1_200u64.saturating_sub(after).min(limit as u64));
            for (entry, sequence) in page.iter().zip(after + 1..) {
                assert_eq!((entry.sequence, entry.envelope.id), (sequence, id(sequence)));
            }
        }
    }
    let mail = owner.reader.outbox(&mail, 0, 1_000).await.unwrap();
    let ids: Vec<_> = mail.iter().map(|entry| entry.envelope.id).collect();
    assert_eq!(ids, (0..600).step_by(7).map(id).collect::<Vec<_>>());
}

/// An envelope is returned as it was sent, with its origin.
///
/// The destination sends its reply to the origin.
pub async fn outbox_entry_has_its_origin(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let (bank, shop) = (shard("bank", 2), shard("shop", 0));
    let mut owner = Owner::take(&store, &bank).await;
    owner.commit(&TurnBuilder::new("Transfer", "a", 1).send(&shop, 1).send(&shop, 2)).await;
    let entries = owner.reader.outbox(&shop, 1, 10).await.unwrap();
    let mut expected = command(&shop, 2);
    let origin =
        Origin { shard: bank, actor: name("Transfer"), key: "a".to_owned(), sequence: 2, version: 0, store: None };
    expected.origin = Some(origin);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].envelope, expected);
}

/// An envelope that names another key of its sender is returned with that key: replies go there.
///
/// A worker sends in the name of the key of its job, which is not the key of its stream.
pub async fn outbox_entry_keeps_the_key_of_its_origin(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let (bank, shop) = (shard("bank", 2), shard("shop", 0));
    let mut owner = Owner::take(&store, &bank).await;
    let origin = |key: &str, sequence| {
        let key = key.to_owned();
        Some(Origin { shard: bank.clone(), actor: name("charger"), key, sequence, version: 0, store: None })
    };
    let mut first = command(&shop, 1);
    first.origin = origin("order 7", 0);
    first.headers = vec![("tenant".to_owned(), "acme".to_owned())];
    owner.commit(&TurnBuilder::new("charger", "shard-2", 1).send_envelope(&shop, first.clone()).send(&shop, 2)).await;
    let entries = owner.reader.outbox(&shop, 0, 10).await.unwrap();
    first.origin = origin("order 7", 1);
    let mut second = command(&shop, 2);
    second.origin = origin("shard-2", 2);
    let read: Vec<_> = entries.into_iter().map(|entry| entry.envelope).collect();
    assert_eq!(read, [first, second]);
}
