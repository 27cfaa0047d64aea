//! The step log: committed turns with the names of their messages, for coverage, diagrams and failure reports.
//!
//! Written by the [stores](super::store) on append and commit, and by the clients when they send. Stores know messages by id; the
//! log resolves their names.
//!
//! A turn is recorded at its commit and not at its append: what is lost in a crash never happened. The messages of the turn
//! become known then, so that the turn that handles one of them can name its cause.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::committed_turn::{Cause, CommittedTurn, End, Phase};
use super::delays::{Delays, WaitTimes};
use super::full_name::FullName;
use super::owned_turn::{MarkedAs, OwnedTurn};
use super::payload::Payload;
use super::sent_command::{Sender, SentOutcome};
use whizbang_core::clock::instant;
use whizbang_core::message::{Codec, Envelope, Kind, MessageId, Name, ShardId, rejection_in};
use whizbang_core::store::{Note, SourceKind};
use whizbang_runtime::actor::{begins_compensation, finishes_compensation, own_timer_name, restarts};

/// The log of one run. Clones write to the same log.
#[derive(Clone)]
pub(super) struct StepLog(Arc<Mutex<State>>);

/// The state of the log. Turns are added in the order of their commits.
struct State {
    /// The virtual time at which the run began.
    started_at: tokio::time::Instant,
    /// The messages that are known by their ids.
    messages: BTreeMap<MessageId, KnownMessage>,
    /// The commands sent by clients and actors: id, sender and time.
    sent: Vec<(MessageId, Option<Sender>, Duration)>,
    /// The events by shard and position, to name the cause of a reaction.
    events: BTreeMap<(ShardId, u64), (FullName, Payload)>,
    /// The state of each actor after its last committed turn.
    actors: BTreeMap<(ShardId, Name, String), ActorState>,
    /// The committed turns.
    turns: Vec<CommittedTurn>,
    /// The outcomes of decided commands: by the id of the command, or for commands of actors by the id of the reply.
    outcomes: BTreeMap<MessageId, SentOutcome>,
    /// Messages that sagas sent in turns with compensation notes.
    compensating: BTreeMap<MessageId, Envelope>,
    /// The commands and replies with committed effects: the domain that handled them, and their source.
    handled: BTreeSet<(Name, ShardId, u64)>,
    /// The commands of clients with committed effects or as dead letters, by the domain that handled them.
    decided: BTreeSet<(Name, MessageId)>,
    /// Commands whose clients were told that they had no effect.
    without_effect: BTreeSet<MessageId>,
    /// The waiting times of messages.
    delays: Delays,
    /// The first violation that a store has reported.
    violation: Option<String>,
    /// The first timer that fired before it was due by its own clock. Allowed if a clock has jumped.
    early_timer: Option<String>,
}

/// A message by its id.
struct KnownMessage {
    /// The kind of message.
    kind: Kind,
    /// Its domain and name.
    name: FullName,
    /// A reply rejects its command.
    rejected: bool,
    /// The content.
    payload: Payload,
}

/// The state of one actor.
#[derive(Clone, Default)]
struct ActorState {
    /// The phase after the last turn.
    phase: Phase,
    /// Compensation has begun.
    compensated: bool,
    /// The name of the last recorded event.
    last: Option<String>,
    /// The timers that are set, with the time of setting and the duration.
    timers: BTreeMap<String, (Instant, Duration)>,
}

impl ActorState {
    /// Applies the timers of a turn. Returns a violation, and a second one that is valid only if no clock has jumped.
    fn timers(&mut self, turn: &OwnedTurn) -> (Option<String>, Option<String>) {
        let describe = |what: String| format!("timers: {} `{}`: {what} in turn {}", turn.actor, turn.key, turn.number);
        let (mut violation, mut early_timer) = (None, None);
        if let MarkedAs::Timer(name) = &turn.mark {
            match self.timers.remove(name) {
                None => violation = Some(describe(format!("{name} fired without being set"))),
                Some((set, after)) if turn.at + CLOCK_SLACK < set + after => {
                    let waited = turn.at - set;
                    early_timer = Some(describe(format!("{name} fired after {waited:?} instead of {after:?}")));
                }
                Some(_) => {}
            }
        }
        for (name, after) in &turn.timers {
            match after {
                Some(after) => drop(self.timers.insert(name.clone(), (turn.at, *after))),
                None => drop(self.timers.remove(name)),
            }
        }
        if turn.notes.contains(&Note::Ended) {
            self.timers.clear();
        }
        (violation, early_timer)
    }
}

/// Tolerance for early timers: wall clocks count in milliseconds.
const CLOCK_SLACK: Duration = Duration::from_millis(2);

impl StepLog {
    /// Returns whether the effect of a command or reply is committed in a domain.
    pub(super) fn has_handled(&self, domain: &Name, from: &ShardId, sequence: u64) -> bool {
        self.0.lock().handled.contains(&(domain.clone(), from.clone(), sequence))
    }

    /// Returns whether the effect of a client's command is committed in a domain, or the command is a dead letter there.
    pub(super) fn has_settled_call(&self, domain: &Name, command: MessageId) -> bool {
        self.0.lock().decided.contains(&(domain.clone(), command))
    }

    /// Takes the first violation found since the last call.
    pub(super) fn take_violation(&self) -> Option<String> {
        self.0.lock().violation.take()
    }

    /// Records a violation.
    pub(super) fn report(&self, violation: String) {
        self.0.lock().violation.get_or_insert(violation);
    }

    /// Starts a disturbance of the whole cluster. Returns the number for [`end_disturbance`](Self::end_disturbance).
    pub(super) fn begin_disturbance(&self) -> usize {
        self.0.lock().delays.begin_disturbance()
    }

    /// Ends a disturbance of the whole cluster: waiting times count again.
    pub(super) fn end_disturbance(&self, number: usize) {
        self.0.lock().delays.end_disturbance(number);
    }

    /// Returns a violation if a message has been waiting for too long.
    pub(super) fn overdue(&self, is_hosted: impl Fn(&Name) -> bool) -> Option<String> {
        self.0.lock().delays.overdue(is_hosted)
    }

    /// Returns a violation if an event has been waiting for too long for a subscriber.
    pub(super) fn event_overdue(&self, event: (&ShardId, u64), subscriber: &(Name, Name, String)) -> Option<String> {
        self.0.lock().delays.event_overdue(event, subscriber)
    }

    /// Returns the waiting times of messages.
    pub(super) fn wait_times(&self) -> WaitTimes {
        self.0.lock().delays.wait_times()
    }

    /// Returns the first timer that fired before it was due by its own clock.
    pub(super) fn early_timer(&self) -> Option<String> {
        self.0.lock().early_timer.clone()
    }

    /// Creates an empty log. The run begins now.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State {
            started_at: instant(),
            messages: BTreeMap::new(),
            sent: Vec::new(),
            events: BTreeMap::new(),
            actors: BTreeMap::new(),
            turns: Vec::new(),
            outcomes: BTreeMap::new(),
            compensating: BTreeMap::new(),
            handled: BTreeSet::new(),
            decided: BTreeSet::new(),
            without_effect: BTreeSet::new(),
            delays: Delays::default(),
            violation: None,
            early_timer: None,
        })))
    }

    /// Records that a client sends a command.
    pub(super) fn client_sent(&self, id: MessageId, domain: &str, payload: Payload) {
        let name = format!("{domain}.{}", payload.name);
        let message = KnownMessage { kind: Kind::Command, name, rejected: false, payload };
        let mut state = self.0.lock();
        let at = state.started_at.elapsed();
        state.sent.push((id, None, at));
        state.delays.client_sent(id);
        state.messages.insert(id, message);
    }

    /// Records that a client sends a command with a new id, because attempts with the old id had no effect.
    pub(super) fn client_sent_with_new_id(&self, before: MessageId, id: MessageId) {
        let state = &mut *self.0.lock();
        state.delays.client_sent(id);
        if let Some(message) = state.messages.remove(&before) {
            state.messages.insert(id, message);
        }
        state.sent.iter_mut().filter(|(of, ..)| *of == before).for_each(|(of, ..)| *of = id);
    }

    /// Records that a key is unreadable.
    pub(super) fn key_stuck(&self, shard: &ShardId, actor: &Name, key: &str) {
        self.0.lock().delays.mark_stuck(shard, actor, key);
    }

    /// Records that an attempt of a client starts.
    pub(super) fn attempt_started(&self, id: MessageId) {
        self.0.lock().without_effect.remove(&id);
    }

    /// Records that the client knows that no attempt had an effect.
    pub(super) fn attempts_had_no_effect(&self, id: MessageId) {
        self.0.lock().without_effect.insert(id);
    }

    /// Records an appended turn: the names of its messages are known even before the commit.
    pub(super) fn appended(&self, turn: &OwnedTurn) {
        let mut state = self.0.lock();
        for envelope in &turn.outbox {
            let rejected = envelope.kind == Kind::Reply && is_rejection(envelope);
            let name = format!("{}.{}", envelope.domain, envelope.name);
            let message = KnownMessage { kind: envelope.kind, name, rejected, payload: Payload::of(envelope) };
            state.messages.insert(envelope.id, message);
        }
    }

    /// Records a committed turn. `position` is that of the shard's last event after the commit.
    pub(super) fn committed(&self, shard: &ShardId, turn: &OwnedTurn, position: u64) {
        let state = &mut *self.0.lock();
        let records = turn.events.clone();
        for envelope in turn.outbox.iter().filter(|envelope| envelope.kind == Kind::Reply) {
            state.outcomes.insert(envelope.id, outcome(envelope.codec, &envelope.payload));
        }
        if !turn.reply.is_empty() {
            state.outcomes.insert(turn.id, outcome(turn.reply_codec, &turn.reply));
        }
        let sender = Sender { domain: shard.domain.to_string(), actor: turn.actor.to_string(), key: turn.key.clone() };
        let at = state.started_at.elapsed();
        let commands = turn.outbox.iter().filter(|envelope| envelope.kind == Kind::Command);
        state.sent.extend(commands.map(|envelope| (envelope.id, Some(sender.clone()), at)));
        if turn.notes.iter().any(|note| matches!(note, Note::Own(_))) {
            let commands = turn.outbox.iter().filter(|envelope| envelope.kind == Kind::Command);
            state.compensating.extend(commands.map(|envelope| (envelope.id, envelope.clone())));
        }
        if let MarkedAs::From(source, position) = &turn.mark
            && source.kind == SourceKind::Direct
        {
            state.handled.insert((shard.domain.clone(), source.shard.clone(), *position));
        }
        let dead_letters = turn.notes.iter().filter_map(|note| match note {
            Note::DeadLetter(dead_letter) => Some(dead_letter.envelope.id),
            _ => None,
        });
        let outside = matches!(turn.mark, MarkedAs::Outside).then_some(turn.id);
        state.decided.extend(dead_letters.chain(outside).map(|id| (shard.domain.clone(), id)));
        let first = position.saturating_sub(records.len() as u64);
        let late = state.delays.committed(shard, turn, first + 1);
        let had_no_effect = matches!(turn.mark, MarkedAs::Outside) && state.without_effect.contains(&turn.id);
        let handled_anyway = had_no_effect.then(|| {
            format!("outcome: {} {} was handled after its client was told that it had no effect", turn.actor, turn.id)
        });
        for (event, position) in records.iter().zip(first + 1..) {
            let name = format!("{}.{}", shard.domain, event.name);
            state.events.insert((shard.clone(), position), (name, event.clone()));
        }
        let actor = state.actors.entry((shard.clone(), turn.actor.clone(), turn.key.clone())).or_default();
        let (violation, early_timer) = actor.timers(turn);
        if state.violation.is_none() {
            state.violation = violation.or(late).or(handled_anyway);
        }
        if state.early_timer.is_none() {
            state.early_timer = early_timer;
        }
        let before = actor.clone();
        actor.last = records.last().map(|event| event.name.clone()).or_else(|| before.last.clone());
        if turn.notes.iter().any(restarts) {
            (actor.phase, actor.compensated) = (Phase::Open, false);
        }
        let compensates = turn.notes.iter().any(begins_compensation);
        if compensates {
            actor.phase = Phase::Compensating;
        }
        actor.compensated |= turn.notes.iter().any(finishes_compensation);
        let ends = turn.notes.contains(&Note::Ended).then(|| {
            actor.phase = Phase::Ended;
            if actor.compensated { End::Compensated } else { End::Completed }
        });
        let Some((cause, payload)) = cause(&state.messages, &state.events, turn) else { return };
        let mut sends: Vec<_> = turn.outbox.iter().filter(|envelope| envelope.kind == Kind::Command).collect();
        sends.sort_by_key(|envelope| (envelope.domain.clone(), envelope.name.clone()));
        let timers = |set: bool| {
            turn.timers.iter().filter(move |(_, after)| after.is_some() == set).map(|(name, _)| name.clone())
        };
        state.turns.push(CommittedTurn {
            at: state.started_at.elapsed(),
            id: turn.id,
            payload,
            domain: shard.domain.to_string(),
            actor: turn.actor.to_string(),
            key: turn.key.clone(),
            cause,
            phase: before.phase,
            from: before.last,
            records,
            sends: sends.iter().map(|envelope| format!("{}.{}", envelope.domain, envelope.name)).collect(),
            sets: timers(true).collect(),
            clears: timers(false).collect(),
            compensates,
            ends,
        });
    }

    /// Returns whether the committed reply to a command is a rejection. `None` without a reply.
    pub(super) fn is_rejected(&self, command: MessageId) -> Option<bool> {
        let state = self.0.lock();
        let outcome = state.outcomes.get(&MessageId::of_reply(command))?;
        Some(matches!(outcome, SentOutcome::Rejected(_)))
    }

    /// Returns the outcomes of all decided commands by id.
    pub(super) fn outcomes(&self) -> BTreeMap<MessageId, SentOutcome> {
        let state = self.0.lock();
        let sent = state.sent.iter().map(|(id, ..)| *id);
        let found =
            |id: MessageId| state.outcomes.get(&MessageId::of_reply(id)).or_else(|| state.outcomes.get(&id)).cloned();
        sent.filter_map(|id| Some((id, found(id)?))).collect()
    }

    /// Returns the commands of a type in the order in which they were sent.
    pub(super) fn sent(&self, domain: &str, name: &str) -> Vec<(MessageId, Option<Sender>, Duration, Payload)> {
        let state = self.0.lock();
        let full = format!("{domain}.{name}");
        let sent = state.sent.iter().filter_map(|(id, from, at)| {
            let messages =
                state.messages.get(id).filter(|messages| messages.name == full && messages.kind == Kind::Command)?;
            Some((*id, from.clone(), *at, messages.payload.clone()))
        });
        sent.collect()
    }

    /// Returns a message that a saga sent in a turn with compensation notes.
    pub(super) fn compensating_command(&self, command: MessageId) -> Option<Envelope> {
        self.0.lock().compensating.get(&command).cloned()
    }

    /// Returns the start of the cluster.
    pub(super) fn started_at(&self) -> Instant {
        self.0.lock().started_at
    }

    /// Returns all committed turns in the order of their commits.
    pub(super) fn turns(&self) -> Vec<CommittedTurn> {
        self.0.lock().turns.clone()
    }
}

/// Returns the outcome of a command from its encoded reply.
fn outcome(codec: Codec, reply: &[u8]) -> SentOutcome {
    match rejection_in(codec, reply).ok().flatten() {
        Some(no) => SentOutcome::Rejected(no.code().to_owned()),
        None => SentOutcome::Accepted,
    }
}

/// Returns true if a reply rejects its command.
fn is_rejection(reply: &Envelope) -> bool {
    rejection_in(reply.codec, &reply.payload).is_ok_and(|rejection| rejection.is_some())
}

/// Returns the cause of a turn and its payload. `None` for turns that failed or only record something.
fn cause(
    messages: &BTreeMap<MessageId, KnownMessage>,
    events: &BTreeMap<(ShardId, u64), (FullName, Payload)>,
    turn: &OwnedTurn,
) -> Option<(Cause, Option<Payload>)> {
    let is_failed = |note: &Note| matches!(note, Note::Attempt { .. } | Note::DeadLetter(_));
    if turn.notes.iter().any(is_failed) {
        return None;
    }
    let named = messages.get(&turn.id);
    Some(match &turn.mark {
        MarkedAs::Timer(name) => (Cause::Timer(own_timer_name(name).0.to_owned()), None),
        MarkedAs::From(source, position) if matches!(source.kind, SourceKind::Events { .. }) => {
            let (name, payload) = events.get(&(source.shard.clone(), *position))?;
            (Cause::Event(name.clone()), Some(payload.clone()))
        }
        MarkedAs::From(..) | MarkedAs::Outside => {
            let named = named?;
            let cause = match named.kind {
                Kind::Reply if named.rejected => Cause::Rejection(named.name.clone()),
                Kind::Reply => Cause::Reply(named.name.clone()),
                _ => match rejection_in(turn.reply_codec, &turn.reply).ok().flatten() {
                    Some(no) => Cause::Rejected(named.name.clone(), no.code().to_owned()),
                    None => Cause::Command(named.name.clone()),
                },
            };
            (cause, Some(named.payload.clone()))
        }
        MarkedAs::Not => return None,
    })
}
