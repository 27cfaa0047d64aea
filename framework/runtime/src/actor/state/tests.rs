//! The state of an actor as its stream rebuilds it.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::ActorType;
use super::super::tests::{START, bank, command};
use super::*;
use crate::tests::{Account, Deposited};
use whizbang_core::message::{Message as _, Name};
use whizbang_core::store::{DeadLetter, DeadLetterReason, Source, SourceKind, StoredEvent};

fn id(id: u128) -> MessageId {
    MessageId::from_u128(id)
}

fn turn(number: u64) -> StoredTurn {
    StoredTurn {
        number,
        version: 0,
        time: START,
        id: id(number.into()),
        correlation: id(number.into()),
        from: None,
        digest: None,
        timer: None,
        reply: Bytes::new(),
        reply_codec: Codec::Bincode,
        events: Vec::new(),
        timers: Vec::new(),
        sent: Vec::new(),
        notes: Vec::new(),
    }
}

fn event(name: &'static str) -> StoredEvent {
    let mut payload = Vec::new();
    Deposited { cents: 5 }.encode(Codec::Bincode, &mut payload).unwrap();
    StoredEvent {
        position: 1,
        actor: Name::from_static("account").unwrap(),
        key: "a".to_owned(),
        stream_version: 1,
        name: Name::from_static(name).unwrap(),
        version: 1,
        codec: Codec::Bincode,
        payload: payload.into(),
        time: START,
        cause: id(1),
        correlation: id(1),
        traceparent: None,
        headers: Vec::new(),
    }
}

fn with_notes(number: u64, notes: impl IntoIterator<Item = Note>) -> StoredTurn {
    StoredTurn { notes: notes.into_iter().collect(), ..turn(number) }
}

fn parked(message: u128) -> Note {
    let (actor, key, error) = (Name::from_static("account").unwrap(), "a".to_owned(), String::new());
    let (reason, envelope) = (DeadLetterReason::Attempts, command(message, START));
    Note::DeadLetter(Box::new(DeadLetter { actor, key, reason, error, attempts: 1, time: START, envelope }))
}

fn initial() -> (HandlerTable, KeyState) {
    let table = ActorType::of::<Account>().table;
    let state = KeyState::initial(&table, None).unwrap();
    (table, state)
}

#[test]
fn turns_are_replayed_once_and_without_gaps() {
    let (table, mut state) = initial();
    let turns = [StoredTurn { events: vec![event("Deposited"), event("Deposited")], ..turn(1) }, turn(2)];
    state.replay_all(&table, &turns).unwrap();
    assert_eq!((state.turns, state.version), (2, 2));
    let more = StoredTurn { events: vec![event("Deposited")], ..turn(3) };
    state.replay_all(&table, &[turns[0].clone(), turns[1].clone(), more]).unwrap();
    assert_eq!((state.turns, state.version), (3, 3), "the first two are known");
    assert!(state.replay_all(&table, &[turn(5)]).is_err());
    assert_eq!((state.turns, state.version), (3, 3));
}

#[test]
fn event_that_is_not_applied_must_be_known() {
    let unknown = [StoredTurn { events: vec![event("Withdrawn")], ..turn(1) }];
    for (known, is_ok) in [("Withdrawn", true), ("Other", false)] {
        let (mut table, mut state) = initial();
        table.events = Some(Arc::new(HashSet::from([known.to_owned()])));
        assert_eq!(state.replay_all(&table, &unknown).is_ok(), is_ok, "{known}");
    }
}

#[test]
fn handled_message_clears_the_failed_attempts() {
    let source = Source { shard: bank(1), kind: SourceKind::Direct };
    let attempt = with_notes(1, [Note::Attempt { message: id(7), attempt: 2 }]);
    let handled = [
        StoredTurn { from: Some((source, 1)), ..turn(2) },
        StoredTurn { digest: Some(1), ..turn(2) },
        StoredTurn { timer: Some("Bell".to_owned()), ..turn(2) },
    ];
    for (turn, failed) in handled.into_iter().map(|turn| (turn, None)).chain([(turn(2), Some((id(7), 2)))]) {
        let (table, mut state) = initial();
        state.replay_all(&table, &[attempt.clone(), turn]).unwrap();
        assert_eq!(state.rare.failed_attempts, failed);
    }
}

#[test]
fn timers_are_known_by_the_turn_that_set_them() {
    let (table, mut state) = initial();
    let timers = |number, timers: &[(&str, bool)]| {
        let timers = timers.iter().map(|(name, set)| ((*name).to_owned(), *set)).collect();
        StoredTurn { timers, ..turn(number) }
    };
    let set = [timers(1, &[("A", true), ("B", true), ("C", true)]), timers(2, &[("B", true), ("C", false)])];
    state.replay_all(&table, &set).unwrap();
    let known = |state: &KeyState| state.rare.timers.clone().into_iter().collect::<Vec<_>>();
    assert_eq!(known(&state), [("A".to_owned(), 1), ("B".to_owned(), 2)]);
    state.replay_all(&table, &[StoredTurn { timer: Some("A".to_owned()), ..turn(3) }]).unwrap();
    assert_eq!(known(&state), [("B".to_owned(), 2)], "it has fired");
    state.replay_all(&table, &[with_notes(4, [Note::Ended])]).unwrap();
    assert!(known(&state).is_empty() && state.rare.ended);
}

#[test]
fn dead_letters_park_a_key_until_they_are_resolved() {
    let (table, mut state) = initial();
    let attempt = Note::Attempt { message: id(7), attempt: 2 };
    state.replay_all(&table, &[with_notes(1, [attempt, parked(7), parked(8)])]).unwrap();
    assert_eq!((state.rare.failed_attempts, state.rare.parked.len()), (None, 2));
    assert!(!state.rare.fits_snapshot());
    state.replay_all(&table, &[with_notes(2, [Note::Resolved { message: id(7) }])]).unwrap();
    assert!(!state.rare.parked.contains(id(7)) && state.rare.parked.contains(id(8)));
    state.replay_all(&table, &[with_notes(3, [Note::Resolved { message: id(8) }])]).unwrap();
    assert!(state.rare.fits_snapshot());
}

#[test]
fn only_a_restarted_saga_records_commands_that_are_answered() {
    let sent = |state: &mut KeyState| {
        state.rare.record_sent(id(1), Kind::Command, ReplyMode::Reply);
        state.rare.record_sent(id(2), Kind::Command, ReplyMode::Rejection);
        state.rare.record_sent(id(3), Kind::Command, ReplyMode::Nothing);
        state.rare.record_sent(id(4), Kind::Reply, ReplyMode::Reply);
        state.rare.sent_commands.iter().map(|id| id.as_u128()).collect::<Vec<_>>()
    };
    let (_, mut state) = initial();
    assert!(sent(&mut state).is_empty() && state.rare.0.is_none(), "it costs no memory");
    state.apply_compensation(&CompensationChange::Begin { finally: Vec::new() });
    state.rare.ended = true;
    assert!(sent(&mut state).is_empty());
    state.apply_compensation(&CompensationChange::Restarted);
    assert!(!state.rare.ended && !state.rare.fits_snapshot());
    assert_eq!(sent(&mut state), [1, 2]);
    state.apply_compensation(&CompensationChange::Finished);
    assert_eq!(state.rare.sent_commands.len(), 2);
    state.apply_compensation(&CompensationChange::Restarted);
    assert!(state.rare.sent_commands.is_empty(), "they belong to the earlier run");
    state.rare.ended = true;
    assert!(sent(&mut state).is_empty());
}
