//! The connection of one node to other services: sends commands to owners, publishes events, returns replies.
//!
//! Called by the relay (outgoing messages) and by the client (requests); delivers received messages to the node's [`Inbound`].
//! It moves bytes and never calls an actor. It may lose, repeat and reorder messages: order and deduplication come from the
//! sequence numbers in the envelopes.

mod ack;
mod card;
pub mod claim;
mod error;
mod health;
mod published;
mod watch;

pub use ack::AckOutcome;
pub use card::{NodeCard, StoreCard};
pub use claim::Claim;
pub use error::{BridgeError, RivalClaim};
pub use health::BridgeHealth;
pub use published::LastPublished;
pub use watch::{Watch, Watcher};

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};

use crate::message::{Envelope, Fingerprint, Kind, Name, ShardId, StoreId};
use crate::store::Epoch;

/// A connection to a broker, in both directions.
///
/// A bridge delivers an accepted message at least once while it stays connected. If it loses one, the sender's shard detects
/// the gap in the sequence numbers and sends the message again. Order, deduplication and durability are not required.
///
/// Implementations pass the conformance suite in `whizbang::testing::bridge`.
///
/// All futures are cancellation safe: dropping one leaves the bridge usable. A message whose future was dropped may or may not
/// have been sent.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// use futures_util::future::{BoxFuture, FutureExt, ready};
/// use whizbang::bridge::{Bridge, BridgeError, Inbound, NodeCard, Notification, Request, Response};
/// use whizbang::message::Envelope;
///
/// /// A bridge of a node that has no other services to talk to.
/// struct Isolated;
///
/// fn no_owner(domain: &str) -> BridgeError {
///     BridgeError::NoOwner { domain: domain.to_owned() }
/// }
///
/// impl Bridge for Isolated {
///     fn attach<'a>(&'a self, _: NodeCard, _: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>> {
///         ready(Ok(())).boxed()
///     }
///     fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
///         ready(Err(no_owner(&envelope.domain))).boxed()
///     }
///     fn publish(&self, _: Envelope) -> BoxFuture<'_, Result<(), BridgeError>> {
///         ready(Ok(())).boxed()
///     }
///     fn request(&self, request: Request, _: Duration) -> BoxFuture<'_, Result<Response, BridgeError>> {
///         ready(Err(no_owner(request.domain()))).boxed()
///     }
///     fn notify(&self, _: Notification) -> BoxFuture<'_, Result<(), BridgeError>> {
///         ready(Ok(())).boxed()
///     }
///     fn durability(&self) -> String {
///         "isolated: no message leaves this node".to_owned()
///     }
///     fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>> {
///         ready(Ok(())).boxed()
///     }
/// }
/// ```
pub trait Bridge: Send + Sync + 'static {
    /// Connects a node: messages for the services on `card` arrive at `inbound` from now on. Called once, before anything is sent.
    /// The calling thread has a tokio runtime and a `LocalSet` that live until the bridge is detached or abandoned; the tasks of
    /// the bridge are spawned there.
    ///
    /// # Errors
    /// [`BridgeError`] if the server, the credentials or an existing stream or consumer does not fit the node.
    fn attach<'a>(&'a self, card: NodeCard, inbound: Arc<dyn Inbound>) -> BoxFuture<'a, Result<(), BridgeError>>;

    /// Sends a command or a reply, one way, to the owner of `envelope.to`. Returns once the broker has accepted it. Calls that
    /// are not awaited one by one keep their order as far as the broker does.
    ///
    /// # Errors
    /// [`BridgeError::NoOwner`] and [`BridgeError::Oversize`] mean that the message was not sent. After
    /// [`BridgeError::NoResponse`] it may have been sent.
    fn send(&self, envelope: Envelope) -> BoxFuture<'_, Result<(), BridgeError>>;

    /// Publishes an event to every subscribing service. Returns once the broker has accepted it.
    ///
    /// # Errors
    /// [`BridgeError`], as for [`send`](Self::send).
    fn publish(&self, event: Envelope) -> BoxFuture<'_, Result<(), BridgeError>>;

    /// Publishes events of one shard, in their order. Returns once the broker has accepted all of them. The default publishes them
    /// one by one without waiting in between; a bridge to a broker with a high cost per message sends several in one.
    ///
    /// # Errors
    /// The first error, as for [`publish`](Self::publish). The other events may have been sent, and the node repeats all of them.
    fn publish_all(&self, events: Vec<Envelope>) -> BoxFuture<'_, Result<(), BridgeError>> {
        let published: Vec<_> = events.into_iter().map(|event| self.publish(event)).collect();
        Box::pin(async move { join_all(published).await.into_iter().collect() })
    }

    /// Starts to receive the commands, replies and requests for a shard, which this node has opened with `epoch`. Called only
    /// by a node with [leased shards](NodeCard::has_leased_shards), after the shard was opened; messages arrive as soon as
    /// this call begins. Messages that an earlier owner received and did not acknowledge are redelivered here at once, and the
    /// earlier owner receives no further ones. The default suits a bridge that delivers every message to all nodes of a
    /// service; a node refuses those of shards it does not own.
    ///
    /// # Errors
    /// [`BridgeError`]. The node then calls it again.
    fn own<'a>(&'a self, _shard: &'a ShardId, _epoch: Epoch) -> BoxFuture<'a, Result<(), BridgeError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Stops receiving for a shard. Messages received and not acknowledged are released for redelivery to the next owner at
    /// once. Called before a shard is handed over, and after it was lost. Does nothing for a shard that is not received.
    fn disown<'a>(&'a self, _shard: &'a ShardId) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Returns the last event of a shard of this node that the broker holds, or `None` if it holds none or the bridge cannot
    /// tell. The node calls it once at start and publishes the later events of its log. Otherwise events that were committed but
    /// not published before a crash would not reach subscribers that read from the broker alone. If the event is one of the
    /// node's own store and later than its log, the store is an older copy and the node ends.
    fn last_published<'a>(&'a self, _shard: &'a ShardId) -> BoxFuture<'a, Result<Option<LastPublished>, BridgeError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Returns true if the broker keeps events, so that [`last_published`](Self::last_published) can find them.
    fn keeps_events(&self) -> bool {
        false
    }

    /// Sends a request to the owner of a domain, or to a node that answers the query, and waits for the response.
    ///
    /// # Errors
    /// [`BridgeError::NoResponse`] after `deadline`: the request may have been handled.
    fn request(&self, request: Request, deadline: Duration) -> BoxFuture<'_, Result<Response, BridgeError>>;

    /// Returns the store that holds the claim on a domain, or `None` if there is no claim or the bridge keeps none. A node calls it
    /// when messages of the domain come from an unknown store, at most once per second and domain.
    ///
    /// # Errors
    /// [`BridgeError`] if the broker does not answer.
    fn owner<'a>(&'a self, _domain: &'a Name) -> BoxFuture<'a, Result<Option<StoreId>, BridgeError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Reports the growth of the logs of a domain to `watcher`, from the moment at which this call returns until the returned
    /// watch is dropped. It is independent of the domains on the node's [card](NodeCard::subscribes), and several watches of one
    /// domain may exist. The reports stop when the bridge is detached. The default reports nothing and returns `None`; readers
    /// then look for new events every second.
    ///
    /// # Errors
    /// [`BridgeError`] if the broker does not permit it, or cannot be reached.
    fn watch<'a>(
        &'a self,
        _domain: &'a Name,
        _watcher: Arc<dyn Watcher>,
    ) -> BoxFuture<'a, Result<Option<Watch>, BridgeError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Sends a notification to the nodes it concerns. It may be lost.
    fn notify(&self, notification: Notification) -> BoxFuture<'_, Result<(), BridgeError>>;

    /// Describes the failures that an accepted message survives, as a line for the log at start.
    fn durability(&self) -> String;

    /// Returns the current condition of the bridge: broken connections, unusable streams, refused messages. Called often and on
    /// any thread, so it must not block. The default reports no issue; it suits a bridge that cannot fail.
    fn health(&self) -> BridgeHealth {
        BridgeHealth::default()
    }

    /// Stops receiving, sends the queued messages and closes the connection.
    fn detach(&self) -> BoxFuture<'_, Result<(), BridgeError>>;

    /// Closes the connection immediately, as the end of the process would: the node was dropped without being stopped. Messages in
    /// flight are lost and will be redelivered. No-op if the bridge is not attached.
    fn abandon(&self) {}
}

/// A request to the owner of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// A command of an external caller; the response is its reply.
    Command(Envelope),
    /// A query; the response is its reply.
    Query(Envelope),
    /// The events of a shard after a position, to fill gaps and to read history.
    Events {
        /// The shard whose log is read.
        shard: ShardId,
        /// The last position already known.
        after: u64,
        /// The maximum number of events in the response.
        limit: u32,
    },
    /// The outbox entries of `from` for `to` after a sequence, to fill gaps.
    Outbox {
        /// The sending shard.
        from: ShardId,
        /// The receiving shard.
        to: ShardId,
        /// The last known sequence.
        after: u64,
        /// The maximum number of entries in the response.
        limit: u32,
    },
    /// The last sequence from `from` that `to` has committed.
    Watermark {
        /// The sending shard.
        from: ShardId,
        /// The receiving shard.
        to: ShardId,
    },
    /// The same, sent when nothing was committed for a while: `from` has sent everything up to `through`. The owner of `to`
    /// responds with a watermark and fetches the missing entries from the outbox of `from`.
    Sent {
        /// The sending shard.
        from: ShardId,
        /// The receiving shard.
        to: ShardId,
        /// The last sequence sent.
        through: u64,
    },
    /// The message shapes behind a fingerprint that messages from `from` carry.
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
    /// Returns true if an envelope may be part of the response. The responder answers for the requested shard and no other.
    pub fn admits(&self, envelope: &Envelope) -> bool {
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

    /// Returns the domain whose owner handles the request; for a query, the domain of the query.
    pub fn domain(&self) -> &Name {
        match self {
            Self::Command(envelope) | Self::Query(envelope) => &envelope.domain,
            Self::Events { shard, .. } => &shard.domain,
            Self::Outbox { from, .. } | Self::Shape { from, .. } => &from.domain,
            Self::Watermark { to, .. } | Self::Sent { to, .. } => &to.domain,
        }
    }
}

/// The response to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// The encoded `Result<Reply, Rejection>`, in the codec of the request.
    Reply(Bytes),
    /// A part of a log or of an outbox.
    Envelopes(Page),
    /// A watermark.
    Watermark {
        /// The last committed sequence.
        through: u64,
        /// The store that holds it. `None` if the store has no identity.
        store: Option<StoreId>,
    },
    /// The message shapes behind a fingerprint, as the responding node knows them.
    Shape(String),
    /// The owner did not handle the request.
    Refused(RequestError),
}

impl Response {
    /// Returns envelopes in their order with the last position or sequence, from a store without an identity.
    pub const fn envelopes(envelopes: Vec<Envelope>, last: u64) -> Self {
        Self::Envelopes(Page::new(envelopes, last))
    }

    /// Returns the watermark of a store without an identity.
    pub const fn watermark(through: u64) -> Self {
        Self::Watermark { through, store: None }
    }
}

/// A part of a log or of an outbox, as its owner returns it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// Envelopes in their order.
    pub envelopes: Vec<Envelope>,
    /// The last existing position or sequence.
    pub last: u64,
    /// For an outbox, the last sequence that the destination has confirmed as committed. `None` if the owner does not report it.
    pub committed: Option<u64>,
    /// The store that holds the log. `None` if the store has no identity.
    pub store: Option<StoreId>,
}

impl Page {
    /// Returns a page of a store without an identity.
    pub const fn new(envelopes: Vec<Envelope>, last: u64) -> Self {
        Self { envelopes, last, committed: None, store: None }
    }

    /// Sets the last sequence that the destination of an outbox has confirmed as committed.
    #[must_use]
    pub const fn committed(mut self, through: Option<u64>) -> Self {
        self.committed = through;
        self
    }

    /// Sets the store that holds the log.
    #[must_use]
    pub const fn store(mut self, store: Option<StoreId>) -> Self {
        self.store = store;
        self
    }

    /// Returns the page as it is transferred: all envelopes carry the store of the page.
    pub fn of_store(mut self) -> Self {
        for origin in self.envelopes.iter_mut().filter_map(|envelope| envelope.origin.as_mut()) {
            origin.store = self.store;
        }
        self
    }
}

/// The reason for which an owner did not handle a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// The node is at its limit of concurrent turns; nothing was done. Retry later.
    Busy,
    /// The node is stopping or does not own the shard; nothing was done. Retry.
    NotHere,
    /// The disk of the owner is full; nothing was done. Free space, then retry.
    Full,
    /// No handler exists for the message; nothing was done.
    Unhandled(String),
    /// The payload cannot be decoded; nothing was done.
    Undecodable(String),
    /// The shape of the message, or of its reply, differs between the two services and cannot be converted; nothing was done.
    Shape(String),
    /// The shape of the message differs and the owner does not know it; nothing was done. Retry with the shapes.
    UnknownShape,
    /// The same id was used with another payload; nothing was done.
    Conflict,
    /// The id is older than the retention of replies; nothing was done this time.
    Expired,
    /// The time in the id is too far ahead of the owner's clock; nothing was done.
    IdInFuture,
    /// The deadline had passed before the turn began; nothing was done.
    Late,
    /// The message is a dead letter. An operator decides about it.
    DeadLetter(String),
    /// The command failed in every attempt, or its effects cannot be encoded; nothing was done.
    Failed(String),
    /// The turn ran and its commit is unknown. Retry with the same id.
    Unknown(String),
}

impl RequestError {
    /// Returns the stable code that stands for the error on the wire, and the text that travels with it.
    pub fn code_and_text(&self) -> (&'static str, &str) {
        match self {
            Self::Busy => ("busy", ""),
            Self::NotHere => ("not-here", ""),
            Self::Full => ("full", ""),
            Self::Unhandled(text) => ("unhandled", text.as_str()),
            Self::Undecodable(text) => ("undecodable", text.as_str()),
            Self::Shape(text) => ("shape", text.as_str()),
            Self::UnknownShape => ("unknown-shape", ""),
            Self::Conflict => ("conflict", ""),
            Self::Expired => ("expired", ""),
            Self::IdInFuture => ("id-in-future", ""),
            Self::Late => ("late", ""),
            Self::DeadLetter(text) => ("dead-letter", text.as_str()),
            Self::Failed(text) => ("failed", text.as_str()),
            Self::Unknown(text) => ("unknown", text.as_str()),
        }
    }
}

/// A notification between nodes. It may be lost, because the next one supersedes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// `to` has committed everything that `from` sent it up to and including `through`.
    Committed {
        /// The sending shard, whose owner is notified.
        from: ShardId,
        /// The receiving shard.
        to: ShardId,
        /// The last committed sequence.
        through: u64,
    },
    /// The log of a shard has grown to `position`. Sent to its subscribers, so that the loss of the last event is detected.
    Head {
        /// The shard.
        shard: ShardId,
        /// The position of its last event.
        position: u64,
    },
}

/// The node's receiver of messages from a bridge. Methods may be called on any thread and never block.
///
/// ```
/// use futures_util::future::{BoxFuture, FutureExt, ready};
/// use whizbang::bridge::{AckOutcome, Inbound, Notification, Request, RequestError, Response};
/// use whizbang::message::Envelope;
///
/// /// Accepts messages and answers no requests.
/// struct Sink;
///
/// impl Inbound for Sink {
///     fn deliver(&self, _: Envelope) -> BoxFuture<'static, AckOutcome> {
///         ready(AckOutcome::Ack).boxed()
///     }
///     fn event(&self, _: Envelope) -> BoxFuture<'static, AckOutcome> {
///         ready(AckOutcome::Ack).boxed()
///     }
///     fn request(&self, _: Request) -> BoxFuture<'static, Response> {
///         ready(Response::Refused(RequestError::NotHere)).boxed()
///     }
///     fn notify(&self, _: Notification) {}
///     fn reconnected(&self) {}
///     fn capacity(&self) -> usize {
///         1024
///     }
/// }
/// ```
pub trait Inbound: Send + Sync {
    /// Delivers a command or a reply for a shard of this service. The future completes once its effect is committed or it is
    /// known to be a duplicate; the bridge acknowledges it then. [`AckOutcome::Retry`] requests a redelivery.
    /// [`AckOutcome::Reject`] moves the message to the refused stream with the reason, as an undecodable message is.
    fn deliver(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome>;

    /// Delivers an event of a subscribed domain. The future completes once all local subscribers have committed it.
    fn event(&self, envelope: Envelope) -> BoxFuture<'static, AckOutcome>;

    /// Delivers events of one subscribed domain that are acknowledged together, in their order. The future completes once each of
    /// them is committed as for [`event`](Self::event). It returns the outcome [of all](AckOutcome::of_all).
    ///
    /// The default delivers them one by one. An implementation may do the work once that they have in common.
    fn events(&self, envelopes: Vec<Envelope>) -> BoxFuture<'static, AckOutcome> {
        Box::pin(AckOutcome::of_all(envelopes.into_iter().map(|envelope| self.event(envelope)).collect()))
    }

    /// Handles a request and returns the response.
    fn request(&self, request: Request) -> BoxFuture<'static, Response>;

    /// Handles a notification.
    fn notify(&self, notification: Notification);

    /// Reports that the connection was lost and is restored, or that the broker has lost its data: the node must check for gaps.
    fn reconnected(&self);

    /// Reports that another node has claimed a domain of this node at the broker: the node must stop publishing and answering for
    /// it. `reason` names the domain and the rival. The default does nothing.
    fn claim_lost(&self, reason: String) {
        drop(reason);
    }

    /// Returns the number of further messages that the node accepts now. A bridge pulls no more than that.
    fn capacity(&self) -> usize;
}
