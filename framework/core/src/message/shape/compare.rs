//! Compares shapes: bytes of one shape may or may not be readable as another.

use super::{Field, Plain, Shape, Variant};
use crate::message::Codec;

/// A difference between two shapes of one type.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Difference {
    /// The field, with the fields and variants that contain it: `to.account`. Empty for the type itself.
    pub field: String,
    /// The stored shape at this place.
    pub stored: String,
    /// The shape in the program at this place.
    pub found: String,
}

impl Difference {
    fn of(stored: impl ToString, found: impl ToString) -> Self {
        Self { field: String::new(), stored: stored.to_string(), found: found.to_string() }
    }

    fn within(mut self, name: &str) -> Self {
        self.field = if self.field.is_empty() { name.to_owned() } else { format!("{name}.{}", self.field) };
        self
    }
}

/// The text for a part that only the other shape has.
const NOTHING: &str = "nothing";

impl Shape {
    /// Compares the stored shape, `self`, with the shape as which a program reads it. Returns the first difference that
    /// `codec` cannot bridge.
    ///
    /// bincode writes values in order without names, so order, number and integer kinds matter. Names matter as well:
    /// otherwise two fields of the same kind that were swapped could not be detected. JSON writes names, so only names
    /// and kinds matter, and an optional field may be added or removed. Variants may be added at the end.
    pub fn difference(&self, found: &Self, codec: Codec) -> Option<Difference> {
        if codec == Codec::Json { json::<false>(self, found) } else { in_order(self, found) }
    }

    /// Compares the shape of another service's message, `self`, with the shape as which this service reads it, `found`.
    ///
    /// Like [`difference`](Self::difference), but a field that the receiver of JSON does not have is not a difference: it
    /// is ignored on reading, and nothing is written back.
    pub(crate) fn difference_received(&self, found: &Self, codec: Codec) -> Option<Difference> {
        if codec == Codec::Json { json::<true>(self, found) } else { in_order(self, found) }
    }

    /// Merges two shapes that do not [differ](Self::difference) into one with the parts of both.
    pub fn merged(&self, newer: &Self) -> Self {
        match (self, newer) {
            (Self::Opaque, known) | (known, Self::Opaque) => known.clone(),
            (Self::Option(one), Self::Option(other)) => Self::Option(Box::new(one.merged(other))),
            (Self::List(one), Self::List(other)) => Self::List(Box::new(one.merged(other))),
            (Self::Map(key, value), Self::Map(other_key, other)) => {
                Self::Map(Box::new(key.merged(other_key)), Box::new(value.merged(other)))
            }
            (Self::Tuple(some), Self::Tuple(others)) if some.len() == others.len() => {
                Self::Tuple(some.iter().zip(others).map(|(one, other)| one.merged(other)).collect())
            }
            (Self::Struct(some), Self::Struct(others)) => {
                let merged = |field: &Field| match some.iter().find(|known| known.is_named_as(field)) {
                    Some(known) => Field { shape: known.shape.merged(&field.shape), ..field.clone() },
                    None => field.clone(),
                };
                let gone = some.iter().filter(|known| !others.iter().any(|field| field.is_named_as(known)));
                Self::Struct(others.iter().map(merged).chain(gone.cloned()).collect())
            }
            (Self::Enum(some), Self::Enum(others)) => {
                let find = |list: &[Variant], name: &str| list.iter().find(|known| known.name == name).cloned();
                let merged = |known: &Variant| match find(others, &known.name) {
                    Some(newer) => Variant { shape: known.shape.merged(&newer.shape), ..newer },
                    None => known.clone(),
                };
                let added = others.iter().filter(|variant| find(some, &variant.name).is_none());
                Self::Enum(some.iter().map(merged).chain(added.cloned()).collect())
            }
            (_, newer) => newer.clone(),
        }
    }
}

/// Compares the forms that both codecs treat alike. Returns `None` if the shapes have different forms.
fn parts(stored: &Shape, found: &Shape, of: fn(&Shape, &Shape) -> Option<Difference>) -> Option<Option<Difference>> {
    Some(match (stored, found) {
        (Shape::Opaque | Shape::Recursion, _) | (_, Shape::Opaque | Shape::Recursion) => None,
        (Shape::Option(stored), Shape::Option(found)) | (Shape::List(stored), Shape::List(found)) => of(stored, found),
        (Shape::Map(key, value), Shape::Map(found_key, found)) => of(key, found_key).or_else(|| of(value, found)),
        (Shape::Tuple(some), Shape::Tuple(others)) if some.len() == others.len() => some
            .iter()
            .zip(others)
            .zip(0..)
            .find_map(|((one, other), at)| of(one, other).map(|difference| difference.within(&at.to_string()))),
        (Shape::Array(one, stored), Shape::Array(other, found)) if one == other => of(stored, found),
        _ => return None,
    })
}

fn in_order(stored: &Shape, found: &Shape) -> Option<Difference> {
    if let Some(compared) = parts(stored, found, in_order) {
        return compared;
    }
    match (stored, found) {
        (Shape::Plain(one), Shape::Plain(other)) if one == other => None,
        (Shape::Struct(some), Shape::Struct(others)) => {
            for at in 0..some.len().max(others.len()) {
                let difference = match (some.get(at), others.get(at)) {
                    (Some(one), Some(other)) if one.is_named_as(other) => in_order(&one.shape, &other.shape),
                    // The names show what has changed, so they are reported with the kinds.
                    (Some(one), Some(other)) => Some(Difference::of(
                        format!("{}: {}", one.name(), one.shape),
                        format!("{}: {}", other.name(), other.shape),
                    )),
                    (Some(one), None) => Some(Difference::of(&one.shape, NOTHING)),
                    (None, Some(other)) => Some(Difference::of(NOTHING, &other.shape)),
                    (None, None) => None,
                };
                if let Some(difference) = difference {
                    let name = some.get(at).or(others.get(at)).map(Field::name).unwrap_or_default();
                    return Some(difference.within(&name));
                }
            }
            None
        }
        // One of them may be older and have fewer variants: the missing ones are at the end.
        (Shape::Enum(some), Shape::Enum(others)) => some.iter().zip(others).find_map(|(one, other)| {
            if one.name == other.name {
                return in_order(&one.shape, &other.shape).map(|difference| difference.within(&one.name));
            }
            Some(Difference::of(&one.name, &other.name).within("the variants"))
        }),
        _ => Some(Difference::of(stored, found)),
    }
}

/// Compares as JSON. With `LEAVES_OUT`, unknown fields are ignored.
fn json<const LEAVES_OUT: bool>(stored: &Shape, found: &Shape) -> Option<Difference> {
    if let Some(compared) = parts(stored, found, json::<LEAVES_OUT>) {
        return compared;
    }
    match (stored, found) {
        (Shape::Plain(one), Shape::Plain(other)) if in_json(*one) <= in_json(*other) && is_one(*one, *other) => None,
        // A value that was always present may be absent from now on.
        (stored, Shape::Option(found)) => json::<LEAVES_OUT>(stored, found),
        (Shape::Struct(some), Shape::Struct(others)) => {
            for one in some {
                let difference = match others.iter().find(|other| other.is_named_as(one)) {
                    Some(other) => json::<LEAVES_OUT>(&one.shape, &other.shape),
                    None if one.optional || LEAVES_OUT => None,
                    None => Some(Difference::of(&one.shape, NOTHING)),
                };
                if let Some(difference) = difference {
                    return Some(difference.within(&one.name()));
                }
            }
            let added = others.iter().find(|other| !other.optional && !some.iter().any(|one| one.is_named_as(other)));
            added.map(|added| Difference::of(NOTHING, &added.shape).within(&added.name()))
        }
        (Shape::Enum(some), Shape::Enum(others)) => {
            let has = |list: &[Variant], name: &str| list.iter().any(|variant| variant.name == name);
            for one in some {
                match others.iter().find(|other| other.name == one.name) {
                    Some(other) => {
                        if let Some(difference) = json::<LEAVES_OUT>(&one.shape, &other.shape) {
                            return Some(difference.within(&one.name));
                        }
                    }
                    // One variant is missing and another was added: it was probably renamed.
                    None => {
                        if let Some(new) = others.iter().find(|other| !has(some, &other.name)) {
                            return Some(Difference::of(&one.name, &new.name).within("the variants"));
                        }
                    }
                }
            }
            None
        }
        _ => Some(Difference::of(stored, found)),
    }
}

/// Returns the group (tens) and rank of a kind in JSON. A kind can be read as one with a higher rank of the same group.
fn in_json(plain: Plain) -> u8 {
    match plain {
        Plain::Unit => 0,
        Plain::Bool => 10,
        Plain::F32 | Plain::F64 => 21,
        Plain::Char => 30,
        Plain::Text => 31,
        Plain::Bytes => 40,
        _ => 20,
    }
}

fn is_one(one: Plain, other: Plain) -> bool {
    in_json(one) / 10 == in_json(other) / 10
}
