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

/// Appends a number of two or more bytes. Separate, so that the frequent short ones are inlined.
fn long_number(into: &mut Vec<u8>, value: u64) {
    if value >= 1 << 56 {
        into.push(value as u8 | 0x80);
        return number(into, value >> 7);
    }
    // Spread eight groups of seven bits at once: halves, then quarters, then eighths.
    let halves = value & 0x0FFF_FFFF | (value & 0x00FF_FFFF_F000_0000) << 4;
    let quarters = halves & 0x0000_3FFF_0000_3FFF | (halves & 0x0FFF_C000_0FFF_C000) << 2;
    let eighths = quarters & 0x007F_007F_007F_007F | (quarters & 0x3F80_3F80_3F80_3F80) << 1;
    let more = (63 - (value | 1).leading_zeros()) / 7;
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
