//! Messages that are sent later: held in the log of their domain until they are due, and cancelled by their id.
//!
//! Called by the requests that can be [delayed](super::PostCommand::after). Builds the commands for the
//! [scheduler](crate::aggregate::scheduler) of the domain.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::layered::send_in_layers;
use super::retry::{Attempts, Effect, RetryMode, send_until_answered};
use super::{Client, DEADLINE};
use crate::router::{DelayedMessage, Remote, SCHEDULE, SendError, cancellation};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{Codec, CodecError, Coded, Domain, Envelope, Kind, MessageId, Name, Rejection};

/// The time at which a message is due.
#[derive(Clone, Copy, Debug)]
pub(super) enum Due {
    At(Timestamp),
    After(Duration),
}

impl Due {
    fn time(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::After(after) => now.after(after),
        }
    }
}

/// Hands a message to the scheduler of its domain. The returned future is done when it is stored there.
pub(super) fn schedule(
    mut client: Client,
    envelope: &Envelope,
    shards: u16,
    due: Due,
    attempts: Attempts,
) -> BoxFuture<'static, Result<(), SendError>> {
    let due = due.time(envelope.time);
    match DelayedMessage::schedule((&envelope.domain, shards), envelope, due, envelope.codec) {
        Ok((_, scheduled)) => {
            // A repeated request with another time is another command: it moves the message.
            let id = envelope.id.derive(&format!("{SCHEDULE}/{}", due.as_millis()), 0);
            let deadline = envelope.deadline;
            let scheduled = Envelope { id, deadline, ..scheduled };
            match client.layers.take() {
                None => ask(client, scheduled, attempts),
                // They see the message itself, and not the one that delays it.
                Some(layers) => {
                    let request = attempts.layered(envelope);
                    let sent = |client| ask::<()>(client, scheduled, attempts);
                    Box::pin(send_in_layers(client, layers, request, sent))
                }
            }
        }
        Err(error) => Box::pin(std::future::ready(Err(SendError::Encode(error)))),
    }
}

impl Client {
    /// Cancels a message of the domain `D` that a client has [delayed](super::PostCommand::after), by its id. Returns true
    /// if it is not sent; false if it was sent already, or was cancelled by another caller.
    ///
    /// A message that is cancelled before its post arrives is not sent either. Dropping the future after its first poll may
    /// cancel the message.
    ///
    /// # Errors
    /// Same as [`send`](Self::send). [`SendError::Unhandled`]: the owner is of a version that cannot delay messages of clients.
    pub async fn cancel<D: Domain>(&self, id: MessageId) -> Result<bool, SendError> {
        cancel(self.clone(), D::NAME, D::SHARDS, D::CODEC, id).await
    }
}

async fn cancel(
    client: Client,
    name: &'static str,
    shards: u16,
    codec: Codec,
    id: MessageId,
) -> Result<bool, SendError> {
    let no_name = |_| SendError::Encode(CodecError::Encode { reason: format!("invalid name `{name}`") });
    let domain = Name::from_static(name).map_err(no_name)?;
    let now = client.now();
    let like = Envelope::new(id, Kind::Command, domain.clone(), domain.clone(), now);
    let (_, envelope) = cancellation((&domain, shards), id, &like);
    // The reply comes in the codec of the request.
    let envelope = Envelope { deadline: Some(now.after(DEADLINE)), codec, ..envelope };
    let attempts = Attempts::new(RetryMode::UntilDeadline, Effect::Possible, DEADLINE);
    match ask::<()>(client, envelope, attempts).await {
        Ok(()) => Ok(true),
        Err(SendError::Rejected(no)) if no.code() == Rejection::SAGA_ENDED => Ok(false),
        Err(error) => Err(error),
    }
}

/// The replies of the actors of the framework: none, or a yes or no.
pub(super) trait Reply: Coded + Send + 'static {}

impl Reply for () {}

impl Reply for bool {}

/// Sends a command to a scheduler and reads its reply.
pub(super) fn ask<R: Reply>(
    mut client: Client,
    envelope: Envelope,
    attempts: Attempts,
) -> BoxFuture<'static, Result<R, SendError>> {
    // A message of the framework passes no layers.
    client.layers = None;
    let codec = envelope.codec;
    let send = |remote: &dyn Remote, envelope, wait| remote.send(envelope, wait);
    let answer = send_until_answered(client, envelope, attempts, send);
    Box::pin(async move {
        match R::read_reply(codec, &answer.await?) {
            Ok(reply) => reply.map_err(SendError::Rejected),
            Err(error) => Err(SendError::Reply(error)),
        }
    })
}
