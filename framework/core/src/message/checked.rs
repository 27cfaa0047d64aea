//! A wrapper for serializers that rejects values which could not be decoded again.
//!
//! Used by the [codec](super::codec) for every encoded value. bincode and JSON both accept values that they cannot
//! decode: fields omitted by `skip_serializing_if` in a format without names, numbers that are not finite, `Some(None)`
//! in JSON, and nesting deeper than the decoders allow. An error here occurs before anything is stored or sent.

use std::fmt::Display;

use serde::Serialize;
use serde::ser::{
    Error, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple, SerializeTupleStruct,
    SerializeTupleVariant, Serializer,
};

use super::Codec;

/// The deepest nesting that is encoded. The decoders allow at least as much: serde_json 127 levels, counted in the same
/// way or fewer.
pub(super) const DEPTH: usize = 127;

/// A value that is serialized through a [`Checked`] serializer.
pub(super) struct CheckedValue<'a, T: ?Sized> {
    value: &'a T,
    context: Context,
}

/// The position of a value within the message.
#[derive(Clone, Copy)]
struct Context {
    json: bool,
    /// The number of further levels allowed.
    levels: usize,
    /// The value is directly inside a `Some`, where JSON would write `null` for a value without content.
    in_some: bool,
}

impl<'a, T: Serialize + ?Sized> CheckedValue<'a, T> {
    /// Wraps the value of a whole message, for a serializer of `codec`.
    pub(super) fn new(value: &'a T, codec: Codec) -> Self {
        Self { value, context: Context { json: codec == Codec::Json, levels: DEPTH, in_some: false } }
    }
}

struct Checked<S> {
    inner: S,
    context: Context,
}

impl Context {
    /// Returns the context `levels` deeper.
    fn deeper<E: Error>(self, levels: usize) -> Result<Self, E> {
        match self.levels.checked_sub(levels) {
            Some(levels) => Ok(Self { levels, in_some: false, ..self }),
            None => Err(E::custom(format!("nested more than {DEPTH} levels deep"))),
        }
    }

    fn check_not_null<E: Error>(self) -> Result<(), E> {
        if self.json && self.in_some {
            return Err(E::custom(
                "JSON writes `Some` of nothing (`Some(None)`, `Some(())`) as `null`, which reads as `None`",
            ));
        }
        Ok(())
    }

    fn check_finite<E: Error>(self, is_finite: bool) -> Result<(), E> {
        if self.json && !is_finite {
            return Err(E::custom("JSON has no number for infinity and NaN"));
        }
        Ok(())
    }

    fn check_skipped<E: Error>(self, field: &'static str) -> Result<(), E> {
        if self.json {
            return Ok(());
        }
        Err(E::custom(format!(
            "`skip_serializing_if` leaves out field `{field}`, and bincode, which writes no names, would read the next field in its \
             place: remove the attribute, or use `codec = json` for the domain"
        )))
    }
}

impl<T: Serialize + ?Sized> Serialize for CheckedValue<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(Checked { inner: serializer, context: self.context })
    }
}

/// Methods that pass on a plain value.
macro_rules! plain {
    ($($method:ident $type:ty,)*) => {
        $(#[inline]
        fn $method(self, value: $type) -> Result<S::Ok, S::Error> {
            self.inner.$method(value)
        })*
    };
}

/// The elements or fields of a value.
struct Parts<S> {
    inner: S,
    context: Context,
}

impl<S: Serializer> Serializer for Checked<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Parts<S::SerializeSeq>;
    type SerializeTuple = Parts<S::SerializeTuple>;
    type SerializeTupleStruct = Parts<S::SerializeTupleStruct>;
    type SerializeTupleVariant = Parts<S::SerializeTupleVariant>;
    type SerializeMap = Parts<S::SerializeMap>;
    type SerializeStruct = Parts<S::SerializeStruct>;
    type SerializeStructVariant = Parts<S::SerializeStructVariant>;

    plain! {
        serialize_bool bool,
        serialize_i8 i8,
        serialize_i16 i16,
        serialize_i32 i32,
        serialize_i64 i64,
        serialize_i128 i128,
        serialize_u8 u8,
        serialize_u16 u16,
        serialize_u32 u32,
        serialize_u64 u64,
        serialize_u128 u128,
        serialize_char char,
        serialize_str &str,
        serialize_bytes &[u8],
    }

    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        self.context.check_finite(value.is_finite())?;
        self.inner.serialize_f32(value)
    }

    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        self.context.check_finite(value.is_finite())?;
        self.inner.serialize_f64(value)
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.context.check_not_null()?;
        self.inner.serialize_none()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        let context = Context { in_some: true, ..self.context.deeper(1)? };
        self.inner.serialize_some(&CheckedValue { value, context })
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.context.check_not_null()?;
        self.inner.serialize_unit()
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<S::Ok, S::Error> {
        self.context.check_not_null()?;
        self.inner.serialize_unit_struct(name)
    }

    fn serialize_unit_variant(self, name: &'static str, index: u32, variant: &'static str) -> Result<S::Ok, S::Error> {
        self.inner.serialize_unit_variant(name, index, variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<S::Ok, S::Error> {
        // JSON writes only the content.
        let context = Context { in_some: self.context.in_some, ..self.context.deeper(1)? };
        self.inner.serialize_newtype_struct(name, &CheckedValue { value, context })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        let context = self.context.deeper(1)?;
        self.inner.serialize_newtype_variant(name, index, variant, &CheckedValue { value, context })
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        let context = self.context.deeper(1)?;
        Ok(Parts { inner: self.inner.serialize_seq(len)?, context })
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        let context = self.context.deeper(1)?;
        Ok(Parts { inner: self.inner.serialize_tuple(len)?, context })
    }

    fn serialize_tuple_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeTupleStruct, S::Error> {
        let context = self.context.deeper(1)?;
        Ok(Parts { inner: self.inner.serialize_tuple_struct(name, len)?, context })
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        let context = self.context.deeper(2)?;
        Ok(Parts { inner: self.inner.serialize_tuple_variant(name, index, variant, len)?, context })
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        let context = self.context.deeper(1)?;
        Ok(Parts { inner: self.inner.serialize_map(len)?, context })
    }

    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeStruct, S::Error> {
        let context = self.context.deeper(1)?;
        Ok(Parts { inner: self.inner.serialize_struct(name, len)?, context })
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        let context = self.context.deeper(2)?;
        Ok(Parts { inner: self.inner.serialize_struct_variant(name, index, variant, len)?, context })
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.inner.collect_str(value)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

/// The elements of lists and tuples, which have no names.
macro_rules! elements {
    ($($trait:ident $method:ident,)*) => {
        $(impl<S: $trait> $trait for Parts<S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
                self.inner.$method(&CheckedValue { value, context: self.context })
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.inner.end()
            }
        })*
    };
}

elements! {
    SerializeSeq serialize_element,
    SerializeTuple serialize_element,
    SerializeTupleStruct serialize_field,
    SerializeTupleVariant serialize_field,
}

impl<S: SerializeMap> SerializeMap for Parts<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.inner.serialize_key(&CheckedValue { value: key, context: self.context })
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.inner.serialize_value(&CheckedValue { value, context: self.context })
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.inner.end()
    }
}

/// The fields of structs, which have names.
macro_rules! fields {
    ($($trait:ident,)*) => {
        $(impl<S: $trait> $trait for Parts<S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Result<(), S::Error> {
                self.inner.serialize_field(name, &CheckedValue { value, context: self.context })
            }

            fn skip_field(&mut self, name: &'static str) -> Result<(), S::Error> {
                self.context.check_skipped(name)?;
                self.inner.skip_field(name)
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.inner.end()
            }
        })*
    };
}

fields! {
    SerializeStruct,
    SerializeStructVariant,
}
