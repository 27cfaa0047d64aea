//! How messages become bytes and bytes become messages again.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bincode_reader;
use super::checked::Inside;
use super::verified::{CodecFns, read_back, reread, unreadable_error};

/// The most bytes a message may have, in its envelope and in the store: 512 KiB, half of what a NATS server takes by default.
pub const MAX_PAYLOAD_BYTES: usize = 512 * 1024;

/// The most bytes the state of an aggregate or a saga in its snapshot, or a projection's view, may have: 256 MiB. It is kept
/// in memory and never travels, so this only keeps a damaged length from asking for all memory there is.
pub const MAX_STATE_BYTES: usize = 256 * 1024 * 1024;

/// How the messages of a domain are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Codec {
    /// bincode 2 with serde, standard configuration: small and fast, for services written in Rust. Up to 127 levels deep, with
    /// up to 65,536 elements without content, such as those of `Vec<()>`.
    ///
    /// It writes neither names nor types: a field that is left out or reordered makes every byte behind it mean something else.
    Bincode,
    /// JSON, up to 127 levels deep, for domains that services in other languages take part in. Numbers must be finite, and `Some`
    /// must hold something: `Some(None)` would read as `None`.
    Json,
}

impl Codec {
    /// The number that stands for the codec in the store and on the wire.
    pub const fn id(self) -> u8 {
        match self {
            Self::Bincode => 1,
            Self::Json => 2,
        }
    }

    /// The codec with that number.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Bincode),
            2 => Some(Self::Json),
            _ => None,
        }
    }

    /// The media type that stands for the codec in an envelope's `datacontenttype`.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Bincode => "application/x-bincode",
            Self::Json => "application/json",
        }
    }

    /// The codec with that media type.
    pub fn from_media_type(text: &str) -> Option<Self> {
        match text.split(';').next().map(str::trim) {
            Some("application/x-bincode") => Some(Self::Bincode),
            Some("application/json") => Some(Self::Json),
            _ => None,
        }
    }

    /// Appends the bytes of `value` to `into`. On an error `into` is as long as before.
    ///
    /// # Errors
    /// [`CodecError::Encode`] if the value has a form that this codec cannot write, or would not read back;
    /// [`CodecError::Oversize`] past [`MAX_PAYLOAD_BYTES`].
    pub fn encode<T: Serialize>(self, value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
        let start = into.len();
        let written = match self {
            Self::Bincode => to_bincode(value, into),
            Self::Json => to_json(value, into),
        };
        truncate_on_error(into, start, MAX_PAYLOAD_BYTES, written)
    }

    /// Reads a value from all of `bytes`.
    ///
    /// # Errors
    /// [`CodecError::Oversize`] before anything is read or allocated; [`CodecError::Decode`] if the bytes are not such a value,
    /// or more follow.
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

/// States up to this size are read back when they are saved, larger ones when they are restored: that takes milliseconds, and a
/// snapshot is saved between two turns.
const MAX_EAGER_READ_BACK: usize = 1024 * 1024;

/// Appends the bytes of a state to `into`: bincode, up to [`MAX_STATE_BYTES`]. On an error `into` is as long as before.
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

/// Reads a state from all of `bytes`. One that would be saved as other bytes is an error: it is not what was saved.
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

/// Takes back what was `written` from `start` on if that has failed or is more than `limit` bytes.
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

/// The end of a buffer, as bincode writes to it: it cannot fail, and nothing need be counted.
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
    bincode::serde::encode_into_writer(Inside::new(value, Codec::Bincode), End(into), bincode::config::standard())
        .map_err(encode_error)
}

fn to_json<T: Serialize>(value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
    serde_json::to_writer(into, &Inside::new(value, Codec::Json)).map_err(encode_json_error)
}

// Functions and no closures: a closure in a function that is generic is compiled again for each of its types.

fn encode_error(error: bincode::error::EncodeError) -> CodecError {
    CodecError::Encode { reason: text_of(error) }
}

fn encode_json_error(error: serde_json::Error) -> CodecError {
    CodecError::Encode { reason: error.to_string() }
}

fn decode_error(error: &dyn std::error::Error) -> CodecError {
    CodecError::Decode { reason: error.to_string() }
}

/// The text of an error of bincode. Its `Display` is its `Debug`, which quotes the texts of types.
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

/// A message that cannot be written or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The value has a form that the codec cannot write or would not read back. Nothing was sent or stored; change the type.
    #[error("cannot be encoded: {reason}")]
    Encode {
        /// What the codec says.
        reason: String,
    },
    /// The bytes are not such a message. The message becomes a dead letter; send it again once the cause is fixed.
    #[error("cannot be decoded: {reason}")]
    Decode {
        /// What the codec says.
        reason: String,
    },
    /// The message is larger than allowed. It was neither sent nor read; send a reference to the data instead.
    #[error("has {bytes} bytes, more than the {limit} allowed")]
    Oversize {
        /// How many bytes it has.
        bytes: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A stored event has a name that its domain does not know in this program, so a state without it would be wrong. The key is
    /// not loaded; deploy a program that declares what has become of the name.
    #[error(
        "the stored event `{name}` is unknown: declare `formerly = \"{name}\"` on the event it has become, or \
         `retired(\"{name}\")` on the domain if it is gone on purpose"
    )]
    UnknownEvent {
        /// The event's name.
        name: String,
    },
    /// The sender of the message has another type of its name and version: its bytes would be read as another value. The message
    /// becomes a dead letter, or halts a projection; redrive it after the two types are the same again.
    #[error("cannot be read: {reason}")]
    Shape {
        /// The type, the first difference and the remedy.
        reason: String,
    },
    /// The message was written with a schema version this program has no upcaster for.
    /// The message goes to the dead letters; redrive it after deploying a program that knows the version.
    #[error("`{name}` has schema version {found}, this program knows {known} and what it has upcasters for")]
    Version {
        /// The message's name.
        name: &'static str,
        /// The version found.
        found: u32,
        /// The version this program writes.
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
        // A text that claims 2^60 bytes.
        assert!(decode_state::<String>(&[253, 0, 0, 0, 0, 0, 0, 0, 16]).is_err());
    }

    /// Reads the first element in the place of the second. Its size decides whether it is read back when it is saved.
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
        // A vector that claims 2^60 elements.
        let bytes = [253, 0, 0, 0, 0, 0, 0, 0, 16];
        assert!(Codec::Bincode.decode::<Vec<u64>>(&bytes).is_err());
        assert!(Codec::Bincode.decode::<String>(&bytes).is_err());
    }
}
