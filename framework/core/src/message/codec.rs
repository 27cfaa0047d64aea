//! Encoding and decoding of messages.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bincode_reader;
use super::checked::CheckedValue;
use super::verified::{CodecFns, read_back, reread, unreadable_error};

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

    /// Appends the encoded `value` to `into`. On an error `into` keeps its length.
    ///
    /// # Errors
    /// [`CodecError::Encode`] if the codec cannot encode the value, or could not decode it again;
    /// [`CodecError::Oversize`] past [`MAX_PAYLOAD_BYTES`].
    pub fn encode<T: Serialize>(self, value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
        let start = into.len();
        let written = match self {
            Self::Bincode => to_bincode(value, into),
            Self::Json => to_json(value, into),
        };
        truncate_on_error(into, start, MAX_PAYLOAD_BYTES, written)
    }

    /// Decodes a value from all of `bytes`.
    ///
    /// # Errors
    /// [`CodecError::Oversize`] before anything is decoded or allocated; [`CodecError::Decode`] if the bytes are not a
    /// valid value of the type, or if more bytes follow.
    pub fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Result<T, CodecError> {
        if bytes.len() > MAX_PAYLOAD_BYTES {
            return Err(CodecError::Oversize { bytes: bytes.len(), limit: MAX_PAYLOAD_BYTES });
        }
        match self {
            Self::Bincode => from_bincode(bytes),
            Self::Json => match serde_json::from_slice(bytes) {
                Ok(value) => Ok(value),
                Err(error) => Err(decode_error(&error)),
            },
        }
    }
}

/// States up to this size are read back when they are saved, larger ones when they are restored. Reading back a large
/// state takes milliseconds, and a snapshot is saved between two turns.
const MAX_EAGER_READ_BACK: usize = 1024 * 1024;

/// Appends an encoded state to `into`: bincode, up to [`MAX_STATE_BYTES`]. On an error `into` keeps its length.
pub(super) fn encode_state<T: Serialize + DeserializeOwned>(state: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = into.len();
    let written = to_bincode(state, into);
    truncate_on_error(into, start, MAX_STATE_BYTES, written)?;
    let written = into.get(start..).unwrap_or_default();
    if written.len() > MAX_EAGER_READ_BACK {
        return Ok(());
    }
    if let Err(error) = read_back(state, Codec::Bincode, written, state_fns()) {
        into.truncate(start);
        return Err(unreadable_error(std::any::type_name::<T>(), &error));
    }
    Ok(())
}

/// Decodes a state from all of `bytes`. A state that would be encoded as other bytes is an error, because it differs
/// from the saved one.
pub(super) fn decode_state<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > MAX_STATE_BYTES {
        return Err(CodecError::Oversize { bytes: bytes.len(), limit: MAX_STATE_BYTES });
    }
    if bytes.len() > MAX_EAGER_READ_BACK {
        return reread(Codec::Bincode, bytes, state_fns());
    }
    from_bincode(bytes)
}

fn state_fns<T: Serialize + DeserializeOwned>() -> CodecFns<T> {
    CodecFns { write: |state, _, into| to_bincode(state, into), read: |_, bytes| from_bincode(bytes) }
}

/// Truncates `into` to `start` if encoding has failed or has written more than `limit` bytes.
fn truncate_on_error(
    into: &mut Vec<u8>,
    start: usize,
    limit: usize,
    written: Result<(), CodecError>,
) -> Result<(), CodecError> {
    let bytes = into.len() - start;
    let checked = match written {
        Ok(()) if bytes > limit => Err(CodecError::Oversize { bytes, limit }),
        written => written,
    };
    if checked.is_err() {
        into.truncate(start);
    }
    checked
}

/// Appends to a buffer for bincode. It cannot fail and need not count bytes.
struct End<'a>(&'a mut Vec<u8>);

impl bincode::enc::write::Writer for End<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        match bytes {
            [byte] => self.0.push(*byte),
            bytes => self.0.extend_from_slice(bytes),
        }
        Ok(())
    }
}

fn to_bincode<T: Serialize>(value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
    bincode::serde::encode_into_writer(CheckedValue::new(value, Codec::Bincode), End(into), bincode::config::standard())
        .map_err(encode_error)
}

fn to_json<T: Serialize>(value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
    serde_json::to_writer(into, &CheckedValue::new(value, Codec::Json)).map_err(encode_json_error)
}

// Functions instead of closures: a closure in a generic function is compiled again for each type.

fn encode_error(error: bincode::error::EncodeError) -> CodecError {
    CodecError::Encode { reason: text_of(error) }
}

fn encode_json_error(error: serde_json::Error) -> CodecError {
    CodecError::Encode { reason: error.to_string() }
}

fn decode_error(error: &dyn std::error::Error) -> CodecError {
    CodecError::Decode { reason: error.to_string() }
}

/// Returns the text of a bincode error. Its `Display` equals its `Debug`, which quotes texts.
fn text_of(error: bincode::error::EncodeError) -> String {
    match error {
        bincode::error::EncodeError::OtherString(text) => text,
        bincode::error::EncodeError::Other(text) => text.to_owned(),
        other => other.to_string(),
    }
}

fn from_bincode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match bincode_reader::read(bytes) {
        Ok(value) => Ok(value),
        Err(error) => Err(decode_error(&error)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_behind_a_value_are_refused() {
        let mut bytes = Vec::new();
        Codec::Bincode.encode(&7u64, &mut bytes).unwrap();
        bytes.push(0);
        assert!(matches!(Codec::Bincode.decode::<u64>(&bytes), Err(CodecError::Decode { .. })));
        assert!(matches!(Codec::Json.decode::<u64>(b"7 8"), Err(CodecError::Decode { .. })));
    }

    #[test]
    fn oversize_is_refused_and_buffer_is_unchanged() {
        let large = "a".repeat(MAX_PAYLOAD_BYTES + 1);
        for codec in [Codec::Bincode, Codec::Json] {
            let mut bytes = vec![1];
            assert!(matches!(codec.encode(&large, &mut bytes), Err(CodecError::Oversize { .. })));
            assert_eq!(bytes, [1]);
            assert!(matches!(codec.decode::<String>(large.as_bytes()), Err(CodecError::Oversize { .. })));
        }
    }

    #[test]
    fn state_may_be_larger_than_a_message() {
        let large = "a".repeat(3 * MAX_PAYLOAD_BYTES);
        let mut bytes = Vec::new();
        encode_state(&large, &mut bytes).unwrap();
        assert_eq!(decode_state::<String>(&bytes).unwrap(), large);
        bytes.push(0);
        assert!(decode_state::<String>(&bytes).is_err());
        // A text with a claimed length of 2^60 bytes.
        assert!(decode_state::<String>(&[253, 0, 0, 0, 0, 0, 0, 0, 16]).is_err());
    }

    /// Decodes the two elements in the wrong order. The size determines whether this is detected on save or on restore.
    #[derive(Debug, Serialize)]
    struct Swapped(Vec<u8>, Vec<u8>);

    impl<'de> serde::Deserialize<'de> for Swapped {
        fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            <(Vec<u8>, Vec<u8>)>::deserialize(from).map(|(one, other)| Self(other, one))
        }
    }

    #[test]
    fn state_of_any_size_that_restores_as_another_is_refused() {
        let state = |length| Swapped(vec![1; length], vec![2; length]);
        assert!(encode_state(&state(1), &mut Vec::new()).is_err());
        let mut bytes = Vec::new();
        encode_state(&state(MAX_EAGER_READ_BACK), &mut bytes).unwrap();
        let restored = decode_state::<Swapped>(&bytes);
        assert!(matches!(restored, Err(CodecError::Decode { .. })), "{restored:?}");
    }

    #[test]
    fn false_length_is_refused_without_allocation() {
        // A vector with a claimed length of 2^60 elements.
        let bytes = [253, 0, 0, 0, 0, 0, 0, 0, 16];
        assert!(Codec::Bincode.decode::<Vec<u64>>(&bytes).is_err());
        assert!(Codec::Bincode.decode::<String>(&bytes).is_err());
    }
}
