//! Comparison of a value with the value that its encoding decodes to.

use super::{Codec, CodecError, canonical};

/// The functions that encode and decode a value.
pub(super) struct CodecFns<T> {
    pub(super) write: fn(&T, Codec, &mut Vec<u8>) -> Result<(), CodecError>,
    pub(super) read: fn(Codec, &[u8]) -> Result<T, CodecError>,
}

/// Decodes the encoded value and returns it if it equals `value`.
pub(super) fn read_back<T>(value: &T, codec: Codec, written: &[u8], fns: CodecFns<T>) -> Result<T, CodecError> {
    let read = (fns.read)(codec, written)?;
    let mut again = Vec::with_capacity(written.len());
    (fns.write)(&read, codec, &mut again)?;
    if again == written {
        return Ok(read);
    }
    let both = |one: &mut Vec<u8>, other: &mut Vec<u8>| {
        (fns.write)(value, Codec::Bincode, one).is_ok() && (fns.write)(&read, Codec::Bincode, other).is_ok()
    };
    compare_unordered(codec, written, &again, &both, &|bytes| (fns.read)(Codec::Bincode, bytes).is_ok())?;
    Ok(read)
}

/// Decodes a value whose original is not known, and returns it if it would be encoded as the same bytes.
pub(super) fn reread<T>(codec: Codec, written: &[u8], fns: CodecFns<T>) -> Result<T, CodecError> {
    let read = (fns.read)(codec, written)?;
    let mut again = Vec::with_capacity(written.len());
    (fns.write)(&read, codec, &mut again)?;
    if again != written {
        compare_unordered(codec, written, &again, &|_, _| false, &|bytes| (fns.read)(Codec::Bincode, bytes).is_ok())?;
    }
    Ok(read)
}

/// Compares the differing encodings of a value and of the value decoded from it.
///
/// One difference is allowed: the entries of a `HashMap` or `HashSet` may be in another order each time. `both` encodes
/// the two values in bincode, in which tuples and lists are distinguishable, and `read` decodes one of them.
#[cold]
fn compare_unordered(
    codec: Codec,
    written: &[u8],
    again: &[u8],
    both: &dyn Fn(&mut Vec<u8>, &mut Vec<u8>) -> bool,
    read: &dyn Fn(&[u8]) -> bool,
) -> Result<(), CodecError> {
    let in_bincode = |one: &[u8], other: &[u8]| {
        let (one, other) = (canonical::of_bincode(one, read)?, canonical::of_bincode(other, read)?);
        Some(one == other)
    };
    let is_equal = written.len() == again.len()
        && match codec {
            Codec::Bincode => in_bincode(written, again).unwrap_or(false),
            Codec::Json => {
                let (mut one, mut other) = (Vec::new(), Vec::new());
                let compared = if both(&mut one, &mut other) { in_bincode(&one, &other) } else { None };
                compared.unwrap_or_else(|| {
                    let one = canonical::of_json(written);
                    one.is_some() && one == canonical::of_json(again)
                })
            }
        };
    if is_equal { Ok(()) } else { Err(CodecError::Decode { reason: "it reads as another value".to_owned() }) }
}

/// Returns the error for a value that was encoded and does not read back.
pub(super) fn unreadable_error(name: &str, error: &CodecError) -> CodecError {
    let cause = match error {
        CodecError::Decode { reason } | CodecError::Encode { reason } => reason.clone(),
        other => other.to_string(),
    };
    CodecError::Encode {
        reason: format!(
            "`{name}` does not read back as it was written: {cause}; remove serde attributes that treat reading and writing \
             differently, such as `skip_serializing_if`, `tag`, `untagged` and `flatten`"
        ),
    }
}
