//! Responses to remote callers, without internal texts.
//!
//! Called by the [bridge handler](crate::node::inbound::bridge_handler). A remote caller may be any client that the broker
//! admits. It learns the outcome of its command and any fault in the bytes that it sent. Texts of panics, handlers and
//! the store may contain paths, queries or data of other customers: they go to the log, under the id that the caller
//! gets.

use std::fmt::Display;

use crate::node::definition::log_limits::LogLimits;
use crate::router::Outcome;
use whizbang_core::bridge::{RequestError, Response};
use whizbang_core::clock::instant;
use whizbang_core::message::{Codec, Envelope, MessageId, Name, ShardId};
use whizbang_core::store::StoreError;
use whizbang_core::telemetry::TARGET;
use whizbang_core::telemetry::error_chain;

/// Data kept to answer a command or query after it has been passed on.
pub(in crate::node) struct RemoteRequest {
    id: MessageId,
    name: Name,
    codec: Codec,
}

impl RemoteRequest {
    pub(in crate::node) fn of(envelope: &Envelope) -> Self {
        Self { id: envelope.id, name: envelope.name.clone(), codec: envelope.codec }
    }

    /// Returns the response for an outcome.
    pub(in crate::node) fn answer(&self, outcome: Outcome, limits: &LogLimits) -> Response {
        Response::Refused(match outcome {
            Outcome::Done(reply, written) if written == self.codec => return Response::Reply(reply),
            Outcome::Done(..) => RequestError::Unknown("handled, but the reply is encoded in another codec".to_owned()),
            Outcome::DeadLetter(reason) => {
                RequestError::DeadLetter(self.log_and_redact(limits, "dead-letter", &reason))
            }
            Outcome::Failed(reason) => RequestError::Failed(self.log_and_redact(limits, "failed", &reason)),
            Outcome::Busy => RequestError::Busy,
            Outcome::Unhandled => RequestError::Unhandled("no handler".to_owned()),
            Outcome::Conflict => RequestError::Conflict,
            Outcome::Expired => RequestError::Expired,
            Outcome::IdInFuture => RequestError::IdInFuture,
            Outcome::Late => RequestError::Late,
            Outcome::Undecodable(reason) => RequestError::Undecodable(reason),
            Outcome::Stopped | Outcome::Moved => RequestError::NotHere,
            Outcome::Refused(error @ StoreError::Full { .. }) => {
                self.log_and_redact(limits, "full", &error_chain(&error));
                RequestError::Full
            }
            Outcome::Refused(error) => {
                self.log_and_redact(limits, "not-here", &error_chain(&error));
                RequestError::NotHere
            }
            Outcome::Unanswered(reason) => RequestError::Unknown(self.log_and_redact(limits, "unanswered", &reason)),
            Outcome::Unknown(error) => {
                RequestError::Unknown(self.log_and_redact(limits, "unknown", &error_chain(&error)))
            }
        })
    }

    /// Logs a reason, and returns the text that the caller gets instead.
    ///
    /// A caller may cause any number of failures. Beyond the limit of lines the reason is lost, and the metrics still count it.
    fn log_and_redact(&self, limits: &LogLimits, code: &'static str, reason: &dyn Display) -> String {
        if limits.failed_requests.admits(instant()) {
            tracing::warn!(
                target: TARGET, id = %self.id, message = %self.name, code, %reason,
                "remote request failed: reason withheld from the caller",
            );
        }
        format!("see the owner's log for {}", self.id)
    }
}

/// Returns the response for a page that cannot be read.
pub(in crate::node) fn page_unreadable(shard: &ShardId, error: &dyn std::error::Error, limits: &LogLimits) -> Response {
    if limits.unread_pages.admits(instant()) {
        tracing::warn!(
            target: TARGET, %shard, error = %error_chain(error),
            "failed to read a page of the log for a remote reader",
        );
    }
    Response::Refused(RequestError::Unknown(format!("see the owner's log for {shard}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "/srv/data/7: hunter2";

    /// Texts reach the caller only in outcomes about the caller's own bytes.
    #[test]
    fn internal_texts_are_not_sent_to_callers() {
        let asker =
            RemoteRequest { id: MessageId::from_u128(7), name: Name::from_static("Do").unwrap(), codec: Codec::Json };
        let limits = LogLimits::default();
        let secret = || SECRET.to_owned();
        let store = || StoreError::io("writing /srv/data/7", std::io::Error::other("hunter2"));
        for outcome in [
            Outcome::DeadLetter(secret()),
            Outcome::Failed(secret()),
            Outcome::Unanswered(secret()),
            Outcome::Unknown(store()),
            Outcome::Refused(store()),
        ] {
            let answer = format!("{:?}", asker.answer(outcome, &limits));
            assert!(!answer.contains("/srv") && !answer.contains("hunter2"), "{answer}");
            assert!(answer.contains("NotHere") || answer.contains(&asker.id.to_string()), "{answer}");
        }
        let shard = ShardId::new(Name::from_static("bank").unwrap(), 3);
        let answer = format!("{:?}", page_unreadable(&shard, &store(), &limits));
        assert!(!answer.contains("/srv") && answer.contains("bank/3"), "{answer}");
        // A caller must learn what is wrong with its own bytes.
        let answer = asker.answer(Outcome::Undecodable("the field `cents` is missing".to_owned()), &limits);
        assert_eq!(answer, Response::Refused(RequestError::Undecodable("the field `cents` is missing".to_owned())));
    }
}
