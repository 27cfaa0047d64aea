//! Writes numbers and texts at the end of a buffer.

use crate::message::MessageId;

/// Seven bits a byte, lowest first; the highest bit says that more follow.
#[inline]
pub(in crate::store) fn number(into: &mut Vec<u8>, value: u64) {
    if value < 0x80 {
        into.push(value as u8);
    } else {
        long_number(into, value);
    }
}

fn long_number(into: &mut Vec<u8>, mut value: u64) {
    // All at once: a push looks at the buffer's room each time.
    let mut bytes = [0; 10];
    let mut length = 0;
    for byte in &mut bytes {
        length += 1;
        *byte = value as u8 | 0x80;
        value >>= 7;
        if value == 0 {
            *byte &= 0x7F;
            break;
        }
    }
    into.extend_from_slice(bytes.get(..length).unwrap_or_default());
}

/// Bytes behind their length.
pub(in crate::store) fn bytes(into: &mut Vec<u8>, bytes: &[u8]) {
    number(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}

/// A text behind its length in bytes.
pub(in crate::store) fn text(into: &mut Vec<u8>, text: &str) {
    bytes(into, text.as_bytes());
}

/// The 16 bytes of an id.
pub(in crate::store) fn id(into: &mut Vec<u8>, id: MessageId) {
    into.extend_from_slice(&id.as_u128().to_le_bytes());
}

/// Where another record is, as the way back from here; 0 stands for none. A record in the same place is none, too.
pub(in crate::store) fn link(into: &mut Vec<u8>, from: u64, to: u64) {
    number(into, if to == 0 { 0 } else { from.saturating_sub(to) });
}
