//! Inboxes that the server does not permit this node to respond to.
//!
//! Written by the connection, which receives the denials; read by the consumer loop before it handles a request. The requester
//! chooses the reply subject of its request. Without this memory, each request with a foreign inbox would run user code, and its
//! denied response would be logged as an error. A server without permissions denies nothing, so no inbox is refused in advance.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The first token of all inboxes, or its beginning.
const INBOX: &str = "_INBOX";
/// The maximum number of denied inboxes that are remembered. A requester may invent any number. Responses to further ones are
/// still denied by the server and counted, without a warning for each.
const MAX_DENIED: usize = 64;
/// The time after which a response is tried again: the permissions of a user can change while it is connected.
const DENIED_FOR: Duration = Duration::from_secs(60);

/// The inboxes with denied responses, by their first token, and the number of requests and responses that were dropped.
#[derive(Debug, Default)]
pub(super) struct DeniedInboxes {
    /// The time until which requests with these inboxes are dropped.
    until: Mutex<HashMap<String, Instant>>,
    /// The number of dropped requests since the start, for the metrics.
    dropped: AtomicU64,
}

/// The meaning of a denial for this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// The subject is not the inbox of another party: the permissions of this node are incomplete.
    OwnSubject,
    /// A response to an inbox whose denial was not known.
    NewInbox,
    /// A response to an inbox whose denial was known, to one of too many, or to a wrong one beside those of the services.
    KnownInbox,
}

/// Returns whether a node responds to this reply subject.
pub(super) fn is_inbox(subject: &str) -> bool {
    subject.starts_with(INBOX)
}

/// Returns the part of an inbox that permissions distinguish.
fn owner_of(inbox: &str) -> &str {
    inbox.split_once('.').map_or(inbox, |(owner, _)| owner)
}

impl DeniedInboxes {
    /// Records that the server has denied a message to `subject`. `own` is the first token of the inboxes of this connection, and
    /// `shared` that of the inboxes where the services of the namespace expect their responses. A requester that names a wrong
    /// inbox there must not stop the responses to the others, so it is not remembered.
    pub(super) fn record(&self, subject: &str, own: &str, shared: &str, now: Instant) -> Denial {
        let owner = owner_of(subject);
        if !is_inbox(subject) || owner == own {
            return Denial::OwnSubject;
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
        if owner == shared {
            return Denial::KnownInbox;
        }
        let mut until = self.until.lock();
        if until.len() >= MAX_DENIED && !until.contains_key(owner) {
            until.retain(|_, until| *until > now);
            if until.len() >= MAX_DENIED {
                return Denial::KnownInbox;
            }
        }
        match until.insert(owner.to_owned(), now + DENIED_FOR) {
            Some(_) => Denial::KnownInbox,
            None => Denial::NewInbox,
        }
    }

    /// Returns whether a request with this reply subject is dropped, and counts it.
    pub(super) fn drops(&self, reply: &str, now: Instant) -> bool {
        let is_denied = self.until.lock().get(owner_of(reply)).is_some_and(|until| *until > now);
        if is_denied {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        is_denied
    }

    /// Forgets the denials: the login of a new connection may have other permissions.
    pub(super) fn forget(&self) {
        self.until.lock().clear();
    }

    /// Returns the number of requests that were dropped and of responses that were denied.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_core::clock::monotonic;

    const OWN: &str = "_INBOX_whizbang_bank";
    const SHARED: &str = "_INBOX_whizbang";

    #[test]
    fn wrong_inbox_does_not_stop_the_responses_to_services() {
        let (denied, now) = (DeniedInboxes::default(), monotonic());
        for wrong in ["_INBOX_whizbang", "_INBOX_whizbang.x", "_INBOX_whizbang.e-shop.1"] {
            assert_eq!(denied.record(wrong, OWN, SHARED, now), Denial::KnownInbox, "{wrong}");
            assert!(!denied.drops("_INBOX_whizbang.e-shop.2", now), "{wrong}");
        }
        assert_eq!(denied.dropped(), 3);
    }

    #[test]
    fn denied_inbox_is_reported_once_and_tried_again() {
        let (denied, now) = (DeniedInboxes::default(), monotonic());
        assert!(!denied.drops("_INBOX_evil.a", now));
        assert_eq!(denied.record("_INBOX_evil.a", OWN, SHARED, now), Denial::NewInbox);
        assert!(denied.drops("_INBOX_evil.b.c", now) && !denied.drops("_INBOX_whizbang.e-shop.1", now));
        assert_eq!(denied.dropped(), 2);
        let later = now + DENIED_FOR;
        assert!(!denied.drops("_INBOX_evil.a", later));
        assert_eq!(denied.record("_INBOX_evil.a", OWN, SHARED, later), Denial::KnownInbox);
        assert!(denied.drops("_INBOX_evil.a", later));
        denied.forget();
        assert!(!denied.drops("_INBOX_evil.a", later));
    }

    #[test]
    fn own_subjects_are_not_denied_inboxes() {
        let (denied, now) = (DeniedInboxes::default(), monotonic());
        for subject in ["whizbang.evt.bank.0.Happened", "$JS.API.INFO", "_INBOX_whizbang_bank.x.r.1"] {
            assert_eq!(denied.record(subject, OWN, SHARED, now), Denial::OwnSubject, "{subject}");
            assert!(!denied.drops(subject, now));
        }
        assert_eq!(denied.record("_INBOX_whizbang_bank-2.x", OWN, SHARED, now), Denial::NewInbox);
    }

    #[test]
    fn remembered_inboxes_are_bounded() {
        let (denied, now) = (DeniedInboxes::default(), monotonic());
        let record = |number: usize, now| denied.record(&format!("_INBOX_{number}.x"), OWN, SHARED, now);
        let new = (0..10 * MAX_DENIED).filter(|number| record(*number, now) == Denial::NewInbox).count();
        assert_eq!(new, MAX_DENIED);
        assert_eq!(denied.dropped(), 10 * MAX_DENIED as u64);
        assert_eq!(record(0, now + DENIED_FOR / 2), Denial::KnownInbox);
        assert_eq!(record(10 * MAX_DENIED, now + DENIED_FOR), Denial::NewInbox, "expired ones are replaced");
        assert_eq!(denied.until.lock().len(), 2);
    }
}
