//! State of the simulated clients: sent commands, received replies, and the client faults that are armed.
//!
//! Written by [calls](super::call), read by the [reply checks](super::reply_checks) at the end of a run.
//!
//! An acknowledged command is the strongest fact of a run: its effect must be in the store, once, whatever failed. A command
//! without an answer may have been handled or not, and both are allowed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::other_caller::OtherCaller;
use super::payload::Payload;
use whizbang_core::clock::{Clock, ClockJumps, Timestamp, instant};
use whizbang_core::message::{Codec, Command, Domain, Envelope, Kind, MessageId, Name, ShardId, shard_of};
use whizbang_runtime::actor::Count;
use whizbang_runtime::client::SendError;

/// An encoded command, kept so that it can be sent again.
#[derive(Clone)]
pub(super) struct EncodedCommand {
    /// The id, the same in every attempt.
    pub(super) id: MessageId,
    /// The destination.
    pub(super) domain: &'static str,
    /// The name of the command's type.
    pub(super) name: &'static str,
    /// The key of the aggregate.
    pub(super) key: String,
    /// The payload, encoded once: each attempt sends the same bytes.
    pub(super) bytes: Bytes,
    /// The schema version of the payload.
    version: u32,
    /// The codec of the domain.
    codec: Codec,
    /// The number of shards of the domain, to find the shard of the key.
    shards: u16,
    /// Returns whether bytes are another command of the type for the same key.
    is_for_key: fn(&Self, &[u8]) -> bool,
}

/// The most bytes that are changed in turn until the payload is a command again.
const MAX_CHANGES: usize = 64;

impl EncodedCommand {
    /// Encodes a command once, so that all attempts have the same bytes.
    ///
    /// # Errors
    /// [`SendError::Encode`] if it cannot be encoded.
    pub(super) fn of<C: Command>(id: MessageId, command: &C) -> Result<Self, SendError> {
        let codec = C::Domain::CODEC;
        let mut bytes = Vec::new();
        command.encode(codec, &mut bytes).map_err(SendError::Encode)?;
        Ok(Self {
            id,
            domain: C::Domain::NAME,
            name: C::NAME,
            key: command.key().as_str().to_owned(),
            bytes: Bytes::from(bytes),
            version: C::WRITES,
            codec,
            shards: C::Domain::SHARDS,
            is_for_key: |encoded, bytes| {
                C::decode(encoded.version, encoded.codec, bytes).is_ok_and(|other| other.key().as_str() == encoded.key)
            },
        })
    }

    /// Decodes the command again, because not all commands implement `Clone`.
    pub(super) fn decode<C: Command>(&self) -> Result<C, SendError> {
        C::decode(self.version, self.codec, &self.bytes).map_err(SendError::Encode)
    }

    /// Returns the same command with another id.
    pub(super) fn with_id(&self, id: MessageId) -> Self {
        Self { id, ..self.clone() }
    }

    /// Returns a command with the same id and key and another payload: with a changed bit in one of its last bytes if that is a
    /// command, otherwise one that cannot be decoded.
    pub(super) fn with_changed_payload(&self) -> Self {
        let changed = (0..self.bytes.len()).rev().take(MAX_CHANGES).map(|at| {
            let mut bytes = self.bytes.to_vec();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1;
            }
            bytes
        });
        let longer = || self.bytes.iter().copied().chain([0]).collect();
        let bytes = changed.into_iter().find(|bytes| (self.is_for_key)(self, bytes)).unwrap_or_else(longer);
        Self { bytes: Bytes::from(bytes), ..self.clone() }
    }

    /// Returns whether the payload is a command for the key.
    pub(super) fn is_decodable(&self) -> bool {
        (self.is_for_key)(self, &self.bytes)
    }

    /// Returns the payload for the failure report.
    pub(super) fn payload(&self) -> Payload {
        Payload::new(self.name, self.version, self.codec, self.bytes.clone())
    }

    /// Returns the envelope of a caller that waits until `deadline`.
    pub(super) fn envelope(&self, now: Timestamp, deadline: Duration) -> Envelope {
        let name = |text: &'static str| Name::from_static(text).expect("the derive checked the name");
        let domain = name(self.domain);
        Envelope {
            version: self.version,
            to: Some(ShardId::new(domain.clone(), shard_of(&self.key, self.shards))),
            key: self.key.clone(),
            deadline: Some(now.after(deadline)),
            codec: self.codec,
            payload: self.bytes.clone(),
            ..Envelope::new(self.id, Kind::Command, domain, name(self.name), now)
        }
    }
}

/// A command with the reply that a client received.
#[derive(Clone)]
pub(super) struct AckedCommand {
    /// The command.
    pub(super) encoded: EncodedCommand,
    /// The encoded reply. Every other reply to the id must have the same bytes.
    pub(super) reply: Bytes,
    /// The time of the reply.
    pub(super) at: Instant,
}

/// A command sent without waiting for a reply.
#[derive(Clone)]
pub(super) struct Post {
    /// The command.
    pub(super) encoded: EncodedCommand,
    /// The moment of the first attempt.
    pub(super) started: Instant,
    /// An attempt has succeeded: the command must be handled, unless the broker loses it.
    pub(super) accepted: bool,
    /// An attempt was accepted by the owner's commit: the command is handled, whatever the broker loses.
    pub(super) committed: bool,
}

/// A fault that clients cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientFault {
    /// Sends a command twice.
    Duplicate,
    /// Uses an id for another payload.
    ReuseId,
    /// Uses ids that are too old or in the future.
    WrongTimeIds,
    /// Waits only this long.
    ShortDeadline(Duration),
}

/// A client fault that waits for its commands.
struct ArmedFault {
    /// The kind of fault.
    client_fault: ClientFault,
    /// The number of commands that it still applies to.
    left: u8,
    /// The counter of the fault: it has fired once a command was affected.
    count: Count,
}

/// The attempts with one id.
#[derive(Default)]
struct Attempts {
    /// The number of attempts that have not returned.
    open: u32,
    /// True if one of them may have had an effect.
    may_have_happened: bool,
    /// No attempt with the id can have had an effect, and none may begin any longer.
    abandoned: bool,
}

/// All clients of a cluster.
pub(super) struct Clients {
    /// The wall clock of the clients, which faults let jump.
    pub(super) clock: Clock,
    /// The jumps of that clock, for the checks of expiry.
    pub(super) jumps: ClockJumps,
    /// All commands that got a reply, in the order of the replies.
    acks: RefCell<Vec<AckedCommand>>,
    /// The index in `acks`, by the id of the command and its target.
    ack_index: RefCell<BTreeMap<(MessageId, &'static str, String), usize>>,
    /// All posts, in the order of their outcomes.
    posts: RefCell<Vec<Post>>,
    /// The events that were published and acknowledged: in words, and the id.
    publications: RefCell<Vec<(String, MessageId)>>,
    /// The attempts of each command by its id.
    attempts: RefCell<BTreeMap<MessageId, Attempts>>,
    /// The faults that have not affected enough commands yet.
    armed: RefCell<Vec<ArmedFault>>,
    /// Commands whose ids are reused after their reply.
    reuses: RefCell<BTreeMap<MessageId, Count>>,
    /// The ends of attempts that run in the background, such as duplicates. A run waits for all of them.
    background: RefCell<Vec<oneshot::Receiver<()>>>,
    /// The number of operators that are about to redrive dead letters.
    operators: Cell<u32>,
    /// The caller whose clock differs from that of all others, once a fault has started it.
    pub(super) other: RefCell<Option<Rc<OtherCaller>>>,
}

impl Clients {
    /// Creates clients that have sent nothing.
    pub(super) fn new(clock: Clock, jumps: ClockJumps) -> Self {
        Self {
            clock,
            jumps,
            acks: RefCell::default(),
            ack_index: RefCell::default(),
            posts: RefCell::default(),
            publications: RefCell::default(),
            attempts: RefCell::default(),
            armed: RefCell::default(),
            reuses: RefCell::default(),
            background: RefCell::default(),
            operators: Cell::new(0),
            other: RefCell::default(),
        }
    }

    /// Returns all commands that got a reply.
    pub(super) fn acks(&self) -> Vec<AckedCommand> {
        self.acks.borrow().clone()
    }

    /// Records that the owner has committed a published event.
    pub(super) fn record_publication(&self, published: String, id: MessageId) {
        self.publications.borrow_mut().push((published, id));
    }

    /// Returns all acknowledged publications.
    pub(super) fn publications(&self) -> Vec<(String, MessageId)> {
        self.publications.borrow().clone()
    }

    /// Returns all posts.
    pub(super) fn posts(&self) -> Vec<Post> {
        self.posts.borrow().clone()
    }

    /// Injects a fault into the next `times` commands.
    pub(super) fn arm(&self, client_fault: ClientFault, times: u8, count: &Count) {
        self.armed.borrow_mut().push(ArmedFault { client_fault, left: times, count: Rc::clone(count) });
    }

    /// Counts operators that handle dead letters.
    pub(super) fn operator(&self, is_started: bool) {
        let operators = self.operators.get();
        self.operators.set(if is_started { operators + 1 } else { operators.saturating_sub(1) });
    }

    /// Returns whether an operator is about to redrive dead letters.
    pub(super) fn has_operator(&self) -> bool {
        self.operators.get() > 0
    }

    /// Disarms all faults and corrects the clients' clock.
    pub(super) fn disarm(&self) {
        self.armed.borrow_mut().clear();
        self.jumps.undo();
        if let Some(caller) = self.other.borrow().as_ref() {
            caller.disarm();
        }
    }

    /// Takes the faults for the next command, at most one of each kind.
    pub(super) fn take_faults(&self, is: impl Fn(ClientFault) -> bool) -> Vec<(ClientFault, Count)> {
        let mut faults: Vec<(ClientFault, Count)> = Vec::new();
        for armed in self.armed.borrow_mut().iter_mut().filter(|armed| armed.left > 0 && is(armed.client_fault)) {
            let kind = std::mem::discriminant(&armed.client_fault);
            if !faults.iter().any(|(of, _)| std::mem::discriminant(of) == kind) {
                armed.left -= 1;
                faults.push((armed.client_fault, Rc::clone(&armed.count)));
            }
        }
        faults
    }

    /// Marks the id of a command for reuse after its reply.
    pub(super) fn reuse(&self, id: MessageId, count: Count) {
        self.reuses.borrow_mut().insert(id, count);
    }

    /// Returns the counter of the fault that reuses this id, once.
    pub(super) fn take_reuse(&self, id: MessageId) -> Option<Count> {
        self.reuses.borrow_mut().remove(&id)
    }

    /// Spawns a task that runs beside the scenario.
    pub(super) fn spawn_background(&self, task: impl Future<Output = ()> + 'static) {
        let (end, wait) = oneshot::channel();
        self.background.borrow_mut().push(wait);
        whizbang_core::spawn::alone("simulated client", async move {
            task.await;
            let _ = end.send(());
        });
    }

    /// Waits for all background tasks.
    pub(super) async fn wait_background(&self) {
        loop {
            let next = self.background.borrow_mut().pop();
            let Some(task) = next else { return };
            drop(task.await);
        }
    }

    /// Records the start of an attempt.
    pub(super) fn attempt_started(&self, id: MessageId) {
        self.attempts.borrow_mut().entry(id).or_default().open += 1;
    }

    /// Records the end of an attempt. Returns whether no attempt with this id can have had an effect.
    pub(super) fn attempt_ended(&self, id: MessageId, may_have_happened: bool) -> bool {
        let mut attempts = self.attempts.borrow_mut();
        let attempts = attempts.entry(id).or_default();
        attempts.open = attempts.open.saturating_sub(1);
        attempts.may_have_happened |= may_have_happened;
        attempts.open == 0 && !attempts.may_have_happened
    }

    /// Abandons an id if no attempt with it can have had an effect. Returns whether it is abandoned.
    pub(super) fn abandon(&self, id: MessageId) -> bool {
        let mut attempts = self.attempts.borrow_mut();
        let attempts = attempts.entry(id).or_default();
        attempts.abandoned |= attempts.open == 0 && !attempts.may_have_happened;
        attempts.abandoned
    }

    /// Returns true if the id is abandoned: no attempt with it can have had an effect.
    pub(super) fn is_abandoned(&self, id: MessageId) -> bool {
        self.attempts.borrow().get(&id).is_some_and(|attempts| attempts.abandoned)
    }

    /// Records a reply. Returns an error if it differs from an earlier reply to the same command.
    pub(super) fn record_reply(&self, encoded: &EncodedCommand, reply: Bytes) -> Result<(), String> {
        let mut acks = self.acks.borrow_mut();
        let target = (encoded.id, encoded.domain, encoded.key.clone());
        let known = self.ack_index.borrow().get(&target).and_then(|at| acks.get(*at)).map(|ack| ack.reply == reply);
        match known {
            Some(true) => Ok(()),
            Some(false) => Err(format!(
                "I4: {}.{} {} for `{}` was sent again and got a different reply",
                encoded.domain, encoded.name, encoded.id, encoded.key
            )),
            None => {
                self.ack_index.borrow_mut().insert(target, acks.len());
                acks.push(AckedCommand { encoded: encoded.clone(), reply, at: instant() });
                Ok(())
            }
        }
    }

    /// Records an attempt to post a command.
    pub(super) fn record_post(&self, encoded: &EncodedCommand, started: Instant, accepted: bool, to_broker: bool) {
        let committed = accepted && !to_broker;
        let mut posts = self.posts.borrow_mut();
        let same = |post: &&mut Post| post.encoded.id == encoded.id && post.encoded.key == encoded.key;
        match posts.iter_mut().find(same) {
            Some(post) => {
                post.accepted |= accepted;
                post.committed |= committed;
            }
            None => posts.push(Post { encoded: encoded.clone(), started, accepted, committed }),
        }
    }
}
