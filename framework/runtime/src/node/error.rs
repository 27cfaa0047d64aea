//! Errors of a node as a whole: starting, running and ending it.

use std::fmt;

use crate::node::config::ConfigError;
use crate::router::SendError;
use whizbang_core::bridge::BridgeError;
use whizbang_core::message::{Codec, HeaderError, NameError};
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::error_chain;

/// Reason for which a node did not start. No message was sent or handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A name is invalid. Change it.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The name of a propagated header is invalid or reserved. Change it.
    #[error("invalid name of a propagated header")]
    Header(#[from] HeaderError),
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Two actor types of one domain have the same name, or one uses a former name of the other. Rename one with
    /// `name = "…"`, or remove the name from `formerly`.
    #[error("domain `{domain}` has two actor types named `{actor}`")]
    DoubleActor {
        /// The domain.
        domain: String,
        /// The name.
        actor: String,
    },
    /// Two actor types handle the same command. A command has one handler.
    #[error("`{domain}.{command}` is handled by `{one}` and by `{other}`")]
    DoubleHandler {
        /// The domain.
        domain: String,
        /// The command.
        command: String,
        /// One handler.
        one: String,
        /// The other.
        other: String,
    },
    /// Two singletons have the same name. Rename one.
    #[error("two singletons are named `{name}`")]
    DoubleSingleton {
        /// The name.
        name: String,
    },
    /// A singleton is declared on a node that hosts no aggregate, saga or worker, and publishes no event. It runs with a shard of
    /// the service's own domains, so declare it on a service that owns one.
    #[error("singleton `{name}` needs a domain that its service owns")]
    SingletonWithoutDomain {
        /// The name.
        name: String,
    },
    /// Two projections have the same name, or one uses a former name of the other. Rename one with `name = "…"`, or
    /// remove the name from `formerly`.
    #[error("two projections are named `{projection}`")]
    DoubleProjection {
        /// The name.
        projection: String,
    },
    /// A projection returns statements, and the store runs none. Use a store that does, such as PostgreSQL, or remove
    /// `reset` from the projection.
    #[error("projection `{projection}` has statements, which the store does not run: use PostgreSQL")]
    NoStatements {
        /// The projection.
        projection: String,
    },
    /// Two projections answer the same query. A query has one answer.
    #[error("`{domain}.{query}` is answered by `{one}` and by `{other}`")]
    DoubleAnswer {
        /// The domain.
        domain: String,
        /// The query.
        query: String,
        /// One projection.
        one: String,
        /// The other.
        other: String,
    },
    /// Two message types of one domain have the same name, or one uses a former name of the other. Rename one with
    /// `name = "…"`, or remove the name from `formerly`.
    #[error("`{domain}.{name}` is the name of `{one}` and of `{other}`")]
    DoubleName {
        /// The domain.
        domain: String,
        /// The name.
        name: String,
        /// One Rust type.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// Two types declare different shard counts for one domain.
    #[error("conflicting shard counts for domain `{domain}`: {one} and {other}")]
    Shards {
        /// The domain.
        domain: String,
        /// One count.
        one: u16,
        /// The other.
        other: u16,
    },
    /// Two types declare different codecs for one domain. Use one type for the domain, or give both the same `codec`.
    #[error(
        "domain `{domain}` has two codecs, {one:?} and {other:?}: use one type that derives `Domain`, or the same `codec`"
    )]
    Codecs {
        /// The domain.
        domain: String,
        /// One codec.
        one: Codec,
        /// The other.
        other: Codec,
    },
    /// A message, snapshot or view has a different shape in this program than in the store, under the same schema
    /// version: its stored bytes would decode to something else. Raise the version and declare how to read the old
    /// one, or restore the shape.
    #[error(transparent)]
    Shape(Box<ShapeChange>),
    /// The store contains a name that this program does not know: a renamed or removed domain, actor type,
    /// projection, event, command or timer. Declare what it was renamed to, or retire it.
    #[error("store contains the {kind} `{name}`, which this program does not know; {remedy}")]
    UnknownName {
        /// Kind of name: `domain`, `actor`, `projection`, `event`, `command` or `timer`.
        kind: String,
        /// The name, with the domain or the actor type it belongs to.
        name: String,
        /// Instructions for the developer.
        remedy: &'static str,
    },
    /// One actor type or projection claims two names that both have data in the store. They cannot be merged: their
    /// keys would collide.
    #[error("`{name}` was formerly `{former}`, but the store holds data of both, which cannot be merged")]
    TwoFormer {
        /// One name.
        name: String,
        /// The other.
        former: String,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bridge cannot be attached.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// [`threads`](crate::node::NodeConfig::threads) is 0, and the thread that starts the node is not inside a tokio
    /// `LocalSet`. Use at least 1 thread, or start under `#[whizbang::main]`.
    #[error(
        "a node with threads = 0 must be started inside a tokio `LocalSet`: use at least 1 thread, or `#[whizbang::main]`"
    )]
    NoLocalSet,
    /// A thread of the node could not be started, or ended during the start.
    #[error("failed to start a thread of the node")]
    Thread,
}

/// Any error of a program that runs a node.
///
/// Returned from `main`, it prints itself with its causes, each once: its `Debug` is that of
/// [`error_chain`](whizbang_core::telemetry::error_chain).
///
/// ```
/// use whizbang::store::StoreError;
///
/// let error = whizbang::Error::from(StoreError::io("opening the log", std::io::Error::other("no medium")));
/// assert_eq!(format!("{error:?}"), "opening the log failed: no medium");
/// ```
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The node did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A command or a query received no reply.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bridge failed.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node has ended itself.
    #[error(transparent)]
    Ended(#[from] NodeEnd),
    /// The operating system refused to install a signal handler.
    #[error("failed to install signal handlers")]
    Signal(#[source] std::io::Error),
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&error_chain(self), f)
    }
}

/// Reason for which a running node has ended itself. Its process should end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeEnd {
    /// Another node has taken over the store or a claim. Acknowledged messages are in the store; nothing more is
    /// handled.
    #[error("{reason}")]
    TakenOver {
        /// The node that has taken over, and what it has taken.
        reason: String,
    },
    /// The store has committed less than its peers know: it is empty, or an older copy. None of the missing messages
    /// was handled again. Start the node on its newest store.
    #[error(
        "the store is empty or an older copy: {from} knows that {to} has committed {committed} of its messages, and the store here \
         has {here}. Start the node on its newest store (is its folder mounted?). If that is gone for good, start once with \
         `replaces_store = \"any\"`: what was sent since then is handled again"
    )]
    OlderStore {
        /// The sending shard.
        from: String,
        /// The receiving shard, which this node owns.
        to: String,
        /// Number of messages that the sender knows to be committed.
        committed: u64,
        /// Number of messages that the store has committed.
        here: u64,
    },
    /// The broker holds a later event of this store than its log, or the store has lost events that this node had committed:
    /// the store is an older copy of itself. No other event was published under a known position. Messages handled on the
    /// older copy are only there.
    #[error(
        "the store is an older copy: event {published} of {shard} from this store was published or committed, and its log here ends \
         at {here}. Start the node on its newest store (is its folder mounted?). If that is gone for good, start once with \
         `replaces_store = \"any\"`: subscribers that have handled the lost events stop and report it"
    )]
    OlderLog {
        /// The shard, which this node owns.
        shard: String,
        /// Position of the last event that the broker holds, or that this node had committed.
        published: u64,
        /// Position of the last event in the store.
        here: u64,
    },
}

/// A changed shape of a stored type under an unchanged schema version.
#[derive(Debug, thiserror::Error)]
#[error(
    "the shape of the {kind} `{name}` has changed in version {version}: {at} was {stored} in the store and is {found} in \
     `{type_name}`; {remedy}"
)]
#[non_exhaustive]
pub struct ShapeChange {
    /// Kind of type: `event`, `command`, `reply`, `timer`, `snapshot` or `view`.
    pub kind: &'static str,
    /// Its name, with the domain or the actor type it belongs to.
    pub name: String,
    /// The schema version.
    pub version: u32,
    /// The Rust type, or the actor type or projection whose state it is.
    pub type_name: String,
    /// The changed field, as a path.
    pub at: String,
    /// Shape of the stored bytes there.
    pub stored: String,
    /// Shape in the program there.
    pub found: String,
    /// Instructions for the developer.
    pub remedy: &'static str,
}
