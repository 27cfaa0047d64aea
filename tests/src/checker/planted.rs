//! Planted violations: a healthy run, and every way to spoil it that the checker must notice.
//!
//! In the healthy run a client opens an account and pays in; a saga of another service reacts to each payment and sends one
//! command back, whose reply it takes; a projection applies the events.

use bytes::Bytes;
use whizbang::clock::Timestamp;
use whizbang::message::{Codec, Envelope, Kind, MessageId, Name, ShardId, Wants};
use whizbang::store::{DeadLetter, DeadLetterReason, Lane, Note, Source, StoredEvent, StoredTurn, Watermark};

use super::{Applied, Broken, Ledger, ShardLog, Stage, StreamLog, Verdict};

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn id(n: u128) -> MessageId {
    MessageId::from_u128(n)
}

fn bank() -> ShardId {
    ShardId::new(name("bank"), 0)
}

fn bonus() -> ShardId {
    ShardId::new(name("bonus"), 0)
}

fn envelope(n: u128) -> Envelope {
    Envelope {
        id: id(n),
        kind: Kind::Command,
        name: name("Deposit"),
        version: 1,
        domain: name("bank"),
        to: Some(bank()),
        key: "ada".into(),
        actor: None,
        origin: None,
        correlation: id(n),
        causation: None,
        time: NOW,
        deadline: None,
        wants: Wants::Nothing,
        traceparent: None,
        headers: Vec::new(),
        codec: Codec::Json,
        payload: Bytes::from_static(b"{}"),
    }
}

fn letter(n: u128) -> DeadLetter {
    DeadLetter {
        actor: name("account"),
        key: "ada".into(),
        reason: DeadLetterReason::Attempts,
        error: "it panicked".into(),
        attempts: 3,
        time: NOW,
        envelope: envelope(n),
    }
}

/// A turn without anything; its number and version are filled in by [`World::turn`].
fn turn(n: u128) -> StoredTurn {
    StoredTurn {
        number: 0,
        version: 0,
        time: NOW,
        id: id(n),
        correlation: id(n),
        from: None,
        digest: None,
        timer: None,
        reply: Bytes::new(),
        reply_codec: Codec::Json,
        events: Vec::new(),
        timers: Vec::new(),
        sent: Vec::new(),
        notes: Vec::new(),
    }
}

fn outside(n: u128, reply: &'static str) -> StoredTurn {
    StoredTurn { digest: Some(7), reply: Bytes::from_static(reply.as_bytes()), ..turn(n) }
}

fn from(n: u128, source: Source, sequence: u64) -> StoredTurn {
    StoredTurn { from: Some((source, sequence)), ..turn(n) }
}

fn direct(shard: ShardId) -> Source {
    Source { shard, lane: Lane::Direct }
}

fn events_for_saga() -> Source {
    Source { shard: bank(), lane: Lane::Events { subscriber: name("saga") } }
}

/// A run: two shards, what clients were told, what a projection has applied.
struct World {
    told: Vec<(MessageId, &'static str)>,
    bank: ShardLog,
    bonus: ShardLog,
    view: Vec<Applied>,
}

fn empty(shard: ShardId) -> ShardLog {
    ShardLog {
        shard,
        position: 0,
        events: Vec::new(),
        streams: Vec::new(),
        outbox_heads: Vec::new(),
        watermarks: Vec::new(),
        dead_letters: Vec::new(),
    }
}

/// Puts a turn with `events` events at the end of a stream.
fn add(log: &mut ShardLog, actor: &str, key: &str, mut turn: StoredTurn, events: u64) {
    let at = log.streams.iter().position(|stream| *stream.actor == *actor && stream.key == key).unwrap_or_else(|| {
        log.streams.push(StreamLog { actor: name(actor), key: key.into(), turns: Vec::new() });
        log.streams.len() - 1
    });
    let stream = &mut log.streams[at];
    turn.number = stream.turns.len() as u64 + 1;
    turn.version = stream.turns.iter().map(|turn| turn.events.len() as u64).sum();
    for n in 1..=events {
        log.position += 1;
        let event = StoredEvent {
            position: log.position,
            actor: name(actor),
            key: key.into(),
            stream_version: turn.version + n,
            name: name("Deposited"),
            version: 1,
            codec: Codec::Json,
            payload: Bytes::from_static(b"5"),
            time: NOW,
            cause: turn.id,
            correlation: turn.correlation,
            traceparent: None,
        };
        log.events.push(event.clone());
        turn.events.push(event);
    }
    stream.turns.push(turn);
}

impl World {
    fn healthy() -> Self {
        let (mut bank, mut saga) = (empty(bank()), empty(bonus()));
        let mut told = Vec::new();
        for n in 1..=4 {
            let key = if n % 2 == 0 { "ada" } else { "bob" };
            add(&mut bank, "account", key, outside(n, "ok"), 1);
            told.push((id(n), "ok"));
        }
        // The saga reacts to the four events, sends a command for each, and takes its reply; one timer is set and rings.
        for n in 1..=4 {
            let mut reaction = from(100 + u128::from(n), events_for_saga(), n);
            reaction.sent = vec![(id(200 + u128::from(n)), Wants::Reply)];
            reaction.timers = if n == 1 { vec![("late".into(), true)] } else { Vec::new() };
            add(&mut saga, "saga", "ada", reaction, 1);
        }
        add(&mut saga, "saga", "ada", StoredTurn { timer: Some("late".into()), ..turn(150) }, 0);
        for n in 1..=4 {
            let mut handling = from(200 + u128::from(n), direct(saga.shard.clone()), n);
            handling.sent = vec![(id(300 + u128::from(n)), Wants::Nothing)];
            add(&mut bank, "account", "ada", handling, 1);
            add(&mut saga, "saga", "ada", from(300 + u128::from(n), direct(bank.shard.clone()), n), 0);
        }
        saga.outbox_heads = vec![(bank.shard.clone(), 3, 4)];
        bank.outbox_heads = vec![(saga.shard.clone(), 4, 4)];
        bank.watermarks = vec![Watermark { source: direct(saga.shard.clone()), through: 4 }];
        saga.watermarks = vec![
            Watermark { source: direct(bank.shard.clone()), through: 4 },
            Watermark { source: events_for_saga(), through: 8 },
        ];
        // One delivery failed once and then succeeded; another became a dead letter.
        add(
            &mut bank,
            "account",
            "eve",
            StoredTurn { notes: vec![Note::Attempt { message: id(5), attempt: 1 }], ..turn(5) },
            0,
        );
        add(&mut bank, "account", "eve", outside(5, "ok"), 1);
        told.push((id(5), "ok"));
        let aside = StoredTurn { notes: vec![Note::DeadLetter(Box::new(letter(6)))], ..outside(6, "") };
        add(&mut bank, "account", "ada", aside, 0);
        bank.dead_letters.push(letter(6));
        told.push((id(6), "dead letter"));
        told.push((id(7), "unknown"));
        told.push((id(8), "refused"));
        add(&mut bank, "account", "bob", outside(9, "posted"), 1);
        told.push((id(9), "accepted"));
        let view = bank.events.iter().map(|event| Applied::new(&bank.shard, event)).collect();
        Self { told, bank, bonus: saga, view }
    }

    fn check(&self, stage: Stage) -> Verdict {
        let mut ledger = Ledger::new();
        for (id, told) in &self.told {
            ledger.sends(*id);
            match *told {
                "unknown" => {}
                "refused" => ledger.refused(*id),
                "accepted" => ledger.accepted(*id),
                "dead letter" => ledger.is_dead_letter(*id),
                reply => ledger.replied(*id, Bytes::from_static(reply.as_bytes())),
            }
        }
        ledger.subscriber("view", |domain, name| domain == "bank" && name == "Deposited", self.view.clone());
        ledger.log(self.bank.clone());
        ledger.log(self.bonus.clone());
        ledger.check(stage)
    }

    fn stream(&mut self, key: &str) -> &mut StreamLog {
        self.bank.streams.iter_mut().find(|stream| stream.key == key).unwrap()
    }

    fn saga(&mut self) -> &mut StreamLog {
        &mut self.bonus.streams[0]
    }
}

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

/// What is spoilt, how, and the promise that must be seen broken.
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
    ("nobody sent it", |w| add(&mut w.bank, "account", "ada", outside(77, "ok"), 0), Broken::Phantom),
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
            w.saga().turns[0].sent.push((id(777), Wants::Nothing));
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
            w.saga().turns[0].sent.push((id(1), Wants::Nothing));
        },
        Broken::Lost,
    ),
    ("another command has arrived than was sent", |w| w.saga().turns[0].sent[0].0 = id(777), Broken::Lost),
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
