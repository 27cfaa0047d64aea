//! One node's connection to other services: commands to their owner, events to their subscribers, replies back.
//!
//! Called by the relay (outgoing) and the client; calls the node's [door](Inbound) with what comes in.
//! It moves bytes and knows no actor. It may lose, repeat and reorder: order and once-ness come from the numbers inside.

mod claim;
mod error;
mod health;
pub mod loopback;
#[cfg(feature = "nats")]
pub mod nats;
mod queue;
pub mod subject;
pub mod wire;

pub use crate::router::AckOutcome;
#[cfg(feature = "testing")]
pub(crate) use claim::{Claim, parses_claim};
pub use error::{BridgeError, RivalClaim};
pub use health::BridgeHealth;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::message::{Envelope, Fingerprint, Kind, Name, ReplacedStore, Run, ShardId, StoreId};

/// A connection to a broker, both directions.
///
/// What it promises: what it accepted it delivers at least once while it is connected, or the sender's shard notices by the
/// numbers and sends it again. What it need not promise: order, once-ness, durability.
///
/// Implementations pass the conformance suite in `whizbang::testing::bridge`.
pub trait Bridge: Send + Sync + 'static {
    /// Connects a node: from now on what concerns it arrives at `door`. Called once, before anything is sent, on a thread with a
    /// tokio runtime and a `LocalSet` that live until the bridge is detached or abandoned: its tasks belong there.
    ///
    /// # Errors
    /// [`BridgeError`] says what is wrong with the server, the credentials or what already exists there.
    fn attach<'a>(&'a self, card: NodeCard, door: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>>;

    /// Sends a command or a reply, one way, towards the owner of `envelope.to`. Returns once the courier has taken it;
    /// calls made without waiting for the earlier ones keep their order as far as the courier can.
    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>>;

    /// Fans an event out to every subscribing service.
    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>>;

    /// Returns the position of the last event of a shard of this node that the broker holds, or `None` if it holds none or the
    /// bridge cannot know. The node asks once when it starts, and publishes what its log has above that: events that were
    /// committed and not published before a crash reach subscribers that read from the broker alone.
    fn last_published<'a>(&'a self, _shard: &'a ShardId) -> BoxFuture<'a, Result<Option<u64>, BridgeError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Returns whether the broker keeps events, so that [`last_published`](Self::last_published) knows what it holds.
    fn keeps_events(&self) -> bool {
        false
    }

    /// Asks the owner of a domain (or, for a query, a host of its view) and waits for the answer, `deadline` at most.
    fn request(&self, to: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>>;

    /// Returns the store that is claimed to own a domain, or `None` if there is no claim or the bridge keeps none. A node asks when
    /// messages of the domain come from a store that it does not know, once a second for a domain at most.
    ///
    /// # Errors
    /// [`BridgeError`] if the broker does not say.
    fn owner<'a>(&'a self, _domain: &'a Name) -> BoxFuture<'a, Result<Option<StoreId>, BridgeError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Tells the owner of a shard something that may get lost.
    fn notify(&self, tidings: Notification) -> BoxFuture<'_, Result<(), BridgeError>>;

    /// What the courier survives, in words: a line for the log at start.
    fn durability(&self) -> String;

    /// The condition of the bridge now: broken connections, streams that cannot be used, refused messages. Called often and on
    /// any thread, so it must not block. A bridge that cannot fail keeps the default, which reports no issue.
    fn health(&self) -> BridgeHealth {
        BridgeHealth::default()
    }

    /// Takes nothing more in, sends what it still holds and ends.
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>>;

    /// Ends at once and without a word, as the end of the process would: the node was dropped without being stopped. What was
    /// under way is lost and comes again. Does nothing if the bridge is not attached, or detached already.
    fn abandon(&self) {}
}

/// What a bridge must know of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCard {
    /// The service the node is of: nodes of one service share the work.
    pub service: Name,
    /// The domains the service owns, with their number of shards.
    pub owns: Vec<(Name, u16)>,
    /// The domains whose events it takes, with their number of shards and the names of those events.
    pub subscribes: Vec<(Name, u16, Vec<Name>)>,
    /// The queries it answers: domain and name.
    pub answers: Vec<(Name, Name)>,
    /// The store of its domains. `None` if it has no identity: then nothing is claimed, and no second node is refused.
    pub store: Option<StoreCard>,
}

/// What a bridge must know of a node's store, to claim the node's domains for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreCard {
    /// Its identity.
    pub store: StoreId,
    /// This start of the node.
    pub run: Run,
    /// The starts on this store whose claims this one continues.
    pub earlier: Vec<Run>,
    /// The store whose claims are replaced, for disaster recovery.
    pub replaces: ReplacedStore,
}

/// A question to the owner of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A command of a caller from outside; the answer is its reply.
    Command(Envelope),
    /// A query; the answer is its reply.
    Query(Envelope),
    /// The events of a shard above a position: gaps and history.
    Events {
        /// The shard.
        shard: ShardId,
        /// The last position already known.
        after: u64,
        /// The most events to answer with.
        limit: u32,
    },
    /// The outbox entries of `from` for `to` above a sequence: gaps.
    Outbox {
        /// The sending shard.
        from: ShardId,
        /// The receiving shard.
        to: ShardId,
        /// The last sequence already known.
        after: u64,
        /// The most entries to answer with.
        limit: u32,
    },
    /// How far `to` has committed what `from` sent it.
    Watermark {
        /// The sending shard.
        from: ShardId,
        /// The receiving shard.
        to: ShardId,
    },
    /// The same, asked because nothing was committed for a while: `from` has sent everything up to `through`. The owner of `to`
    /// answers with a watermark, and fetches from the outbox of `from` what did not reach it.
    Sent {
        /// The sending shard.
        from: ShardId,
        /// The receiving shard.
        to: ShardId,
        /// The last sequence sent.
        through: u64,
    },
    /// The shapes that a fingerprint is of, which messages from `from` bear.
    Shape {
        /// The sending shard.
        from: ShardId,
        /// The receiving shard; `None` if the message is an event.
        to: Option<ShardId>,
        /// The fingerprint.
        shape: Fingerprint,
    },
}

impl Request {
    /// Whether an envelope may be in the answer: whoever is asked speaks for the shard that was asked for, and for no other.
    pub(crate) fn admits(&self, envelope: &Envelope) -> bool {
        let origin = envelope.origin.as_ref().map(|origin| &origin.shard);
        match self {
            Self::Events { shard, .. } => {
                envelope.kind == Kind::Event && origin == Some(shard) && envelope.domain == shard.domain
            }
            Self::Outbox { from, to, .. } => {
                let domain = match envelope.kind {
                    Kind::Command => &to.domain,
                    Kind::Reply => &from.domain,
                    Kind::Event | Kind::Query | Kind::Document => return false,
                };
                origin == Some(from) && envelope.to.as_ref() == Some(to) && envelope.domain == *domain
            }
            Self::Command(_) | Self::Query(_) | Self::Watermark { .. } | Self::Sent { .. } | Self::Shape { .. } => {
                false
            }
        }
    }

    /// The domain whose owner is asked; for a query the domain it belongs to.
    pub fn domain(&self) -> &Name {
        match self {
            Self::Command(envelope) | Self::Query(envelope) => &envelope.domain,
            Self::Events { shard, .. } => &shard.domain,
            Self::Outbox { from, .. } | Self::Shape { from, .. } => &from.domain,
            Self::Watermark { to, .. } | Self::Sent { to, .. } => &to.domain,
        }
    }
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The encoded `Result<Reply, Rejection>`, written in the codec of the question.
    Reply(Bytes),
    /// A part of a log or an outbox.
    Envelopes(Page),
    /// A watermark.
    Watermark {
        /// The last sequence that is committed.
        through: u64,
        /// The store in which it is. `None` if it has no identity.
        store: Option<StoreId>,
    },
    /// The shapes that a fingerprint is of, as the node that was asked has them.
    Shape(String),
    /// The owner cannot answer.
    Refused(RequestError),
}

impl Response {
    /// Envelopes in their order, and the last position or sequence there is; of a store without an identity.
    pub const fn envelopes(envelopes: Vec<Envelope>, last: u64) -> Self {
        Self::Envelopes(Page::new(envelopes, last))
    }

    /// The watermark of a store without an identity.
    pub const fn watermark(through: u64) -> Self {
        Self::Watermark { through, store: None }
    }
}

/// A part of a log or an outbox, as its owner answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Envelopes in their order.
    pub envelopes: Vec<Envelope>,
    /// The last position or sequence there is.
    pub last: u64,
    /// For an outbox, the last sequence that the destination has confirmed to have committed. `None` if the owner does not say.
    pub committed: Option<u64>,
    /// The store that holds the log. `None` if it has no identity.
    pub store: Option<StoreId>,
}

impl Page {
    /// A page of a store without an identity.
    pub const fn new(envelopes: Vec<Envelope>, last: u64) -> Self {
        Self { envelopes, last, committed: None, store: None }
    }

    /// The page as it travels: all its envelopes are of its store.
    pub(crate) fn of_store(mut self) -> Self {
        for origin in self.envelopes.iter_mut().filter_map(|envelope| envelope.origin.as_mut()) {
            origin.store = self.store;
        }
        self
    }
}

/// Why an owner does not answer a question.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// The node has no room for more turns; nothing was done. Ask again later.
    Busy,
    /// The node stops, or does not own the shard (any more); nothing was done. Ask again.
    NotHere,
    /// The disk of the owner is full; nothing was done. Ask again once there is room.
    Full,
    /// Nobody handles such a message; nothing was done.
    Unhandled(String),
    /// The payload cannot be read; nothing was done.
    Undecodable(String),
    /// The message, or its reply, has another shape at its sender, and cannot be read there or here; nothing was done.
    Shape(String),
    /// The message has another shape at its sender, and the owner does not know which. Ask again with the shapes; nothing was done.
    UnknownShape,
    /// The same id came with another payload; nothing was done.
    Conflict,
    /// The id is older than the time replies are kept; nothing was done now.
    Expired,
    /// The time in the id is too far ahead of the owner's clock; nothing was done.
    IdInFuture,
    /// The deadline had passed before the turn began; nothing was done.
    Late,
    /// The message is a dead letter now.
    DeadLetter(String),
    /// The command failed in every attempt, or asked for what cannot be written; nothing was done.
    Failed(String),
    /// The turn ran and its commit is unknown. Ask again with the same id.
    Unknown(String),
}

/// News that may get lost, because the next one makes up for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// `to` has committed all that `from` sent it up to and including `through`.
    Committed {
        /// The sending shard, whose owner is told.
        from: ShardId,
        /// The receiving shard.
        to: ShardId,
        /// The last sequence committed.
        through: u64,
    },
    /// A shard's log has grown up to `position`; told to its subscribers, so that a lost last event is noticed.
    Head {
        /// The shard.
        shard: ShardId,
        /// The position of its last event.
        position: u64,
    },
}

/// The node's door for what comes in. Called on any thread; never blocks.
pub trait Inbound: Send + Sync {
    /// A command or a reply for a shard this service owns. The future ends once its effect is committed (or it is known to
    /// be a duplicate), so that the courier may forget it; [`AckOutcome::Retry`] asks for it again, and
    /// [`AckOutcome::Reject`] wants it to be put aside with the reason, as what cannot be read is.
    fn deliver(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome>;

    /// An event of a domain this service subscribes to. Ends once all subscribers here have committed it.
    fn event(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome>;

    /// A question.
    fn request(&self, asked: Request) -> BoxFuture<'static, Response>;

    /// News.
    fn notify(&self, tidings: Notification);

    /// The connection was lost and is back, or the broker has forgotten what it had: look after the gaps.
    fn reconnected(&self);

    /// Another node has claimed a domain of this one at the broker: the node must not publish or answer for it any longer.
    /// `reason` names the domain and the rival. Does nothing by default.
    fn claim_lost(&self, reason: String) {
        drop(reason);
    }

    /// How many more messages the node can take now. A bridge pulls no more than that.
    fn capacity(&self) -> usize;
}
