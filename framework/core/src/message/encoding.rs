//! Encoding and decoding of messages with a [codec](Codec).

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bincode_reader;
use super::checked::CheckedValue;
use super::codec::{Codec, CodecError, MAX_PAYLOAD_BYTES};

impl Codec {
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

/// Truncates `into` to `start` if encoding has failed or has written more than `limit` bytes.
pub(super) fn truncate_on_error(
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

pub(super) fn to_bincode<T: Serialize>(value: &T, into: &mut Vec<u8>) -> Result<(), CodecError> {
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

pub(super) fn from_bincode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match bincode_reader::read(bytes) {
        Ok(value) => Ok(value),
        Err(error) => Err(decode_error(&error)),
    }
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
    fn false_length_is_refused_without_allocation() {
        // A vector with a claimed length of 2^60 elements.
        let bytes = [253, 0, 0, 0, 0, 0, 0, 0, 16];
        assert!(Codec::Bincode.decode::<Vec<u64>>(&bytes).is_err());
        assert!(Codec::Bincode.decode::<String>(&bytes).is_err());
    }
}
