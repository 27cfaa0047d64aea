//! Client transport that leaves the caller's thread: to the node's own shards, and over the bridge to other services.
//!
//! Called by the [client](crate::Client) and, for the shared parts, by the bridge handler and the detached client.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};

use crate::node::definition::NodeDefinition;
use crate::node::thread::Threads;
use crate::node::transport::owned_shards::{post_to_owner, send_to_owner};
use crate::node::transport::request::{
    bridge_failed, reply_of, request, request_query, run_command, run_query, without_shape,
};
use crate::router::{Remote, RoutedJob, SendError, attach_shapes};
use whizbang_core::bridge::Request;
use whizbang_core::message::{Envelope, Kind, shard_of};

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

    fn post(&self, envelope: Envelope) -> BoxFuture<'static, Result<(), SendError>> {
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
