//! The harness of one actor: its dispatcher, its shard in memory, and a clock that only the scenario advances.

#![expect(clippy::expect_used, reason = "operations in memory cannot fail; a failure ends the test")]

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::step::{Step, describe};

use whizbang_core::clock::{Clock, ManualClock, Timestamp};
use whizbang_core::message::{
    Coded, Command, Document, Domain, Envelope, Event, IdSource, Kind, Message, MessageId, Name, Origin, Rejection,
    ReplyMode, ShardId, rejection_in, shard_of,
};
use whizbang_core::retry::Retry;
use whizbang_core::store::{
    EventWrite, Mark, Note, OutboxEntry, Source, SourceKind, Store, StoredTurn, StreamHint, Turn,
};
use whizbang_log::memory::MemoryStore;
use whizbang_runtime::actor::{
    ActorType, Dispatcher, OwnedShard, Stateful, TIMER_NAME, ThreadContext, ThreadSettings, begins_compensation,
    finishes_compensation, named_timer, timer_name, user_state,
};
use whizbang_runtime::aggregate::Applies;
use whizbang_runtime::router::{Action, ActorEndpoint, DedupKey, Delivery, Outcome, SequenceTracker};

/// 2026-01-01T00:00:00Z, so that printed timestamps are realistic.
const BEGIN: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// One actor with its runtime, clock and shard.
pub(super) struct Harness<A: Stateful> {
    /// The tasks of the actor run here, while a step is performed.
    tasks: LocalSet,
    /// The runtime on which turns run. Its time is paused, so nothing waits for real.
    runtime: tokio::runtime::Runtime,
    /// The clock of the actor. It stands still between steps.
    clock: Clock,
    /// The handle with which the scenario advances the clock.
    manual_clock: ManualClock,
    /// Ids from a fixed seed, so that reports are the same in each run.
    ids: IdSource,
    /// The name of the actor type.
    actor: Name,
    /// The name of the domain of the actor.
    domain: Name,
    /// The key, and the shard and dispatcher opened for it.
    opened: Option<OpenedActor>,
    /// The given events that are not written yet.
    given: Vec<(&'static str, u32, Vec<u8>)>,
    /// The number of messages from each source.
    sequences: BTreeMap<Source, u64>,
    /// The sent commands without a reply.
    unreplied: Vec<Envelope>,
    /// The steps so far, for the report of a failure.
    steps: Vec<String>,
    /// The actor's type, of which the harness has no value.
    type_of_actor: PhantomData<fn() -> A>,
}

/// The actor's shard and dispatcher. Opened once the key, and with it the shard, is known.
struct OpenedActor {
    /// The key of the scenario; all steps are about it.
    key: String,
    /// The shard of the key, in a store in memory.
    shard: Rc<OwnedShard>,
    /// The dispatcher of the actor's type, as a node has one.
    dispatcher: Rc<Dispatcher>,
}

/// A tracker that does nothing: the harness numbers messages itself.
struct NoTracker;

impl SequenceTracker for NoTracker {
    fn watermark_after(&self, sequence: u64) -> u64 {
        sequence
    }

    fn mark_appended(&self, _sequence: u64) {}

    fn mark_known(&self, _sequence: u64) {}
}

impl<A: Stateful> Harness<A> {
    /// Creates a harness without a key. The first step that names one opens its shard.
    pub(super) fn new() -> Self {
        let (clock, manual_clock) = Clock::manual(BEGIN);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        Self {
            tasks: LocalSet::new(),
            runtime: runtime.expect("a runtime without input and output needs nothing"),
            ids: IdSource::seeded(clock.clone(), 1),
            clock,
            manual_clock,
            actor: Name::new(A::NAME).expect("the derive has checked the name"),
            domain: Name::new(A::Domain::NAME).expect("the derive has checked the name"),
            opened: None,
            given: Vec::new(),
            sequences: BTreeMap::new(),
            unreplied: Vec::new(),
            steps: Vec::new(),
            type_of_actor: PhantomData,
        }
    }

    /// Returns the steps so far, as the head of a failure report.
    pub(super) fn report(&self) -> String {
        let key = self.opened.as_ref().map_or("", |opened| &opened.key);
        format!("\n{} `{key}`\n  {}\n", A::NAME, self.steps.join("\n  "))
    }

    /// Fails the test with all steps so far and the difference.
    #[track_caller]
    fn fail(&self, difference: &str) -> ! {
        fail(&self.report(), difference)
    }

    /// Sets the key of the actor, or checks that it is the same.
    #[track_caller]
    pub(super) fn set_key(&mut self, key: &str) {
        match &self.opened {
            None => self.opened = Some(self.open(key)),
            Some(opened) if opened.key == key => {}
            Some(opened) => {
                let other = format!("the scenario is about `{}`, but this message is for `{key}`\n", opened.key);
                self.fail(&other);
            }
        }
    }

    /// Opens the shard of a key on an empty store. No message is ever retried: a failure is an outcome of the step.
    fn open(&self, key: &str) -> OpenedActor {
        let shards = A::Domain::SHARDS;
        let id = ShardId::new(self.domain.clone(), shard_of(key, shards));
        let settings = ThreadSettings {
            jobs: 1,
            job_limit: std::time::Duration::MAX,
            in_flight: usize::MAX,
            in_flight_per_key: u32::MAX,
            retry: Retry::NEVER.into(),
            live_actors: usize::MAX,
            remember: Duration::from_secs(7 * 24 * 3600),
            issues: Arc::default(),
            failure_log: Arc::default(),
            shapes: Arc::default(),
            suspect_permits: Arc::new(tokio::sync::Semaphore::new(1)),
            propagated: Arc::default(),
            layers: Arc::default(),
            digest_key: 0,
        };
        let context = ThreadContext::new(self.ids.fork(), settings, Arc::default());
        let opened = MemoryStore::new().open(&id, shards, Arc::clone(&context.commits) as _).now_or_never();
        let handle = opened.expect("memory does not wait").expect("an empty store opens");
        let owned = OwnedShard::new(id.clone(), handle, false);
        let dispatcher =
            Dispatcher::new(context, ActorType::of::<A>(), self.domain.clone(), self.actor.clone(), shards);
        dispatcher.open(&owned);
        dispatcher
            .load_deferred(id.shard)
            .now_or_never()
            .expect("memory does not wait")
            .expect("an empty store is read");
        OpenedActor { key: key.to_owned(), shard: owned, dispatcher }
    }

    /// Returns the opened actor. A scenario without a key uses the key `key`.
    fn opened(&mut self) -> &OpenedActor {
        if self.opened.is_none() {
            self.opened = Some(self.open("key"));
        }
        self.opened.as_ref().expect("it was opened above")
    }

    /// Reads the committed turns of the actor.
    fn turns(&self) -> Vec<StoredTurn> {
        let Some(opened) = &self.opened else { return Vec::new() };
        let reader = opened.shard.reader();
        let read = reader.history(&self.actor, &opened.key).now_or_never();
        read.expect("memory does not wait").expect("memory can be read")
    }

    /// Records an event that the actor has recorded before.
    #[track_caller]
    pub(super) fn given<E: Event>(&mut self, event: &E)
    where
        A: Applies<E>,
    {
        self.steps.push(format!("given {}", describe(event)));
        let mut payload = Vec::new();
        if let Err(error) = event.encode(A::Domain::CODEC, &mut payload) {
            self.fail(&format!("{} {error}\n", E::NAME));
        }
        self.given.push((E::NAME, E::WRITES, payload));
    }

    /// Writes the given events into the log of the key, as if earlier turns had recorded them.
    fn write_given(&mut self) {
        let given = std::mem::take(&mut self.given);
        let codec = A::Domain::CODEC;
        for (name, version, payload) in given {
            let turns = self.turns();
            let id = self.ids.message_id();
            let Some(opened) = &self.opened else { return };
            let turn = Turn {
                actor: &self.actor,
                key: &opened.key,
                stream: StreamHint::default(),
                number: turns.len() as u64 + 1,
                version: turns.iter().map(|turn| turn.events.len() as u64).sum(),
                time: self.clock.now(),
                id,
                correlation: id,
                traceparent: None,
                headers: &[],
                mark: Mark::None,
                reply: &[],
                reply_codec: codec,
                events: &[EventWrite { name, version, codec, payload: &payload }],
                outbox: &[],
                timers: &[],
                notes: &[],
            };
            opened.shard.writer.borrow_mut().append(&turn).expect("memory takes every turn");
            // The loaded state is outdated; the next message loads it again.
            opened.dispatcher.reset();
            opened
                .dispatcher
                .load_deferred(shard_of(&opened.key, A::Domain::SHARDS))
                .now_or_never()
                .expect("memory does not wait")
                .expect("the store can be read");
        }
    }

    /// Advances the clock. Timers that become due do not fire by themselves.
    pub(super) fn advance(&mut self, span: Duration) {
        self.steps.push(format!("after {span:?}"));
        self.manual_clock.advance(span);
    }

    /// Encodes a message as a caller outside the cluster does. Fails the test if that is not possible.
    fn envelope<M: Message>(&mut self, message: &M) -> Envelope {
        let mut payload = Vec::new();
        if let Err(error) = message.encode(M::Domain::CODEC, &mut payload) {
            self.fail(&format!("{} {error}\n", M::NAME));
        }
        let id = self.ids.message_id();
        let domain = Name::new(M::Domain::NAME).expect("the derive has checked the name");
        let name = Name::new(M::NAME).expect("the derive has checked the name");
        Envelope {
            version: M::WRITES,
            key: self.opened().key.clone(),
            codec: M::Domain::CODEC,
            payload: Bytes::from(payload),
            ..Envelope::new(id, M::KIND, domain, name, self.clock.now())
        }
    }

    /// Returns the next sequence of a source.
    fn next_sequence(&mut self, source: Source) -> (Rc<Source>, u64) {
        let sequence = self.sequences.entry(source.clone()).or_default();
        *sequence += 1;
        (Rc::new(source), *sequence)
    }

    /// Handles a command, whose key becomes that of the scenario.
    #[track_caller]
    pub(super) fn when<C: Command>(&mut self, command: &C) -> Step {
        self.set_key(command.key().as_str());
        self.steps.push(format!("when  {}", describe(command)));
        let envelope = self.envelope(command);
        self.step(Action::Handle, envelope, DedupKey::MessageId)
    }

    /// Handles an event of another stream, or of the own one if `from` is empty.
    #[track_caller]
    pub(super) fn on<E: Event>(&mut self, from: &str, event: &E) -> Step {
        self.steps.push(format!("on    {}", describe(event)));
        let named_key = self.opened.as_ref().map(|opened| opened.key.clone());
        let stream =
            if from.is_empty() { named_key.clone().unwrap_or_else(|| "key".to_owned()) } else { from.to_owned() };
        let shard = ShardId::new(
            Name::new(E::Domain::NAME).expect("the derive has checked the name"),
            shard_of(&stream, E::Domain::SHARDS),
        );
        let source = Source { shard: shard.clone(), kind: SourceKind::Events { subscriber: self.actor.clone() } };
        let (source, sequence) = self.next_sequence(source);
        let mut envelope = match &self.opened {
            Some(_) => self.envelope(event),
            None => {
                // Only to find the key: the actor is not opened.
                let envelope = self.envelope(event);
                self.opened = None;
                envelope
            }
        };
        let recorder = Name::new("recorder").expect("it is a name");
        envelope.origin =
            Some(Origin { shard, actor: recorder, key: stream, sequence, version: sequence, store: None });
        match self.opened().dispatcher.key_of(&envelope) {
            Ok(Some(key)) => {
                if named_key.is_none() {
                    self.opened = None;
                }
                self.set_key(&key);
                envelope.key = key;
            }
            Ok(None) => self.fail("expected it to handle the event\nbut `React::key` returns no key for it\n"),
            Err(error) => self.fail(&format!("failed to decode the event: {error}\n")),
        }
        self.step(Action::React, envelope, DedupKey::Sequence { source, sequence, tracker: Rc::new(NoTracker) })
    }

    /// Handles the reply to the last command of this type that the actor has sent and that has no reply yet. Fails the test
    /// if there is none.
    #[track_caller]
    pub(super) fn on_reply<C: Command>(&mut self, reply: &Result<C::Reply, Rejection>) -> Step {
        let is_command = |sent: &Envelope| sent.name.as_str() == C::NAME && sent.domain.as_str() == C::Domain::NAME;
        let Some(index) = self.unreplied.iter().rposition(is_command) else {
            self.fail(&format!("expected it to have sent {} and to await the reply\nbut it has not\n", C::NAME));
        };
        let command = self.unreplied.remove(index);
        let codec = C::Domain::CODEC;
        let mut payload = Vec::new();
        if let Err(error) = C::Reply::write_reply(reply, codec, &mut payload) {
            self.fail(&format!("failed to encode the reply: {error}\n"));
        }
        self.steps.push(match reply {
            Ok(_) => format!("on    the reply to {}", C::NAME),
            Err(no) => format!("on    the rejection of {}: {no}", C::NAME),
        });
        let shard = command.to.clone().expect("what an actor sends has a destination");
        let (source, sequence) = self.next_sequence(Source { shard, kind: SourceKind::Direct });
        let envelope = Envelope {
            id: MessageId::of_reply(command.id),
            kind: Kind::Reply,
            causation: Some(command.id),
            key: self.opened().key.clone(),
            codec,
            payload: Bytes::from(payload),
            ..command
        };
        self.step(Action::Reply, envelope, DedupKey::Sequence { source, sequence, tracker: Rc::new(NoTracker) })
    }

    /// Fires the timer of a type, or the one with an own name. Fails the test if it is not set; advances the clock if it is not
    /// due yet.
    pub(super) fn fire_timer<T: Document>(&mut self, own_name: Option<&str>) -> Step {
        let stored = timer_name::<A, T>();
        let stored = own_name.map_or_else(|| stored.to_string(), |own| named_timer(&stored, own));
        self.steps.push(format!("timer {stored}"));
        let timers = self.opened().shard.reader().timers_due(Timestamp::from_millis(u64::MAX), usize::MAX);
        let Some(timer) = timers.into_iter().find(|timer| timer.name == stored) else {
            self.fail(&format!("expected the timer {stored} to be set\nbut it is not\n"));
        };
        if timer.due > self.clock.now() {
            self.manual_clock.set(timer.due);
        }
        let name = Name::new(T::NAME).expect("the derive has checked the name");
        let domain = Name::new(T::Domain::NAME).expect("the derive has checked the name");
        let envelope = Envelope {
            headers: own_name.map(|own| (TIMER_NAME.to_owned(), own.to_owned())).into_iter().collect(),
            version: timer.version,
            key: timer.key,
            actor: Some(self.actor.clone()),
            correlation: timer.correlation,
            codec: timer.codec,
            payload: timer.payload,
            ..Envelope::new(self.ids.message_id(), Kind::Document, domain, name, timer.due)
        };
        self.step(Action::Timer { turn: timer.turn }, envelope, DedupKey::Internal)
    }

    /// Returns the user's state, rebuilt from the stored events.
    #[track_caller]
    pub(super) fn state(&mut self) -> A {
        self.opened();
        self.write_given();
        match user_state(&self.turns()) {
            Ok(state) => state,
            Err(error) => self.fail(&format!("failed to apply the stored events: {error}\n")),
        }
    }

    /// Returns true if the saga has compensated all its steps.
    pub(super) fn has_compensated(&self) -> bool {
        self.turns().iter().flat_map(|turn| &turn.notes).any(finishes_compensation)
    }

    /// Runs one turn and collects its effects.
    fn step(&mut self, action: Action, envelope: Envelope, dedup_key: DedupKey) -> Step {
        self.opened();
        self.write_given();
        let before = self.turns().len();
        let time = self.clock.now();
        let (completion, completed) = oneshot::channel();
        let delivery = Delivery {
            action,
            envelope,
            dedup_key,
            completion: Box::new(move |outcome| drop(completion.send(outcome))),
        };
        let dispatcher = Rc::clone(&self.opened().dispatcher);
        let outcome = self.tasks.block_on(&self.runtime, async move {
            dispatcher.deliver(delivery);
            completed.await.unwrap_or(Outcome::Stopped)
        });
        let turn = self.turns().into_iter().nth(before);
        let sent = turn.as_ref().map(|turn| self.sent(turn)).unwrap_or_default();
        self.unreplied.extend(sent.iter().filter(|sent| sent.wants != ReplyMode::Nothing).cloned());
        let timers = self.opened().shard.reader().timers_due(Timestamp::from_millis(u64::MAX), usize::MAX);
        let number = turn.as_ref().map_or(0, |turn| turn.number);
        let set =
            timers.into_iter().filter(|timer| timer.turn == number).map(|timer| (timer.name, timer.due)).collect();
        let rejection = match &outcome {
            Outcome::Done(reply, codec) if !reply.is_empty() => rejection_in(*codec, reply).ok().flatten(),
            _ => None,
        };
        let notes = turn.as_ref().map_or(&[][..], |turn| &turn.notes);
        Step {
            begins_compensation: notes.iter().any(begins_compensation),
            ended: notes.iter().any(|note| matches!(note, Note::Ended)),
            outcome,
            turn,
            sent,
            set,
            time,
            rejection,
            compared_events: None,
            compared_sent: None,
        }
    }

    /// Returns the commands of a turn in the outbox, in the order in which they were sent; replies to other actors are left out.
    fn sent(&self, turn: &StoredTurn) -> Vec<Envelope> {
        let Some(opened) = &self.opened else { return Vec::new() };
        let reader = opened.shard.reader();
        let mut entries: BTreeMap<MessageId, Envelope> = BTreeMap::new();
        for (to, _, _) in reader.outbox_heads() {
            let read = reader.outbox(&to, 0, usize::MAX).now_or_never();
            for OutboxEntry { envelope, .. } in read.expect("memory does not wait").expect("memory can be read") {
                entries.insert(envelope.id, envelope);
            }
        }
        let sent = turn.sent.iter().filter_map(|sent| entries.remove(&sent.id));
        sent.filter(|envelope| envelope.kind == Kind::Command).collect()
    }
}

/// Fails the test with a difference between expectation and effect.
#[track_caller]
pub(super) fn fail(report: &str, difference: &str) -> ! {
    panic!("{report}{difference}")
}
