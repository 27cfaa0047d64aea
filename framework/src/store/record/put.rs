//! Writes numbers and texts at the end of a buffer.

use crate::message::MessageId;

/// Seven bits a byte, lowest first; the highest bit says that more follow.
pub(in crate::store) fn number(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push((value as u8) | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
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
