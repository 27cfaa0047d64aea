//! Commands to the service's own domains, whose shards several nodes share: handled here while the shard is open here,
//! and sent over the bridge to the node that owns it otherwise.
//!
//! Called by the node's [client transport](crate::node::transport::remote_client). A shard that is moving refuses
//! commands without doing anything, so they are sent again until it has arrived: the caller sees a delay.

use std::sync::Weak;
use std::time::Duration;

use bytes::Bytes;

use crate::client::DEADLINE;
use crate::node::definition::NodeDefinition;
use crate::node::thread::Threads;
use crate::node::transport::request::{bridge_failed, no_bridge, reply_of, request, run_command, without_shape};
use crate::router::{SendError, attach_shapes};
use whizbang_core::bridge::Request;
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, ShardId, shard_of};

/// Waits before a refused command is sent again, unless a shard is opened or closed here earlier.
const FIRST_WAIT: Duration = Duration::from_millis(5);
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// Sends a command to the node that owns its shard, and waits for the reply.
///
/// # Errors
/// Same as [`Remote::send`](crate::router::Remote::send). [`SendError::Moved`] and [`SendError::NoOwner`] only once the
/// deadline has passed.
pub(in crate::node) async fn send_to_owner(
    definition: Weak<NodeDefinition>,
    threads: Threads,
    envelope: Envelope,
    deadline: Duration,
) -> Result<Bytes, SendError> {
    let begun = instant();
    let mut wait = FIRST_WAIT;
    loop {
        let Some(node) = definition.upgrade() else { return Err(SendError::Stopped) };
        let left = deadline.saturating_sub(begun.elapsed());
        let sent = send_once(&node, &threads, envelope.clone(), left).await;
        if !retries(&sent, &node, begun.elapsed() + wait < deadline) {
            return sent;
        }
        node.open_shards.wait_for_change(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Hands a command over to the node that owns its shard.
///
/// # Errors
/// Same as [`send_to_owner`].
pub(in crate::node) async fn post_to_owner(
    definition: Weak<NodeDefinition>,
    threads: Threads,
    envelope: Envelope,
) -> Result<(), SendError> {
    let begun = instant();
    let mut wait = FIRST_WAIT;
    loop {
        let Some(node) = definition.upgrade() else { return Err(SendError::Stopped) };
        let posted = post_once(&node, &threads, envelope.clone()).await;
        if !retries(&posted, &node, begun.elapsed() + wait < DEADLINE) {
            return posted;
        }
        node.open_shards.wait_for_change(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Returns whether a command is sent again: nothing was done, because its shard is moving; or its owner has left before
/// it answered, and the next owner knows by the id whether it was decided. Without a bridge no other node can be
/// reached.
fn retries<T>(sent: &Result<T, SendError>, node: &NodeDefinition, in_time: bool) -> bool {
    let is_moving =
        matches!(sent, Err(SendError::Moved { .. } | SendError::NoOwner { .. } | SendError::NoReply { .. }));
    let is_stopping = node.draining.load(std::sync::atomic::Ordering::Relaxed) || node.broken.lock().is_some();
    is_moving && in_time && !is_stopping && node.bridge.is_some()
}

fn is_local(node: &NodeDefinition, envelope: &Envelope) -> bool {
    let shards = node.owns(&envelope.domain).unwrap_or(1);
    node.is_local(&ShardId::new(envelope.domain.clone(), shard_of(&envelope.key, shards)))
}

async fn send_once(
    node: &NodeDefinition,
    threads: &Threads,
    envelope: Envelope,
    deadline: Duration,
) -> Result<Bytes, SendError> {
    let (id, domain, name) = (envelope.id, envelope.domain.to_string(), envelope.name.to_string());
    if is_local(node, &envelope) {
        let outcome = run_command(node, threads, without_shape(envelope));
        return match tokio::time::timeout(deadline, outcome).await {
            Ok(outcome) => SendError::of(outcome, &domain, &name, id).map(|(reply, _)| reply),
            Err(_) => Err(SendError::no_reply(domain, deadline, id)),
        };
    }
    let Some(bridge) = &node.bridge else { return Err(no_bridge(domain)) };
    let answer = request(&**bridge, Request::Command, envelope, deadline).await;
    reply_of(answer, &domain, &name, id, deadline)
}

async fn post_once(node: &NodeDefinition, threads: &Threads, mut envelope: Envelope) -> Result<(), SendError> {
    let (id, domain, name) = (envelope.id, envelope.domain.to_string(), envelope.name.to_string());
    if is_local(node, &envelope) {
        let outcome = run_command(node, threads, without_shape(envelope)).await;
        return SendError::of(outcome, &domain, &name, id).map(drop);
    }
    let Some(bridge) = &node.bridge else { return Err(no_bridge(domain)) };
    attach_shapes(&mut envelope);
    bridge.send(envelope).await.map_err(|error| bridge_failed(error, &domain, id))
}
