//! Planted violations: a healthy run, and every way to spoil it that the checker must notice.
//!
//! In the healthy run a client opens an account and pays in; a saga of another service reacts to each payment and sends one
//! command back, whose reply it takes; a projection applies the events.

mod world;

use bytes::Bytes;
use whizbang::message::{Kind, ShardId};
use whizbang::store::{Note, StoredEvent, StoredTurn};

use super::{Applied, Broken, Ledger, Stage, Verdict};
use world::*;

#[test]
fn a_healthy_run_is_clean() {
    for stage in [Stage::Running, Stage::Quiet] {
        let verdict = World::healthy().check(stage);
        verdict.assert_clean();
        let Verdict { commands, acknowledged, decisions, events, dead_letters, applied, .. } = verdict;
        assert_eq!((commands, acknowledged, decisions), (9, 7, 19));
        assert_eq!((events, dead_letters, applied), (14, 1, 10));
    }
}

#[test]
#[should_panic(expected = "nothing was checked")]
fn an_empty_run_proves_nothing() {
    Ledger::new().check(Stage::Quiet).assert_clean();
}

/// The corruption, its description, and the promise that must be reported as broken.
type Planted = (&'static str, fn(&mut World), Broken);

/// Spoilt runs that must be noticed even while faults still happen.
const ALWAYS: &[Planted] = &[
    ("an answered command is in no log", |w| w.told.push((id(77), "ok")), Broken::Lost),
    ("a dead letter is in no log", |w| w.told.push((id(77), "dead letter")), Broken::Lost),
    (
        "a command is decided twice by one actor",
        |w| add(&mut w.bank, "account", "ada", outside(2, "ok"), 0),
        Broken::Doubled,
    ),
    ("a command is decided by two actors", |w| add(&mut w.bonus, "saga", "x", outside(2, "ok"), 0), Broken::Doubled),
    (
        "a decided command is a dead letter as well",
        |w| {
            let aside = StoredTurn { notes: vec![Note::DeadLetter(Box::new(letter(2)))], ..outside(2, "") };
            add(&mut w.bank, "account", "ada", aside, 0);
            w.bank.dead_letters.push(letter(2));
        },
        Broken::Doubled,
    ),
    ("it was never sent", |w| add(&mut w.bank, "account", "ada", outside(77, "ok"), 0), Broken::Phantom),
    ("a refused command was handled", |w| add(&mut w.bank, "account", "ada", outside(8, "ok"), 0), Broken::Phantom),
    ("a client got another reply than the stored one", |w| w.told[0].1 = "no", Broken::Phantom),
    ("a client got two different replies", |w| w.told.insert(0, (id(1), "no")), Broken::Phantom),
    ("an event is missing in the log", |w| drop(w.bank.events.remove(2)), Broken::Lost),
    ("the newest event is missing in the log", |w| drop(w.bank.events.pop()), Broken::Lost),
    (
        "an event is twice in the log",
        |w| {
            let event = w.bank.events[2].clone();
            w.bank.events.insert(3, event);
        },
        Broken::Doubled,
    ),
    ("two events change places in the log", |w| w.bank.events.swap(2, 3), Broken::Misordered),
    (
        "an event of the log has other content than in its stream",
        |w| {
            w.bank.events[2].payload = Bytes::from_static(b"6");
        },
        Broken::Phantom,
    ),
    (
        "an event of the log is in no stream",
        |w| {
            w.bank.position += 1;
            let event = StoredEvent { position: w.bank.position, ..w.bank.events[0].clone() };
            w.bank.events.push(event);
        },
        Broken::Phantom,
    ),
    (
        "the log ends too early and says so",
        |w| {
            w.bank.position -= 1;
            drop(w.bank.events.pop());
        },
        Broken::Lost,
    ),
    (
        "an event stands in the stream of another key",
        |w| {
            w.stream("ada").turns[0].events[0].key = "bob".into();
            w.bank.events[1].key = "bob".into();
            w.view[1].key = "bob".into();
        },
        Broken::Phantom,
    ),
    ("two streams claim one position", |w| w.stream("bob").turns[0].events[0].position = 2, Broken::Doubled),
    (
        "positions fall where versions rise",
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
        Broken::Misordered,
    ),
    ("a turn in the middle of a stream is gone", |w| drop(w.stream("ada").turns.remove(1)), Broken::Lost),
    (
        "a turn is twice in its stream",
        |w| {
            let turn = w.stream("ada").turns[1].clone();
            w.stream("ada").turns.insert(2, turn);
        },
        Broken::Doubled,
    ),
    ("two turns of a stream change places", |w| w.stream("ada").turns.swap(0, 1), Broken::Misordered),
    ("a turn stands on a state that never was", |w| w.stream("ada").turns[1].version = 9, Broken::Misordered),
    (
        "a timer rings that was not set",
        |w| {
            add(&mut w.bonus, "saga", "ada", StoredTurn { timer: Some("late".into()), ..turn(151) }, 0);
        },
        Broken::Phantom,
    ),
    (
        "a timer rings behind the end",
        |w| {
            let ends = StoredTurn { timers: vec![("late".into(), true)], notes: vec![Note::Ended], ..turn(152) };
            add(&mut w.bonus, "saga", "ada", ends, 0);
            add(&mut w.bonus, "saga", "ada", StoredTurn { timer: Some("late".into()), ..turn(153) }, 0);
        },
        Broken::Phantom,
    ),
    ("a dead letter is not listed", |w| w.bank.dead_letters.clear(), Broken::Lost),
    ("a dead letter is listed that no turn made", |w| w.bank.dead_letters.push(letter(88)), Broken::Phantom),
    ("a dead letter is listed twice", |w| w.bank.dead_letters.push(letter(6)), Broken::Doubled),
    (
        "an event is reacted to twice",
        |w| add(&mut w.bonus, "saga", "ada", from(104, events_for_saga(), 4), 0),
        Broken::Doubled,
    ),
    (
        "an event is reacted to by two keys",
        |w| add(&mut w.bonus, "saga", "eve", from(104, events_for_saga(), 4), 0),
        Broken::Doubled,
    ),
    (
        "events are reacted to in another order",
        |w| {
            w.saga().turns[1].from = Some((events_for_saga(), 3));
            w.saga().turns[2].from = Some((events_for_saga(), 2));
        },
        Broken::Misordered,
    ),
    (
        "an event is reacted to that is not in the log",
        |w| add(&mut w.bonus, "saga", "ada", from(9, events_for_saga(), 99), 0),
        Broken::Phantom,
    ),
    ("a command is taken that was not sent", |w| w.bonus.outbox_heads[0].2 = 3, Broken::Phantom),
    (
        "a command of an actor is handled twice",
        |w| {
            let again = from(202, direct(bonus()), 2);
            add(&mut w.bank, "account", "bob", again, 0);
        },
        Broken::Doubled,
    ),
    (
        "a command is marked as taken and no turn took it",
        |w| {
            let turn = w.stream("ada").turns.iter_mut().find(|turn| turn.id == id(203)).unwrap();
            turn.from = None;
        },
        Broken::Lost,
    ),
    ("a watermark runs ahead of its source", |w| w.bonus.watermarks[1].through = 99, Broken::Phantom),
    ("a subscriber skips an event", |w| drop(w.view.remove(3)), Broken::Lost),
    ("a subscriber applies an event twice", |w| w.view.push(w.view[3].clone()), Broken::Doubled),
    ("a subscriber applies events in another order", |w| w.view.swap(3, 4), Broken::Misordered),
    (
        "a subscriber applies an event that is not in the log",
        |w| {
            w.view.push(Applied { position: 99, ..w.view[0].clone() });
        },
        Broken::Phantom,
    ),
    ("a subscriber applies another event than the log holds", |w| w.view[3].version += 1, Broken::Phantom),
    (
        "a subscriber applies events of a shard that is not there",
        |w| {
            let shard = ShardId::new(name("bank"), 9);
            w.view.push(Applied { shard, ..w.view[0].clone() });
        },
        Broken::Phantom,
    ),
    (
        "a message that a turn has sent is not in the outbox",
        |w| {
            w.saga().turns[0].sent.push(sent(Kind::Reply, 777));
        },
        Broken::Lost,
    ),
    ("the outbox holds a message that no turn has sent", |w| w.saga().turns[0].sent.clear(), Broken::Phantom),
];

/// Spoilt runs that are right as long as something is under way.
const WHEN_QUIET: &[Planted] = &[
    ("an accepted command was never decided", |w| w.told.push((id(77), "accepted")), Broken::Lost),
    (
        "a sent command has not arrived",
        |w| {
            w.bonus.outbox_heads[0].2 = 5;
            w.saga().turns[0].sent.push(sent(Kind::Reply, 1));
        },
        Broken::Lost,
    ),
    ("another command has arrived than was sent", |w| w.saga().turns[0].sent[0].id = id(777), Broken::Lost),
    ("a sender believes too much", |w| w.bonus.outbox_heads[0] = (bank(), 5, 4), Broken::Phantom),
    ("a subscriber has not applied the newest event", |w| drop(w.view.pop()), Broken::Lost),
    ("a subscriber has applied nothing", |w| w.view.clear(), Broken::Lost),
];

#[test]
fn every_planted_violation_is_found() {
    for (what, spoil, broken) in ALWAYS {
        for stage in [Stage::Running, Stage::Quiet] {
            let mut world = World::healthy();
            spoil(&mut world);
            let verdict = world.check(stage);
            assert!(verdict.count(*broken) > 0, "{what}: not found at {stage:?}\n{verdict}");
        }
    }
}

#[test]
fn what_may_still_be_under_way_is_a_violation_only_when_all_is_quiet() {
    for (what, spoil, broken) in WHEN_QUIET {
        let mut world = World::healthy();
        spoil(&mut world);
        let running = world.check(Stage::Running);
        assert!(running.is_clean(), "{what}: {running}");
        let quiet = world.check(Stage::Quiet);
        assert!(quiet.count(*broken) > 0, "{what}: not found\n{quiet}");
    }
}

#[test]
fn a_shard_that_was_read_twice_is_found() {
    let mut ledger = Ledger::new();
    ledger.log(empty(bank()));
    assert_eq!(ledger.check(Stage::Running).count(Broken::Doubled), 0);
    ledger.log(empty(bank()));
    assert_eq!(ledger.check(Stage::Running).count(Broken::Doubled), 1);
}

#[test]
fn a_command_that_was_refused_only_once_may_have_been_handled_the_other_time() {
    let mut world = World::healthy();
    world.told.push((id(9), "refused"));
    world.told.push((id(2), "refused"));
    world.check(Stage::Quiet).assert_clean();
}

#[test]
fn a_dead_letter_that_was_driven_again_is_one_decision() {
    let mut world = World::healthy();
    let again = StoredTurn { notes: vec![Note::Resolved { message: id(6) }], ..outside(6, "ok") };
    add(&mut world.bank, "account", "ada", again, 1);
    world.view.push(Applied::new(&bank(), world.bank.events.last().unwrap()));
    world.bank.dead_letters.clear();
    world.told.push((id(6), "ok"));
    world.check(Stage::Quiet).assert_clean();
}
