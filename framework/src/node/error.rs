//! What can go wrong with a node as a whole.

use super::ConfigError;
use crate::bridge::BridgeError;
use crate::message::{Codec, NameError};
use crate::router::SendError;
use crate::store::StoreError;

/// Why a node did not start. Nothing was sent or handled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A name that cannot be one. Change it.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Two actor types of one domain have the same name, or one has a name that the other had before. Rename one with
    /// `name = "…"`, or leave the name out of `formerly`.
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
    /// Two projections have the same name, or one has a name that the other had before. Rename one with `name = "…"`, or leave
    /// the name out of `formerly`.
    #[error("two projections are named `{projection}`")]
    DoubleProjection {
        /// The name.
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
    /// Two message types have the same name in one domain, or one has a name that the other had before. Rename one with
    /// `name = "…"`, or leave the name out of `formerly`.
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
    /// Two types disagree on how many shards a domain has.
    #[error("domain `{domain}` has {one} shards here and {other} there")]
    Shards {
        /// The domain.
        domain: String,
        /// One number.
        one: u16,
        /// The other.
        other: u16,
    },
    /// Two types that name one domain differ in the codec. Nothing has started; use one type for the domain, or give both the
    /// same `codec`.
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
    /// A message, a snapshot or a view has another shape in this program than in the store, under the same schema version: its
    /// stored bytes would be read as something else. Raise the version and say how the old one is read, or restore the shape.
    #[error(transparent)]
    Shape(Box<ShapeChange>),
    /// The store holds something under a name that this program does not know: a renamed or removed domain, actor type,
    /// projection, event, command or timer. Declare what has become of it.
    #[error("the store holds the {kind} `{name}`, which this program does not know; {remedy}")]
    UnknownName {
        /// What it names: `domain`, `actor`, `projection`, `event`, `command` or `timer`.
        kind: String,
        /// The name, with the domain or the actor type it belongs to.
        name: String,
        /// What to do.
        remedy: &'static str,
    },
    /// One actor type or projection is said to be two that the store holds. They cannot become one: their keys would meet.
    #[error("`{name}` was formerly `{former}`, but the store holds something of both, which cannot become one")]
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
    /// [`threads`](super::NodeConfig::threads) is 0, and the thread that starts the node is not inside a tokio `LocalSet`. Use 1 thread or more,
    /// or start it under `#[whizbang::main]`.
    #[error(
        "a node with threads = 0 must be started inside a tokio `LocalSet`: use 1 thread or more, or `#[whizbang::main]`"
    )]
    NoLocalSet,
    /// A thread of the node ended while it started.
    #[error("a thread of the node ended while it started")]
    Thread,
}

/// Whatever can go wrong in a program that runs a node.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The node did not start.
    #[error("the node did not start: {0}")]
    Start(#[from] StartError),
    /// A command or a query has no reply.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bridge failed.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node has ended itself.
    #[error(transparent)]
    Ended(#[from] NodeEnd),
    /// The operating system gives no signals.
    #[error("signals cannot be listened to: {0}")]
    Signal(#[source] std::io::Error),
}

/// Why a running node has ended itself. Its process should end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeEnd {
    /// Another node has the store or a claim. What was acknowledged is in the store; nothing is handled any longer.
    #[error("{reason}")]
    TakenOver {
        /// Who has taken over, and what.
        reason: String,
    },
    /// The store has committed less than its peers know: it is empty, or an older copy. Nothing of what was missing was handled.
    /// Start the node on its newest store.
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
        /// How many messages the sender knows to be committed.
        committed: u64,
        /// How many the store has.
        here: u64,
    },
}

/// The shape of a stored type that has changed under an unchanged schema version.
#[derive(Debug, thiserror::Error)]
#[error(
    "the shape of the {kind} `{name}` has changed in version {version}: {at} was {stored} in the store and is {found} in \
     `{type_name}`; {remedy}"
)]
#[non_exhaustive]
pub struct ShapeChange {
    /// What has changed: `event`, `command`, `reply`, `timer`, `snapshot` or `view`.
    pub kind: &'static str,
    /// Its name, with the domain or the actor type it belongs to.
    pub name: String,
    /// The schema version.
    pub version: u32,
    /// The Rust type, or the actor type or projection whose state it is.
    pub type_name: String,
    /// The place in it that has changed.
    pub at: String,
    /// The shape of the stored bytes there.
    pub stored: String,
    /// The shape that the program has there.
    pub found: String,
    /// What to do.
    pub remedy: &'static str,
}
