//! The shape of a type: the names, the order and the kinds of everything its bytes are made of.
//!
//! Called by the node at start, through the derives, to compare the types of a program with the types whose bytes are in the
//! store. Calls serde's `Deserialize` of the type, without a value (see `trace`).
//! A part that cannot be seen is [`Opaque`](Shape::Opaque) and equal to everything: a comparison never fails by mistake, but
//! it sees less.

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

/// The names, the order and the kinds of what a type's bytes are made of.
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
    /// A fixed row of values.
    Tuple(Vec<Shape>),
    /// A fixed number of values of one shape.
    Array(usize, Box<Shape>),
    /// Named fields, in their order.
    Struct(Vec<Field>),
    /// Variants, in their order.
    Enum(Vec<Variant>),
    /// A type inside itself.
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
    /// The field's name, and the other names it is read by.
    pub names: Vec<String>,
    /// What it holds.
    pub shape: Shape,
    /// Whether the struct can be read without it. Known for [`Codec::Json`] only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub optional: bool,
}

/// A variant of a [`Shape::Enum`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// The variant's name.
    pub name: String,
    /// What it holds.
    pub shape: Shape,
}

impl Shape {
    /// The shape of `T` as `codec` reads it.
    ///
    /// The first call for a type runs its `Deserialize` some dozen times on made-up input, without a value; later calls return
    /// what was found then. A panic of the type's own code counts as a refusal of the input.
    pub fn of<T: DeserializeOwned + 'static>(codec: Codec) -> Arc<Self> {
        Self::known(TypeId::of::<T>(), codec, &mut |probe| T::deserialize(probe).is_ok())
    }

    /// The shape of a type, whose `Deserialize` is run by `pass` unless it is known.
    fn known(of: TypeId, codec: Codec, pass: &mut dyn FnMut(Probe<'_>) -> bool) -> Arc<Self> {
        type Known = HashMap<(TypeId, Codec), Arc<Shape>>;
        // A memory of a pure function: nodes that start often, as in simulations, trace each type once.
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

    /// The shape as it is kept in a store.
    pub(crate) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// A shape from a store; opaque if a newer version has written something that is not known here.
    pub(crate) fn from_text(text: &str) -> Self {
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
