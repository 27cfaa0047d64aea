//! The shape of a type: names, order and kinds of all parts of its encoding.
//!
//! Called by the node at start, through the derives, to compare the types of a program with the types whose bytes are
//! in the store. Calls the `Deserialize` of the type with artificial input, without a value. A part that cannot be seen
//! is [`Opaque`](Shape::Opaque) and equal to everything: a comparison has no false positives, but may miss differences.

mod access;
mod compare;
mod explorer;
mod probe;
mod samples;

use std::any::TypeId;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use self::compare::Difference;
use self::explorer::Explorer;
use self::probe::Probe;
use super::Codec;
use crate::user_code::user_code;

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
    /// `true` if the struct can be read without it. Known for [`Codec::Json`] only.
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
    /// Returns the shape of `T` as read by `codec`.
    ///
    /// The first call for a type runs its `Deserialize` a few dozen times on artificial input; later calls return the
    /// cached result. A panic of the type's own code counts as a refusal of the input.
    pub fn of<T: DeserializeOwned + 'static>(codec: Codec) -> Arc<Self> {
        Self::known(TypeId::of::<T>(), codec, &mut |probe| T::deserialize(probe).is_ok())
    }

    /// Returns the shape of a type. Runs its `Deserialize` through `pass` unless the shape is cached.
    fn known(of: TypeId, codec: Codec, pass: &mut dyn FnMut(Probe<'_>) -> bool) -> Arc<Self> {
        type Known = HashMap<(TypeId, Codec), Arc<Shape>>;
        // A cache of a pure function: nodes that start often, as in simulations, trace each type once.
        static KNOWN: Mutex<Option<Known>> = Mutex::new(None);
        let place = (of, codec);
        if let Some(shape) = KNOWN.lock().as_ref().and_then(|known| known.get(&place)) {
            return Arc::clone(shape);
        }
        // Not with the lock held: the type's `Deserialize` is user code.
        let mut pass = |probe: Probe<'_>| user_code(|| pass(probe)).unwrap_or(false);
        let shape = Arc::new(Explorer::explore(codec, &mut pass));
        KNOWN.lock().get_or_insert_default().insert(place, Arc::clone(&shape));
        shape
    }

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
    fn name(self) -> &'static str {
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
    fn name(&self) -> String {
        self.names.join(" or ")
    }

    fn is_named_as(&self, other: &Self) -> bool {
        self.names.iter().any(|name| other.names.contains(name))
    }
}

#[cfg(test)]
mod tests;
