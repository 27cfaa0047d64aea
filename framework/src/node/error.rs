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
    /// Two actor types of one domain have the same name. Rename one with `name = "…"`.
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
    /// Two projections have the same name. Rename one with `name = "…"`.
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
    /// Two message types have the same name in one domain. Rename one with `name = "…"`.
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
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The bridge cannot be attached.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
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
    /// The operating system gives no signals.
    #[error("signals cannot be listened to: {0}")]
    Signal(#[source] std::io::Error),
}
