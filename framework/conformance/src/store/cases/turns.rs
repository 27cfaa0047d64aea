//! Turns are written atomically and read as they were written.
//!
//! A turn is the result of one handled message: events, sent messages, timers, notes, a reply, and the mark of the message.
//! All of it is stored or none.

use bytes::Bytes;

use super::super::turn_builder::{dead_letter_note, id, name, shard};
use super::super::{Fixture, Owner, TurnBuilder};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, Kind, MAX_PAYLOAD_BYTES, ReplyMode};
use whizbang_core::store::{MAX_TURN_BYTES, Note, Source, SourceKind, StoreError};

/// Every part of a turn is returned.
///
/// A part that is lost shows only when an actor is loaded again, perhaps months later.
pub async fn turn_is_read_as_it_was_written(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let bank = shard("bank", 1);
    let mut owner = Owner::take(&store, &bank).await;
    let source = Source { shard: shard("shop", 3), kind: SourceKind::Events { subscriber: name("Account") } };
    let draft = TurnBuilder::new("Account", "ada", 7)
        .from(&source, 41, 40)
        .header("tenant", "acme")
        .header("user", "")
        .event("Deposited", "12")
        .event("Noted", "")
        .send(&shard("shop", 0), 70)
        .send(&bank, 71)
        .set("pay", 500)
        .clear("ship")
        .note(Note::Attempt { message: id(3), attempt: 2 })
        .note(dead_letter_note("Account", "ada", 8))
        .note(Note::Resolved { message: id(9) })
        .note(Note::Ended)
        .note(Note::Own(Bytes::from_static(b"mine")))
        .reply("yes");
    let appended = owner.commit(&draft).await;
    assert_eq!(appended.position, 2);

    let state = owner.load("Account", "ada").await;
    assert_eq!(state.snapshot, None);
    let [turn] = &state.turns[..] else { panic!("{} turns", state.turns.len()) };
    assert_eq!((turn.number, turn.version, turn.id, turn.correlation), (1, 0, id(7), id(99)));
    assert_eq!(turn.time, Timestamp::from_millis(1_700_000_000_001));
    assert_eq!(turn.from, Some((source, 41)));
    assert_eq!((turn.digest, &turn.timer), (None, &None));
    assert_eq!((&turn.reply[..], turn.reply_codec), (&b"yes"[..], Codec::Json));
    assert_eq!(turn.timers, [("pay".to_owned(), true), ("ship".to_owned(), false)]);
    let sent: Vec<_> = turn.sent.iter().map(|sent| (sent.id, sent.kind, sent.name.as_str(), sent.wants)).collect();
    assert_eq!(sent, [70, 71].map(|number| (id(number), Kind::Command, "Do", ReplyMode::Reply)));
    let notes = [
        Note::Attempt { message: id(3), attempt: 2 },
        dead_letter_note("Account", "ada", 8),
        Note::Resolved { message: id(9) },
        Note::Ended,
        Note::Own(Bytes::from_static(b"mine")),
    ];
    assert_eq!(turn.notes, notes);
    assert_eq!(turn.events, owner.events(0, 10).await);
    let event = &turn.events[0];
    assert_eq!((event.position, event.stream_version, event.version), (1, 1, 3));
    assert_eq!((event.actor.as_str(), event.key.as_str(), event.name.as_str()), ("Account", "ada", "Deposited"));
    assert_eq!((event.codec, &event.payload[..]), (Codec::Json, &b"12"[..]));
    assert_eq!((event.cause, event.correlation, event.time), (id(7), id(99), turn.time));
    let trace = format!("00-{:032x}-0000000000000001-01", id(7).as_u128());
    assert_eq!(event.traceparent, Some(trace));
    let headers = [("tenant", "acme"), ("user", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert!(turn.events.iter().all(|event| event.headers == headers), "{:?}", turn.events);
    assert_eq!((turn.events[1].position, turn.events[1].stream_version), (2, 2));
}

/// A turn may have no effect except its mark.
///
/// A subscriber may do nothing with an event. The mark alone records that the message was handled.
pub async fn turn_with_only_a_mark_is_stored(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let appended = owner.commit(&TurnBuilder::new("Account", "ada", 1).outside(u64::MAX)).await;
    assert_eq!(appended.position, 0);
    let state = owner.load("Account", "ada").await;
    assert_eq!(state.turns[0].digest, Some(u64::MAX));
    assert!(state.turns[0].events.is_empty() && state.turns[0].reply.is_empty());
    assert_eq!(owner.reader.position(), 0);
    assert!(owner.events(0, 10).await.is_empty());
}

/// A payload of [`MAX_PAYLOAD_BYTES`] is stored completely, also several in one turn.
///
/// Limits of a database or of a buffer show only here.
pub async fn largest_payload_is_stored(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let payload: Vec<u8> = (0..MAX_PAYLOAD_BYTES).map(|at| (at % 251) as u8).collect();
    let draft = TurnBuilder::new("Account", "ada", 1).event("Large", payload.clone()).event("Large", payload.clone());
    owner.commit(&draft).await;
    owner.commit(&draft.at(2, 2)).await;
    let events = owner.events(0, 10).await;
    assert_eq!(events.len(), 4);
    assert!(events.iter().all(|event| event.payload == payload));
}

/// A turn larger than [`MAX_TURN_BYTES`] is rejected, with both sizes.
///
/// Nothing of the turn is stored.
pub async fn oversized_turn_is_refused(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let draft = TurnBuilder::new("Account", "ada", 1).event("Large", vec![0; MAX_TURN_BYTES]);
    match owner.append(&draft) {
        Err(StoreError::Oversize { bytes, limit }) => assert!(bytes > limit, "{bytes} of {limit}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(owner.load("Account", "ada").await.turns, []);
}

/// A turn that does not follow the last turn of its stream is rejected.
///
/// It is the last barrier against two writers of one stream.
pub async fn turn_with_wrong_number_is_refused(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let draft = TurnBuilder::new("Account", "ada", 1).event("Deposited", "1");
    let expected = |result| match result {
        Err(StoreError::OutOfTurn { expected, .. }) => expected,
        other => panic!("{other:?}"),
    };
    assert_eq!(expected(owner.append(&draft.clone().at(2, 1))), 1);
    owner.commit(&draft).await;
    for number in [0, 1, 3, u64::MAX] {
        assert_eq!(expected(owner.append(&draft.clone().at(number, 1))), 2, "turn {number}");
    }
    owner.commit(&draft.at(2, 1)).await;
    assert_eq!(owner.load("Account", "ada").await.turns.len(), 2);
}

/// After a rejection, numbers continue as if the append had not been tried.
///
/// The next message of the same actor is handled right after a refusal, with the numbers that the refused turn would
/// have had.
pub async fn refused_turn_leaves_no_trace(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let shop = shard("shop", 2);
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let source = Source { shard: shop.clone(), kind: SourceKind::Direct };
    let first = TurnBuilder::new("Account", "ada", 1).event("Deposited", "1").send(&shop, 1);
    owner.commit(&first).await;
    let wrong = TurnBuilder::new("Account", "ada", 2)
        .from(&source, 5, 5)
        .event("Wrong", "2")
        .send(&shop, 2)
        .set("wrong", 1)
        .note(dead_letter_note("Account", "ada", 2));
    assert!(owner.append(&wrong.clone().at(9, 9)).is_err());
    assert!(owner.append(&wrong.at(2, 1).event("Large", vec![0; MAX_TURN_BYTES])).is_err());
    let next = owner.commit(&first.at(2, 1)).await;
    assert_eq!(next.position, 2);
    assert_eq!(owner.reader.outbox_heads(), [(shop.clone(), 0, 2)]);
    assert_eq!(owner.reader.watermarks(), []);
    assert_eq!(owner.reader.next_timer(), None);
    assert_eq!(owner.reader.dead_letters(None, 10).await.unwrap(), []);
    assert!(owner.events(0, 10).await.iter().all(|event| event.name.as_str() == "Deposited"));
}

/// An event of any stream gets the next position of the shard.
///
/// Subscribers notice a lost event by its missing position, so a gap would look like a loss.
pub async fn positions_are_contiguous_over_all_streams_of_a_shard(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let mut position = 0;
    for (turn, key) in (0..20).map(|turn| (turn, format!("key-{}", turn % 3))) {
        let number = turn / 3 + 1;
        let mut draft = TurnBuilder::new("Account", &key, turn).at(number, 0);
        // 0, 1 or 2 events; the stream's version is the number of its events so far.
        let before: u64 = (0..turn).filter(|other| other % 3 == turn % 3).map(|other| other % 3).sum();
        draft = draft.at(number, before);
        for _ in 0..turn % 3 {
            draft = draft.event("Happened", turn.to_string());
            position += 1;
        }
        assert_eq!(owner.commit(&draft).await.position, position);
        assert_eq!(owner.reader.position(), position);
    }
    let positions: Vec<u64> = owner.events(0, 100).await.iter().map(|event| event.position).collect();
    assert_eq!(positions, (1..=position).collect::<Vec<_>>());
    for key in ["key-0", "key-1", "key-2"] {
        let turns = owner.load("Account", key).await.turns;
        let versions: Vec<u64> = turns.iter().flat_map(|turn| &turn.events).map(|event| event.stream_version).collect();
        assert_eq!(versions, (1..=versions.len() as u64).collect::<Vec<_>>());
    }
}

/// Each shard of each domain has its own positions.
///
/// A shard moves between nodes on its own, so its positions must not depend on those of others.
pub async fn shards_and_domains_have_separate_positions(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owners = Vec::new();
    for id in [shard("bank", 0), shard("bank", 1), shard("shop", 0)] {
        owners.push(Owner::take(&store, &id).await);
    }
    for (owner, turns) in owners.iter_mut().zip([3, 5, 7]) {
        owner.fill("Account", &["ada"], turns).await;
    }
    for (owner, turns) in owners.iter().zip([3, 5, 7]) {
        assert_eq!(owner.reader.position(), turns);
        assert_eq!(owner.load("Account", "ada").await.turns.len() as u64, turns);
        assert_eq!(owner.events(0, 100).await.len() as u64, turns);
    }
}

/// A stream is identified by actor type and key together.
///
/// A saga usually has the key of the aggregate that started it.
pub async fn streams_with_the_same_key_are_separate(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    for (actor, key) in [("Account", "ada"), ("Accoun", "tada"), ("Transfer", "ada")] {
        owner.commit(&TurnBuilder::new(actor, key, 1).event("Happened", format!("{actor}/{key}"))).await;
    }
    for (actor, key) in [("Account", "ada"), ("Accoun", "tada"), ("Transfer", "ada")] {
        let state = owner.load(actor, key).await;
        assert_eq!(state.turns.len(), 1);
        assert_eq!(state.turns[0].events[0].payload, format!("{actor}/{key}"));
    }
}

/// A key may be any text.
///
/// Keys are chosen by applications and their users. A store that uses keys in names of files or in patterns must escape them.
pub async fn any_text_is_a_key(fixture: &impl Fixture) {
    let store = fixture.store().await;
    let mut owner = Owner::take(&store, &shard("bank", 0)).await;
    let long = "ü".repeat(128);
    let keys = [" ", "\0", "a/b", "../..", "a.b.*.>", "'; --", "ключ", "\u{1F600}", &long];
    for key in keys {
        owner.commit(&TurnBuilder::new("Account", key, 1).event("Happened", key)).await;
    }
    for key in keys {
        let state = owner.load("Account", key).await;
        assert_eq!(state.turns[0].events[0].payload, key, "{key:?}");
        assert_eq!(state.turns[0].events[0].key, key);
    }
}
