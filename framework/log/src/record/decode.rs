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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_has_at_most_64_bits() {
        let long = |last: &[u8]| [&[0xFF; 9], last].concat();
        for (bytes, number) in [
            (vec![0], 0),
            (vec![0x7F], 0x7F),
            (vec![0x80, 0x01], 0x80),
            (vec![0x80, 0x00], 0),
            (long(&[0]), u64::MAX >> 1),
            (long(&[1]), u64::MAX),
            ([[0x80].repeat(9), vec![1]].concat(), 1 << 63),
        ] {
            let mut decoder = Decoder(&bytes);
            assert_eq!((decoder.number(), decoder.is_empty()), (Ok(number), true), "{bytes:?}");
        }
        for (bytes, reason) in [
            (vec![], "unexpected end of the bytes"),
            (vec![0x80], "unexpected end of the bytes"),
            (long(&[2]), "a number is too large"),
            (long(&[0x7F]), "a number is too large"),
            (long(&[0x81, 0]), "a number is too long"),
        ] {
            assert_eq!(Decoder(&bytes).number(), Err(Malformed(reason)), "{bytes:?}");
        }
    }

    /// Returns the encoded number, with `more` bytes behind it.
    fn number(value: u64, more: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        super::super::encode::number(&mut bytes, value);
        bytes.extend(std::iter::repeat_n(7, more));
        bytes
    }

    #[test]
    fn numbers_of_other_types_are_limited() {
        let (small, shard) = (u64::from(u32::MAX), u64::from(u16::MAX));
        assert_eq!(Decoder(&number(small, 0)).small(), Ok(u32::MAX));
        assert_eq!(Decoder(&number(small + 1, 0)).small(), Err(Malformed("a number is too large")));
        assert_eq!(Decoder(&number(shard, 0)).shard(), Ok(u16::MAX));
        assert_eq!(Decoder(&number(shard + 1, 0)).shard(), Err(Malformed("a shard's number is too large")));
    }

    #[test]
    fn count_is_at_most_the_remaining_bytes() {
        for count in [0, 1, 2, 5] {
            assert_eq!(Decoder(&number(count, 5)).count(), Ok(count as usize));
        }
        assert_eq!(Decoder(&number(6, 5)).count(), Err(Malformed("a count is larger than what follows")));
    }

    #[test]
    fn bytes_are_read_in_pieces() {
        let bytes = [3, b'a', b'b', b'c', 9, 8, 7, 2, 0xFF, 0xFF];
        let mut decoder = Decoder(&bytes);
        let before = decoder;
        assert_eq!((decoder.text(), decoder.since(before)), (Ok("abc"), &bytes[..4]));
        assert_eq!((decoder.byte(), decoder.array(), decoder.is_empty()), (Ok(9), Ok([8, 7]), false));
        assert_eq!(decoder.text(), Err(Malformed("a text is not UTF-8")));
        let mut decoder = Decoder(&bytes[7..9]);
        assert_eq!(decoder.bytes(), Err(Malformed("unexpected end of the bytes")));
        let mut decoder = Decoder(&bytes[4..7]);
        assert_eq!(decoder.exactly(4), Err(Malformed("unexpected end of the bytes")));
        assert_eq!(decoder.array::<4>(), Err(Malformed("unexpected end of the bytes")));
        assert_eq!(
            (decoder.exactly(3), decoder.byte()),
            (Ok(&bytes[4..7]), Err(Malformed("unexpected end of the bytes")))
        );
    }

    #[test]
    fn link_leads_to_an_earlier_location() {
        let before = Err(Malformed("a link leads before the log's beginning"));
        for (back, to) in [(0, Ok(0)), (1, Ok(9)), (9, Ok(1)), (10, before), (11, before), (u64::MAX, before)] {
            assert_eq!(Decoder(&number(back, 0)).link(10), to, "{back} back");
        }
    }

    #[test]
    fn ids_and_codecs_are_read_as_they_were_written() {
        let mut bytes = Vec::new();
        super::super::encode::id(&mut bytes, MessageId::from_u128(u128::MAX - 7));
        bytes.extend([Codec::Json.id(), 0xEE]);
        let mut decoder = Decoder(&bytes);
        assert_eq!((decoder.id(), decoder.codec()), (Ok(MessageId::from_u128(u128::MAX - 7)), Ok(Codec::Json)));
        assert_eq!(decoder.codec(), Err(Malformed("a codec is unknown")));
    }
}
