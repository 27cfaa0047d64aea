//! Runs one actor by hand: its door, its shard in memory, a clock that stands still.

#![expect(clippy::expect_used, reason = "what cannot fail in memory ends the test if it does")]

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::task::LocalSet;

use super::step::{Step, named};

use crate::actor::{
    Dispatcher, HandlerTable, OwnedShard, Stateful, ThreadContext, ThreadSettings, begins_compensation,
    finishes_compensation, timer_name, user_state,
};
use crate::aggregate::Applies;
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::message::{
    Coded, Command, Document, Domain, Envelope, Event, IdSource, Kind, Message, MessageId, Name, Origin, Rejection,
    ReplyMode, ShardId, rejection_in, shard_of,
};
use crate::retry::Retry;
use crate::router::{Action, ActorEndpoint, DedupKey, Delivery, Outcome, SequenceTracker};
use crate::store::memory::MemoryStore;
use crate::store::{EventWrite, Mark, Note, OutboxEntry, Source, SourceKind, Store, StoredTurn, StreamHint, Turn};

/// 2026-01-01T00:00:00Z, so that what is printed looks like a time.
const BEGIN: Timestamp = Timestamp::from_millis(1_767_225_600_000);

/// One actor and what it lives on.
pub(super) struct Bench<A: Stateful> {
    tasks: LocalSet,
    runtime: tokio::runtime::Runtime,
    clock: Clock,
    hand: ManualClock,
    ids: IdSource,
    actor: Name,
    domain: Name,
    /// The key, and what was opened for it.
    live: Option<Live>,
    /// Events given that are not yet written.
    given: Vec<(&'static str, u32, Vec<u8>)>,
    /// How many messages have come from each source.
    places: BTreeMap<Source, u64>,
    /// The commands sent and not replied to.
    unreplied: Vec<Envelope>,
    story: Vec<String>,
    type_of_actor: PhantomData<fn() -> A>,
}

struct Live {
    key: String,
    cell: Rc<OwnedShard>,
    door: Rc<Dispatcher>,
}

/// Nobody counts what was appended.
struct NoFloor;

impl SequenceTracker for NoFloor {
    fn watermark_after(&self, sequence: u64) -> u64 {
        sequence
    }

    fn mark_appended(&self, _sequence: u64) {}

    fn mark_known(&self, _sequence: u64) {}
}

impl<A: Stateful> Bench<A> {
    pub(super) fn new() -> Self {
        let (clock, hand) = Clock::manual(BEGIN);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        Self {
            tasks: LocalSet::new(),
            runtime: runtime.expect("a runtime without input and output needs nothing"),
            ids: IdSource::seeded(clock.clone(), 1),
            clock,
            hand,
            actor: Name::new(A::NAME).expect("the derive has checked the name"),
            domain: Name::new(A::Domain::NAME).expect("the derive has checked the name"),
            live: None,
            given: Vec::new(),
            places: BTreeMap::new(),
            unreplied: Vec::new(),
            story: Vec::new(),
            type_of_actor: PhantomData,
        }
    }

    /// What has happened so far, as the head of a difference.
    pub(super) fn story(&self) -> String {
        let key = self.live.as_ref().map_or("", |live| &live.key);
        format!("\n{} `{key}`\n  {}\n", A::NAME, self.story.join("\n  "))
    }

    #[track_caller]
    fn fail(&self, difference: &str) -> ! {
        super::fail(&self.story(), difference)
    }

    /// Says which actor it is, or checks that it is this one.
    #[track_caller]
    pub(super) fn is_key(&mut self, key: &str) {
        match &self.live {
            None => self.live = Some(self.open(key)),
            Some(live) if live.key == key => {}
            Some(live) => {
                let other = format!("the scenario is about `{}`, and this goes to `{key}`\n", live.key);
                self.fail(&other);
            }
        }
    }

    fn open(&self, key: &str) -> Live {
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
            shapes: Arc::default(),
            suspect_permits: Arc::new(tokio::sync::Semaphore::new(1)),
            digest_key: 0,
        };
        let host = ThreadContext::new(self.ids.fork(), settings, Arc::default());
        let opened = MemoryStore::new().open(&id, shards, Arc::clone(&host.commits) as _).now_or_never();
        let handle = opened.expect("memory does not wait").expect("an empty store opens");
        let cell = OwnedShard::new(id.clone(), handle, false);
        let cells = (0..shards).map(|shard| (shard == id.shard).then(|| Rc::clone(&cell))).collect();
        let door =
            Dispatcher::new(host, Rc::new(HandlerTable::of::<A>()), self.domain.clone(), self.actor.clone(), cells);
        door.load_deferred().now_or_never().expect("memory does not wait").expect("an empty store is read");
        Live { key: key.to_owned(), cell, door }
    }

    /// What was opened; a scenario that nobody has given a key is about the key `key`.
    fn live(&mut self) -> &Live {
        if self.live.is_none() {
            self.live = Some(self.open("key"));
        }
        self.live.as_ref().expect("it was opened above")
    }

    fn turns(&self) -> Vec<StoredTurn> {
        let Some(live) = &self.live else { return Vec::new() };
        let reader = live.cell.reader();
        let read = reader.history(&self.actor, &live.key).now_or_never();
        read.expect("memory does not wait").expect("memory can be read")
    }

    /// Takes down an event that was recorded before.
    #[track_caller]
    pub(super) fn given<E: Event>(&mut self, event: &E)
    where
        A: Applies<E>,
    {
        self.story.push(format!("given {}", named(event)));
        let mut payload = Vec::new();
        if let Err(error) = event.encode(A::Domain::CODEC, &mut payload) {
            self.fail(&format!("{} {error}\n", E::NAME));
        }
        self.given.push((E::NAME, E::VERSION, payload));
    }

    /// Writes what was given into the log of the key, as if earlier turns had recorded it.
    fn write_given(&mut self) {
        let given = std::mem::take(&mut self.given);
        let codec = A::Domain::CODEC;
        for (name, version, payload) in given {
            let turns = self.turns();
            let id = self.ids.message_id();
            let Some(live) = &self.live else { return };
            let turn = Turn {
                actor: &self.actor,
                key: &live.key,
                stream: StreamHint::default(),
                number: turns.len() as u64 + 1,
                version: turns.iter().map(|turn| turn.events.len() as u64).sum(),
                time: self.clock.now(),
                id,
                correlation: id,
                traceparent: None,
                mark: Mark::None,
                reply: &[],
                reply_codec: codec,
                events: &[EventWrite { name, version, codec, payload: &payload }],
                outbox: &[],
                timers: &[],
                notes: &[],
            };
            live.cell.writer.borrow_mut().append(&turn).expect("memory takes every turn");
            // What is live was rebuilt before this; the next message rebuilds it.
            live.door.reset();
            live.door.load_deferred().now_or_never().expect("memory does not wait").expect("the store can be read");
        }
    }

    pub(super) fn pass(&mut self, span: Duration) {
        self.story.push(format!("after {span:?}"));
        self.hand.advance(span);
    }

    fn envelope<M: Message>(&mut self, message: &M) -> Envelope {
        let mut payload = Vec::new();
        if let Err(error) = message.encode(M::Domain::CODEC, &mut payload) {
            self.fail(&format!("{} {error}\n", M::NAME));
        }
        let id = self.ids.message_id();
        let domain = Name::new(M::Domain::NAME).expect("the derive has checked the name");
        let name = Name::new(M::NAME).expect("the derive has checked the name");
        Envelope {
            version: M::VERSION,
            key: self.live().key.clone(),
            codec: M::Domain::CODEC,
            payload: Bytes::from(payload),
            ..Envelope::new(id, M::KIND, domain, name, self.clock.now())
        }
    }

    /// The next place of a source.
    fn place(&mut self, source: Source) -> (Rc<Source>, u64) {
        let place = self.places.entry(source.clone()).or_default();
        *place += 1;
        (Rc::new(source), *place)
    }

    #[track_caller]
    pub(super) fn when<C: Command>(&mut self, command: &C) -> Step {
        self.is_key(command.key().as_str());
        self.story.push(format!("when  {}", named(command)));
        let envelope = self.envelope(command);
        self.step(Action::Handle, envelope, DedupKey::MessageId)
    }

    #[track_caller]
    pub(super) fn on<E: Event>(&mut self, from: &str, event: &E) -> Step {
        self.story.push(format!("on    {}", named(event)));
        let named_key = self.live.as_ref().map(|live| live.key.clone());
        let stream =
            if from.is_empty() { named_key.clone().unwrap_or_else(|| "key".to_owned()) } else { from.to_owned() };
        let shard = ShardId::new(
            Name::new(E::Domain::NAME).expect("the derive has checked the name"),
            shard_of(&stream, E::Domain::SHARDS),
        );
        let source = Source { shard: shard.clone(), kind: SourceKind::Events { subscriber: self.actor.clone() } };
        let (source, sequence) = self.place(source);
        let mut envelope = match &self.live {
            Some(_) => self.envelope(event),
            None => {
                // Only to find the key: nothing is opened for it.
                let envelope = self.envelope(event);
                self.live = None;
                envelope
            }
        };
        let recorder = Name::new("recorder").expect("it is a name");
        envelope.origin =
            Some(Origin { shard, actor: recorder, key: stream, sequence, version: sequence, store: None });
        match self.live().door.key_of(&envelope) {
            Ok(Some(key)) => {
                if named_key.is_none() {
                    self.live = None;
                }
                self.is_key(&key);
                envelope.key = key;
            }
            Ok(None) => self.fail("expected it to take the event\nbut `React::key` gives no key for it\n"),
            Err(error) => self.fail(&format!("the event cannot be read: {error}\n")),
        }
        self.step(Action::React, envelope, DedupKey::Sequence { source, sequence, tracker: Rc::new(NoFloor) })
    }

    #[track_caller]
    pub(super) fn on_reply<C: Command>(&mut self, reply: &Result<C::Reply, Rejection>) -> Step {
        let place = |sent: &Envelope| sent.name.as_str() == C::NAME && sent.domain.as_str() == C::Domain::NAME;
        let Some(at) = self.unreplied.iter().rposition(place) else {
            self.fail(&format!("expected it to have sent {} and to want the reply\nbut it has not\n", C::NAME));
        };
        let command = self.unreplied.remove(at);
        let codec = C::Domain::CODEC;
        let mut payload = Vec::new();
        if let Err(error) = C::Reply::write_reply(reply, codec, &mut payload) {
            self.fail(&format!("the reply {error}\n"));
        }
        self.story.push(match reply {
            Ok(_) => format!("on    the reply to {}", C::NAME),
            Err(no) => format!("on    the rejection of {}: {no}", C::NAME),
        });
        let shard = command.to.clone().expect("what an actor sends has a destination");
        let (source, sequence) = self.place(Source { shard, kind: SourceKind::Direct });
        let envelope = Envelope {
            id: MessageId::of_reply(command.id),
            kind: Kind::Reply,
            causation: Some(command.id),
            key: self.live().key.clone(),
            codec,
            payload: Bytes::from(payload),
            ..command
        };
        self.step(Action::Reply, envelope, DedupKey::Sequence { source, sequence, tracker: Rc::new(NoFloor) })
    }

    #[track_caller]
    pub(super) fn wake<T: Document>(&mut self) -> Step {
        self.story.push(format!("wake  {}", T::NAME));
        let timers = self.live().cell.reader().timers_due(Timestamp::from_millis(u64::MAX), usize::MAX);
        let Some(timer) = timers.into_iter().find(|timer| *timer.name == *timer_name::<A, T>()) else {
            self.fail(&format!("expected the timer {} to be set\nbut it is not\n", T::NAME));
        };
        if timer.due > self.clock.now() {
            self.hand.set(timer.due);
        }
        let name = Name::new(T::NAME).expect("the derive has checked the name");
        let domain = Name::new(T::Domain::NAME).expect("the derive has checked the name");
        let envelope = Envelope {
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

    /// The user's state, rebuilt from what is stored.
    #[track_caller]
    pub(super) fn state(&mut self) -> A {
        self.live();
        self.write_given();
        match user_state(&self.turns()) {
            Ok(state) => state,
            Err(error) => self.fail(&format!("the stored events cannot be applied: {error}\n")),
        }
    }

    /// Whether the saga has undone its steps to the end.
    pub(super) fn has_undone(&self) -> bool {
        self.turns().iter().flat_map(|turn| &turn.notes).any(finishes_compensation)
    }

    /// Takes one turn and gathers what it did.
    fn step(&mut self, work: Action, envelope: Envelope, arrival: DedupKey) -> Step {
        self.live();
        self.write_given();
        let before = self.turns().len();
        let time = self.clock.now();
        let (settle, settled) = oneshot::channel();
        let delivery = Delivery {
            action: work,
            envelope,
            dedup_key: arrival,
            completion: Box::new(move |outcome| drop(settle.send(outcome))),
        };
        let door = Rc::clone(&self.live().door);
        let outcome = self.tasks.block_on(&self.runtime, async move {
            door.deliver(delivery);
            settled.await.unwrap_or(Outcome::Stopped)
        });
        let turn = self.turns().into_iter().nth(before);
        let sent = turn.as_ref().map(|turn| self.sent(turn)).unwrap_or_default();
        self.unreplied.extend(sent.iter().filter(|sent| sent.wants != ReplyMode::Nothing).cloned());
        let timers = self.live().cell.reader().timers_due(Timestamp::from_millis(u64::MAX), usize::MAX);
        let number = turn.as_ref().map_or(0, |turn| turn.number);
        let set =
            timers.into_iter().filter(|timer| timer.turn == number).map(|timer| (timer.name, timer.due)).collect();
        let rejection = match &outcome {
            Outcome::Done(reply, codec) if !reply.is_empty() => rejection_in(*codec, reply).ok().flatten(),
            _ => None,
        };
        let notes = turn.as_ref().map_or(&[][..], |turn| &turn.notes);
        Step {
            begins_undo: notes.iter().any(begins_compensation),
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

    /// What a turn has put into the outbox, in the order in which it was asked for; replies to other actors are left out.
    fn sent(&self, turn: &StoredTurn) -> Vec<Envelope> {
        let Some(live) = &self.live else { return Vec::new() };
        let reader = live.cell.reader();
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
