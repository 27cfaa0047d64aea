//! The parts of a shape.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The names, order and kinds of the parts of a type's encoding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Shape {
    /// A part that cannot be seen.
    Opaque,
    /// A value that may be absent.
    Option(Box<Shape>),
    /// Any number of values of one shape.
    List(Box<Shape>),
    /// Any number of keys with their values.
    Map(Box<Shape>, Box<Shape>),
    /// A fixed sequence of values.
    Tuple(Vec<Shape>),
    /// A fixed number of values of one shape.
    Array(usize, Box<Shape>),
    /// Named fields, in order.
    Struct(Vec<Field>),
    /// Variants, in order.
    Enum(Vec<Variant>),
    /// A type that contains itself.
    Recursion,
    /// A value of one kind, such as `u64` or `text`.
    #[serde(untagged)]
    Plain(Plain),
}

/// The kind of a single value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names of the variants are the names of the kinds")]
#[non_exhaustive]
pub enum Plain {
    Unit,
    Bool,
    I8,
    I16,
    I32,
    I64,
    I128,
    U8,
    U16,
    U32,
    U64,
    U128,
    F32,
    F64,
    Char,
    Text,
    Bytes,
}

/// A named field of a [`Shape::Struct`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// The field's name and its aliases.
    pub names: Vec<String>,
    /// The shape of its content.
    pub shape: Shape,
    /// `true` if the struct can be read without it. Known for [`Codec::Json`](crate::message::Codec::Json) only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// A variant of a [`Shape::Enum`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// The variant's name.
    pub name: String,
    /// The shape of its content.
    pub shape: Shape,
}

impl Shape {
    /// Returns the shape as stored in a store.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Parses a stored shape. Returns an opaque shape if a newer version wrote something unknown.
    pub fn from_text(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or(Self::Opaque)
    }
}

impl Plain {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Unit => "()",
            Self::Bool => "bool",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::I128 => "i128",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::U128 => "u128",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::Char => "char",
            Self::Text => "text",
            Self::Bytes => "bytes",
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn list<T: fmt::Display>(f: &mut fmt::Formatter<'_>, parts: impl Iterator<Item = T>) -> fmt::Result {
            for (at, part) in parts.enumerate() {
                let comma = if at == 0 { "" } else { ", " };
                write!(f, "{comma}{part}")?;
            }
            Ok(())
        }
        match self {
            Self::Opaque => f.write_str("?"),
            Self::Plain(plain) => f.write_str(plain.name()),
            Self::Option(shape) => write!(f, "optional {shape}"),
            Self::List(shape) => write!(f, "[{shape}]"),
            Self::Map(key, value) => write!(f, "{{{key} => {value}}}"),
            Self::Tuple(shapes) => {
                f.write_str("(")?;
                list(f, shapes.iter())?;
                f.write_str(")")
            }
            Self::Array(length, shape) => write!(f, "[{shape}; {length}]"),
            Self::Struct(fields) => {
                f.write_str("{")?;
                list(f, fields.iter().map(|field| format!("{}: {}", field.name(), field.shape)))?;
                f.write_str("}")
            }
            Self::Enum(variants) => {
                f.write_str("<")?;
                list(f, variants.iter().map(|variant| format!("{} {}", variant.name, variant.shape)))?;
                f.write_str(">")
            }
            Self::Recursion => f.write_str("itself"),
        }
    }
}

impl Field {
    pub(super) fn name(&self) -> String {
        self.names.join(" or ")
    }

    pub(super) fn is_named_as(&self, other: &Self) -> bool {
        self.names.iter().any(|name| other.names.contains(name))
    }
}
