//! A correct run, made of turns as a store would list them.

use bytes::Bytes;
use whizbang::clock::Timestamp;
use whizbang::message::{Codec, Envelope, Kind, MessageId, Name, ReplyMode, ShardId};
use whizbang::store::{
    DeadLetter, DeadLetterReason, Note, SentMessage, Source, SourceKind, StoredEvent, StoredTurn, Watermark,
};

use super::super::{Applied, Ledger, ShardLog, Stage, StreamLog, Verdict};

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn id(n: u128) -> MessageId {
    MessageId::from_u128(n)
}

pub(super) fn bank() -> ShardId {
    ShardId::new(name("bank"), 0)
}

pub(super) fn bonus() -> ShardId {
    ShardId::new(name("bonus"), 0)
}

pub(super) fn envelope(n: u128) -> Envelope {
    Envelope {
        id: id(n),
        kind: Kind::Command,
        name: name("Deposit"),
        version: 1,
        shape: None,
        domain: name("bank"),
        to: Some(bank()),
        key: "ada".into(),
        actor: None,
        origin: None,
        correlation: id(n),
        causation: None,
        time: NOW,
        deadline: None,
        wants: ReplyMode::Nothing,
        traceparent: None,
        headers: Vec::new(),
        codec: Codec::Json,
        payload: Bytes::from_static(b"{}"),
    }
}

pub(super) fn letter(n: u128) -> DeadLetter {
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

/// Returns an empty turn; [`add`] fills in its number and version.
pub(super) fn turn(n: u128) -> StoredTurn {
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

pub(super) fn outside(n: u128, reply: &'static str) -> StoredTurn {
    StoredTurn { digest: Some(7), reply: Bytes::from_static(reply.as_bytes()), ..turn(n) }
}

pub(super) fn from(n: u128, source: Source, sequence: u64) -> StoredTurn {
    StoredTurn { from: Some((source, sequence)), ..turn(n) }
}

pub(super) fn direct(shard: ShardId) -> Source {
    Source { shard, kind: SourceKind::Direct }
}

pub(super) fn events_for_saga() -> Source {
    Source { shard: bank(), kind: SourceKind::Events { subscriber: name("saga") } }
}

/// A run: two shards, the results of clients, and the events that a projection has applied.
pub(super) struct World {
    pub(super) results: Vec<(MessageId, &'static str)>,
    pub(super) bank: ShardLog,
    pub(super) bonus: ShardLog,
    pub(super) view: Vec<Applied>,
}

pub(super) fn empty(shard: ShardId) -> ShardLog {
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

/// Appends a turn with `events` events to a stream.
pub(super) fn add(log: &mut ShardLog, actor: &str, key: &str, mut turn: StoredTurn, events: u64) {
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
            headers: Vec::new(),
        };
        log.events.push(event.clone());
        turn.events.push(event);
    }
    stream.turns.push(turn);
}

impl World {
    pub(super) fn healthy() -> Self {
        let (mut bank, mut saga) = (empty(bank()), empty(bonus()));
        let mut results = Vec::new();
        for n in 1..=4 {
            let key = if n % 2 == 0 { "ada" } else { "bob" };
            add(&mut bank, "account", key, outside(n, "ok"), 1);
            results.push((id(n), "ok"));
        }
        // The saga reacts to the four events, sends a command for each, and handles its reply; one timer is set and fires.
        for n in 1..=4 {
            let mut reaction = from(100 + u128::from(n), events_for_saga(), n);
            reaction.sent = vec![sent(Kind::Command, 200 + u128::from(n))];
            reaction.timers = if n == 1 { vec![("late".into(), true)] } else { Vec::new() };
            add(&mut saga, "saga", "ada", reaction, 1);
        }
        add(&mut saga, "saga", "ada", StoredTurn { timer: Some("late".into()), ..turn(150) }, 0);
        for n in 1..=4 {
            let mut handling = from(200 + u128::from(n), direct(saga.shard.clone()), n);
            handling.sent = vec![sent(Kind::Reply, 300 + u128::from(n))];
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
        results.push((id(5), "ok"));
        let aside = StoredTurn { notes: vec![Note::DeadLetter(Box::new(letter(6)))], ..outside(6, "") };
        add(&mut bank, "account", "ada", aside, 0);
        bank.dead_letters.push(letter(6));
        results.push((id(6), "dead letter"));
        results.push((id(7), "unknown"));
        results.push((id(8), "refused"));
        add(&mut bank, "account", "bob", outside(9, "posted"), 1);
        results.push((id(9), "accepted"));
        let view = bank.events.iter().map(|event| Applied::new(&bank.shard, event)).collect();
        Self { results, bank, bonus: saga, view }
    }

    pub(super) fn check(&self, stage: Stage) -> Verdict {
        let mut ledger = Ledger::new();
        for (id, result) in &self.results {
            ledger.sends(*id);
            match *result {
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

    pub(super) fn stream(&mut self, key: &str) -> &mut StreamLog {
        self.bank.streams.iter_mut().find(|stream| stream.key == key).unwrap()
    }

    pub(super) fn saga(&mut self) -> &mut StreamLog {
        &mut self.bonus.streams[0]
    }
}

/// Returns a sent message.
pub(super) fn sent(kind: Kind, number: u128) -> SentMessage {
    let wants = if kind == Kind::Command { ReplyMode::Reply } else { ReplyMode::Nothing };
    SentMessage { id: id(number), kind, name: name("Withdraw"), wants }
}
