//! Messages that are sent later: held in the log of their domain until they are due, and cancelled by their id.
//!
//! Called by the requests that can be [delayed](super::PostCommand::after). Builds the commands for the
//! [scheduler](crate::aggregate::scheduler) of the domain.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::retry::{Attempts, Effect, RetryMode, send_until_answered};
use super::{Client, DEADLINE};
use crate::router::{DelayedMessage, Remote, SCHEDULE, SendError, cancellation};
use whizbang_core::clock::Timestamp;
use whizbang_core::message::{CodecError, Coded, Domain, Envelope, Kind, MessageId, Name, Rejection};

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
    client: Client,
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
            ask(client, Envelope { id, deadline, ..scheduled }, attempts)
        }
        Err(error) => Box::pin(std::future::ready(Err(SendError::Encode(error)))),
    }
}

/// Asks the scheduler of a domain to drop a message.
pub(super) async fn cancel<D: Domain>(client: Client, id: MessageId) -> Result<bool, SendError> {
    let no_name = |_| SendError::Encode(CodecError::Encode { reason: format!("invalid name `{}`", D::NAME) });
    let domain = Name::from_static(D::NAME).map_err(no_name)?;
    let now = client.now();
    let like = Envelope::new(id, Kind::Command, domain.clone(), domain.clone(), now);
    let (_, envelope) = cancellation((&domain, D::SHARDS), id, &like);
    // The reply comes in the codec of the request.
    let envelope = Envelope { deadline: Some(now.after(DEADLINE)), codec: D::CODEC, ..envelope };
    let attempts = Attempts::new(RetryMode::UntilDeadline, Effect::Possible, DEADLINE);
    match ask(client, envelope, attempts).await {
        Ok(()) => Ok(true),
        Err(SendError::Rejected(no)) if no.code() == Rejection::SAGA_ENDED => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends a command to a scheduler and reads its reply.
fn ask(client: Client, envelope: Envelope, attempts: Attempts) -> BoxFuture<'static, Result<(), SendError>> {
    let codec = envelope.codec;
    let send = |remote: &dyn Remote, envelope, wait| remote.send(envelope, wait);
    let answer = send_until_answered(client, envelope, attempts, send);
    Box::pin(async move {
        match <() as Coded>::read_reply(codec, &answer.await?) {
            Ok(reply) => reply.map_err(SendError::Rejected),
            Err(error) => Err(SendError::Reply(error)),
        }
    })
}
