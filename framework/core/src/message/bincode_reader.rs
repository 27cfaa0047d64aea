//! Decoder for the standard configuration of bincode 2, through serde.
//!
//! Used only by the [codec](super::codec). bincode's own decoder limits the memory that values claim, so it rejects
//! lists of small numbers that its encoder accepts, and it follows nested values to any depth. This decoder bounds
//! every length by the remaining bytes, the depth by [`DEPTH`], and elements without bytes by [`EMPTY_ELEMENTS`]. It
//! decodes everything that may be encoded, allocates memory only in proportion to the bytes, and cannot overflow the
//! stack. A property test compares it with bincode's decoder.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};

use super::canonical;

/// The deepest nesting that is decoded. Lists, maps, structs, variants, `Some` and newtypes count as one level each.
pub(super) const DEPTH: usize = 160;
/// The largest number of list elements in a message that have no bytes of their own, such as those of `Vec<()>`.
const EMPTY_ELEMENTS: usize = 64 * 1024;

/// Decodes a value from all of `bytes`.
pub(super) fn read<'de, T: de::Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, ReadError> {
    let mut reader = Reader {
        rest: bytes,
        length: bytes.len(),
        levels: DEPTH,
        empty: EMPTY_ELEMENTS,
        found: canonical::take_recorder(),
    };
    let value = T::deserialize(&mut reader)?;
    canonical::put_recorder(reader.found);
    match reader.rest.len() {
        0 => Ok(value),
        left => Err(ReadError::Left(left)),
    }
}

/// Bytes that are not a valid value of the type.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("unexpected end of the bytes")]
    End,
    #[error("{0} trailing bytes")]
    Left(usize),
    #[error("nested more than {DEPTH} levels deep")]
    Depth,
    #[error("length {0} exceeds the remaining bytes")]
    Length(u64),
    #[error("more than {EMPTY_ELEMENTS} elements without content")]
    Empty,
    #[error("{found} is not {expected}")]
    Invalid { found: u64, expected: &'static str },
    #[error("invalid UTF-8 in a text")]
    Text,
    /// The type's `Deserialize` needs field names or type tags, which bincode does not write.
    #[error(
        "the type needs a format that describes itself (`{0}`); bincode does not: remove `tag`, `untagged`, `flatten` and dynamic \
         values such as `serde_json::Value`, or use `codec = json` for the domain"
    )]
    NotSelfDescribing(&'static str),
    #[error("{0}")]
    Type(String),
}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self::Type(text.to_string())
    }
}

struct Reader<'de> {
    rest: &'de [u8],
    /// The number of bytes of the whole value.
    length: usize,
    /// The number of further levels allowed.
    levels: usize,
    /// The number of further elements without bytes allowed.
    empty: usize,
    /// Records the starts of the elements of lists and maps, if requested.
    found: Option<Vec<canonical::Elements>>,
}

impl<'de> Reader<'de> {
    fn take(&mut self, count: usize) -> Result<&'de [u8], ReadError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(ReadError::End)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(ReadError::End)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn byte(&mut self) -> Result<u8, ReadError> {
        self.array().map(|[byte]| byte)
    }

    /// Reads a variable-length number of at most `width` bytes. Up to 250 it is one byte, otherwise a mark and 2, 4, 8
    /// or 16 bytes.
    fn number(&mut self, width: usize) -> Result<u128, ReadError> {
        let mark = self.byte()?;
        let (bytes, number) = match mark {
            0..=250 => (0, u128::from(mark)),
            251 => (2, u128::from(u16::from_le_bytes(self.array()?))),
            252 => (4, u128::from(u32::from_le_bytes(self.array()?))),
            253 => (8, u128::from(u64::from_le_bytes(self.array()?))),
            254 => (16, u128::from_le_bytes(self.array()?)),
            255 => return Err(ReadError::Invalid { found: 255, expected: "a valid number mark" }),
        };
        if bytes > width {
            return Err(ReadError::Invalid { found: u64::from(mark), expected: "a mark in the range of the type" });
        }
        Ok(number)
    }

    fn unsigned<N: TryFrom<u128>>(&mut self, width: usize) -> Result<N, ReadError> {
        let number = self.number(width)?;
        N::try_from(number).map_err(|_| ReadError::Invalid {
            found: u64::try_from(number).unwrap_or(u64::MAX),
            expected: "in the range of the type",
        })
    }

    /// Reads a signed number in zigzag encoding, which keeps small negative numbers short.
    fn signed<N: TryFrom<i128>>(&mut self, width: usize) -> Result<N, ReadError> {
        let number = self.number(width)?;
        let half = i128::try_from(number >> 1).unwrap_or(i128::MAX);
        let value = if number & 1 == 0 { half } else { -1 - half };
        N::try_from(value).map_err(|_| ReadError::Invalid {
            found: u64::try_from(number).unwrap_or(u64::MAX),
            expected: "in the signed range of the type",
        })
    }

    /// Reads the length of a text or of bytes, bounded by the remaining bytes.
    fn length(&mut self) -> Result<usize, ReadError> {
        let length: u64 = self.unsigned(8)?;
        match usize::try_from(length) {
            Ok(length) if length <= self.rest.len() => Ok(length),
            _ => Err(ReadError::Length(length)),
        }
    }

    /// Reads the number of elements of a list or a map. Elements may have no bytes, so it may exceed the remaining
    /// bytes.
    fn count(&mut self) -> Result<usize, ReadError> {
        let count: u64 = self.unsigned(8)?;
        match usize::try_from(count) {
            Ok(elements) if elements <= self.rest.len().saturating_add(self.empty) => Ok(elements),
            _ => Err(ReadError::Length(count)),
        }
    }

    fn text(&mut self) -> Result<&'de str, ReadError> {
        let length = self.length()?;
        std::str::from_utf8(self.take(length)?).map_err(|_| ReadError::Text)
    }

    /// Decodes one level deeper.
    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, ReadError>) -> Result<T, ReadError> {
        self.levels = self.levels.checked_sub(1).ok_or(ReadError::Depth)?;
        let value = read(self)?;
        self.levels += 1;
        Ok(value)
    }

    /// Decodes the fields of a struct or the elements of a tuple. The type determines their number.
    fn fields<V: Visitor<'de>>(&mut self, count: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.deeper(|reader| visitor.visit_seq(Fields { reader, left: count }))
    }

    /// Decodes a list or a map. The bytes determine the number of elements.
    fn elements<T>(&mut self, read: impl FnOnce(Elements<'_, 'de>) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let left = self.count()?;
        self.deeper(|reader| {
            let mut begins = reader.found.is_some().then(Vec::new);
            let value = read(Elements { reader: &mut *reader, left, begins: begins.as_mut() })?;
            if let Some((found, mut begins)) = reader.found.as_mut().zip(begins) {
                begins.push(reader.length - reader.rest.len());
                found.push(begins);
            }
            Ok(value)
        })
    }
}

/// The fields of a struct or the elements of a tuple.
struct Fields<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: usize,
}

impl<'de> de::SeqAccess<'de> for Fields<'_, 'de> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left.min(self.reader.rest.len()))
    }
}

/// The elements of a list or a map.
struct Elements<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: usize,
    /// Records the start of each element, if requested.
    begins: Option<&'a mut canonical::Elements>,
}

impl<'de> Elements<'_, 'de> {
    fn next<T>(&mut self, read: impl FnOnce(&mut Reader<'de>) -> Result<T, ReadError>) -> Result<Option<T>, ReadError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        let before = self.reader.rest.len();
        if let Some(begins) = &mut self.begins {
            begins.push(self.reader.length - before);
        }
        let value = read(self.reader)?;
        if self.reader.rest.len() == before {
            self.reader.empty = self.reader.empty.checked_sub(1).ok_or(ReadError::Empty)?;
        }
        Ok(Some(value))
    }
}

impl<'de> de::SeqAccess<'de> for Elements<'_, 'de> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ReadError> {
        self.next(|reader| seed.deserialize(reader))
    }

    fn size_hint(&self) -> Option<usize> {
        // Each element either has at least one byte or has no size in memory either.
        Some(self.left.min(self.reader.rest.len()))
    }
}

impl<'de> de::MapAccess<'de> for Elements<'_, 'de> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ReadError> {
        self.next(|reader| seed.deserialize(reader))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, ReadError> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left.min(self.reader.rest.len()))
    }
}

/// The content of an enum's variant.
struct Variant<'a, 'de>(&'a mut Reader<'de>);

impl<'a, 'de> de::EnumAccess<'de> for Variant<'a, 'de> {
    type Error = ReadError;
    type Variant = &'a mut Reader<'de>;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self::Variant), ReadError> {
        let number: u32 = self.0.unsigned(4)?;
        let value = seed.deserialize(IntoDeserializer::<ReadError>::into_deserializer(number))?;
        Ok((value, self.0))
    }
}

impl<'de> de::VariantAccess<'de> for &mut Reader<'de> {
    type Error = ReadError;

    fn unit_variant(self) -> Result<(), ReadError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, ReadError> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.fields(len, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.fields(fields.len(), visitor)
    }
}

/// Methods that decode a number and pass it to the visitor.
macro_rules! numbers {
    ($($method:ident $visit:ident $read:ident $width:literal,)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
            visitor.$visit(self.$read($width)?)
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = ReadError;

    numbers! {
        deserialize_u16 visit_u16 unsigned 2,
        deserialize_u32 visit_u32 unsigned 4,
        deserialize_u64 visit_u64 unsigned 8,
        deserialize_u128 visit_u128 number 16,
        deserialize_i16 visit_i16 signed 2,
        deserialize_i32 visit_i32 signed 4,
        deserialize_i64 visit_i64 signed 8,
        deserialize_i128 visit_i128 signed 16,
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_u8(self.byte()?)
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_i8(i8::from_le_bytes(self.array()?))
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_f32(f32::from_le_bytes(self.array()?))
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_f64(f64::from_le_bytes(self.array()?))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.byte()? {
            0 => visitor.visit_bool(false),
            1 => visitor.visit_bool(true),
            found => Err(ReadError::Invalid { found: found.into(), expected: "true (1) or false (0)" }),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let length = match self.rest.first().ok_or(ReadError::End)? {
            0..=0x7F => 1,
            0xC0..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF7 => 4,
            _ => return Err(ReadError::Text),
        };
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| ReadError::Text)?;
        visitor.visit_char(text.chars().next().ok_or(ReadError::Text)?)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        let length = self.length()?;
        visitor.visit_borrowed_bytes(self.take(length)?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.byte()? {
            0 => visitor.visit_none(),
            1 => self.deeper(|reader| visitor.visit_some(reader)),
            found => Err(ReadError::Invalid { found: found.into(), expected: "some (1) or none (0)" }),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_unit()
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, ReadError> {
        self.deeper(|reader| visitor.visit_newtype_struct(reader))
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.elements(|elements| visitor.visit_seq(elements))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, ReadError> {
        self.fields(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.fields(len, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        self.elements(|elements| visitor.visit_map(elements))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.fields(fields.len(), visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        self.deeper(|reader| visitor.visit_enum(Variant(reader)))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ReadError> {
        Err(ReadError::NotSelfDescribing("deserialize_any"))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ReadError> {
        Err(ReadError::NotSelfDescribing("deserialize_identifier"))
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, ReadError> {
        Err(ReadError::NotSelfDescribing("deserialize_ignored_any"))
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
