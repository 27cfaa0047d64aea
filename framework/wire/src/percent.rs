//! Percent-encoding of header values, as the CloudEvents bindings define it.
//!
//! Called by the header codec, and by bridges to brokers that carry events as JSON. An encoded value is printable ASCII without space, `"` and `%`; every other byte of the UTF-8 text is
//! written as `%XX`. A key with any text therefore fits into a header.

use std::borrow::Cow;

/// Escapes are written in upper case and read in either.
const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Returns true for a byte that is written as it is.
fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7E) && byte != b'"' && byte != b'%'
}

/// Encodes `text` for a header.
///
/// ```
/// use whizbang::bridge::wire::percent;
///
/// assert_eq!(percent::encode("account 12%"), "account%2012%25");
/// assert_eq!(percent::decode("account%2012%25").as_deref(), Some("account 12%"));
/// ```
pub fn encode(text: &str) -> String {
    if text.bytes().all(is_plain) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() * 3);
    for byte in text.bytes() {
        if is_plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            for digit in [byte >> 4, byte & 0xF] {
                out.push(HEX.get(usize::from(digit)).map_or('0', |hex| char::from(*hex)));
            }
        }
    }
    out
}

/// Decodes a header value; `None` if an escape is truncated or not hexadecimal, or the bytes are not UTF-8.
pub fn decode(value: &str) -> Option<Cow<'_, str>> {
    if !value.contains('%') {
        return Some(Cow::Borrowed(value));
    }
    let mut out = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok().map(Cow::Owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reserved_characters_are_escaped() {
        assert_eq!(encode("ada"), "ada");
        assert_eq!(encode("50% \"of\"\r\nit"), "50%25%20%22of%22%0D%0Ait");
        assert_eq!(encode("é€🦀"), "%C3%A9%E2%82%AC%F0%9F%A6%80");
    }

    #[test]
    fn invalid_escapes_are_rejected() {
        for value in ["%", "%4", "%zz", "a%+1", "%ff", "%c3"] {
            assert_eq!(decode(value), None, "{value}");
        }
    }

    proptest! {
        #[test]
        fn text_round_trips(text in any::<String>()) {
            let value = encode(&text);
            prop_assert!(value.bytes().all(|byte| (0x21..=0x7E).contains(&byte)));
            let back = decode(&value);
            prop_assert_eq!(back.as_deref(), Some(text.as_str()));
        }
    }
}
