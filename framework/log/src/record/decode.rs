//! Bounds-checked decoding of numbers and texts from untrusted bytes.

use super::{Location, Malformed};
use whizbang_core::message::{Codec, MessageId};

/// The remaining bytes.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a>(pub &'a [u8]);

impl<'a> Decoder<'a> {
    /// Returns true if all bytes were read. Bytes that are left behind a record make it invalid.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the bytes that were read since `before`, which is an earlier copy of this decoder.
    pub(crate) fn since(&self, before: Self) -> &'a [u8] {
        before.0.get(..before.0.len().saturating_sub(self.0.len())).unwrap_or_default()
    }

    /// Reads one byte.
    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed("unexpected end of the bytes"))?;
        self.0 = rest;
        Ok(*first)
    }

    /// Reads a number of 1 to 10 bytes: seven bits in each, the lowest ones first, and a bit that more follow.
    ///
    /// # Errors
    /// The bytes end, or the number has more than 64 bits.
    pub fn number(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return Err(Malformed("a number is too large"));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number is too long"))
    }

    /// Reads a number of at most 32 bits: a version, or the number of a shard in the log.
    pub fn small(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.number()?).map_err(|_| Malformed("a number is too large"))
    }

    /// Reads the number of a shard in its domain, or a number of shards.
    pub fn shard(&mut self) -> Result<u16, Malformed> {
        u16::try_from(self.number()?).map_err(|_| Malformed("a shard's number is too large"))
    }

    /// Reads a number of items. Each item has at least one byte, so an impossible count is rejected before memory is
    /// allocated for it.
    pub fn count(&mut self) -> Result<usize, Malformed> {
        let count = usize::try_from(self.number()?).map_err(|_| Malformed("a count is too large"))?;
        if count > self.0.len() { Err(Malformed("a count is larger than what follows")) } else { Ok(count) }
    }

    /// Reads `length` bytes, without copying them.
    pub(crate) fn exactly(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (first, rest) = self.0.split_at_checked(length).ok_or(Malformed("unexpected end of the bytes"))?;
        self.0 = rest;
        Ok(first)
    }

    /// Reads a fixed number of bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("unexpected end of the bytes"))?;
        self.0 = rest;
        Ok(*first)
    }

    /// Reads a length and as many bytes. The length is checked before anything is taken.
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = usize::try_from(self.number()?).map_err(|_| Malformed("a length is too large"))?;
        self.exactly(length)
    }

    /// Reads a length and as many bytes of UTF-8.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Malformed("a text is not UTF-8"))
    }

    /// Reads the id of a message, 16 bytes.
    pub(crate) fn id(&mut self) -> Result<MessageId, Malformed> {
        Ok(MessageId::from_u128(u128::from_le_bytes(self.array()?)))
    }

    /// Reads the number of a codec. An unknown one makes the record unreadable for this program.
    pub(crate) fn codec(&mut self) -> Result<Codec, Malformed> {
        Codec::from_id(self.byte()?).ok_or(Malformed("a codec is unknown"))
    }

    /// Reads a link from `from` and returns its target; 0 if there is none.
    pub(crate) fn link(&mut self, from: Location) -> Result<Location, Malformed> {
        match self.number()? {
            0 => Ok(0),
            back => {
                from.checked_sub(back).filter(|to| *to > 0).ok_or(Malformed("a link leads before the log's beginning"))
            }
        }
    }
}
