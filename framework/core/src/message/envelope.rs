//! Envelopes: messages with their ids and headers, as they are stored and sent.

use bytes::Bytes;

use super::{Codec, Fingerprint, MessageId, Name, ShardId, StoreId};
use crate::clock::Timestamp;

/// The kind of message in an envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Asks the owner of a domain to do something.
    Command,
    /// A fact that is already recorded.
    Event,
    /// Asks a view for one answer.
    Query,
    /// Data without a statement that something happened.
    Document,
    /// The result of a command. Its payload is the encoded `Result<Reply, Rejection>`.
    Reply,
}

impl Kind {
    /// Returns the number of the kind in the store.
    pub const fn id(self) -> u8 {
        match self {
            Self::Command => 1,
            Self::Event => 2,
            Self::Query => 3,
            Self::Document => 4,
            Self::Reply => 5,
        }
    }

    /// Returns the kind with that number.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Command),
            2 => Some(Self::Event),
            3 => Some(Self::Query),
            4 => Some(Self::Document),
            5 => Some(Self::Reply),
            _ => None,
        }
    }

    /// Returns the name of the kind in headers and traces.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Event => "event",
            Self::Query => "query",
            Self::Document => "document",
            Self::Reply => "reply",
        }
    }
}

/// The reply that the sender of a command requests to have recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyMode {
    /// No reply: the sender relies on events.
    #[default]
    Nothing,
    /// A reply only if the command is rejected.
    Rejection,
    /// Every reply.
    Reply,
}

impl ReplyMode {
    /// Returns the number of the mode in the store and on the wire.
    pub const fn id(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Rejection => 1,
            Self::Reply => 2,
        }
    }

    /// Returns the mode with that number.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            0 => Some(Self::Nothing),
            1 => Some(Self::Rejection),
            2 => Some(Self::Reply),
            _ => None,
        }
    }
}

/// The shard and actor that sent an envelope, and its number there.
///
/// For an event, `sequence` is its position in the log of `shard`. For a command or a reply it is the contiguous
/// sequence among the messages of that shard to the destination shard. Both increase by one, so a receiver detects
/// every duplicate and every gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The shard that recorded or sent it.
    pub shard: ShardId,
    /// The type of the actor that sent it and receives a reply.
    pub actor: Name,
    /// The sending actor's key; for an event, the key of its stream.
    pub key: String,
    /// The position or the sequence.
    pub sequence: u64,
    /// For an event, the version of its stream; otherwise 0.
    pub version: u64,
    /// The store that holds the log. It is set by the sender when the envelope leaves it; `None` in a store, and from
    /// senders whose store has no identity.
    pub store: Option<StoreId>,
}

/// A message with its ids and headers, as stored and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// The id of this envelope; the deduplication key for callers from outside.
    pub id: MessageId,
    /// The kind of message.
    pub kind: Kind,
    /// The message's name in its domain.
    pub name: Name,
    /// The schema version of the message.
    pub version: u32,
    /// The fingerprint of the sender's message type; `None` if it is not known or was already compared.
    pub shape: Option<Fingerprint>,
    /// The domain to which the message belongs. A reply belongs to the replying domain.
    pub domain: Name,
    /// The destination shard. An event has none; each subscriber determines its own.
    pub to: Option<ShardId>,
    /// The key of the aggregate or saga that handles it; empty for an event.
    pub key: String,
    /// The actor type that handles it, if it does not follow from the message's name: replies go to the saga that sent
    /// the command.
    pub actor: Option<Name>,
    /// The origin, if an actor sent it.
    pub origin: Option<Origin>,
    /// The same id for everything that one outside request caused.
    pub correlation: MessageId,
    /// The direct cause.
    pub causation: Option<MessageId>,
    /// The time at which it was created. Informational; no decision depends on it.
    pub time: Timestamp,
    /// The time at which the sender stops waiting. A command that would start later is refused and not handled.
    pub deadline: Option<Timestamp>,
    /// The reply that the sender requests.
    pub wants: ReplyMode,
    /// The W3C trace context it belongs to.
    pub traceparent: Option<String>,
    /// Headers that whizbang does not interpret and passes through. They are not part of the message: two messages that
    /// differ in headers alone are duplicates.
    pub headers: Vec<(String, String)>,
    /// The codec of the payload.
    pub codec: Codec,
    /// The encoded message.
    pub payload: Bytes,
}

impl Envelope {
    /// Creates an envelope without content, origin, destination or cause, to be filled in.
    pub fn new(id: MessageId, kind: Kind, domain: Name, name: Name, time: Timestamp) -> Self {
        Self {
            id,
            kind,
            name,
            version: 1,
            shape: None,
            domain,
            to: None,
            key: String::new(),
            actor: None,
            origin: None,
            correlation: id,
            causation: None,
            time,
            deadline: None,
            wants: ReplyMode::Nothing,
            traceparent: None,
            headers: Vec::new(),
            codec: Codec::Bincode,
            payload: Bytes::new(),
        }
    }

    /// Creates the reply of `domain` to this command for the actor that sent it, with its destination. Returns `None`
    /// if no actor sent the command, or if its sender did not request this reply.
    pub fn reply(
        &self,
        domain: &Name,
        rejected: bool,
        time: Timestamp,
        codec: Codec,
        reply: &[u8],
    ) -> Option<(ShardId, Self)> {
        let wanted = match self.wants {
            ReplyMode::Nothing => false,
            ReplyMode::Rejection => rejected,
            ReplyMode::Reply => true,
        };
        let origin = self.origin.as_ref().filter(|_| wanted)?;
        let id = MessageId::of_reply(self.id);
        let envelope = Self {
            version: self.version,
            to: Some(origin.shard.clone()),
            key: origin.key.clone(),
            actor: Some(origin.actor.clone()),
            correlation: self.correlation,
            causation: Some(self.id),
            traceparent: self.traceparent.clone(),
            codec,
            payload: Bytes::copy_from_slice(reply),
            ..Self::new(id, Kind::Reply, domain.clone(), self.name.clone(), time)
        };
        Some((origin.shard.clone(), envelope))
    }
}
