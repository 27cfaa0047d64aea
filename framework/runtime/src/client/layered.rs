//! The layers around the requests of a client.
//!
//! Called by the [retries](super::retry) of a client with layers, once for each request. Calls the [layers](crate::layer), which are
//! user code. Not generic over the message, so that it is compiled once for each kind of reply.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Client;
use crate::layer::{Call, CallOutcome, Layers, Refusal};
use crate::router::SendError;
use whizbang_core::message::{Codec, Envelope, Kind, Rejection, rejection_in};
use whizbang_core::telemetry::{TARGET, error_chain};
use whizbang_core::user_code::{caught, user_code};

/// The shortest wait before the layers of a client are asked again.
const MIN_WAIT: Duration = Duration::from_millis(1);

/// A request as layers see it, before it is sent.
pub(super) struct LayeredRequest {
    envelope: Envelope,
    /// A query of a key travels like a command.
    kind: Kind,
    deadline: Duration,
    /// False if a busy layer ends the request.
    is_repeated: bool,
}

/// The reply to a request, in which a rejection may be encoded.
pub(super) trait ReadRejection: Send + 'static {
    /// Returns the rejection, if the reply to a command is one.
    fn rejection(&self, codec: Codec) -> Option<Rejection>;
}

impl ReadRejection for Bytes {
    fn rejection(&self, codec: Codec) -> Option<Rejection> {
        rejection_in(codec, self).ok().flatten()
    }
}

impl ReadRejection for () {
    fn rejection(&self, _codec: Codec) -> Option<Rejection> {
        None
    }
}

impl LayeredRequest {
    pub(super) fn new(envelope: Envelope, kind: Kind, deadline: Duration, is_repeated: bool) -> Self {
        Self { envelope, kind, deadline, is_repeated }
    }

    fn call(&self, client: &Client) -> Call<'_> {
        Call { kind: self.kind, ..Call::of(&self.envelope, &self.envelope.key, client.now()) }
    }

    /// Waits until the layers let the request pass.
    async fn pass(&self, layers: &Layers, client: &Client) -> Result<(), SendError> {
        let busy = || SendError::Busy { domain: self.envelope.domain.to_string() };
        let passing = async {
            loop {
                let call = self.call(client);
                match caught(layers.before_async(&call)).await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(Refusal::Reject(rejection))) => return Err(SendError::Rejected(rejection)),
                    Ok(Err(Refusal::Busy { after })) if self.is_repeated => {
                        tokio::time::sleep(after.max(MIN_WAIT)).await;
                    }
                    Ok(Err(Refusal::Busy { .. })) => return Err(busy()),
                    Err(panicked) => {
                        return Err(SendError::Failed { reason: format!("a layer of the client {panicked}") });
                    }
                }
            }
        };
        tokio::time::timeout(self.deadline, passing).await.unwrap_or_else(|_| Err(busy()))
    }

    /// Runs the layers after the request.
    fn observe(&self, layers: &Layers, client: &Client, outcome: CallOutcome<'_>) {
        // The request has its result: a panic of a layer cannot change it.
        if let Err(panicked) = user_code(|| layers.after(&self.call(client), outcome)) {
            tracing::error!(
                target: TARGET, message = %self.envelope.name, id = %self.envelope.id, error = %panicked,
                "layer of a client failed after its request",
            );
        }
    }
}

/// Sends a request inside the layers of its client. `send` gets the client without them.
pub(super) async fn send_in_layers<R: ReadRejection, F: Future<Output = Result<R, SendError>>>(
    client: Client,
    layers: Arc<Layers>,
    request: LayeredRequest,
    send: impl FnOnce(Client) -> F,
) -> Result<R, SendError> {
    request.pass(&layers, &client).await?;
    let result = send(client.clone()).await;
    match &result {
        Ok(reply) => {
            let is_query = request.kind == Kind::Query;
            let rejection = if is_query { None } else { reply.rejection(request.envelope.codec) };
            let outcome = rejection.as_ref().map_or(CallOutcome::Done, CallOutcome::Rejected);
            request.observe(&layers, &client, outcome);
        }
        Err(SendError::Rejected(rejection)) => request.observe(&layers, &client, CallOutcome::Rejected(rejection)),
        Err(SendError::Busy { .. }) => request.observe(&layers, &client, CallOutcome::Busy),
        Err(error) => {
            let text = error_chain(error).to_string();
            request.observe(&layers, &client, CallOutcome::Failed(&text));
        }
    }
    result
}
