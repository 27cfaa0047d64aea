//! Where each message goes on a broker: subjects, and the names of streams, under one namespace.
//!
//! Called by bridges. A subject says who is allowed to write to it: the sender's own domain stands in it, so that a broker's
//! permissions can keep one service from speaking for another, and a receiver refuses what says otherwise inside.
//! Every token is a checked [`Name`], a number or a fixed word: no text of a user ever becomes part of a subject unchecked.

use std::borrow::Cow;
use std::fmt;

use super::{Notification, Request};
use crate::message::{Envelope, Name, NameError, Shard, ShardId};

/// Keeps several installations apart on one server: `[A-Za-z0-9]{1,32}`, by default `whizbang`.
///
/// No `_` or `-`: the names of streams are made of a namespace and a domain, and must not be readable in two ways.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace(Cow<'static, str>);

impl Namespace {
    /// The most bytes a namespace may have.
    pub const MAX_BYTES: usize = 32;

    /// Checks a namespace.
    ///
    /// # Errors
    /// [`NamespaceError`] if it is no [`Name`] at all, is longer than [`MAX_BYTES`](Self::MAX_BYTES) or holds `_` or `-`.
    pub fn new(text: &str) -> Result<Self, NamespaceError> {
        let name = Name::new(text).map_err(NamespaceError::Name)?;
        if text.len() > Self::MAX_BYTES || !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(NamespaceError::Namespace(name));
        }
        Ok(Self(Cow::Owned(text.to_owned())))
    }

    /// The namespace as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self(Cow::Borrowed("whizbang"))
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that cannot be a [`Namespace`]. Choose another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// It is no name.
    #[error(transparent)]
    Name(NameError),
    /// It is a name, but no namespace.
    #[error("`{0}` is no namespace: use 1 to 32 of A-Z a-z 0-9")]
    Namespace(Name),
}

/// What a subject says: who speaks, to whom, about what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A command or a reply for a shard, from a shard or from outside.
    Direct {
        /// The shard it is for.
        to: ShardId,
        /// The shard that sends it; none if no actor does.
        from: Option<ShardId>,
    },
    /// An event of a shard.
    Event {
        /// The shard that recorded it.
        shard: ShardId,
        /// Its name.
        name: Name,
    },
    /// Several events of a shard in one message.
    Events(ShardId),
    /// A command whose caller waits for the reply.
    CommandRequest {
        /// The domain.
        domain: Name,
        /// The shard of its key, if the caller knows it.
        shard: Option<Shard>,
    },
    /// A query.
    QueryRequest {
        /// The domain.
        domain: Name,
        /// Its name.
        name: Name,
    },
    /// Events of a shard above a position.
    EventsRequest(ShardId),
    /// Outbox entries of `from` for `to`, whose owner asks.
    OutboxRequest {
        /// The sending shard, which is asked.
        from: ShardId,
        /// The receiving shard, which asks.
        to: ShardId,
    },
    /// How far `to` has committed what `from`, whose owner asks, has sent it.
    WatermarkRequest {
        /// The sending shard, which asks.
        from: ShardId,
        /// The receiving shard, which is asked.
        to: ShardId,
    },
    /// `to` tells `from` how far it has committed.
    Committed {
        /// The sending shard, which is told.
        from: ShardId,
        /// The receiving shard, which tells.
        to: ShardId,
    },
    /// A shard tells how far its log has grown.
    Head(ShardId),
}

impl Address {
    /// Where a command or a reply goes; none if its shard is not known.
    pub fn for_message(envelope: &Envelope) -> Option<Self> {
        let from = envelope.origin.as_ref().map(|origin| origin.shard.clone());
        envelope.to.clone().map(|to| Self::Direct { to, from })
    }

    /// Where an event goes; none if no log holds it.
    pub fn for_event(event: &Envelope) -> Option<Self> {
        let origin = event.origin.as_ref()?;
        Some(Self::Event { shard: origin.shard.clone(), name: event.name.clone() })
    }

    /// Where a question goes.
    pub fn for_request(asked: &Request) -> Self {
        match asked {
            Request::Command(envelope) => Self::CommandRequest {
                domain: envelope.domain.clone(),
                shard: envelope.to.as_ref().filter(|to| to.domain == envelope.domain).map(|to| to.shard),
            },
            Request::Query(envelope) => {
                Self::QueryRequest { domain: envelope.domain.clone(), name: envelope.name.clone() }
            }
            Request::Events { shard, .. } | Request::Shape { from: shard, to: None, .. } => {
                Self::EventsRequest(shard.clone())
            }
            Request::Outbox { from, to, .. } | Request::Shape { from, to: Some(to), .. } => {
                Self::OutboxRequest { from: from.clone(), to: to.clone() }
            }
            Request::Watermark { from, to } | Request::Sent { from, to, .. } => {
                Self::WatermarkRequest { from: from.clone(), to: to.clone() }
            }
        }
    }

    /// Where tidings go.
    pub fn for_notification(tidings: &Notification) -> Self {
        match tidings {
            Notification::Committed { from, to, .. } => Self::Committed { from: from.clone(), to: to.clone() },
            Notification::Head { shard, .. } => Self::Head(shard.clone()),
        }
    }
}

impl Namespace {
    /// The subject of a place.
    pub fn subject(&self, place: &Address) -> String {
        let ns = &self.0;
        match place {
            Address::Direct { to, from: Some(from) } => {
                format!("{ns}.cmd.{}.{}.{}.{}", to.domain, to.shard, from.domain, from.shard)
            }
            Address::Direct { to, from: None } => format!("{ns}.cmd.{}.{}.outside", to.domain, to.shard),
            Address::Event { shard, name } => format!("{ns}.evt.{}.{}.{name}", shard.domain, shard.shard),
            Address::Events(shard) => format!("{ns}.evt.{}.{}", shard.domain, shard.shard),
            Address::CommandRequest { domain, shard: Some(shard) } => format!("{ns}.ask.{domain}.cmd.{shard}"),
            Address::CommandRequest { domain, shard: None } => format!("{ns}.ask.{domain}.cmd.any"),
            Address::QueryRequest { domain, name } => format!("{ns}.qry.{domain}.{name}"),
            Address::EventsRequest(shard) => format!("{ns}.ask.{}.evt.{}", shard.domain, shard.shard),
            Address::OutboxRequest { from, to } => {
                format!("{ns}.ask.{}.out.{}.{}.{}", from.domain, from.shard, to.domain, to.shard)
            }
            Address::WatermarkRequest { from, to } => {
                format!("{ns}.ask.{}.mark.{}.{}.{}", to.domain, to.shard, from.domain, from.shard)
            }
            Address::Committed { from, to } => {
                format!("{ns}.done.{}.{}.{}.{}", from.domain, from.shard, to.domain, to.shard)
            }
            Address::Head(shard) => format!("{ns}.head.{}.{}", shard.domain, shard.shard),
        }
    }

    /// The place a subject names; `None` if it is not one of this namespace.
    pub fn parse(&self, subject: &str) -> Option<Address> {
        let rest = subject.strip_prefix(self.as_str())?.strip_prefix('.')?;
        let tokens: Vec<&str> = rest.split('.').take(7).collect();
        Some(match tokens.as_slice() {
            ["cmd", domain, shard, "outside"] => Address::Direct { to: shard_id(domain, shard)?, from: None },
            ["cmd", domain, shard, from, from_shard] => {
                Address::Direct { to: shard_id(domain, shard)?, from: Some(shard_id(from, from_shard)?) }
            }
            ["evt", domain, shard, name] => {
                Address::Event { shard: shard_id(domain, shard)?, name: Name::new(name).ok()? }
            }
            ["evt", domain, shard] => Address::Events(shard_id(domain, shard)?),
            ["ask", domain, "cmd", "any"] => Address::CommandRequest { domain: Name::new(domain).ok()?, shard: None },
            ["ask", domain, "cmd", shard] => {
                let at = shard_id(domain, shard)?;
                Address::CommandRequest { domain: at.domain, shard: Some(at.shard) }
            }
            ["qry", domain, name] => {
                Address::QueryRequest { domain: Name::new(domain).ok()?, name: Name::new(name).ok()? }
            }
            ["ask", domain, "evt", shard] => Address::EventsRequest(shard_id(domain, shard)?),
            ["ask", from, "out", from_shard, to, to_shard] => {
                Address::OutboxRequest { from: shard_id(from, from_shard)?, to: shard_id(to, to_shard)? }
            }
            ["ask", to, "mark", to_shard, from, from_shard] => {
                Address::WatermarkRequest { from: shard_id(from, from_shard)?, to: shard_id(to, to_shard)? }
            }
            ["done", from, from_shard, to, to_shard] => {
                Address::Committed { from: shard_id(from, from_shard)?, to: shard_id(to, to_shard)? }
            }
            ["head", domain, shard] => Address::Head(shard_id(domain, shard)?),
            _ => return None,
        })
    }

    /// All commands and replies for a domain.
    pub fn direct_filter(&self, domain: &Name) -> String {
        format!("{self}.cmd.{domain}.>")
    }

    /// All events of a domain.
    pub fn event_filter(&self, domain: &Name) -> String {
        format!("{self}.evt.{domain}.>")
    }

    /// All questions of one name to those who can answer them.
    pub fn query_subject(&self, domain: &Name, name: &Name) -> String {
        self.subject(&Address::QueryRequest { domain: domain.clone(), name: name.clone() })
    }

    /// All questions to the owner of a domain.
    pub fn request_filter(&self, domain: &Name) -> String {
        format!("{self}.ask.{domain}.>")
    }

    /// All that receivers tell the shards of a domain.
    pub fn committed_filter(&self, domain: &Name) -> String {
        format!("{self}.done.{domain}.>")
    }

    /// All that the shards of a domain tell of their logs.
    pub fn head_filter(&self, domain: &Name) -> String {
        format!("{self}.head.{domain}.*")
    }

    /// The stream that holds the commands and replies for a domain.
    pub fn direct_stream(&self, domain: &Name) -> String {
        format!("{self}_commands_{domain}")
    }

    /// The stream that holds the events of a domain.
    pub fn event_stream(&self, domain: &Name) -> String {
        format!("{self}_events_{domain}")
    }

    /// The stream that holds the claims on all domains.
    pub fn claims_stream(&self) -> String {
        format!("{self}_claims")
    }

    /// All claims.
    pub fn claims_filter(&self) -> String {
        format!("{self}.claim.*")
    }

    /// The claim on a domain.
    pub fn claim_subject(&self, domain: &Name) -> String {
        format!("{self}.claim.{domain}")
    }

    /// The stream that holds what a service refused.
    pub fn refused_stream(&self, service: &Name) -> String {
        format!("{self}_refused_{service}")
    }

    /// Where a service puts what it refused.
    pub fn refused_subject(&self, service: &Name) -> String {
        format!("{self}.refused.{service}")
    }
}

/// A shard from two tokens; the number must be written as `Display` writes it, so that one shard has one subject.
fn shard_id(domain: &str, shard: &str) -> Option<ShardId> {
    let number: Shard = shard.parse().ok()?;
    let plain = !shard.starts_with('+') && (shard.len() == 1 || !shard.starts_with('0'));
    Some(ShardId::new(Name::new(domain).ok().filter(|_| plain)?, number))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = Name> {
        prop_oneof![
            "[A-Za-z0-9_-]{1,64}".prop_map(|text| Name::new(&text).unwrap()),
            prop::sample::select(vec!["cmd", "evt", "any", "outside", "events", "_", "-", "0", "whizbang"])
                .prop_map(|text| Name::new(text).unwrap()),
        ]
    }

    fn shard() -> impl Strategy<Value = ShardId> {
        (name(), any::<u16>()).prop_map(|(domain, shard)| ShardId::new(domain, shard))
    }

    fn place() -> impl Strategy<Value = Address> {
        prop_oneof![
            (shard(), prop::option::of(shard())).prop_map(|(to, from)| Address::Direct { to, from }),
            (shard(), name()).prop_map(|(shard, name)| Address::Event { shard, name }),
            shard().prop_map(Address::Events),
            (name(), prop::option::of(any::<u16>()))
                .prop_map(|(domain, shard)| Address::CommandRequest { domain, shard }),
            (name(), name()).prop_map(|(domain, name)| Address::QueryRequest { domain, name }),
            shard().prop_map(Address::EventsRequest),
            (shard(), shard()).prop_map(|(from, to)| Address::OutboxRequest { from, to }),
            (shard(), shard()).prop_map(|(from, to)| Address::WatermarkRequest { from, to }),
            (shard(), shard()).prop_map(|(from, to)| Address::Committed { from, to }),
            shard().prop_map(Address::Head),
        ]
    }

    #[test]
    fn a_namespace_holds_letters_and_digits() {
        assert_eq!(Namespace::default().as_str(), "whizbang");
        for text in ["", "a_b", "a-b", "a.b", "a*", ">", "a b", "é", &"a".repeat(33)] {
            assert!(Namespace::new(text).is_err(), "{text}");
        }
        assert!(Namespace::new(&"a".repeat(32)).is_ok());
    }

    proptest! {
        #[test]
        fn a_place_comes_back_from_its_subject(namespace in "[A-Za-z0-9]{1,32}", place in place()) {
            let namespace = Namespace::new(&namespace).unwrap();
            let subject = namespace.subject(&place);
            prop_assert!(subject.len() <= 255, "{} bytes", subject.len());
            prop_assert!(subject.split('.').all(Name::is_valid), "{subject}");
            prop_assert_eq!(namespace.parse(&subject), Some(place));
        }

        #[test]
        fn no_two_streams_share_a_name(
            one in ("[a-c]{1,2}", "[ab_]{1,2}(_events_|_commands_|_refused_)?[ab_]{1,2}"),
            other in ("[a-c]{1,2}", "[ab_]{1,2}(_events_|_commands_|_refused_)?[ab_]{1,2}"),
        ) {
            let names = |(namespace, domain): &(String, String)| {
                let (namespace, domain) = (Namespace::new(namespace).unwrap(), Name::new(domain).unwrap());
                [namespace.event_stream(&domain), namespace.direct_stream(&domain), namespace.refused_stream(&domain)]
            };
            if one != other {
                prop_assert!(names(&one).iter().all(|name| !names(&other).contains(name)));
            }
        }

        #[test]
        fn any_text_is_a_place_or_none(text in "whizbang[.a-z0-9>* +]{0,40}") {
            if let Some(place) = Namespace::default().parse(&text) {
                prop_assert_eq!(Namespace::default().subject(&place), text);
            }
        }
    }
}
