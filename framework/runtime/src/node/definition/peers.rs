//! Shapes of peers: judges received messages by their shape, and requests unknown shapes from the sender's service.
//!
//! Called by the bridge handler and by readers of other services' logs and outboxes. Calls the [shapes](crate::router::PeerShapes)
//! and the bridge. A message of unknown shape waits until its sender has answered. One request is sent at a time:
//! they are few, one for each type that differs, and all messages of that type wait for the same answer.

use std::sync::Arc;
use std::time::Duration;

use crate::node::definition::{NodeDefinition, REQUEST_TIMEOUT};
use crate::router::{Judgment, is_from_actor};
use whizbang_core::bridge::{Request, RequestError, Response};
use whizbang_core::clock::instant;
use whizbang_core::message::Envelope;
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

/// Time for which an unreachable service is not asked again: messages of others must not wait for its time-out each
/// time.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Most unreachable services remembered.
const MAX_FAILED: usize = 256;

/// The sender's service cannot be reached now.
pub(in crate::node) struct Unreachable;

impl NodeDefinition {
    /// Judges a message by the known shapes. Notes and logs the first refused and the first accepted message of a type.
    pub(in crate::node) fn judge(&self, envelope: &mut Envelope, asks: bool) -> Judgment {
        let sent = envelope.shape;
        let judgment = self.shapes.judge(envelope, asks, instant());
        let (domain, name) = (&envelope.domain, &envelope.name);
        match &judgment {
            Judgment::Fits { resumes: true } => {
                self.issues.clear_note(&note_name(envelope));
                tracing::info!(target: TARGET, %domain, message = %name, "messages have a readable shape again");
            }
            Judgment::Differs { reason, is_news: true } => {
                self.issues.note(&note_name(envelope), format!("refused from {}: {reason}", sender(envelope)));
                tracing::error!(
                    target: TARGET, service = self.manifest.service, sender = sender(envelope), %domain, message = %name,
                    version = envelope.version, shape = ?sent, reason = &**reason,
                    "messages refused: their type differs at the sender",
                );
            }
            Judgment::Fits { .. } | Judgment::Differs { .. } | Judgment::Unknown => {}
        }
        judgment
    }

    /// Judges a message, requesting the shapes from the sender's service if necessary.
    ///
    /// Returns `None` if the shapes are unknown and the sender is not an actor, so that there is no service to ask.
    pub(in crate::node) async fn resolve_shape(
        self: &Arc<Self>,
        envelope: &mut Envelope,
        asks: bool,
    ) -> Result<Option<Judgment>, Unreachable> {
        match self.judge(envelope, asks) {
            Judgment::Unknown => {}
            judgment => return Ok(Some(judgment)),
        }
        if !is_from_actor(envelope) {
            return Ok(None);
        }
        let mut failed = self.shape_requests.lock().await;
        match self.judge(envelope, asks) {
            // Another message waited for the same answer.
            judgment @ (Judgment::Fits { .. } | Judgment::Differs { .. }) => return Ok(Some(judgment)),
            Judgment::Unknown => {}
        }
        let Some(domain) = envelope.origin.as_ref().map(|origin| origin.shard.domain.clone()) else { return Ok(None) };
        if failed.get(&domain).is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return Err(Unreachable);
        }
        failed.remove(&domain);
        if let Err(error) = self.request_shapes(envelope).await {
            if failed.len() >= MAX_FAILED {
                failed.clear();
            }
            failed.insert(domain, instant());
            return Err(error);
        }
        Ok(Some(self.judge(envelope, asks)))
    }

    async fn request_shapes(&self, envelope: &Envelope) -> Result<(), Unreachable> {
        let (Some(bridge), Some(origin), Some(shape)) = (&self.bridge, &envelope.origin, envelope.shape) else {
            return Err(Unreachable);
        };
        let asked = Request::Shape { from: origin.shard.clone(), to: envelope.to.clone(), shape };
        match bridge.request(asked, REQUEST_TIMEOUT).await {
            Ok(Response::Shape(text)) => self.shapes.learn(envelope, Some(&text)),
            // The service now runs another program than the one that wrote the message, perhaps without this request.
            Ok(Response::Refused(RequestError::Unhandled(_) | RequestError::Undecodable(_))) => {
                self.shapes.learn(envelope, None)
            }
            Ok(other) => {
                tracing::debug!(target: TARGET, from = %origin.shard, ?other, "unexpected response to a request for shapes");
                return Err(Unreachable);
            }
            Err(error) => {
                tracing::debug!(
                    target: TARGET, from = %origin.shard, error = %error_chain(&error),
                    "failed to request shapes",
                );
                return Err(Unreachable);
            }
        }
        Ok(())
    }

    /// Judges messages read from another service's log or outbox, in order.
    pub(in crate::node) async fn resolve_shapes(
        self: &Arc<Self>,
        envelopes: &mut [Envelope],
    ) -> Result<(), Unreachable> {
        for envelope in envelopes.iter_mut().filter(|envelope| envelope.shape.is_some()) {
            self.resolve_shape(envelope, false).await?;
        }
        Ok(())
    }
}

/// Returns the name of the health note about a message type.
fn note_name(envelope: &Envelope) -> String {
    format!("shape of {}.{}", envelope.domain, envelope.name)
}

fn sender(envelope: &Envelope) -> String {
    match &envelope.origin {
        Some(origin) => format!("`{}`", origin.shard.domain),
        None => "a caller".to_owned(),
    }
}
