//! The client's ways that leave its thread: to the node's own shards, and over the bridge to others.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, ready};
use tokio::sync::oneshot;

use super::links::Links;
use super::spec::{Spec, VIEWS};
use crate::bridge::{Answer, Asked, Bridge, BridgeError, Refusal};
use crate::clock::instant;
use crate::message::{Envelope, MessageId, shard_of};
use crate::router::{AtHome, Outcome, Remote, SendError, Settle, tell_shapes};
use crate::store::StoreError;

/// The client's ways that leave its thread.
///
/// It does not keep the node's store: clients outlive their node, and the store may be wanted by the next one.
pub(super) struct Outward {
    spec: Weak<Spec>,
    links: Links,
}

impl Outward {
    pub(super) fn new(spec: &Arc<Spec>, links: Links) -> Self {
        Self { spec: Arc::downgrade(spec), links }
    }
}

/// Gives a command to the thread of its shard and waits for what becomes of it.
pub(super) fn ask_share(
    spec: &Spec,
    links: &Links,
    envelope: Envelope,
) -> impl Future<Output = Outcome> + Send + 'static {
    let home = envelope.to.as_ref().map_or(0, |to| spec.home(to.shard));
    let (settle, outcome) = oneshot::channel();
    let bytes = envelope.payload.len();
    let room = links.ask(home, bytes, move |share| {
        share.outside(
            envelope,
            Box::new(move |outcome| {
                let _ = settle.send(outcome);
            }),
        );
    });
    async move { if room { outcome.await.unwrap_or(Outcome::Stopped) } else { Outcome::Busy } }
}

impl Remote for Outward {
    fn home(&self, domain: &str, command: &str, key: &str) -> Option<usize> {
        let spec = self.spec.upgrade()?;
        let shards = spec.owns(domain)?;
        // Workers take envelopes only.
        let mut actors = spec.types.iter().filter(|hosted| !hosted.apart && hosted.domain.as_str() == domain);
        actors.find(|hosted| hosted.handles.iter().any(|name| name.as_str() == command))?;
        Some(spec.home(shard_of(key, shards)))
    }

    fn at_home(&self, home: usize, job: AtHome) -> bool {
        // Its values are this process's already: they are counted, and nobody knows their bytes.
        self.links.ask(home, 0, move |share| job(&share.routes))
    }

    fn ask(&self, envelope: Envelope, deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>> {
        let Some(spec) = self.spec.upgrade() else { return Box::pin(ready(Err(SendError::Stopped))) };
        let (id, domain, name) = (envelope.id, envelope.domain.to_string(), envelope.name.to_string());
        if spec.owns(&domain).is_some() {
            let outcome = ask_share(&spec, &self.links, of_this_program(envelope));
            return Box::pin(async move {
                match tokio::time::timeout(deadline, outcome).await {
                    Ok(outcome) => SendError::of(outcome, &domain, &name, id).map(|(reply, _)| reply),
                    Err(_) => Err(SendError::NoReply { domain, deadline, id }),
                }
            });
        }
        let bridge = spec.bridge.clone();
        Box::pin(async move {
            let Some(bridge) = bridge else { return Err(alone(domain)) };
            let answer = ask(&*bridge, Asked::Command, envelope, deadline).await;
            told(answer, &domain, &name, id, deadline)
        })
    }

    fn post(&self, envelope: Envelope) -> BoxFuture<'static, Result<(), SendError>> {
        let Some(spec) = self.spec.upgrade() else { return Box::pin(ready(Err(SendError::Stopped))) };
        let (id, domain, name) = (envelope.id, envelope.domain.to_string(), envelope.name.to_string());
        if spec.owns(&domain).is_some() {
            let outcome = ask_share(&spec, &self.links, of_this_program(envelope));
            return Box::pin(async move { SendError::of(outcome.await, &domain, &name, id).map(drop) });
        }
        let bridge = spec.bridge.clone();
        Box::pin(async move {
            let Some(bridge) = bridge else { return Err(alone(domain)) };
            let mut envelope = envelope;
            tell_shapes(&mut envelope);
            bridge.send(envelope).await.map_err(|error| failed(error, &domain, id))
        })
    }

    fn query(&self, envelope: Envelope, deadline: Duration) -> BoxFuture<'static, Result<Bytes, SendError>> {
        let Some(spec) = self.spec.upgrade() else { return Box::pin(ready(Err(SendError::Stopped))) };
        let (id, domain, name) = (envelope.id, envelope.domain.to_string(), envelope.name.to_string());
        if let Some(outcome) = ask_view(&spec, &self.links, &envelope) {
            return Box::pin(async move {
                match tokio::time::timeout(deadline, outcome).await {
                    Ok(outcome) => SendError::of(outcome, &domain, &name, id).map(|(answer, _)| answer),
                    Err(_) => Err(SendError::NoReply { domain, deadline, id }),
                }
            });
        }
        let bridge = spec.bridge.clone();
        Box::pin(async move {
            let Some(bridge) = bridge else { return Err(SendError::Unhandled { domain, name }) };
            query_over(&*bridge, envelope, deadline).await
        })
    }
}

/// Gives a query to the thread of the view that answers it, if this node has one.
pub(super) fn ask_view(
    spec: &Spec,
    links: &Links,
    query: &Envelope,
) -> Option<impl Future<Output = Outcome> + Send + 'static> {
    let view = *spec.answers.get(&(query.domain.clone(), query.name.clone()))?;
    let (settle, outcome) = oneshot::channel();
    let query = of_this_program(query.clone());
    let bytes = query.payload.len();
    let room = links.ask(VIEWS, bytes, move |share| {
        let settle: Settle = Box::new(move |outcome| drop(settle.send(outcome)));
        match share.views.get(view) {
            Some(view) => view.query(query, settle),
            None => settle(Outcome::Stopped),
        }
    });
    Some(async move { if room { outcome.await.unwrap_or(Outcome::Stopped) } else { Outcome::Busy } })
}

/// A message that does not leave this program need not be compared.
fn of_this_program(envelope: Envelope) -> Envelope {
    Envelope { shape: None, ..envelope }
}

/// Asks the owner of a message's domain. If it has other shapes of the message and does not know this program's, it is asked once
/// more and told.
pub(super) async fn ask(
    bridge: &dyn Bridge,
    question: fn(Envelope) -> Asked,
    envelope: Envelope,
    deadline: Duration,
) -> Result<Answer, BridgeError> {
    let begun = instant();
    let answer = bridge.ask(question(envelope.clone()), deadline).await?;
    if !matches!(answer, Answer::Refused(Refusal::UnknownShape)) {
        return Ok(answer);
    }
    let mut envelope = envelope;
    tell_shapes(&mut envelope);
    bridge.ask(question(envelope), deadline.saturating_sub(begun.elapsed())).await
}

/// Asks whoever answers a query over the bridge.
pub(super) async fn query_over(bridge: &dyn Bridge, query: Envelope, deadline: Duration) -> Result<Bytes, SendError> {
    let (id, domain, name) = (query.id, query.domain.to_string(), query.name.to_string());
    let answer = ask(bridge, Asked::Query, query, deadline).await;
    match told(answer, &domain, &name, id, deadline) {
        // A query commits nothing, so this is about its answer.
        Err(SendError::Unknown { source: StoreError::Io { source, .. }, .. }) => {
            Err(SendError::Unanswered { domain, name, reason: source.to_string() })
        }
        Err(SendError::NoOwner { domain, reason: _ }) => {
            let reason = format!("nobody who answers `{name}` is connected at present");
            Err(SendError::NoOwner { domain, reason })
        }
        told => told,
    }
}

fn alone(domain: String) -> SendError {
    SendError::NoOwner { domain, reason: "this node does not own it and has no bridge".to_owned() }
}

/// What a sender is told if the bridge fails. But for a missing answer, nothing was taken by the broker.
pub(super) fn failed(error: BridgeError, domain: &str, id: MessageId) -> SendError {
    let domain = domain.to_owned();
    match error {
        BridgeError::NoAnswer { deadline, .. } => SendError::NoReply { domain, deadline, id },
        BridgeError::Oversize { bytes, limit } => {
            SendError::Encode(crate::message::CodecError::Oversize { bytes, limit })
        }
        BridgeError::Unreadable { reason, .. } => SendError::Unknown {
            id,
            source: StoreError::io("reading the owner's answer", std::io::Error::other(reason)),
        },
        error => SendError::NoOwner { domain, reason: error.to_string() },
    }
}

/// What a sender is told about an answer.
pub(super) fn told(
    answer: Result<Answer, BridgeError>,
    domain: &str,
    name: &str,
    id: MessageId,
    deadline: Duration,
) -> Result<Bytes, SendError> {
    let owned = domain.to_owned();
    match answer {
        Ok(Answer::Reply(reply)) => Ok(reply),
        Ok(Answer::Refused(refusal)) => Err(match refusal {
            Refusal::Busy => SendError::Busy { domain: owned },
            Refusal::NotHere => {
                SendError::NoOwner { domain: owned, reason: "the owner stops or has changed".to_owned() }
            }
            Refusal::Full => SendError::Refused(StoreError::Full { at: format!("the store of domain `{owned}`") }),
            Refusal::Unhandled(_) => SendError::Unhandled { domain: owned, name: name.to_owned() },
            Refusal::Undecodable(reason) => SendError::Undecodable { domain: owned, reason },
            Refusal::Shape(reason) => SendError::Shape { domain: owned, reason },
            Refusal::UnknownShape => {
                let reason = format!("`{name}` has another shape there, and the shapes are too large to be compared");
                SendError::Shape { domain: owned, reason }
            }
            Refusal::Conflict => SendError::Conflict,
            Refusal::Expired => SendError::Expired,
            Refusal::IdInFuture => SendError::IdInFuture,
            Refusal::Late => SendError::Late,
            Refusal::DeadLetter(reason) => SendError::DeadLetter { reason },
            Refusal::Failed(reason) => SendError::Failed { reason },
            Refusal::Unknown(reason) => {
                SendError::Unknown { id, source: StoreError::io("the owner's commit", std::io::Error::other(reason)) }
            }
        }),
        Ok(_) => Err(SendError::NoReply { domain: owned, deadline, id }),
        Err(error) => Err(failed(error, domain, id)),
    }
}
