//! Detached client: connects a process that hosts nothing to the broker.
//!
//! Called by users through [`Client::connect`]. All messages go over the bridge.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};

use crate::client::Client;
use crate::node::definition::known_owners::KnownOwners;
use crate::node::error::StartError;
use crate::node::lifecycle::attach::attach_on_thread;
use crate::node::transport::log_reader::{check_owner, request_page, request_shapes};
use crate::node::transport::request::{bridge_failed, reply_of, request, request_query};
use crate::router::{LogPage, ReadError, Remote, SendError, attach_shapes};
use whizbang_core::bridge::{
    AckOutcome, Bridge, BridgeError, Inbound, NodeCard, Notification, Request, RequestError, Response, Watch, Watcher,
};
use whizbang_core::clock::Clock;
use whizbang_core::message::{Envelope, Fingerprint, IdSource, Name, ShardId};
use whizbang_core::spawn::LocalThread;
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

/// Id of no node: routing by it never finds a local endpoint.
const NO_NODE: u64 = 0;

impl Client {
    /// Connects a process that hosts nothing: all messages of the client go over `bridge`. `name` identifies it in
    /// the logs of the broker and of other nodes. Works on every tokio runtime; the connection has its own thread.
    ///
    /// ```
    /// # use bank_fixture::{Account, Deposit};
    /// # whizbang::derive::block_on(async {
    /// use whizbang::bridge::loopback::LoopbackHub;
    /// use whizbang::prelude::*;
    ///
    /// let hub = LoopbackHub::new();
    /// let node = Node::builder("bank", MemoryStore::new()).aggregate::<Account>().bridge(hub.bridge()).start().await?;
    ///
    /// let client = Client::connect("cashier", hub.bridge()).await?;
    /// assert_eq!(client.send(Deposit { account: "ada".into(), cents: 500 }).await?, 500);
    /// client.disconnect().await;
    /// node.stop().await
    /// # }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`StartError::Name`] and [`StartError::Bridge`]. [`StartError::Thread`] if no thread could be started.
    pub async fn connect(name: &str, bridge: impl Bridge) -> Result<Self, StartError> {
        let bridge: Arc<dyn Bridge> = Arc::new(bridge);
        let card = NodeCard::new(Name::new(name)?);
        let thread = LocalThread::start("whizbang-client").map_err(|_| StartError::Thread)?;
        attach_on_thread(Some(&thread), &bridge, card, Arc::new(RejectingInbound)).await?;
        let remote = Arc::new(DetachedClient { bridge, owners: Arc::default(), _thread: thread });
        Ok(Self::new(NO_NODE, remote, IdSource::random(Clock::system())))
    }
}

/// Client transport without a node: every message goes over the bridge.
struct DetachedClient {
    bridge: Arc<dyn Bridge>,
    owners: Arc<KnownOwners>,
    /// Owned here because the bridge's tasks run on it.
    _thread: LocalThread,
}

impl Remote for DetachedClient {
    fn send(&self, envelope: Envelope, deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>> {
        let (id, domain, name) = (envelope.id, envelope.domain.to_string(), envelope.name.to_string());
        let bridge = Arc::clone(&self.bridge);
        Box::pin(async move {
            let answer = request(&*bridge, Request::Command, envelope, deadline).await;
            reply_of(answer, &domain, &name, id, deadline)
        })
    }

    fn post_to_broker(&self, envelope: Envelope) -> BoxFuture<'static, Result<(), SendError>> {
        let (id, domain) = (envelope.id, envelope.domain.to_string());
        let bridge = Arc::clone(&self.bridge);
        let mut envelope = envelope;
        attach_shapes(&mut envelope);
        Box::pin(async move { bridge.send(envelope).await.map_err(|error| bridge_failed(error, &domain, id)) })
    }

    fn query(&self, envelope: Envelope, deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>> {
        let bridge = Arc::clone(&self.bridge);
        Box::pin(async move { request_query(&*bridge, envelope, deadline).await })
    }

    fn read_log(&self, shard: ShardId, after: u64, limit: u32) -> BoxFuture<'static, Result<LogPage, ReadError>> {
        let (bridge, owners) = (Arc::clone(&self.bridge), Arc::clone(&self.owners));
        Box::pin(async move {
            let page = request_page(&*bridge, shard.clone(), after, limit).await?;
            check_owner(&*bridge, &owners, &shard, page.store).await?;
            Ok(LogPage { events: page.envelopes, last: page.last, store: page.store })
        })
    }

    fn read_shapes(&self, shard: ShardId, shape: Fingerprint) -> BoxFuture<'static, Result<Option<String>, ReadError>> {
        let bridge = Arc::clone(&self.bridge);
        Box::pin(async move { request_shapes(&*bridge, shard, shape).await })
    }

    fn watch(&self, domain: Name, watcher: Arc<dyn Watcher>) -> BoxFuture<'static, Result<Option<Watch>, BridgeError>> {
        let bridge = Arc::clone(&self.bridge);
        Box::pin(async move { bridge.watch(&domain, watcher).await })
    }

    fn disconnect(&self) -> BoxFuture<'static, ()> {
        let bridge = Arc::clone(&self.bridge);
        Box::pin(async move {
            if let Err(error) = bridge.detach().await {
                tracing::debug!(target: TARGET, error = %error_chain(&error), "failed to detach the bridge");
            }
        })
    }
}

/// Inbound handler of a process that hosts nothing.
struct RejectingInbound;

impl Inbound for RejectingInbound {
    fn deliver(&self, _envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        Box::pin(ready(AckOutcome::Retry))
    }

    fn event(&self, _envelope: Envelope) -> BoxFuture<'static, AckOutcome> {
        Box::pin(ready(AckOutcome::Ack))
    }

    fn request(&self, _asked: Request) -> BoxFuture<'static, Response> {
        Box::pin(ready(Response::Refused(RequestError::NotHere)))
    }

    fn notify(&self, _notification: Notification) {}

    fn reconnected(&self) {}

    fn capacity(&self) -> usize {
        1
    }
}
