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

use super::excerpt::excerpt;

/// The first token of all inboxes, or its beginning.
const INBOX: &str = "_INBOX";
/// The maximum number of denied inboxes that are remembered. A requester may invent any number. Responses to further ones are
/// still denied by the server and counted, without a warning for each.
const MAX_DENIED: usize = 64;
/// The time after which a response is tried again: the permissions of a user can change while it is connected.
const DENIED_FOR: Duration = Duration::from_secs(60);

/// The number of denied subjects that the note for operators names.
const NAMED: usize = 3;

/// The inboxes of a connection, which tell its own subjects from those of requesters.
#[derive(Debug)]
pub(super) struct OwnInboxes {
    /// The first token of the private inboxes.
    pub(super) private: String,
    /// The first token of the inboxes where the services of the namespace expect their responses.
    pub(super) shared: String,
    /// The first two tokens of the inboxes where this node expects its responses.
    pub(super) responses: String,
}

/// The denials of the last minute, and the number of requests and responses that were dropped.
#[derive(Debug, Default)]
pub(super) struct DeniedInboxes {
    /// The requesters whose inboxes are denied, by the part that permissions distinguish, until a time.
    requesters: Mutex<HashMap<String, Denied>>,
    /// The subjects of this node that are denied, until a time.
    own: Mutex<HashMap<String, Instant>>,
    /// The number of dropped requests since the start, for the metrics.
    dropped: AtomicU64,
}

/// A denied inbox.
#[derive(Clone, Copy, Debug)]
struct Denied {
    /// The time at which a response is tried again.
    until: Instant,
    /// Requests with the inbox are dropped before they are handled.
    drops: bool,
}

/// The meaning of a denial for this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denial {
    /// The subject is not the inbox of another party: the permissions of this node are incomplete.
    OwnSubject,
    /// A response to a service of the namespace, which the generated permissions of this node would permit.
    Service,
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

/// Returns whether a subject is below a prefix of whole tokens.
fn is_below(subject: &str, prefix: &str) -> bool {
    subject.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
}

/// Returns the first two tokens of an inbox with more.
fn service_of(inbox: &str) -> Option<&str> {
    let (first, rest) = inbox.split_once('.')?;
    let (second, _) = rest.split_once('.')?;
    inbox.get(..first.len() + 1 + second.len())
}

impl DeniedInboxes {
    /// Records that the server has denied a message to `subject`. A requester that names a wrong inbox beside those of the services
    /// must not stop the responses to the others, so requests are not dropped because of it.
    pub(super) fn record(&self, subject: &str, inboxes: &OwnInboxes, now: Instant) -> Denial {
        if !is_inbox(subject) || is_below(subject, &inboxes.private) || is_below(subject, &inboxes.responses) {
            remember(&mut self.own.lock(), subject, now + DENIED_FOR, |until| *until > now);
            return Denial::OwnSubject;
        }
        self.dropped.fetch_add(1, Ordering::Relaxed);
        let owner = owner_of(subject);
        let is_shared = owner == inboxes.shared;
        let key = if is_shared { service_of(subject) } else { Some(owner) };
        let Some(key) = key.filter(|key| *key != inboxes.private) else { return Denial::KnownInbox };
        let denied = Denied { until: now + DENIED_FOR, drops: !is_shared };
        match remember(&mut self.requesters.lock(), key, denied, |denied| denied.until > now) {
            false => Denial::KnownInbox,
            true if is_shared => Denial::Service,
            true => Denial::NewInbox,
        }
    }

    /// Returns whether a request with this reply subject is dropped, and counts it.
    pub(super) fn drops(&self, reply: &str, now: Instant) -> bool {
        let denied = self.requesters.lock().get(owner_of(reply)).copied();
        let is_denied = denied.is_some_and(|denied| denied.drops && denied.until > now);
        if is_denied {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        is_denied
    }

    /// Returns the notes for operators about the denials of the last minute.
    pub(super) fn notes(&self, now: Instant) -> impl Iterator<Item = String> {
        let of_node = named(self.own.lock().iter().filter(|(_, until)| **until > now).map(|(subject, _)| subject));
        let of_node = of_node.map(|subjects| {
            format!(
                "the server denies this node {subjects}: its permissions are incomplete, generate them from its card"
            )
        });
        let requesters = self.requesters.lock();
        let inboxes = named(requesters.iter().filter(|(_, denied)| denied.until > now).map(|(inbox, _)| inbox));
        let inboxes = inboxes.map(|inboxes| {
            format!(
                "the server denies responses to inboxes below {inboxes}: a service needs the permissions of its card, a client its own \
                 inbox, and this node the permission to publish to both"
            )
        });
        of_node.into_iter().chain(inboxes)
    }

    /// Forgets the denials: the login of a new connection may have other permissions.
    pub(super) fn forget(&self) {
        self.requesters.lock().clear();
        self.own.lock().clear();
    }

    /// Returns the number of requests that were dropped and of responses that were denied.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Remembers a denial, unless there are too many. Returns whether it is new.
fn remember<T>(known: &mut HashMap<String, T>, key: &str, denied: T, is_current: impl Fn(&T) -> bool) -> bool {
    if known.len() >= MAX_DENIED && !known.contains_key(key) {
        known.retain(|_, denied| is_current(denied));
        if known.len() >= MAX_DENIED {
            return false;
        }
    }
    known.insert(key.to_owned(), denied).is_none()
}

/// Returns some subjects and the number of the others; `None` if there are none.
fn named<'a>(subjects: impl Iterator<Item = &'a String>) -> Option<String> {
    let mut subjects: Vec<&String> = subjects.collect();
    subjects.sort_unstable();
    let shown: Vec<String> = subjects.iter().take(NAMED).map(|subject| format!("`{}`", excerpt(subject))).collect();
    let others = subjects.len().saturating_sub(NAMED);
    let others = if others > 0 { format!(" and {others} others") } else { String::new() };
    (!shown.is_empty()).then(|| shown.join(", ") + &others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_core::clock::monotonic;

    fn own() -> OwnInboxes {
        OwnInboxes {
            private: "_INBOX_whizbang_bank".to_owned(),
            shared: "_INBOX_whizbang".to_owned(),
            responses: "_INBOX_whizbang.bank".to_owned(),
        }
    }

    fn notes(denied: &DeniedInboxes, now: Instant) -> Vec<String> {
        denied.notes(now).collect()
    }

    #[test]
    fn wrong_inbox_does_not_stop_the_responses_to_services() {
        let (denied, now) = (DeniedInboxes::default(), monotonic());
        // The last one is the private inbox without a token below it, which no permission names.
        for wrong in ["_INBOX_whizbang", "_INBOX_whizbang.x", "_INBOX_whizbang_bank"] {
            assert_eq!(denied.record(wrong, &own(), now), Denial::KnownInbox, "{wrong}");
            assert!(!denied.drops("_INBOX_whizbang.e-shop.2", now), "{wrong}");
        }
        assert_eq!((denied.dropped(), notes(&denied, now)), (3, Vec::new()));
    }

    #[test]
    fn denied_response_to_a_service_is_noted() {
        let (denied, now) = (DeniedInboxes::default(), monotonic());
        for (number, expected) in [Denial::Service, Denial::KnownInbox].into_iter().enumerate() {
            assert_eq!(denied.record(&format!("_INBOX_whizbang.e-shop.{number}"), &own(), now), expected);
            assert!(!denied.drops("_INBOX_whizbang.e-shop.2", now) && !denied.drops("_INBOX_whizbang.mail.2", now));
        }
        let noted = notes(&denied, now);
        assert!(noted.len() == 1 && noted[0].contains("`_INBOX_whizbang.e-shop`"), "{noted:?}");
        assert_eq!(notes(&denied, now + DENIED_FOR), Vec::<String>::new());
    }

    #[test]
    fn denied_inbox_is_reported_once_and_tried_again() {
        let (denied, now) = (DeniedInboxes::default(), monotonic());
        assert!(!denied.drops("_INBOX_evil.a", now));
        assert_eq!(denied.record("_INBOX_evil.a", &own(), now), Denial::NewInbox);
        assert!(denied.drops("_INBOX_evil.b.c", now) && !denied.drops("_INBOX_whizbang.e-shop.1", now));
        assert_eq!(denied.dropped(), 2);
        assert!(notes(&denied, now)[0].contains("`_INBOX_evil`"), "{:?}", notes(&denied, now));
        let later = now + DENIED_FOR;
        assert!(!denied.drops("_INBOX_evil.a", later));
        assert_eq!(denied.record("_INBOX_evil.a", &own(), later), Denial::KnownInbox);
        assert!(denied.drops("_INBOX_evil.a", later));
        denied.forget();
        assert!(!denied.drops("_INBOX_evil.a", later));
        assert_eq!(notes(&denied, later), Vec::<String>::new());
    }

    #[test]
    fn own_subjects_are_not_denied_inboxes() {
        let (denied, now) = (DeniedInboxes::default(), monotonic());
        let own_subjects = [
            "$JS.API.INFO",
            "_INBOX_whizbang.bank.x.1.y",
            "_INBOX_whizbang_bank.x.r.1",
            "whizbang.evt.bank.0.Happened",
        ];
        for subject in own_subjects {
            assert_eq!(denied.record(subject, &own(), now), Denial::OwnSubject, "{subject}");
            assert!(!denied.drops(subject, now));
        }
        assert_eq!(denied.record("_INBOX_whizbang_bank-2.x", &own(), now), Denial::NewInbox);
        let noted = notes(&denied, now);
        assert!(
            noted.len() == 2 && noted[0].contains("`$JS.API.INFO`") && noted[0].contains("and 1 others"),
            "{noted:?}"
        );
    }

    #[test]
    fn remembered_inboxes_are_bounded() {
        let (denied, now) = (DeniedInboxes::default(), monotonic());
        let record = |number: usize, now| denied.record(&format!("_INBOX_{number}.x"), &own(), now);
        let new = (0..10 * MAX_DENIED).filter(|number| record(*number, now) == Denial::NewInbox).count();
        assert_eq!(new, MAX_DENIED);
        assert_eq!(denied.dropped(), 10 * MAX_DENIED as u64);
        assert_eq!(record(0, now + DENIED_FOR / 2), Denial::KnownInbox);
        assert_eq!(record(10 * MAX_DENIED, now + DENIED_FOR), Denial::NewInbox, "expired ones are replaced");
        assert_eq!(denied.requesters.lock().len(), 2);
    }
}
