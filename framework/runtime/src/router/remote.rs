//! The transport of messages that leave a thread, as clients and jobs see it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{LocalRoutes, LogPage, ReadError, SendError};
use whizbang_core::bridge::{BridgeError, Watch, Watcher};
use whizbang_core::message::{Envelope, Fingerprint, Name, ShardId};

/// Job for the thread on which the actors live, called there with its routes. Called with `None`, on any thread, it
/// reports to its sender that the bound of queued callers is reached.
pub type RoutedJob = Box<dyn FnOnce(Option<&LocalRoutes>) + Send>;

/// Transport for messages that leave this thread: to other threads of the node and to other services.
pub trait Remote: Send + Sync {
    /// Returns the thread of this node that runs the command for this key; `None` if no actor of this node handles it,
    /// or its shard may move to another node.
    fn thread_of(&self, domain: &str, command: &str, key: &str) -> Option<usize> {
        let _ = (domain, command, key);
        None
    }

    /// Returns whether so many callers are queued for that thread that the sizes of their messages matter.
    fn is_crowded(&self, home: usize) -> bool {
        let _ = home;
        false
    }

    /// Runs `job` on that thread, or drops it if the node has ended. Calls it with `None` if the bound of queued
    /// callers or of their payload `bytes` is reached.
    fn run_on(&self, home: usize, bytes: usize, job: RoutedJob) {
        let _ = (home, bytes);
        job(None);
    }

    /// Returns whether the message is handled inside this process, where none is lost.
    fn is_local(&self, message: &Envelope) -> bool {
        let _ = message;
        false
    }

    /// Returns whether the client's own node has ended or is ending, so that no later message is accepted.
    fn has_ended(&self) -> bool {
        false
    }

    /// Sends a command and waits for its reply: `Result<Reply, Rejection>`, encoded with the envelope's codec.
    fn send(&self, envelope: Envelope, deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>>;

    /// Hands a command over to the broker, to be handled at any later time. A command of this node's own domain is committed.
    fn post_to_broker(&self, envelope: Envelope) -> BoxFuture<'static, Result<(), SendError>>;

    /// Sends a query and waits for its answer, encoded with the envelope's codec.
    fn query(&self, envelope: Envelope, deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>>;

    /// Reads at most `limit` events above a position from the log of a shard, here or at its owner.
    fn read_log(&self, shard: ShardId, after: u64, limit: u32) -> BoxFuture<'static, Result<LogPage, ReadError>> {
        let _ = (shard, after, limit);
        Box::pin(std::future::ready(Err(ReadError::Stopped)))
    }

    /// Requests the shapes behind the fingerprint of an event from the owner of its shard; `None` if the owner does not know them.
    fn read_shapes(&self, shard: ShardId, shape: Fingerprint) -> BoxFuture<'static, Result<Option<String>, ReadError>> {
        let _ = (shard, shape);
        Box::pin(std::future::ready(Err(ReadError::Stopped)))
    }

    /// Reports the growth of the logs of a domain, as [`Bridge::watch`](whizbang_core::bridge::Bridge::watch).
    fn watch(&self, domain: Name, watcher: Arc<dyn Watcher>) -> BoxFuture<'static, Result<Option<Watch>, BridgeError>> {
        let _ = (domain, watcher);
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Closes the connection. No-op for a client of a node.
    fn disconnect(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// Transport of a client without a node: every message is refused.
pub(crate) struct Unconnected;

impl Remote for Unconnected {
    fn send(&self, _envelope: Envelope, _deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>> {
        Box::pin(std::future::ready(Err(SendError::Stopped)))
    }

    fn post_to_broker(&self, _envelope: Envelope) -> BoxFuture<'static, Result<(), SendError>> {
        Box::pin(std::future::ready(Err(SendError::Stopped)))
    }

    fn query(&self, _envelope: Envelope, _deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>> {
        Box::pin(std::future::ready(Err(SendError::Stopped)))
    }

    fn has_ended(&self) -> bool {
        true
    }
}
