//! Retries of a request: the errors after which it is sent again, the waits in between, and the error that remains.
//!
//! Called by the [requests](super::request). Each attempt has the same message id, so an owner that has handled an
//! earlier one answers with the first reply. A request whose first attempt succeeds never gets here, except that one
//! which leaves the thread as bytes keeps a copy of its envelope.

use std::pin::Pin;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, Sleep};

use super::Client;
use super::layered::{LayeredRequest, ReadRejection, send_in_layers};
use crate::router::{Remote, SendError};
use whizbang_core::clock::instant;
use whizbang_core::message::{Envelope, Kind, MessageId};
use whizbang_core::retry::Retry;
use whizbang_core::telemetry::{TARGET, error_chain};

/// Waits between two attempts: from 10 ms, doubling up to 1 s, with half of each wait random. Short enough that a
/// restarted owner is found at once, and one attempt per second of each waiting caller does not hold it down.
const WAITS: Retry = Retry { attempts: u32::MAX, first: Duration::from_millis(10), longest: Duration::from_secs(1) };

impl Client {
    /// Returns the wait before attempt `attempt` + 1 of something that failed for now.
    pub(crate) fn retry_wait(&self, attempt: u32) -> Duration {
        WAITS.wait(attempt, &self.inner.ids.lock())
    }
}

/// Time that the first attempt waits for the reply of another process before the request is sent again; doubles with each
/// attempt that had no reply, up to [`LONGEST_ATTEMPT`]. An owner that is killed never replies, and its successor may run within a second.
const FIRST_ATTEMPT: Duration = Duration::from_secs(2);

/// Longest wait for the reply to one attempt, unless less is left until the deadline.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(10);

/// The handling of a transient error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryMode {
    /// Until its deadline.
    UntilDeadline,
    /// It is sent once.
    Never,
}

/// The effect that a request without a reply may have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// A command.
    Possible,
    /// A query.
    None,
}

/// The attempts of one request.
#[derive(Clone, Debug)]
pub(super) struct Attempts {
    mode: RetryMode,
    effect: Effect,
    /// The whole time that the caller waits.
    deadline: Duration,
    until: Instant,
    count: u32,
    /// The attempts that had no reply. A refusal costs no time, and the next owner replies as fast as the first.
    unanswered: u32,
    /// An earlier attempt may have been handled, or may still be on its way.
    is_uncertain: bool,
}

impl Attempts {
    /// Begins to count at the first attempt, or at the first refusal.
    pub(super) fn new(mode: RetryMode, effect: Effect, deadline: Duration) -> Self {
        // A deadline beyond the range of the clock is one of a century.
        let now = instant();
        let until = now.checked_add(deadline).unwrap_or_else(|| now + Duration::from_secs(3_155_760_000));
        Self { mode, effect, deadline, until, count: 0, unanswered: 0, is_uncertain: false }
    }

    /// Returns a request as layers see it.
    pub(super) fn layered(&self, envelope: &Envelope) -> LayeredRequest {
        // A query of a key travels like a command.
        let kind = if self.effect == Effect::None { Kind::Query } else { envelope.kind };
        LayeredRequest::new(envelope.clone(), kind, self.remaining(), self.mode == RetryMode::UntilDeadline)
    }

    /// Returns the time until the deadline.
    pub(super) fn remaining(&self) -> Duration {
        self.until.saturating_duration_since(instant())
    }

    /// Returns how long the next attempt waits for its reply.
    fn attempt_wait(&self, envelope: &Envelope, remote: &dyn Remote) -> Duration {
        let remaining = self.remaining();
        // Inside the process no message is lost: sending it again would only cost a turn.
        if self.mode == RetryMode::Never || remote.is_local(envelope) {
            return remaining;
        }
        let doubled = FIRST_ATTEMPT.saturating_mul(1u32.checked_shl(self.unanswered).unwrap_or(u32::MAX));
        remaining.min(doubled.min(LONGEST_ATTEMPT))
    }

    /// Decides about a failed attempt: returns the wait before the next one.
    ///
    /// # Errors
    /// The error for the caller, if no further attempt is made.
    pub(super) fn after(
        &mut self,
        error: SendError,
        client: &Client,
        of: &RequestId<'_>,
    ) -> Result<Duration, SendError> {
        self.count = self.count.saturating_add(1);
        self.unanswered += u32::from(matches!(error, SendError::NoReply { .. }));
        let happens = error.may_have_happened() && self.effect == Effect::Possible;
        if !self.is_retried(&error, client) {
            return Err(self.final_error(error, of));
        }
        let wait = WAITS.wait(self.count, &client.inner.ids.lock());
        if wait >= self.remaining() {
            return Err(self.final_error(error, of));
        }
        self.is_uncertain |= happens;
        let attempt = self.count;
        tracing::debug!(
            target: TARGET, domain = of.domain, id = of.id.map(tracing::field::display), attempt, ?wait,
            error = %error_chain(&error), "request retried",
        );
        Ok(wait)
    }

    fn is_retried(&self, error: &SendError, client: &Client) -> bool {
        self.mode == RetryMode::UntilDeadline
            && error.is_transient()
            // It takes minutes until the id is accepted, or a corrected clock.
            && !matches!(error, SendError::IdInFuture)
            // This client's own node accepts nothing again.
            && !(matches!(error, SendError::Stopped) && client.inner.remote.has_ended())
            // Outside of a tokio runtime there is no timer to wait with.
            && tokio::runtime::Handle::try_current().is_ok()
    }

    /// Returns the error for the caller. "Nothing was done" is only said if it holds for every attempt.
    fn final_error(&self, mut error: SendError, of: &RequestId<'_>) -> SendError {
        if let SendError::NoReply { deadline, attempts, .. } = &mut error {
            (*deadline, *attempts) = (self.deadline, self.count);
        }
        let is_certain = error.may_have_happened() || matches!(error, SendError::Rejected(_) | SendError::Conflict);
        match of.id {
            Some(id) if self.is_uncertain && !is_certain => SendError::NoReply {
                domain: of.domain.to_owned(),
                deadline: self.deadline,
                id,
                attempts: self.count,
                source: Some(Box::new(error)),
            },
            _ => error,
        }
    }
}

/// Names a request in errors and logs.
pub(super) struct RequestId<'a> {
    pub(super) domain: &'a str,
    /// `None` if the command has had no id so far, because it was never accepted.
    pub(super) id: Option<MessageId>,
}

/// Returns a timer for the wait. Compiled once for all commands.
pub(super) fn sleep(wait: Duration) -> Pin<Box<Sleep>> {
    Box::pin(tokio::time::sleep(wait))
}

/// Sends one attempt: the method of [`Remote`] that fits the request.
pub(super) type SendOnce<R> = fn(&dyn Remote, Envelope, Duration) -> BoxFuture<'static, Result<R, SendError>>;

/// Sends an encoded request until it has a reply or a final error. Not generic over the message, so that it is
/// compiled once for each kind of reply: bytes, or the acceptance of a posted command.
pub(super) async fn send_until_answered<R: ReadRejection>(
    mut client: Client,
    envelope: Envelope,
    attempts: Attempts,
    send: SendOnce<R>,
) -> Result<R, SendError> {
    match client.layers.take() {
        None => repeat_until_answered(client, envelope, attempts, send).await,
        Some(layers) => {
            let request = attempts.layered(&envelope);
            let sent = |client| repeat_until_answered(client, envelope, attempts, send);
            send_in_layers(client, layers, request, sent).await
        }
    }
}

async fn repeat_until_answered<R: Send + 'static>(
    client: Client,
    envelope: Envelope,
    mut attempts: Attempts,
    send: SendOnce<R>,
) -> Result<R, SendError> {
    let has_deadline = envelope.deadline.is_some();
    loop {
        let remote = &*client.inner.remote;
        let wait = attempts.attempt_wait(&envelope, remote);
        let mut attempt = envelope.clone();
        if attempts.count > 0 {
            // The owner counts the deadline from the envelope's time.
            attempt.time = client.now();
            attempt.deadline = has_deadline.then(|| attempt.time.after(attempts.remaining()));
        }
        let error = match send(remote, attempt, wait).await {
            Err(error) => error,
            reply => return reply,
        };
        let of = RequestId { domain: &envelope.domain, id: Some(envelope.id) };
        tokio::time::sleep(attempts.after(error, &client, &of)?).await;
    }
}
