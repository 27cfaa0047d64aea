//! Client transport that leaves the caller's thread: to the node's own shards, and over the bridge to other services.
//!
//! Called by the [client](crate::Client) and, for the shared parts, by the bridge handler and the detached client.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};

use crate::node::definition::NodeDefinition;
use crate::node::thread::Threads;
use crate::node::transport::log_reader::{check_owner, read_here, request_page, request_shapes};
use crate::node::transport::owned_shards::{post_to_owner, send_to_owner};
use crate::node::transport::request::{
    bridge_failed, reply_of, request, request_query, run_command, run_query, without_shape,
};
use crate::router::{LogPage, ReadError, Remote, RoutedJob, SendError, attach_shapes};
use whizbang_core::bridge::{BridgeError, Request, Watch, Watcher};
use whizbang_core::message::{Envelope, Fingerprint, Kind, Name, ShardId, shard_of};
use whizbang_core::store::ShardReader;

/// Client transport that leaves the caller's thread.
///
/// Holds no reference to the node's store: clients outlive their node, and the next node may open the store.
pub(in crate::node) struct RemoteClient {
    definition: Weak<NodeDefinition>,
    threads: Threads,
}

impl RemoteClient {
    pub(in crate::node) fn new(definition: &Arc<NodeDefinition>, threads: Threads) -> Self {
        Self { definition: Arc::downgrade(definition), threads }
    }
}

impl Remote for RemoteClient {
    fn thread_of(&self, domain: &str, command: &str, key: &str) -> Option<usize> {
        let definition = self.definition.upgrade()?;
        let shards = definition.owns(domain)?;
        // A typed command cannot be sent on if its shard has moved before the thread takes it.
        if definition.open_shards.is_shared() {
            return None;
        }
        // Workers accept envelopes only.
        let mut actors =
            definition.actors.iter().filter(|hosted| !hosted.is_isolated && hosted.domain.as_str() == domain);
        actors.find(|hosted| hosted.handles.iter().any(|(name, _)| name.as_str() == command))?;
        Some(definition.thread_of(shard_of(key, shards)))
    }

    fn is_crowded(&self, home: usize) -> bool {
        self.threads.is_crowded(home)
    }

    fn run_on(&self, home: usize, bytes: usize, job: RoutedJob) {
        match self.threads.permit(home, bytes) {
            Some(permit) => self.threads.run_permitted(home, permit, move |runtime| job(Some(&runtime.routes))),
            None => job(None),
        }
    }

    fn is_local(&self, message: &Envelope) -> bool {
        self.definition.upgrade().is_some_and(|definition| match message.kind {
            Kind::Query => definition.answers.contains_key(&(message.domain.clone(), message.name.clone())),
            _ => definition.owns(&message.domain).is_some() && !definition.open_shards.is_shared(),
        })
    }

    fn has_ended(&self) -> bool {
        self.definition.upgrade().is_none_or(|definition| definition.has_ended())
    }

    fn send(&self, envelope: Envelope, deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>> {
        let Some(definition) = self.definition.upgrade() else { return Box::pin(ready(Err(SendError::Stopped))) };
        let (id, domain, name) = (envelope.id, envelope.domain.to_string(), envelope.name.to_string());
        if definition.owns(&domain).is_some() && definition.open_shards.is_shared() {
            return Box::pin(send_to_owner(Weak::clone(&self.definition), self.threads.clone(), envelope, deadline));
        }
        if definition.owns(&domain).is_some() {
            let outcome = run_command(&definition, &self.threads, without_shape(envelope));
            return Box::pin(async move {
                match tokio::time::timeout(deadline, outcome).await {
                    Ok(outcome) => SendError::of(outcome, &domain, &name, id).map(|(reply, _)| reply),
                    Err(_) => Err(SendError::no_reply(domain, deadline, id)),
                }
            });
        }
        let bridge = definition.bridge.clone();
        Box::pin(async move {
            let Some(bridge) = bridge else { return Err(SendError::NoBridge { domain }) };
            let answer = request(&*bridge, Request::Command, envelope, deadline).await;
            reply_of(answer, &domain, &name, id, deadline)
        })
    }

    fn post_to_broker(&self, envelope: Envelope) -> BoxFuture<'static, Result<(), SendError>> {
        let Some(definition) = self.definition.upgrade() else { return Box::pin(ready(Err(SendError::Stopped))) };
        let (id, domain, name) = (envelope.id, envelope.domain.to_string(), envelope.name.to_string());
        if definition.owns(&domain).is_some() && definition.open_shards.is_shared() {
            return Box::pin(post_to_owner(Weak::clone(&self.definition), self.threads.clone(), envelope));
        }
        if definition.owns(&domain).is_some() {
            let outcome = run_command(&definition, &self.threads, without_shape(envelope));
            return Box::pin(async move { SendError::of(outcome.await, &domain, &name, id).map(drop) });
        }
        let bridge = definition.bridge.clone();
        Box::pin(async move {
            let Some(bridge) = bridge else { return Err(SendError::NoBridge { domain }) };
            let mut envelope = envelope;
            attach_shapes(&mut envelope);
            bridge.send(envelope).await.map_err(|error| bridge_failed(error, &domain, id))
        })
    }

    fn read_log(&self, shard: ShardId, after: u64, limit: u32) -> BoxFuture<'static, Result<LogPage, ReadError>> {
        let definition = Weak::clone(&self.definition);
        Box::pin(async move {
            // Another task runs between two pages of a log in memory, which is read without a wait.
            tokio::task::yield_now().await;
            let (reader, bridge, store) = {
                let node = definition.upgrade().filter(|node| !node.watches.has_ended()).ok_or(ReadError::Stopped)?;
                (source_of(&node, &shard)?, node.bridge.clone(), node.store_id())
            };
            if let Some(reader) = reader {
                return read_here(&*reader, &shard, after, usize::try_from(limit).unwrap_or(usize::MAX), store).await;
            }
            let bridge = bridge.ok_or(ReadError::NoBridge)?;
            let page = request_page(&*bridge, shard.clone(), after, limit).await?;
            let node = definition.upgrade().ok_or(ReadError::Stopped)?;
            check_owner(&*bridge, &node.known_owners, &shard, page.store).await?;
            Ok(LogPage { events: page.envelopes, last: page.last, store: page.store })
        })
    }

    fn read_shapes(&self, shard: ShardId, shape: Fingerprint) -> BoxFuture<'static, Result<Option<String>, ReadError>> {
        let bridge = self.definition.upgrade().and_then(|definition| definition.bridge.clone());
        Box::pin(async move { request_shapes(&*bridge.ok_or(ReadError::Stopped)?, shard, shape).await })
    }

    fn watch(&self, domain: Name, watcher: Arc<dyn Watcher>) -> BoxFuture<'static, Result<Option<Watch>, BridgeError>> {
        let Some(definition) = self.definition.upgrade() else { return Box::pin(ready(Err(BridgeError::Closed))) };
        let own = definition.owns(&domain).map(|_| definition.watches.add(&domain, &watcher));
        // Another node of the service may own a shard.
        let others = own.is_none() || definition.open_shards.is_shared();
        let Some(bridge) = definition.bridge.clone().filter(|_| others) else { return Box::pin(ready(Ok(own))) };
        Box::pin(async move {
            let watched = bridge.watch(&domain, watcher).await?;
            Ok(watched.map(|watch| Watch::new(move || drop((own, watch)))))
        })
    }

    fn query(&self, envelope: Envelope, deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>> {
        let Some(definition) = self.definition.upgrade() else { return Box::pin(ready(Err(SendError::Stopped))) };
        let (id, domain, name) = (envelope.id, envelope.domain.to_string(), envelope.name.to_string());
        if let Some(outcome) = run_query(&definition, &self.threads, &envelope) {
            return Box::pin(async move {
                match tokio::time::timeout(deadline, outcome).await {
                    Ok(outcome) => SendError::of(outcome, &domain, &name, id).map(|(answer, _)| answer),
                    Err(_) => Err(SendError::no_reply(domain, deadline, id)),
                }
            });
        }
        let bridge = definition.bridge.clone();
        Box::pin(async move {
            let Some(bridge) = bridge else { return Err(SendError::Unhandled { domain, name }) };
            request_query(&*bridge, envelope, deadline).await
        })
    }
}

/// Returns the reader of a shard that is open here; `None` if its owner has to be asked over the bridge.
fn source_of(node: &NodeDefinition, shard: &ShardId) -> Result<Option<Arc<dyn ShardReader>>, ReadError> {
    match node.reader(shard) {
        None if node.owns(&shard.domain).is_some() && !(node.open_shards.is_shared() && node.bridge.is_some()) => {
            Err(ReadError::Later("the shard is not open".to_owned()))
        }
        reader => Ok(reader),
    }
}
