//! The codecs, the limits of encoded messages and states, and the errors of both directions.

/// The largest size of a message, in its envelope and in the store: 512 KiB, half of a NATS server's default limit.
pub const MAX_PAYLOAD_BYTES: usize = 512 * 1024;

/// The largest size of a state, that is of the snapshot of an aggregate or a saga, or of a projection's view: 256 MiB.
/// States are kept in memory and never sent, so the limit only prevents a damaged length from requesting all available
/// memory.
pub const MAX_STATE_BYTES: usize = 256 * 1024 * 1024;

/// The encoding of a domain's messages.
///
/// ```
/// use whizbang::message::Codec;
///
/// let mut bytes = Vec::new();
/// Codec::Json.encode(&vec![1, 2], &mut bytes)?;
/// assert_eq!(bytes, b"[1,2]");
/// assert_eq!(Codec::Json.decode::<Vec<u8>>(&bytes)?, [1, 2]);
/// # Ok::<(), whizbang::message::CodecError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// bincode 2 with serde in its standard configuration: small and fast, for services written in Rust. Up to 127
    /// levels deep, with up to 65,536 elements without content, such as those of `Vec<()>`.
    ///
    /// It writes neither names nor types. Omitting or reordering a field changes the meaning of every byte after it.
    Bincode,
    /// JSON, up to 127 levels deep, for domains that services in other languages use. Numbers must be finite, and
    /// `Some` must have content: `Some(None)` would decode as `None`.
    Json,
}

impl Codec {
    /// Returns the number of the codec in the store and on the wire.
    pub const fn id(self) -> u8 {
        match self {
            Self::Bincode => 1,
            Self::Json => 2,
        }
    }

    /// Returns the codec with that number.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Bincode),
            2 => Some(Self::Json),
            _ => None,
        }
    }

    /// Returns the media type of the codec in an envelope's `datacontenttype`.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Bincode => "application/x-bincode",
            Self::Json => "application/json",
        }
    }

    /// Returns the codec with that media type.
    pub fn from_media_type(text: &str) -> Option<Self> {
        match text.split(';').next().map(str::trim) {
            Some("application/x-bincode") => Some(Self::Bincode),
            Some("application/json") => Some(Self::Json),
            _ => None,
        }
    }
}

/// A message that cannot be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The codec cannot encode the value, or could not decode it again. Nothing was sent or stored; change the type.
    #[error("{reason}")]
    Encode {
        /// The error of the codec.
        reason: String,
    },
    /// The bytes are not a valid message of the type. The message becomes a dead letter; send it again once the cause
    /// is fixed.
    #[error("{reason}")]
    Decode {
        /// The error of the codec.
        reason: String,
    },
    /// The message is larger than allowed. It was neither sent nor decoded; send a reference to the data instead.
    #[error("message too large: {bytes} bytes, at most {limit} are allowed")]
    Oversize {
        /// The size of the message.
        bytes: usize,
        /// The largest allowed size.
        limit: usize,
    },
    /// The domain has no event with the name of a stored event in this program, so a state without it would be wrong.
    /// The key is not loaded; deploy a program that declares the new name or retires the old one.
    #[error(
        "the stored event `{name}` is unknown: declare `formerly = \"{name}\"` on the event that replaced it, or \
         `retired(\"{name}\")` on the domain if it was removed intentionally"
    )]
    UnknownEvent {
        /// The event's name.
        name: String,
    },
    /// The sender has a different type with this name and version, so its bytes would be decoded as another value. The
    /// message becomes a dead letter, or halts a projection; redrive it once both types are equal again.
    #[error("incompatible type: {reason}")]
    Shape {
        /// The type, the first difference and the remedy.
        reason: String,
    },
    /// This program has no upcaster for the schema version of the message. The message becomes a dead letter; redrive
    /// it after deploying a program that knows the version.
    #[error(
        "unsupported schema version {found} of `{name}`: this program has version {known} and no upcaster for {found}"
    )]
    Version {
        /// The message's name.
        name: &'static str,
        /// The version of the message.
        found: u32,
        /// The version that this program writes.
        known: u32,
    },
}
