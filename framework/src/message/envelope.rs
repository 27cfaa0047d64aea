//! A message with its ids and headers, as it is stored and sent.

use bytes::Bytes;

use super::{Codec, Fingerprint, MessageId, Name, ShardId, StoreId};
use crate::clock::Timestamp;

/// What kind of message an envelope holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Asks the owner of a domain to do something.
    Command,
    /// A fact already recorded.
    Event,
    /// Asks a view for one answer.
    Query,
    /// Data handed over.
    Document,
    /// What the sender of a command gets back; its payload is the encoded `Result<Reply, Rejection>`.
    Reply,
}

impl Kind {
    /// The number that stands for the kind in the store.
    pub const fn id(self) -> u8 {
        match self {
            Self::Command => 1,
            Self::Event => 2,
            Self::Query => 3,
            Self::Document => 4,
            Self::Reply => 5,
        }
    }

    /// The kind with that number.
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

    /// The kind's name in headers and traces.
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

/// Which reply the sender of a command wants to have recorded for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReplyMode {
    /// None: the sender goes by events.
    #[default]
    Nothing,
    /// Only a rejection.
    Rejection,
    /// Every reply.
    Reply,
}

impl ReplyMode {
    /// The number that stands for it in the store and on the wire.
    pub const fn id(self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Rejection => 1,
            Self::Reply => 2,
        }
    }

    /// The value with that number.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            0 => Some(Self::Nothing),
            1 => Some(Self::Rejection),
            2 => Some(Self::Reply),
            _ => None,
        }
    }
}

/// Where an envelope that an actor sent comes from, and its place there.
///
/// For an event, `sequence` is its position in the log of `shard`. For a command or a reply it is the contiguous number of
/// what that shard has sent to the destination shard. Both rise by one, so a receiver sees every duplicate and every gap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The shard that recorded or sent it.
    pub shard: ShardId,
    /// The actor type and key that sent it: where a reply goes.
    pub actor: Name,
    /// The sending actor's key; for an event, the key of its stream.
    pub key: String,
    /// The position or the sequence.
    pub sequence: u64,
    /// For an event, the version of its stream; otherwise 0.
    pub version: u64,
    /// The store that holds the log, as the sender says when the envelope leaves it. `None` in a store, and from senders whose
    /// store has no identity.
    pub store: Option<StoreId>,
}

/// A message with its ids and headers, as stored and sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Names this envelope; the key of deduplication for callers from outside.
    pub id: MessageId,
    /// What kind of message it holds.
    pub kind: Kind,
    /// The message's name in its domain.
    pub name: Name,
    /// The version of the message's schema.
    pub version: u32,
    /// The fingerprint of the message's type as its sender has it; `None` if it is not known, or was compared already.
    pub shape: Option<Fingerprint>,
    /// The domain the message belongs to. A reply belongs to the domain that replies.
    pub domain: Name,
    /// Where it goes: the shard of the destination domain. An event has none; each subscriber finds its own.
    pub to: Option<ShardId>,
    /// The key of the aggregate or saga that takes it; empty for an event.
    pub key: String,
    /// The actor type that takes it, if the message's name does not say it (replies go to the saga that sent the command).
    pub actor: Option<Name>,
    /// Where it comes from, if an actor sent it.
    pub origin: Option<Origin>,
    /// The same for everything that one outside request set off.
    pub correlation: MessageId,
    /// The direct cause.
    pub causation: Option<MessageId>,
    /// When it was made, for people; nothing is decided by it.
    pub time: Timestamp,
    /// When the sender stops waiting. A command that starts later is refused, not handled.
    pub deadline: Option<Timestamp>,
    /// Which reply the sender wants to have recorded for it.
    pub wants: ReplyMode,
    /// The W3C trace context it belongs to.
    pub traceparent: Option<String>,
    /// Headers whizbang does not know; they pass through.
    pub headers: Vec<(String, String)>,
    /// How the payload is written.
    pub codec: Codec,
    /// The message's bytes.
    pub payload: Bytes,
}

impl Envelope {
    /// A message without content that comes from nowhere, goes nowhere and belongs to nothing larger, to be filled in.
    pub(crate) fn new(id: MessageId, kind: Kind, domain: Name, name: Name, time: Timestamp) -> Self {
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

    /// The reply of `domain` to this command for the actor that sent it, and where that is; `None` if no actor did, or if it
    /// does not want to hear of this.
    pub(crate) fn reply(
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
