//! Judges what comes over the bridge by its shape, and asks its sender for shapes that are not known.
//!
//! Called by the node's door and by what reads other services' logs and outboxes. Calls the [shapes](PeerShapes) and the bridge.
//! A message of which nothing is known waits until its sender has answered. One question is asked at a time: they are few, one for
//! each type that differs, and all that comes of that type waits for the same answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use tokio::time::Instant;

use super::background;
use super::definition::NodeDefinition;
use crate::bridge::{Request, RequestError, Response};
use crate::clock::instant;
use crate::message::{Envelope, Name};
use crate::router::{Judgment, can_be_asked};
use crate::telemetry::TARGET;

/// How long a service that could not be asked is not asked again: what comes from others must not wait for its answer each time.
const AGAIN: Duration = Duration::from_secs(1);
/// How many such services are remembered.
const MOST: usize = 256;

/// The domains whose owners could not be asked, and when.
pub(super) type Failed = HashMap<Name, Instant, FixedState>;

/// The sender of a message cannot be asked now.
pub(super) struct Unreachable;

impl NodeDefinition {
    /// Judges a message by what is known; notes and logs the first of a type that is refused, and the first that is taken again.
    pub(super) fn judge(&self, envelope: &mut Envelope, asks: bool) -> Judgment {
        let sent = envelope.shape;
        let judgment = self.shapes.judge(envelope, asks, instant());
        let (domain, name) = (&envelope.domain, &envelope.name);
        match &judgment {
            Judgment::Fits { resumes: true } => {
                self.issues.no_note(&about(envelope));
                tracing::info!(target: TARGET, %domain, message = %name, "messages have a shape again that can be read");
            }
            Judgment::Differs { reason, is_news: true } => {
                self.issues.note(&about(envelope), format!("refused from {}: {reason}", sender(envelope)));
                tracing::error!(
                    target: TARGET, service = self.manifest.service, sender = sender(envelope), %domain, message = %name,
                    version = envelope.version, shape = ?sent, reason = &**reason,
                    "messages are refused: their type is another one at their sender",
                );
            }
            Judgment::Fits { .. } | Judgment::Differs { .. } | Judgment::Unknown => {}
        }
        judgment
    }

    /// Judges a message; its sender is asked if that is necessary.
    ///
    /// Returns `None` if the shapes are not known and its sender is no actor, so that no service can be asked.
    pub(super) async fn judged(
        self: &Arc<Self>,
        envelope: &mut Envelope,
        asks: bool,
    ) -> Result<Option<Judgment>, Unreachable> {
        match self.judge(envelope, asks) {
            Judgment::Unknown => {}
            judgment => return Ok(Some(judgment)),
        }
        if !can_be_asked(envelope) {
            return Ok(None);
        }
        let mut failed = self.asks_for_shapes.lock().await;
        match self.judge(envelope, asks) {
            // It came while another one waited for the same answer.
            judgment @ (Judgment::Fits { .. } | Judgment::Differs { .. }) => return Ok(Some(judgment)),
            Judgment::Unknown => {}
        }
        let Some(domain) = envelope.origin.as_ref().map(|origin| origin.shard.domain.clone()) else { return Ok(None) };
        if failed.get(&domain).is_some_and(|at| at.elapsed() < AGAIN) {
            return Err(Unreachable);
        }
        failed.remove(&domain);
        if let Err(error) = self.ask_for_shapes(envelope).await {
            if failed.len() >= MOST {
                failed.clear();
            }
            failed.insert(domain, instant());
            return Err(error);
        }
        Ok(Some(self.judge(envelope, asks)))
    }

    async fn ask_for_shapes(&self, envelope: &Envelope) -> Result<(), Unreachable> {
        let (Some(bridge), Some(origin), Some(shape)) = (&self.bridge, &envelope.origin, envelope.shape) else {
            return Err(Unreachable);
        };
        let asked = Request::Shape { from: origin.shard.clone(), to: envelope.to.clone(), shape };
        match bridge.request(asked, background::ASK).await {
            Ok(Response::Shape(text)) => self.shapes.learn(envelope, Some(&text)),
            // It has another program now than the one that wrote the message, perhaps one that does not know the question.
            Ok(Response::Refused(RequestError::Unhandled(_) | RequestError::Undecodable(_))) => {
                self.shapes.learn(envelope, None)
            }
            Ok(other) => {
                tracing::debug!(target: TARGET, from = %origin.shard, ?other, "shapes were asked for in vain");
                return Err(Unreachable);
            }
            Err(error) => {
                tracing::debug!(target: TARGET, from = %origin.shard, %error, "failed to ask for shapes");
                return Err(Unreachable);
            }
        }
        Ok(())
    }

    /// Judges messages that were read from another service's log or outbox, in their order.
    pub(super) async fn judged_all(self: &Arc<Self>, envelopes: &mut [Envelope]) -> Result<(), Unreachable> {
        for envelope in envelopes.iter_mut().filter(|envelope| envelope.shape.is_some()) {
            self.judged(envelope, false).await?;
        }
        Ok(())
    }
}

/// The name of the note about a message type.
fn about(envelope: &Envelope) -> String {
    format!("shape of {}.{}", envelope.domain, envelope.name)
}

fn sender(envelope: &Envelope) -> String {
    match &envelope.origin {
        Some(origin) => format!("`{}`", origin.shard.domain),
        None => "a caller".to_owned(),
    }
}
