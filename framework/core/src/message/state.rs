//! Encoding and decoding of states: snapshots of aggregates and sagas, and views.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{Codec, CodecError, MAX_STATE_BYTES};
use super::encoding::{from_bincode, to_bincode, truncate_on_error};
use super::read_back::{CodecFns, read_back, reread, unreadable_error};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MAX_PAYLOAD_BYTES;

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
}
