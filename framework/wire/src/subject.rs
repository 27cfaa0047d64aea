//! Subjects and stream names on a broker, under one namespace.
//!
//! Called by bridges. A subject contains the domain of its sender, so broker permissions can keep one service from
//! impersonating another. A receiver refuses a message whose headers contradict its subject.
//! Every token is a validated [`Name`], a number or a fixed word: unvalidated user text never becomes part of a subject.

use std::borrow::Cow;
use std::fmt;

use whizbang_core::bridge::{Notification, Request};
use whizbang_core::message::{Envelope, Name, NameError, Shard, ShardId};

/// A prefix that keeps several installations on one server apart: `[A-Za-z0-9]{1,32}`, by default `whizbang`.
///
/// `_` and `-` are not allowed: a stream name consists of a namespace and a domain and must have one reading.
///
/// ```
/// use whizbang::bridge::subject::{Address, Namespace};
/// use whizbang::message::{Name, ShardId};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let namespace = Namespace::new("staging")?;
/// let head = Address::Head(ShardId::new(Name::new("bank")?, 3));
/// assert_eq!(namespace.subject(&head), "staging.head.bank.3");
/// assert_eq!(namespace.parse("staging.head.bank.3"), Some(head));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace(Cow<'static, str>);

impl Namespace {
    /// The maximum length in bytes.
    pub const MAX_BYTES: usize = 32;

    /// Validates a namespace.
    ///
    /// # Errors
    /// [`NamespaceError`] if it is not a [`Name`], is longer than [`MAX_BYTES`](Self::MAX_BYTES) or contains `_` or `-`.
    pub fn new(text: &str) -> Result<Self, NamespaceError> {
        let name = Name::new(text).map_err(NamespaceError::Name)?;
        if text.len() > Self::MAX_BYTES || !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(NamespaceError::Namespace(name));
        }
        Ok(Self(Cow::Owned(text.to_owned())))
    }

    /// Returns the namespace as text.
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

/// A text that is not a valid [`Namespace`]. Choose another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// The text is not a valid name.
    #[error(transparent)]
    Name(NameError),
    /// The text is a valid name, but not a valid namespace.
    #[error("invalid namespace `{0}`: expected 1-32 characters from [A-Za-z0-9]")]
    Namespace(Name),
}

/// The content of a subject: sender, receiver and kind of message.
///
/// | subject after the namespace | address |
/// |---|---|
/// | `cmd.DOMAIN.SHARD.FROM.SHARD`, `cmd.DOMAIN.SHARD.outside` | [`Direct`](Self::Direct) |
/// | `evt.DOMAIN.SHARD.NAME` | [`Event`](Self::Event) |
/// | `evt.DOMAIN.SHARD` | [`Events`](Self::Events) |
/// | `ask.DOMAIN.cmd.SHARD`, `ask.DOMAIN.cmd.any` | [`CommandRequest`](Self::CommandRequest) |
/// | `qry.DOMAIN.NAME` | [`QueryRequest`](Self::QueryRequest) |
/// | `ask.DOMAIN.evt.SHARD` | [`EventsRequest`](Self::EventsRequest) |
/// | `ask.FROM.out.SHARD.TO.SHARD` | [`OutboxRequest`](Self::OutboxRequest) |
/// | `ask.TO.mark.SHARD.FROM.SHARD` | [`WatermarkRequest`](Self::WatermarkRequest) |
/// | `done.FROM.SHARD.TO.SHARD` | [`Committed`](Self::Committed) |
/// | `head.DOMAIN.SHARD` | [`Head`](Self::Head) |
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A command or a reply for a shard, from a shard or from an external caller.
    Direct {
        /// The receiving shard.
        to: ShardId,
        /// The sending shard; `None` if the sender is not an actor.
        from: Option<ShardId>,
    },
    /// An event of a shard.
    Event {
        /// The shard that recorded it.
        shard: ShardId,
        /// The name of the event.
        name: Name,
    },
    /// Several events of a shard in one message.
    Events(ShardId),
    /// A command whose caller waits for the reply.
    CommandRequest {
        /// The domain.
        domain: Name,
        /// The shard of the key, if the caller knows it.
        shard: Option<Shard>,
    },
    /// A query.
    QueryRequest {
        /// The domain.
        domain: Name,
        /// The name of the query.
        name: Name,
    },
    /// A request for the events of a shard after a position.
    EventsRequest(ShardId),
    /// A request for the outbox entries of `from` for `to`, sent by the owner of `to`.
    OutboxRequest {
        /// The sending shard, which is asked.
        from: ShardId,
        /// The receiving shard, which asks.
        to: ShardId,
    },
    /// A request for the watermark of `to` on the messages of `from`, sent by the owner of `from`.
    WatermarkRequest {
        /// The sending shard, which asks.
        from: ShardId,
        /// The receiving shard, which is asked.
        to: ShardId,
    },
    /// A notification of `to` about its watermark on the messages of `from`.
    Committed {
        /// The sending shard, which is notified.
        from: ShardId,
        /// The receiving shard, which notifies.
        to: ShardId,
    },
    /// A notification of a shard about the last position of its log.
    Head(ShardId),
}

impl Address {
    /// Returns the address of a command or a reply; `None` if its shard is unknown.
    ///
    /// The sender is part of the address, so that a broker can permit each service its own senders only. A command of
    /// an external caller has no sender.
    pub fn for_message(envelope: &Envelope) -> Option<Self> {
        let from = envelope.origin.as_ref().map(|origin| origin.shard.clone());
        envelope.to.clone().map(|to| Self::Direct { to, from })
    }

    /// Returns the address of an event; `None` if the event is not from a log.
    pub fn for_event(event: &Envelope) -> Option<Self> {
        let origin = event.origin.as_ref()?;
        Some(Self::Event { shard: origin.shard.clone(), name: event.name.clone() })
    }

    /// Returns the address of a request.
    ///
    /// Requests go to the domain that has the data: events and outbox entries to the sending domain, watermarks to the
    /// receiving one.
    pub fn for_request(request: &Request) -> Self {
        match request {
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

    /// Returns the address of a notification.
    pub fn for_notification(notification: &Notification) -> Self {
        match notification {
            Notification::Committed { from, to, .. } => Self::Committed { from: from.clone(), to: to.clone() },
            Notification::Head { shard, .. } => Self::Head(shard.clone()),
        }
    }
}

impl Namespace {
    /// Returns the subject of an address.
    ///
    /// ```
    /// use whizbang_core::message::{Name, ShardId};
    /// use whizbang_wire::subject::{Address, Namespace};
    ///
    /// let head = Address::Head(ShardId::new(Name::new("bank")?, 3));
    /// assert_eq!(Namespace::default().subject(&head), "whizbang.head.bank.3");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn subject(&self, address: &Address) -> String {
        let ns = &self.0;
        match address {
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

    /// Parses a subject; `None` if it is not one of this namespace.
    ///
    /// Each address has one subject: a number with leading zeros or a sign is not accepted.
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

    /// Returns the filter for all commands and replies to a domain, such as `whizbang.cmd.bank.>`.
    pub fn direct_filter(&self, domain: &Name) -> String {
        format!("{self}.cmd.{domain}.>")
    }

    /// Returns the shard of a subject of events.
    pub fn event_shard(&self, subject: &str) -> Option<ShardId> {
        match self.parse(subject)? {
            Address::Event { shard, .. } | Address::Events(shard) => Some(shard),
            _ => None,
        }
    }

    /// Returns the filter for all events of a domain, such as `whizbang.evt.bank.>`. It includes packets with several events.
    pub fn event_filter(&self, domain: &Name) -> String {
        format!("{self}.evt.{domain}.>")
    }

    /// Returns the subject of a query, such as `whizbang.qry.bank.balance-of`. Queries have a prefix of their own, because any
    /// service may answer them with a view.
    pub fn query_subject(&self, domain: &Name, name: &Name) -> String {
        self.subject(&Address::QueryRequest { domain: domain.clone(), name: name.clone() })
    }

    /// Returns the filter for all requests to the owner of a domain, such as `whizbang.ask.bank.>`. Queries are not included.
    pub fn request_filter(&self, domain: &Name) -> String {
        format!("{self}.ask.{domain}.>")
    }

    /// Returns the filter for all commands and replies to a shard, such as `whizbang.cmd.bank.3.>`.
    pub fn shard_filter(&self, shard: &ShardId) -> String {
        format!("{self}.cmd.{}.{}.>", shard.domain, shard.shard)
    }

    /// Returns the pattern of the filters for each shard of a domain, such as `whizbang.cmd.bank.*.>`.
    pub fn shards_filter(&self, domain: &Name) -> String {
        format!("{self}.cmd.{domain}.*.>")
    }

    /// Returns the filters for all requests to the owner of a shard, except those of callers that do not know the shard.
    ///
    /// A caller that does not know the shard asks any node of the service, see [`Address::CommandRequest`].
    pub fn shard_request_filters(&self, shard: &ShardId) -> [String; 2] {
        let ShardId { domain, shard } = shard;
        [format!("{self}.ask.{domain}.*.{shard}"), format!("{self}.ask.{domain}.*.{shard}.>")]
    }

    /// Returns the filter for all watermark notifications to a shard, such as `whizbang.done.bank.3.>`.
    pub fn shard_committed_filter(&self, shard: &ShardId) -> String {
        format!("{self}.done.{}.{}.>", shard.domain, shard.shard)
    }

    /// Returns the filter for all watermark notifications to the shards of a domain, such as `whizbang.done.bank.>`.
    pub fn committed_filter(&self, domain: &Name) -> String {
        format!("{self}.done.{domain}.>")
    }

    /// Returns the filter for all head notifications of the shards of a domain, such as `whizbang.head.bank.*`.
    pub fn head_filter(&self, domain: &Name) -> String {
        format!("{self}.head.{domain}.*")
    }

    /// Returns the name of the stream of commands and replies for a domain, such as `whizbang_commands_bank`.
    pub fn direct_stream(&self, domain: &Name) -> String {
        format!("{self}_commands_{domain}")
    }

    /// Returns the name of the stream of events of a domain, such as `whizbang_events_bank`.
    pub fn event_stream(&self, domain: &Name) -> String {
        format!("{self}_events_{domain}")
    }

    /// Returns the name of the stream of the claims on all domains.
    pub fn claims_stream(&self) -> String {
        format!("{self}_claims")
    }

    /// Returns the filter for all claims.
    pub fn claims_filter(&self) -> String {
        format!("{self}.claim.*")
    }

    /// Returns the subject of the claim on a domain, such as `whizbang.claim.bank`.
    pub fn claim_subject(&self, domain: &Name) -> String {
        format!("{self}.claim.{domain}")
    }

    /// Returns the name of the stream of messages that a service refused, such as `whizbang_refused_shop`.
    pub fn refused_stream(&self, service: &Name) -> String {
        format!("{self}_refused_{service}")
    }

    /// Returns the subject of messages that a service refused.
    pub fn refused_subject(&self, service: &Name) -> String {
        format!("{self}.refused.{service}")
    }
}

/// Parses a shard from two tokens. The number must be written as `Display` writes it, so that one shard has one subject.
fn shard_id(domain: &str, shard: &str) -> Option<ShardId> {
    let number: Shard = shard.parse().ok()?;
    let is_canonical = !shard.starts_with('+') && (shard.len() == 1 || !shard.starts_with('0'));
    Some(ShardId::new(Name::new(domain).ok().filter(|_| is_canonical)?, number))
}

#[cfg(test)]
mod tests;
