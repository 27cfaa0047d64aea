//! The subjects at which a node receives replies: one inbox that only JetStream writes to, and one for the responses of other nodes.
//!
//! Used by the publisher, and by the generated permissions. Every service that responds to requests may publish to every inbox for
//! responses, so a service that knew the subject of a request could forge its response. Therefore each request has a secret
//! token in its reply subject. The inbox of acknowledgements and pulled messages never leaves the connection to the server: a
//! service that knew it could name it as the reply subject of its own requests to JetStream.

use std::hash::{BuildHasher, RandomState};

use async_nats::Subject;

use super::pending_replies::ReplyKind;
use whizbang_core::message::Name;
use whizbang_wire::subject::Namespace;

/// The reply subjects of one connection.
pub(super) struct Inboxes {
    /// The number of a message follows.
    acknowledgements: String,
    /// The number of a request and its token follow.
    responses: String,
    /// The secret keys of the tokens, new for each connection.
    tokens: RandomState,
}

/// Returns the prefix of the inboxes for responses to a service.
pub(super) fn response_inbox(namespace: &Namespace, service: &str) -> String {
    format!("_INBOX_{namespace}.{service}")
}

impl Inboxes {
    /// Returns the reply subjects of a service. `private` is an inbox of its connection.
    pub(super) fn new(private: &str, namespace: &Namespace, service: &Name) -> Self {
        #[expect(clippy::disallowed_methods, reason = "other processes must not be able to compute the tokens")]
        let tokens = RandomState::new();
        // Not an inbox of the client library: it numbers them, so that one reveals the others.
        let connection = tokens.hash_one("connection");
        Self {
            acknowledgements: format!("{private}.r"),
            responses: format!("{}.{connection:016x}", response_inbox(namespace, service.as_str())),
            tokens,
        }
    }

    /// Returns the subjects to subscribe to.
    pub(super) fn subscriptions(&self) -> [String; 2] {
        [format!("{}.*", self.acknowledgements), format!("{}.*.*", self.responses)]
    }

    /// Returns a subject beside those of the responses to this node, without a subscriber: the server denies a message to it if this
    /// node is not permitted to respond to services.
    pub(super) fn start_check(&self) -> Subject {
        Subject::from(format!("{}.start", self.responses))
    }

    /// Returns the reply subject of a message.
    pub(super) fn reply_subject(&self, number: u64, kind: ReplyKind) -> Subject {
        Subject::from(match kind {
            ReplyKind::Acknowledgement => format!("{}.{number}", self.acknowledgements),
            ReplyKind::Response => format!("{}.{number}.{}", self.responses, self.token(number)),
        })
    }

    /// Returns the number of the message that has this reply subject, and the kind of the reply. `None` if no message has it.
    pub(super) fn message_of(&self, reply_subject: &str) -> Option<(u64, ReplyKind)> {
        let after = |prefix: &str| reply_subject.strip_prefix(prefix)?.strip_prefix('.');
        if let Some(number) = after(&self.acknowledgements) {
            return Some((number.parse().ok()?, ReplyKind::Acknowledgement));
        }
        let (number, token) = after(&self.responses)?.split_once('.')?;
        let number = number.parse().ok()?;
        (token == self.token(number)).then_some((number, ReplyKind::Response))
    }

    /// Returns the token of a request: a keyed hash, which the tokens of other requests do not reveal.
    fn token(&self, number: u64) -> String {
        format!("{:016x}", self.tokens.hash_one(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inboxes() -> Inboxes {
        Inboxes::new("_INBOX_whizbang_bank.private", &Namespace::default(), &Name::new("bank").unwrap())
    }

    #[test]
    fn reply_subject_leads_to_its_message() {
        let inboxes = inboxes();
        for number in [0, 7, u64::MAX] {
            for kind in [ReplyKind::Acknowledgement, ReplyKind::Response] {
                let subject = inboxes.reply_subject(number, kind);
                assert_eq!(inboxes.message_of(&subject), Some((number, kind)), "{subject}");
            }
        }
    }

    #[test]
    fn subject_of_one_request_is_not_that_of_another() {
        let (inboxes, other) = (inboxes(), inboxes());
        let known = inboxes.reply_subject(1, ReplyKind::Response);
        let token = known.rsplit_once('.').unwrap().1;
        for guess in [
            known.replace(&format!(".1.{token}"), &format!(".2.{token}")),
            known.replace(&format!(".{token}"), ""),
            known.replace(token, ""),
            known.replace(token, "0000000000000000"),
            format!("{known}.1"),
            format!("{}.r.1.{token}", inboxes.responses),
            format!("{}.r.1", inboxes.responses),
        ] {
            assert_eq!(inboxes.message_of(&guess), None, "{guess}");
        }
        assert_eq!(other.message_of(&known), None, "another connection");
        assert!(!known.contains("private"));
    }
}
