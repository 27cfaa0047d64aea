//! Corrupted runs: a correct run, and every way to corrupt it that the checker must report.
//!
//! In the correct run a client opens an account and deposits money; a saga of another service reacts to each deposit and sends one
//! command back, whose reply it handles; a projection applies the events.

mod world;

use bytes::Bytes;
use whizbang::message::{Kind, ShardId};
use whizbang::store::{Note, StoredEvent, StoredTurn};

use super::{Applied, Ledger, Stage, Verdict, ViolationKind};
use world::*;

#[test]
fn correct_run_is_clean() {
    for stage in [Stage::Running, Stage::Idle] {
        let verdict = World::healthy().check(stage);
        verdict.assert_clean();
        let Verdict { commands, acknowledged, decisions, events, dead_letters, applied, .. } = verdict;
        assert_eq!((commands, acknowledged, decisions), (9, 7, 19));
        assert_eq!((events, dead_letters, applied), (14, 1, 10));
    }
}

#[test]
#[should_panic(expected = "nothing was checked")]
fn empty_run_fails() {
    Ledger::new().check(Stage::Idle).assert_clean();
}

/// The description of a corruption, the corruption, and the kind of violation that must be reported.
type Corruption = (&'static str, fn(&mut World), ViolationKind);

/// The corruptions that must be reported even while faults happen.
const ALWAYS: &[Corruption] = &[
    ("a replied command is in no log", |w| w.results.push((id(77), "ok")), ViolationKind::Lost),
    ("a dead letter is in no log", |w| w.results.push((id(77), "dead letter")), ViolationKind::Lost),
    (
        "a command is decided twice by one actor",
        |w| add(&mut w.bank, "account", "ada", outside(2, "ok"), 0),
        ViolationKind::Duplicated,
    ),
    (
        "a command is decided by two actors",
        |w| add(&mut w.bonus, "saga", "x", outside(2, "ok"), 0),
        ViolationKind::Duplicated,
    ),
    (
        "a decided command is also a dead letter",
        |w| {
            let aside = StoredTurn { notes: vec![Note::DeadLetter(Box::new(letter(2)))], ..outside(2, "") };
            add(&mut w.bank, "account", "ada", aside, 0);
            w.bank.dead_letters.push(letter(2));
        },
        ViolationKind::Duplicated,
    ),
    ("it was never sent", |w| add(&mut w.bank, "account", "ada", outside(77, "ok"), 0), ViolationKind::Phantom),
    (
        "a refused command is handled",
        |w| add(&mut w.bank, "account", "ada", outside(8, "ok"), 0),
        ViolationKind::Phantom,
    ),
    ("a client got another reply than the stored one", |w| w.results[0].1 = "no", ViolationKind::Phantom),
    ("a client got two different replies", |w| w.results.insert(0, (id(1), "no")), ViolationKind::Phantom),
    ("an event is missing in the log", |w| drop(w.bank.events.remove(2)), ViolationKind::Lost),
    ("the newest event is missing in the log", |w| drop(w.bank.events.pop()), ViolationKind::Lost),
    (
        "an event occurs twice in the log",
        |w| {
            let event = w.bank.events[2].clone();
            w.bank.events.insert(3, event);
        },
        ViolationKind::Duplicated,
    ),
    ("two events are swapped in the log", |w| w.bank.events.swap(2, 3), ViolationKind::Misordered),
    (
        "an event of the log differs from its stream",
        |w| {
            w.bank.events[2].payload = Bytes::from_static(b"6");
        },
        ViolationKind::Phantom,
    ),
    (
        "an event of the log is in no stream",
        |w| {
            w.bank.position += 1;
            let event = StoredEvent { position: w.bank.position, ..w.bank.events[0].clone() };
            w.bank.events.push(event);
        },
        ViolationKind::Phantom,
    ),
    (
        "the log ends early with a consistent position",
        |w| {
            w.bank.position -= 1;
            drop(w.bank.events.pop());
        },
        ViolationKind::Lost,
    ),
    (
        "an event is in the stream of another key",
        |w| {
            w.stream("ada").turns[0].events[0].key = "bob".into();
            w.bank.events[1].key = "bob".into();
            w.view[1].key = "bob".into();
        },
        ViolationKind::Phantom,
    ),
    ("two streams claim one position", |w| w.stream("bob").turns[0].events[0].position = 2, ViolationKind::Duplicated),
    (
        "positions decrease while versions increase",
        |w| {
            let (first, second) = (w.bank.events[1].stream_version, w.bank.events[3].stream_version);
            w.bank.events[1].stream_version = second;
            w.bank.events[3].stream_version = first;
            w.bank.events[1].cause = id(4);
            w.bank.events[3].cause = id(2);
            w.bank.events[1].correlation = id(4);
            w.bank.events[3].correlation = id(2);
            let (early, late) = (w.bank.events[1].clone(), w.bank.events[3].clone());
            w.stream("ada").turns[0].events = vec![late];
            w.stream("ada").turns[1].events = vec![early];
            w.view[1].version = second;
            w.view[3].version = first;
        },
        ViolationKind::Misordered,
    ),
    ("a turn in the middle of a stream is missing", |w| drop(w.stream("ada").turns.remove(1)), ViolationKind::Lost),
    (
        "a turn occurs twice in its stream",
        |w| {
            let turn = w.stream("ada").turns[1].clone();
            w.stream("ada").turns.insert(2, turn);
        },
        ViolationKind::Duplicated,
    ),
    ("two turns of a stream are swapped", |w| w.stream("ada").turns.swap(0, 1), ViolationKind::Misordered),
    (
        "a turn is based on a version that never existed",
        |w| w.stream("ada").turns[1].version = 9,
        ViolationKind::Misordered,
    ),
    (
        "a timer fires that was not set",
        |w| {
            add(&mut w.bonus, "saga", "ada", StoredTurn { timer: Some("late".into()), ..turn(151) }, 0);
        },
        ViolationKind::Phantom,
    ),
    (
        "a timer fires after the end",
        |w| {
            let ends = StoredTurn { timers: vec![("late".into(), true)], notes: vec![Note::Ended], ..turn(152) };
            add(&mut w.bonus, "saga", "ada", ends, 0);
            add(&mut w.bonus, "saga", "ada", StoredTurn { timer: Some("late".into()), ..turn(153) }, 0);
        },
        ViolationKind::Phantom,
    ),
    ("a dead letter is not listed", |w| w.bank.dead_letters.clear(), ViolationKind::Lost),
    ("a dead letter is listed that no turn created", |w| w.bank.dead_letters.push(letter(88)), ViolationKind::Phantom),
    ("a dead letter is listed twice", |w| w.bank.dead_letters.push(letter(6)), ViolationKind::Duplicated),
    (
        "a reaction to an event occurs twice",
        |w| add(&mut w.bonus, "saga", "ada", from(104, events_for_saga(), 4), 0),
        ViolationKind::Duplicated,
    ),
    (
        "two keys react to an event",
        |w| add(&mut w.bonus, "saga", "eve", from(104, events_for_saga(), 4), 0),
        ViolationKind::Duplicated,
    ),
    (
        "reactions are in another order than events",
        |w| {
            w.saga().turns[1].from = Some((events_for_saga(), 3));
            w.saga().turns[2].from = Some((events_for_saga(), 2));
        },
        ViolationKind::Misordered,
    ),
    (
        "a reaction to an event that is not in the log",
        |w| add(&mut w.bonus, "saga", "ada", from(9, events_for_saga(), 99), 0),
        ViolationKind::Phantom,
    ),
    ("a command is handled that was not sent", |w| w.bonus.outbox_heads[0].2 = 3, ViolationKind::Phantom),
    (
        "a command of an actor is handled twice",
        |w| {
            let again = from(202, direct(bonus()), 2);
            add(&mut w.bank, "account", "bob", again, 0);
        },
        ViolationKind::Duplicated,
    ),
    (
        "a command is marked as handled but has no turn",
        |w| {
            let turn = w.stream("ada").turns.iter_mut().find(|turn| turn.id == id(203)).unwrap();
            turn.from = None;
        },
        ViolationKind::Lost,
    ),
    ("a watermark is ahead of its source", |w| w.bonus.watermarks[1].through = 99, ViolationKind::Phantom),
    ("a subscriber skips an event", |w| drop(w.view.remove(3)), ViolationKind::Lost),
    ("a subscriber applies an event twice", |w| w.view.push(w.view[3].clone()), ViolationKind::Duplicated),
    ("a subscriber applies events in another order", |w| w.view.swap(3, 4), ViolationKind::Misordered),
    (
        "a subscriber applies an event that is not in the log",
        |w| {
            w.view.push(Applied { position: 99, ..w.view[0].clone() });
        },
        ViolationKind::Phantom,
    ),
    ("a subscriber applies another event than the log holds", |w| w.view[3].version += 1, ViolationKind::Phantom),
    (
        "a subscriber applies events of a shard that is not there",
        |w| {
            let shard = ShardId::new(name("bank"), 9);
            w.view.push(Applied { shard, ..w.view[0].clone() });
        },
        ViolationKind::Phantom,
    ),
    (
        "a sent message is not in the outbox",
        |w| {
            w.saga().turns[0].sent.push(sent(Kind::Reply, 777));
        },
        ViolationKind::Lost,
    ),
    ("the outbox holds a message that no turn has sent", |w| w.saga().turns[0].sent.clear(), ViolationKind::Phantom),
];

/// The corruptions that are correct states as long as messages are in flight.
const WHEN_IDLE: &[Corruption] = &[
    ("an accepted command was never decided", |w| w.results.push((id(77), "accepted")), ViolationKind::Lost),
    (
        "a sent command has not arrived",
        |w| {
            w.bonus.outbox_heads[0].2 = 5;
            w.saga().turns[0].sent.push(sent(Kind::Reply, 1));
        },
        ViolationKind::Lost,
    ),
    ("another command has arrived than was sent", |w| w.saga().turns[0].sent[0].id = id(777), ViolationKind::Lost),
    (
        "a sender's watermark is ahead of the receiver",
        |w| w.bonus.outbox_heads[0] = (bank(), 5, 4),
        ViolationKind::Phantom,
    ),
    ("a subscriber has not applied the newest event", |w| drop(w.view.pop()), ViolationKind::Lost),
    ("a subscriber has applied nothing", |w| w.view.clear(), ViolationKind::Lost),
];

#[test]
fn every_corruption_is_reported() {
    for (what, corrupt, kind) in ALWAYS {
        for stage in [Stage::Running, Stage::Idle] {
            let mut world = World::healthy();
            corrupt(&mut world);
            let verdict = world.check(stage);
            assert!(verdict.count(*kind) > 0, "{what}: not found at {stage:?}\n{verdict}");
        }
    }
}

#[test]
fn incomplete_run_is_a_violation_only_when_idle() {
    for (what, corrupt, kind) in WHEN_IDLE {
        let mut world = World::healthy();
        corrupt(&mut world);
        let running = world.check(Stage::Running);
        assert!(running.is_clean(), "{what}: {running}");
        let idle = world.check(Stage::Idle);
        assert!(idle.count(*kind) > 0, "{what}: not found\n{idle}");
    }
}

#[test]
fn shard_that_was_read_twice_is_reported() {
    let mut ledger = Ledger::new();
    ledger.log(empty(bank()));
    assert_eq!(ledger.check(Stage::Running).count(ViolationKind::Duplicated), 0);
    ledger.log(empty(bank()));
    assert_eq!(ledger.check(Stage::Running).count(ViolationKind::Duplicated), 1);
}

#[test]
fn command_refused_once_may_be_handled_the_other_time() {
    let mut world = World::healthy();
    world.results.push((id(9), "refused"));
    world.results.push((id(2), "refused"));
    world.check(Stage::Idle).assert_clean();
}

#[test]
fn redriven_dead_letter_is_one_decision() {
    let mut world = World::healthy();
    let again = StoredTurn { notes: vec![Note::Resolved { message: id(6) }], ..outside(6, "ok") };
    add(&mut world.bank, "account", "ada", again, 1);
    world.view.push(Applied::new(&bank(), world.bank.events.last().unwrap()));
    world.bank.dead_letters.clear();
    world.results.push((id(6), "ok"));
    world.check(Stage::Idle).assert_clean();
}
