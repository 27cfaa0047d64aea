//! Outbox of a job: the messages that it sends. None of them leaves before the commit that marks the job as done.
//!
//! Filled by user code through [`Job`](super::Job), on any thread. Each attempt has its own outbox, so that an attempt
//! that fails, panics or is dropped sends nothing; the path of the [job](super::job) closes it and commits its content.

use std::any::TypeId;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::actor::{Outgoing, propagate};
use crate::client::Client;
use crate::router::{DelayedMessage, PeerShapes, Unconnected, cancellation};
use whizbang_core::clock::{Clock, Timestamp};
use whizbang_core::message::{
    Codec, CodecError, Command, Domain, Envelope, Event, Fingerprint, HeaderError, IdSource, Key, Kind, MessageFacts,
    MessageId, Name, Origin, ReplyMode, ShardId, encode_command_verified, encode_verified, set_expiry, set_header,
    shard_of,
};
use whizbang_core::store::MAX_TURN_BYTES;
use whizbang_core::telemetry::TARGET;

/// Most messages of one job. They are held in memory until the job ends.
pub(super) const MAX_MESSAGES: usize = 1_000;

/// Reason why the messages of a job cannot be stored. Another attempt would fail in the same way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum OutboxError {
    /// The job sends too many messages; split it.
    #[error("job sent more than {limit} messages")]
    TooMany { limit: usize },
    /// The messages are larger than a turn may be; send less in one job.
    #[error("job sent messages of more than {limit} bytes")]
    TooLarge { limit: usize },
    /// No aggregate has such a key.
    #[error("job sent `{message}` to an invalid key: {bytes} bytes, expected 1 to 256")]
    Key { message: &'static str, bytes: usize },
    /// A header is invalid.
    #[error("job sent a message with an invalid header: {0}")]
    Header(HeaderError),
    /// The message cannot be encoded, or not decoded again.
    #[error("job sent `{message}`, which cannot be encoded: {error}")]
    Encode { message: &'static str, error: CodecError },
}

/// The sender of a worker's messages, the same for all its jobs on a thread.
pub(super) struct JobSender {
    /// Domain and name of the worker: several workers may handle one event, and the ids that they derive must differ.
    pub(super) name: String,
    /// The worker's domain and its number of shards; `None` without a node.
    pub(super) domain: Option<(Name, u16)>,
    /// Commands whose replies the worker handles.
    pub(super) awaited: Vec<TypeId>,
    pub(super) shapes: Arc<PeerShapes>,
    /// The names of the headers that are passed on.
    pub(super) propagated: Arc<[String]>,
    pub(super) client: Client,
}

/// Facts of one attempt.
struct Facts {
    message: MessageId,
    correlation: MessageId,
    traceparent: Option<String>,
    /// The headers that are passed on.
    headers: Vec<(String, String)>,
    time: Timestamp,
    /// The job's shard and key. Replies go to the key of the job, which is of this shard; the stream of the worker, which
    /// holds the jobs of all keys, is not.
    origin: Option<Origin>,
}

/// Outbox of one attempt of a job.
pub(super) struct JobOutbox {
    sender: Arc<JobSender>,
    facts: Facts,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    sent: Vec<Outgoing>,
    /// Messages that are sent later: their index, and when they are due.
    delays: Vec<(usize, Timestamp)>,
    bytes: usize,
    /// Number of commands so far, including those that failed: the ids follow from it.
    calls: u32,
    error: Option<OutboxError>,
    closed: bool,
}

impl JobOutbox {
    pub(super) fn new(
        sender: &Arc<JobSender>,
        envelope: &Envelope,
        shard: &ShardId,
        actor: &Name,
        time: Timestamp,
    ) -> Self {
        let (shard, actor, key) = (shard.clone(), actor.clone(), envelope.key.clone());
        let mut headers = Vec::new();
        propagate(&envelope.headers, &sender.propagated, &mut headers);
        let facts = Facts {
            headers,
            message: envelope.id,
            correlation: envelope.correlation,
            traceparent: envelope.traceparent.clone(),
            time,
            origin: Some(Origin { shard, actor, key, sequence: 0, version: 0, store: None }),
        };
        Self { sender: Arc::clone(sender), facts, state: Mutex::default() }
    }

    /// Returns the outbox of a job without a node.
    pub(super) fn detached(message: MessageId) -> Self {
        let ids = IdSource::seeded(Clock::system(), message.as_u128() as u64);
        let facts = Facts {
            message,
            correlation: message,
            traceparent: None,
            headers: Vec::new(),
            time: ids.clock().now(),
            origin: None,
        };
        let sender = JobSender {
            name: String::new(),
            domain: None,
            awaited: Vec::new(),
            shapes: Arc::default(),
            propagated: Arc::default(),
            client: Client::new(0, Arc::new(Unconnected), ids),
        };
        Self { sender: Arc::new(sender), facts, state: Mutex::default() }
    }

    pub(super) fn client(&self) -> &Client {
        &self.sender.client
    }

    /// Adds a command. Returns its id.
    pub(super) fn send<C: Command>(&self, command: &C) -> MessageId {
        let awaited = self.sender.awaited.contains(&TypeId::of::<C>());
        let wants = if awaited { ReplyMode::Reply } else { ReplyMode::Nothing };
        let facts = MessageFacts::of::<C>();
        self.add(facts, command.key(), wants, Fingerprint::of_command::<C>, |payload| {
            encode_command_verified(command, facts.codec, payload).map(drop)
        })
    }

    /// Adds an event, for the publisher of its domain. Returns the id of the message.
    pub(super) fn publish<E: Event>(&self, key: &str, event: &E) -> MessageId {
        let facts = MessageFacts::of::<E>();
        self.add(facts, Key::from(key), ReplyMode::Nothing, Fingerprint::of_event::<E>, |payload| {
            encode_verified(event, facts.codec, payload).map(drop)
        })
    }

    fn add(
        &self,
        message: MessageFacts,
        key: Key<'_>,
        wants: ReplyMode,
        shape: fn() -> Option<Fingerprint>,
        encode: impl FnOnce(&mut Vec<u8>) -> Result<(), CodecError>,
    ) -> MessageId {
        let mut payload = Vec::new();
        let encoded = if key.is_valid() {
            encode(&mut payload).map_err(|error| OutboxError::Encode { message: message.name, error })
        } else {
            Err(OutboxError::Key { message: message.name, bytes: key.as_str().len() })
        };
        let shape = if self.sender.shapes.leaves(message.domain) { shape() } else { None };
        let made = encoded.and_then(|()| self.envelope(message, key, payload, wants, shape));
        self.push(message.name, made)
    }

    fn envelope(
        &self,
        message: MessageFacts,
        key: Key<'_>,
        payload: Vec<u8>,
        wants: ReplyMode,
        shape: Option<Fingerprint>,
    ) -> Result<Outgoing, OutboxError> {
        let facts = &self.facts;
        let named = |name: &'static str| {
            let error = |_| CodecError::Encode { reason: format!("invalid name `{name}`") };
            Name::from_static(name).map_err(error).map_err(|error| OutboxError::Encode { message: message.name, error })
        };
        let (domain, name) = (named(message.domain)?, named(message.name)?);
        let to = ShardId::new(domain.clone(), shard_of(key.as_str(), message.shards));
        let envelope = Envelope {
            version: message.version,
            shape,
            to: Some(to.clone()),
            key: key.into_string(),
            origin: facts.origin.clone(),
            correlation: facts.correlation,
            causation: Some(facts.message),
            wants,
            traceparent: facts.traceparent.clone(),
            headers: facts.headers.clone(),
            codec: message.codec,
            payload: Bytes::from(payload),
            // The id follows from the number of the call.
            ..Envelope::new(facts.message, Kind::Command, domain, name, facts.time)
        };
        Ok(Outgoing { to, envelope })
    }

    fn push(&self, name: &str, made: Result<Outgoing, OutboxError>) -> MessageId {
        let mut state = self.state.lock();
        let id = self.facts.message.derive(&self.sender.name, state.calls);
        state.calls = state.calls.saturating_add(1);
        if state.closed {
            tracing::warn!(
                target: TARGET, worker = self.sender.name, message = name, job = %self.facts.message,
                "message sent after its job has ended is dropped: await everything in the job",
            );
            return id;
        }
        match made {
            Ok(mut outgoing) => {
                outgoing.envelope.id = id;
                let bytes = state.bytes + outgoing.envelope.payload.len();
                if state.sent.len() >= MAX_MESSAGES {
                    state.error.get_or_insert(OutboxError::TooMany { limit: MAX_MESSAGES });
                } else if bytes > MAX_TURN_BYTES {
                    state.error.get_or_insert(OutboxError::TooLarge { limit: MAX_TURN_BYTES });
                } else {
                    state.bytes = bytes;
                    state.sent.push(outgoing);
                }
            }
            Err(error) => drop(state.error.get_or_insert(error)),
        }
        id
    }

    /// Sets a header of the message with this id, if it is the last one.
    fn set_header(&self, id: MessageId, name: &str, value: &str) {
        let mut state = self.state.lock();
        let last = state.sent.last_mut().filter(|sent| sent.envelope.id == id);
        if let Some(Err(error)) = last.map(|sent| set_header(&mut sent.envelope.headers, name, value)) {
            state.error.get_or_insert(OutboxError::Header(error));
        }
    }

    /// Limits the time until the message with this id is handled, if it is the last one.
    fn expire(&self, id: MessageId, life: Duration) {
        let mut state = self.state.lock();
        let last = state.sent.last_mut().filter(|sent| sent.envelope.id == id);
        let expiry = self.facts.time.after(life);
        if let Some(Err(error)) = last.map(|sent| set_expiry(&mut sent.envelope.headers, expiry)) {
            state.error.get_or_insert(OutboxError::Header(error));
        }
    }

    /// Delays the message with this id, if it is the last one.
    fn delay(&self, id: MessageId, due: impl FnOnce(Timestamp) -> Timestamp) {
        let mut state = self.state.lock();
        let last = state.sent.len().checked_sub(1);
        let last = last.filter(|_| state.sent.last().is_some_and(|sent| sent.envelope.id == id));
        if let Some(at) = last {
            state.delays.retain(|(delayed, _)| *delayed != at);
            state.delays.push((at, due(self.facts.time)));
        }
    }

    /// Adds the cancellation of a delayed message.
    pub(super) fn cancel(&self, id: MessageId) {
        let Some(home) = &self.sender.domain else { return };
        let like = Envelope {
            origin: self.facts.origin.clone(),
            correlation: self.facts.correlation,
            causation: Some(self.facts.message),
            traceparent: self.facts.traceparent.clone(),
            ..Envelope::new(self.facts.message, Kind::Command, home.0.clone(), home.0.clone(), self.facts.time)
        };
        let (to, envelope) = cancellation((&home.0, home.1), id, &like);
        self.push("cancellation", Ok(Outgoing { to, envelope }));
    }

    /// Replaces each delayed message by the command to send it later.
    fn delay_all(&self, sent: Vec<Outgoing>, delays: &[(usize, Timestamp)]) -> Result<Vec<Outgoing>, OutboxError> {
        let Some(home) = self.sender.domain.as_ref().filter(|_| !delays.is_empty()) else { return Ok(sent) };
        let each =
            sent.into_iter().enumerate().map(|(at, sent)| match delays.iter().find(|(delayed, _)| *delayed == at) {
                Some((_, due)) => DelayedMessage::schedule((&home.0, home.1), &sent.envelope, *due, Codec::Bincode)
                    .map(|(to, envelope)| Outgoing { to, envelope })
                    .map_err(|error| OutboxError::Encode { message: "a delayed message", error }),
                None => Ok(sent),
            });
        each.collect()
    }

    /// Ends the attempt: later messages are dropped. Returns what it has sent.
    ///
    /// # Errors
    /// A message cannot be stored.
    pub(super) fn close(&self) -> Result<Vec<Outgoing>, OutboxError> {
        let mut state = self.state.lock();
        state.closed = true;
        match state.error.take() {
            Some(error) => Err(error),
            None => {
                let (sent, delays) = (std::mem::take(&mut state.sent), std::mem::take(&mut state.delays));
                self.delay_all(sent, &delays)
            }
        }
    }

    /// Returns the commands of one type, in order.
    pub(super) fn sent<C: Command>(&self) -> Vec<C> {
        let state = self.state.lock();
        let of_type = state.sent.iter().map(|sent| &sent.envelope).filter(|envelope| {
            envelope.domain.as_str() == <C::Domain as Domain>::NAME && envelope.name.as_str() == C::NAME
        });
        of_type.filter_map(|sent| C::decode(sent.version, sent.codec, &sent.payload).ok()).collect()
    }
}

impl std::fmt::Debug for JobOutbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobOutbox").field("sent", &self.state.lock().sent.len()).finish_non_exhaustive()
    }
}

/// A command that is sent when its job is done.
///
/// ```
/// use std::time::Duration;
///
/// # use bank_fixture as bank;
/// use bank::{Bank, Deposit};
/// use whizbang::prelude::*;
///
/// #[derive(Command, Serialize, Deserialize)]
/// #[command(domain = Bank)]
/// struct Reward { #[key] account: String }
///
/// #[derive(Worker)]
/// #[worker(domain = Bank, performs(Reward))]
/// struct Rewards;
///
/// impl Perform<Reward> for Rewards {
///     async fn perform(&self, reward: Reward, job: Job) -> Result<(), WorkError> {
///         let deposit = job.send(Deposit { account: reward.account, cents: 100 });
///         // A day later, with a header of its own. Every attempt of the job gives the same id.
///         let deposit = deposit.header("reason", "reward").after(Duration::from_secs(24 * 3600));
///         println!("the deposit has the id {}", deposit.id());
///         Ok(())
///     }
/// }
/// ```
#[derive(Debug)]
pub struct SentByJob<'a> {
    outbox: &'a JobOutbox,
    id: MessageId,
}

impl<'a> SentByJob<'a> {
    pub(super) fn new(outbox: &'a JobOutbox, id: MessageId) -> Self {
        Self { outbox, id }
    }

    /// Sets a header of this message alone. One that is [invalid](whizbang_core::message::HeaderError) makes the message of
    /// the job a dead letter.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.outbox.set_header(self.id, name, value);
        self
    }

    /// Sends the message later, once `after` has passed since the attempt began, even if the node is stopped in between. It
    /// is [cancelled](super::Job::cancel) by its [id](Self::id). No reply to it is delivered to the worker.
    ///
    /// The delay is stored as the time of the wall clock at which it ends; while the node runs it is measured by the
    /// monotonic clock, like a [timer](crate::Effects::set_timer). The message is sent once, at most about a second late.
    pub fn after(self, after: Duration) -> Self {
        self.outbox.delay(self.id, |now| now.after(after));
        self
    }

    /// Sends the message at a time of the wall clock, or at once if it has passed, as [`after`](Self::after).
    pub fn at(self, due: Timestamp) -> Self {
        self.outbox.delay(self.id, |_| due);
        self
    }

    /// Limits the time until the message is handled, from the beginning of the attempt; for a message that is sent
    /// [later](Self::after), from when it is due. A receiver that reaches it after that does not handle it, and rejects it
    /// with [`Rejection::EXPIRED`](whizbang_core::message::Rejection::EXPIRED). The time of an event ends when it is recorded. Default:
    /// no limit. As [`SendCommand::expires_in`](crate::client::SendCommand::expires_in).
    pub fn expires_in(self, life: Duration) -> Self {
        self.outbox.expire(self.id, life);
        self
    }

    /// Returns the id under which it is sent; every attempt of the job gives the same. [`Job::replied_command`] returns
    /// it when the reply arrives.
    ///
    /// [`Job::replied_command`]: super::Job::replied_command
    pub fn id(&self) -> MessageId {
        self.id
    }
}
