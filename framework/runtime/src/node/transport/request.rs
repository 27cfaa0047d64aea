//! Requests of clients: on the thread of a shard, or over the bridge, and the meaning of their answers.
//!
//! Called by the client transports and by the bridge handler.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::node::definition::{NodeDefinition, VIEW_THREAD};
use crate::node::thread::Threads;
use crate::router::{Completion, Outcome, SendError, attach_shapes};
use whizbang_core::bridge::{Bridge, BridgeError, Request, RequestError, Response};
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, MessageId};
use whizbang_core::store::StoreError;

/// Passes a command to the thread of its shard and waits for its outcome.
pub(in crate::node) fn run_command(
    definition: &NodeDefinition,
    threads: &Threads,
    envelope: Envelope,
) -> impl Future<Output = Outcome> + Send + 'static {
    let home = envelope.to.as_ref().map_or(0, |to| definition.thread_of(to.shard));
    let (settle, outcome) = oneshot::channel();
    let bytes = envelope.payload.len();
    let room = threads.run_bounded(home, bytes, move |runtime| {
        if !runtime.definition.serves() {
            let _ = settle.send(Outcome::Moved);
            return;
        }
        runtime.deliver_external(
            envelope,
            Box::new(move |outcome| {
                let _ = settle.send(outcome);
            }),
        );
    });
    async move { if room { outcome.await.unwrap_or(Outcome::Stopped) } else { Outcome::Busy } }
}

/// Passes a query to the thread of the view that answers it, if this node has one.
pub(in crate::node) fn run_query(
    definition: &NodeDefinition,
    threads: &Threads,
    query: &Envelope,
) -> Option<impl Future<Output = Outcome> + Send + 'static> {
    let view = *definition.answers.get(&(query.domain.clone(), query.name.clone()))?;
    let (settle, outcome) = oneshot::channel();
    let query = without_shape(query.clone());
    let bytes = query.payload.len();
    let room = threads.run_bounded(VIEW_THREAD, bytes, move |runtime| {
        let asked = Arc::clone(&runtime.definition);
        // Checked after the answer: the process may have been stopped since the view was read.
        let settle: Completion = Box::new(move |outcome| {
            drop(settle.send(if asked.serves() { outcome } else { Outcome::Stopped }));
        });
        match runtime.views.get(view) {
            Some(view) => view.query(query, settle),
            None => settle(Outcome::Stopped),
        }
    });
    Some(async move { if room { outcome.await.unwrap_or(Outcome::Stopped) } else { Outcome::Busy } })
}

/// Removes the fingerprint: a message that does not leave this program needs no comparison.
pub(in crate::node) fn without_shape(envelope: Envelope) -> Envelope {
    Envelope { shape: None, ..envelope }
}

/// Requests a reply from the owner of a message's domain. If the owner does not know the fingerprint, the request is
/// repeated with the shapes attached.
pub(in crate::node) async fn request(
    bridge: &dyn Bridge,
    question: fn(Envelope) -> Request,
    envelope: Envelope,
    deadline: Duration,
) -> Result<Response, BridgeError> {
    let begun = instant();
    let answer = bridge.request(question(envelope.clone()), deadline).await?;
    if !matches!(answer, Response::Refused(RequestError::UnknownShape)) {
        return Ok(answer);
    }
    let mut envelope = envelope;
    attach_shapes(&mut envelope);
    bridge.request(question(envelope), deadline.saturating_sub(begun.elapsed())).await
}

/// Sends a query over the bridge to a node that answers it.
pub(in crate::node) async fn request_query(
    bridge: &dyn Bridge,
    query: Envelope,
    deadline: Duration,
) -> Result<Bytes, SendError> {
    let (id, domain, name) = (query.id, query.domain.to_string(), query.name.to_string());
    let answer = request(bridge, Request::Query, query, deadline).await;
    match reply_of(answer, &domain, &name, id, deadline) {
        // A query commits nothing, so the error concerns its answer.
        Err(SendError::Unknown { source: StoreError::Io { source, .. }, .. }) => {
            Err(SendError::Unanswered { domain, name, reason: source.to_string() })
        }
        Err(SendError::NoOwner { domain, reason: _ }) => {
            let reason = format!("no node that answers `{name}` is connected");
            Err(SendError::NoOwner { domain, reason })
        }
        told => told,
    }
}

pub(in crate::node) fn no_bridge(domain: String) -> SendError {
    SendError::NoBridge { domain }
}

/// Converts a bridge error for the sender. Unless the reply is missing, the broker has accepted nothing.
pub(in crate::node) fn bridge_failed(error: BridgeError, domain: &str, id: MessageId) -> SendError {
    let domain = domain.to_owned();
    match error {
        BridgeError::NoResponse { deadline, .. } => SendError::no_reply(domain, deadline, id),
        BridgeError::Oversize { bytes, limit } => {
            SendError::Encode(whizbang_core::message::CodecError::Oversize { bytes, limit })
        }
        BridgeError::InvalidResponse { reason, .. } => SendError::Unknown {
            id,
            source: StoreError::io("reading the owner's answer", std::io::Error::other(reason)),
        },
        BridgeError::NoOwner { .. } | BridgeError::Unreachable { .. } | BridgeError::Busy { .. } => {
            SendError::NoOwner { domain, reason: error.to_string() }
        }
        source => SendError::Bridge { domain, source: Box::new(source) },
    }
}

/// Converts the response of a domain's owner for the sender.
pub(in crate::node) fn reply_of(
    answer: Result<Response, BridgeError>,
    domain: &str,
    name: &str,
    id: MessageId,
    deadline: Duration,
) -> Result<Bytes, SendError> {
    let owned = domain.to_owned();
    match answer {
        Ok(Response::Reply(reply)) => Ok(reply),
        Ok(Response::Refused(refusal)) => Err(match refusal {
            RequestError::Busy => SendError::Busy { domain: owned },
            RequestError::NotHere => {
                SendError::NoOwner { domain: owned, reason: "the owner is shutting down or has changed".to_owned() }
            }
            RequestError::Full => SendError::Refused(StoreError::Full { at: format!("the store of domain `{owned}`") }),
            RequestError::Unhandled(_) => SendError::Unhandled { domain: owned, name: name.to_owned() },
            RequestError::Undecodable(reason) => SendError::Undecodable { domain: owned, reason },
            RequestError::Shape(reason) => SendError::Shape { domain: owned, reason },
            RequestError::UnknownShape => {
                let reason = format!("`{name}` has a different shape there, and the shapes are too large to compare");
                SendError::Shape { domain: owned, reason }
            }
            RequestError::Conflict => SendError::Conflict,
            RequestError::Expired => SendError::Expired,
            RequestError::IdInFuture => SendError::IdInFuture,
            RequestError::Late => SendError::Late,
            RequestError::DeadLetter(reason) => SendError::DeadLetter { reason },
            RequestError::Failed(reason) => SendError::Failed { reason },
            RequestError::Unknown(reason) => {
                SendError::Unknown { id, source: StoreError::io("the owner's commit", std::io::Error::other(reason)) }
            }
            // An error that a newer bridge reports: whether the command was handled is unknown.
            other => {
                let reason = std::io::Error::other(other.code_and_text().0);
                SendError::Unknown { id, source: StoreError::io("the owner's commit", reason) }
            }
        }),
        Ok(_) => Err(SendError::no_reply(owned, deadline, id)),
        Err(error) => Err(bridge_failed(error, domain, id)),
    }
}
