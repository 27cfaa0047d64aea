//! The answers to callers over the bridge: what they may know, and what stays in this node's log.
//!
//! Called by the node's [door](super::inbound). A caller over the bridge may be anyone whom the broker lets in. It is told what
//! became of its command, and what is wrong with the bytes that it sent itself. Texts of panics, of handlers and of the store
//! may hold paths, queries or other customers' data: they go to the log, under the id that the caller gets.

use std::fmt::Display;

use crate::bridge::{RequestError, Response};
use crate::message::{Codec, Envelope, MessageId, Name, ShardId};
use crate::router::Outcome;
use crate::store::StoreError;
use crate::telemetry::TARGET;

/// What is needed to answer a command or query after it has been handed over.
pub(super) struct Asker {
    id: MessageId,
    name: Name,
    codec: Codec,
}

impl Asker {
    pub(super) fn of(envelope: &Envelope) -> Self {
        Self { id: envelope.id, name: envelope.name.clone(), codec: envelope.codec }
    }

    /// Returns the answer to an outcome.
    pub(super) fn answer(&self, outcome: Outcome) -> Response {
        Response::Refused(match outcome {
            Outcome::Done(reply, written) if written == self.codec => return Response::Reply(reply),
            Outcome::Done(..) => {
                RequestError::Unknown("it was handled, and its reply is written in another codec".to_owned())
            }
            Outcome::DeadLetter(reason) => RequestError::DeadLetter(self.kept("dead-letter", &reason)),
            Outcome::Failed(reason) => RequestError::Failed(self.kept("failed", &reason)),
            Outcome::Busy => RequestError::Busy,
            Outcome::Unhandled => RequestError::Unhandled("nobody here handles it".to_owned()),
            Outcome::Conflict => RequestError::Conflict,
            Outcome::Expired => RequestError::Expired,
            Outcome::IdInFuture => RequestError::IdInFuture,
            Outcome::Late => RequestError::Late,
            Outcome::Undecodable(reason) => RequestError::Undecodable(reason),
            Outcome::Stopped => RequestError::NotHere,
            Outcome::Refused(error @ StoreError::Full { .. }) => {
                self.kept("full", &error);
                RequestError::Full
            }
            Outcome::Refused(error) => {
                self.kept("not-here", &error);
                RequestError::NotHere
            }
            Outcome::Unanswered(reason) => RequestError::Unknown(self.kept("unanswered", &reason)),
            Outcome::Unknown(error) => RequestError::Unknown(self.kept("unknown", &error)),
        })
    }

    /// Logs a reason, and returns what the caller gets instead.
    fn kept(&self, code: &'static str, reason: &dyn Display) -> String {
        tracing::warn!(
            target: TARGET, id = %self.id, message = %self.name, code, %reason,
            "a remote caller was answered with the code alone",
        );
        format!("see the owner's log for {}", self.id)
    }
}

/// The answer to a page that cannot be read.
pub(super) fn unreadable(shard: &ShardId, error: &dyn Display) -> Response {
    tracing::warn!(target: TARGET, %shard, %error, "a remote reader was refused a page of the log");
    Response::Refused(RequestError::Unknown(format!("see the owner's log for {shard}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "/srv/data/7: hunter2";

    /// No outcome but those that speak of the caller's own bytes hands a text of the node to a caller.
    #[test]
    fn texts_of_the_node_stay_in_the_node() {
        let asker = Asker { id: MessageId::from_u128(7), name: Name::from_static("Do").unwrap(), codec: Codec::Json };
        let secret = || SECRET.to_owned();
        let store = || StoreError::io("writing /srv/data/7", std::io::Error::other("hunter2"));
        for outcome in [
            Outcome::DeadLetter(secret()),
            Outcome::Failed(secret()),
            Outcome::Unanswered(secret()),
            Outcome::Unknown(store()),
            Outcome::Refused(store()),
        ] {
            let answer = format!("{:?}", asker.answer(outcome));
            assert!(!answer.contains("/srv") && !answer.contains("hunter2"), "{answer}");
            assert!(answer.contains("NotHere") || answer.contains(&asker.id.to_string()), "{answer}");
        }
        let shard = ShardId::new(Name::from_static("bank").unwrap(), 3);
        let answer = format!("{:?}", unreadable(&shard, &store()));
        assert!(!answer.contains("/srv") && answer.contains("bank/3"), "{answer}");
        // What is wrong with its own bytes a caller has to know.
        let answer = asker.answer(Outcome::Undecodable("the field `cents` is missing".to_owned()));
        assert_eq!(answer, Response::Refused(RequestError::Undecodable("the field `cents` is missing".to_owned())));
    }
}
