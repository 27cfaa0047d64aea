//! Encodes numbers and texts into a buffer.

use whizbang_core::message::MessageId;

/// Appends a number: seven bits per byte, lowest first; the highest bit is set if more bytes follow.
#[inline]
pub fn number(into: &mut Vec<u8>, value: u64) {
    if value < 0x80 {
        into.push(value as u8);
    } else {
        long_number(into, value);
    }
}

/// Appends a number of two or more bytes: at least 0x80. Separate, so that the frequent short ones are inlined.
fn long_number(into: &mut Vec<u8>, value: u64) {
    if value >> 56 != 0 {
        into.push(value as u8 | 0x80);
        return number(into, value >> 7);
    }
    // Spread eight groups of seven bits at once: halves, then quarters, then eighths.
    let halves = value & 0x0FFF_FFFF | (value & 0x00FF_FFFF_F000_0000) << 4;
    let quarters = halves & 0x0000_3FFF_0000_3FFF | (halves & 0x0FFF_C000_0FFF_C000) << 2;
    let eighths = quarters & 0x007F_007F_007F_007F | (quarters & 0x3F80_3F80_3F80_3F80) << 1;
    let more = (63 - value.leading_zeros()) / 7;
    let bytes = eighths | 0x8080_8080_8080_8080 & ((1 << (8 * more)) - 1);
    // Append all eight bytes and truncate the surplus, which is faster than copying a variable number.
    let end = into.len() + more as usize + 1;
    into.extend_from_slice(&bytes.to_le_bytes());
    into.truncate(end);
}

/// Appends bytes after their length.
pub fn bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    number(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}

/// Appends a text after its length in bytes.
pub fn text(into: &mut Vec<u8>, text: &str) {
    bytes(into, text.as_bytes());
}

/// Appends the 16 bytes of an id.
pub(crate) fn id(into: &mut Vec<u8>, id: MessageId) {
    into.extend_from_slice(&id.as_u128().to_le_bytes());
}

/// Appends a link to another record as the distance back from `from`. 0 means none, as does a record at the same
/// location.
pub(crate) fn link(into: &mut Vec<u8>, from: u64, to: u64) {
    number(into, if to == 0 { 0 } else { from.saturating_sub(to) });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodes a number as the format describes it, one byte at a time.
    fn byte_by_byte(mut value: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push((value % 0x80) as u8 + 0x80);
            value /= 0x80;
        }
        bytes.push(value as u8);
        bytes
    }

    #[test]
    fn number_has_seven_bits_in_each_byte() {
        let around = |bit: u32| (0..=2).map(move |more| (1u64 << bit).wrapping_sub(1).wrapping_add(more));
        let patterns = [u64::MAX, 0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA, 0x0123_4567_89AB_CDEF];
        let patterns = patterns.into_iter().flat_map(|pattern| (0..64).map(move |shift| pattern >> shift));
        for value in (0..64).flat_map(around).chain(patterns) {
            let mut bytes = vec![1, 2, 3];
            number(&mut bytes, value);
            assert_eq!(bytes.split_off(3), byte_by_byte(value), "{value:#x}");
            assert_eq!(bytes, [1, 2, 3], "earlier bytes");
        }
    }

    #[test]
    fn link_is_the_distance_to_an_earlier_record() {
        for (to, distance) in [(0, 0), (1, 999), (999, 1), (1_000, 0), (1_001, 0)] {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            link(&mut bytes, 1_000, to);
            number(&mut expected, distance);
            assert_eq!(bytes, expected, "to {to}");
        }
    }

    #[test]
    fn texts_and_ids_have_a_fixed_form() {
        let mut into = Vec::new();
        text(&mut into, "ab");
        bytes(&mut into, b"");
        id(&mut into, MessageId::from_u128(0x0102_0304_0506_0708_090A_0B0C_0D0E_0F10));
        assert_eq!(into, [2, b'a', b'b', 0, 16, 15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
    }
}
