//! The deserializer that traces a type. It records each request and returns the value that the explorer chooses.
//!
//! A place is `None` where nothing is recorded: inside a type that contains itself, the probe only searches for an end.

use std::fmt;

use serde::Deserializer;
use serde::de::Visitor;

use super::Plain;
use super::access::{ChosenVariant, MapEntry, NamedFields, Nothing, Values};
use super::explorer::{DEPTH, Explorer, FieldNode, Kind, LastStep, NodeId, RECURSION_DEPTH, REPEATS, VariantNode};
use super::samples;

/// The longest sequence that is a tuple. Longer ones are arrays, whose elements all have one shape.
const MAX_TUPLE: usize = 16;

/// A failed pass. It has no content, because the explorer knows the last step.
#[derive(Debug)]
pub struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the sample was refused")
    }
}

impl std::error::Error for Refused {}

impl serde::de::Error for Refused {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
    fn invalid_type(_: serde::de::Unexpected<'_>, _: &dyn serde::de::Expected) -> Self {
        Self
    }
    fn invalid_value(_: serde::de::Unexpected<'_>, _: &dyn serde::de::Expected) -> Self {
        Self
    }
    fn invalid_length(_: usize, _: &dyn serde::de::Expected) -> Self {
        Self
    }
    fn unknown_variant(_: &str, _: &'static [&'static str]) -> Self {
        Self
    }
    fn unknown_field(_: &str, _: &'static [&'static str]) -> Self {
        Self
    }
    fn duplicate_field(_: &'static str) -> Self {
        Self
    }
}

/// A place of a type, as visited by its `Deserialize`.
pub(super) struct Probe<'a> {
    pub(super) explorer: &'a mut Explorer,
    pub(super) place: NodeId,
    pub(super) depth: usize,
}

impl<'a> Probe<'a> {
    pub(super) fn root(explorer: &'a mut Explorer) -> Self {
        Self { explorer, place: Some(0), depth: 0 }
    }

    /// Records a value of one kind and returns the number of the sample to try.
    pub(super) fn plain(&mut self, plain: Plain) -> usize {
        self.explorer.enter(self.place, self.depth, |_| Kind::Plain(plain));
        self.explorer.node(self.place).map_or(0, |node| node.sample)
    }

    fn integer(&mut self, plain: Plain) -> u8 {
        let at = self.plain(plain);
        samples::nth(samples::INTEGERS, at)
    }

    /// Enters a named type. If it contains itself or is very deep, only an end is searched for from here on.
    fn open(&mut self, name: &'static str, parts: &'static [&'static str]) -> Result<(), Refused> {
        let named = (name.as_ptr() as usize, parts.as_ptr() as usize);
        let repeats = self.explorer.open.iter().filter(|open| **open == named).count();
        if self.depth >= RECURSION_DEPTH {
            self.explorer.last = LastStep::RecursionEnd;
            return Err(Refused);
        }
        if self.place.is_some() && (repeats >= REPEATS || self.depth >= DEPTH) {
            self.explorer.enter(self.place, self.depth, |_| Kind::Recursion);
            self.place = None;
        }
        self.explorer.open.push(named);
        Ok(())
    }

    fn close(explorer: &mut Explorer) {
        explorer.open.pop();
    }

    /// Begins a tuple or an array, whose elements are visited once each.
    fn begin_tuple(self, length: usize) -> Result<Values<'a>, Refused> {
        if self.depth >= RECURSION_DEPTH {
            self.explorer.last = LastStep::RecursionEnd;
            return Err(Refused);
        }
        self.explorer.enter(self.place, self.depth, |explorer| match length > MAX_TUPLE {
            true => Kind::Array(length, explorer.add()),
            false => Kind::Tuple((0..length).map(|_| explorer.add()).collect()),
        });
        let places = match self.explorer.node(self.place).map(|node| &node.kind) {
            Some(Kind::Tuple(places)) => places.clone(),
            Some(Kind::Array(_, of)) => vec![*of; length],
            _ => vec![None; length],
        };
        Ok(Values { explorer: self.explorer, places: places.into_iter(), depth: self.depth + 1 })
    }

    pub(super) fn values<'de, V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Refused> {
        let place = self.place;
        let mut values = self.begin_tuple(length)?;
        let value = visitor.visit_seq(&mut values)?;
        values.end(place, length);
        Ok(value)
    }

    pub(super) fn fields<'de, V: Visitor<'de>>(
        self,
        name: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let mut fields = self.begin_fields(name, names)?;
        // Only code that uses the visitor is compiled for each type; everything else is in `Fields`.
        let read = match &mut fields.given {
            FieldSource::Named(named) => visitor.visit_map(named),
            FieldSource::Values(values) => visitor.visit_seq(values),
        };
        fields.end(read.is_ok());
        read
    }

    /// Determines the fields that a struct is offered in this pass.
    fn begin_fields(mut self, name: &'static str, names: &'static [&'static str]) -> Result<Fields<'a>, Refused> {
        self.open(name, names)?;
        self.explorer.enter(self.place, self.depth, |explorer| {
            let field = |name: &&'static str| FieldNode {
                names: vec![*name],
                of: explorer.add(),
                optional: None,
                visited: false,
            };
            Kind::Struct { fields: names.iter().map(field).collect(), by_order: false }
        });
        let (depth, place) = (self.depth + 1, self.place);
        let Some((order, by_order)) = self.order() else {
            // Not explored, or of another kind in an earlier pass: offer all names in order.
            let order: Vec<_> = names.iter().map(|name| (*name, None, None)).collect();
            let given = NamedFields { explorer: self.explorer, order: order.into_iter(), place: None, at: None, depth };
            return Ok(Fields { given: FieldSource::Named(given), place, omitted: None });
        };
        if by_order {
            let places: Vec<_> = order.iter().map(|(_, of, _)| *of).collect();
            let given = Values { explorer: self.explorer, places: places.into_iter(), depth };
            return Ok(Fields { given: FieldSource::Values(given), place, omitted: None });
        }
        let omitted = self.omitted();
        let offered: Vec<_> = order.into_iter().filter(|(_, _, at)| *at != omitted || omitted.is_none()).collect();
        let given = NamedFields { explorer: self.explorer, order: offered.into_iter(), place, at: None, depth };
        Ok(Fields { given: FieldSource::Named(given), place, omitted })
    }

    /// Returns a probe for the content of an option, or `None` to provide none.
    fn begin_option(self) -> Option<Probe<'a>> {
        self.explorer.enter(self.place, self.depth, |explorer| Kind::Option { of: explorer.add(), none: false });
        match self.explorer.node(self.place).map(|node| &node.kind) {
            Some(Kind::Option { of: Some(of), none: false }) => {
                let place = Some(*of);
                Some(Probe { explorer: self.explorer, place, depth: self.depth + 1 })
            }
            _ => None,
        }
    }

    /// Returns the elements of a list, or `None` if the list is too deep to be explored.
    fn begin_list(self) -> Option<Values<'a>> {
        if self.place.is_some() && self.depth >= DEPTH {
            self.explorer.enter(self.place, self.depth, |_| Kind::Recursion);
            return None;
        }
        self.explorer.enter(self.place, self.depth, |explorer| Kind::List { of: explorer.add(), empty: false });
        let places = match self.explorer.node(self.place).map(|node| &node.kind) {
            Some(Kind::List { of: Some(of), empty: false }) => vec![Some(*of)],
            _ => Vec::new(),
        };
        Some(Values { explorer: self.explorer, places: places.into_iter(), depth: self.depth + 1 })
    }

    /// Returns the entry of a map, or `None` for an empty map.
    fn begin_map(self) -> Option<MapEntry<'a>> {
        if self.place.is_some() && self.depth >= DEPTH {
            self.explorer.enter(self.place, self.depth, |_| Kind::Recursion);
            return None;
        }
        self.explorer.enter(self.place, self.depth, |explorer| Kind::Map {
            key: explorer.add(),
            value: explorer.add(),
            empty: false,
        });
        match self.explorer.node(self.place).map(|node| &node.kind) {
            Some(Kind::Map { key: Some(key), value: Some(value), empty: false }) => {
                let (key, value) = (Some(*key), Some(*value));
                Some(MapEntry { explorer: self.explorer, key, value, given: false, depth: self.depth + 1 })
            }
            _ => None,
        }
    }

    /// Chooses the variant that an enum is given in this pass.
    fn begin_enum(
        mut self,
        name: &'static str,
        variants: &'static [&'static str],
    ) -> Result<(Self, VariantChoice), Refused> {
        self.open(name, variants)?;
        self.explorer.enter(self.place, self.depth, |explorer| {
            let variant = |name: &&'static str| VariantNode {
                name,
                of: explorer.add(),
                accepted: false,
                stuck: false,
                chosen: false,
            };
            Kind::Enum(variants.iter().map(variant).collect())
        });
        let explorer = &mut *self.explorer;
        let chosen = match self.place.and_then(|at| explorer.nodes.get(at)).map(|node| &node.kind) {
            Some(Kind::Enum(known)) => {
                let new = known.iter().position(|variant| !variant.stuck && !explorer.is_done(variant.of));
                let accepted = || known.iter().position(|variant| variant.accepted);
                let at = new.or_else(accepted).unwrap_or(0);
                known.get(at).map(|variant| VariantChoice { at, name: variant.name, of: variant.of })
            }
            // Try the variants in turn until one of them ends.
            _ => {
                let name = variants.get((explorer.attempt + self.depth) % variants.len().max(1));
                name.map(|name| VariantChoice { at: 0, name, of: None })
            }
        };
        let chosen = chosen.ok_or(Refused)?;
        if let Some(Kind::Enum(known)) = explorer.node(self.place).map(|node| &mut node.kind)
            && let Some(variant) = known.get_mut(chosen.at)
        {
            variant.chosen = true;
        }
        Ok((self, chosen))
    }

    /// Returns the fields of the struct at this place in the order in which they are offered. Stuck fields come last.
    #[allow(clippy::type_complexity, reason = "one private function makes it, another reads it")]
    fn order(&mut self) -> Option<(Vec<(&'static str, NodeId, Option<usize>)>, bool)> {
        let Some(Kind::Struct { fields, by_order }) = self.explorer.node(self.place).map(|node| &node.kind) else {
            return None;
        };
        let by_order = *by_order;
        let named = |(at, field): (usize, &FieldNode)| Some((*field.names.first()?, field.of, Some(at)));
        let mut order: Vec<_> = fields.iter().enumerate().filter_map(named).collect();
        if !by_order {
            let stuck =
                |place: &NodeId| place.and_then(|at| self.explorer.nodes.get(at)).is_some_and(|node| node.stuck);
            order.sort_by_key(|(_, of, _)| stuck(of));
        }
        Some((order, by_order))
    }

    /// Returns the field that is omitted in this pass to test whether it is optional.
    fn omitted(&mut self) -> Option<usize> {
        if !self.explorer.is_json {
            return None;
        }
        let at = self.place?;
        let node = self.explorer.nodes.get(at)?;
        let Kind::Struct { fields, .. } = &node.kind else { return None };
        let is_seen = |field: &FieldNode| {
            let stuck = field.of.and_then(|at| self.explorer.nodes.get(at)).is_some_and(|node| node.stuck);
            self.explorer.is_done(field.of) && !stuck
        };
        if node.stuck || !fields.iter().all(is_seen) {
            return None;
        }
        fields.iter().position(|field| field.optional.is_none())
    }
}

/// The variant that an enum is given.
struct VariantChoice {
    at: usize,
    name: &'static str,
    of: NodeId,
}

impl VariantChoice {
    fn of<'a>(&self, probe: &'a mut Probe<'_>) -> ChosenVariant<'a> {
        let (place, depth) = (probe.place, probe.depth + 1);
        ChosenVariant { explorer: &mut *probe.explorer, place, at: self.at, name: self.name, of: self.of, depth }
    }
}

/// The fields that a struct is given in one pass.
struct Fields<'a> {
    given: FieldSource<'a>,
    place: NodeId,
    /// The field that is omitted to test whether it is optional.
    omitted: Option<usize>,
}

enum FieldSource<'a> {
    Named(NamedFields<'a>),
    Values(Values<'a>),
}

impl Fields<'_> {
    /// Records the result of the pass.
    fn end(self, accepted: bool) {
        let explorer = match self.given {
            FieldSource::Named(named) => named.explorer,
            FieldSource::Values(values) => values.explorer,
        };
        if let Some(omitted) = self.omitted {
            explorer.learn();
            if let Some(Kind::Struct { fields, .. }) = explorer.node(self.place).map(|node| &mut node.kind)
                && let Some(field) = fields.get_mut(omitted)
            {
                field.optional = Some(accepted);
            }
            if !accepted {
                explorer.last = LastStep::Omission;
            }
        }
        if accepted {
            Probe::close(explorer);
        }
    }
}

macro_rules! plain {
    ($($method:ident, $visit:ident, |$probe:ident| $value:expr;)*) => {
        $(
            fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
                let mut $probe = self;
                visitor.$visit($value)
            }
        )*
    };
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Refused;

    fn is_human_readable(&self) -> bool {
        self.explorer.is_json
    }

    plain! {
        deserialize_i8, visit_i8, |probe| probe.integer(Plain::I8) as i8;
        deserialize_i16, visit_i16, |probe| probe.integer(Plain::I16).into();
        deserialize_i32, visit_i32, |probe| probe.integer(Plain::I32).into();
        deserialize_i64, visit_i64, |probe| probe.integer(Plain::I64).into();
        deserialize_i128, visit_i128, |probe| probe.integer(Plain::I128).into();
        deserialize_u8, visit_u8, |probe| probe.integer(Plain::U8);
        deserialize_u16, visit_u16, |probe| probe.integer(Plain::U16).into();
        deserialize_u32, visit_u32, |probe| probe.integer(Plain::U32).into();
        deserialize_u64, visit_u64, |probe| probe.integer(Plain::U64).into();
        deserialize_u128, visit_u128, |probe| probe.integer(Plain::U128).into();
        deserialize_bool, visit_bool, |probe| probe.plain(Plain::Bool) == 1;
        deserialize_f32, visit_f32, |probe| {
            let at = probe.plain(Plain::F32);
            samples::nth(samples::FLOATS, at)
        };
        deserialize_f64, visit_f64, |probe| {
            let at = probe.plain(Plain::F64);
            samples::nth(samples::FLOATS, at).into()
        };
        deserialize_char, visit_char, |probe| {
            let at = probe.plain(Plain::Char);
            samples::nth(samples::CHARS, at)
        };
        deserialize_str, visit_str, |probe| {
            let at = probe.plain(Plain::Text);
            samples::nth(samples::TEXTS, at)
        };
    }

    fn deserialize_bytes<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        let at = self.plain(Plain::Bytes);
        visitor.visit_bytes(&vec![1; samples::nth(samples::LENGTHS, at)])
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_str(visitor)
    }

    fn deserialize_unit<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        self.plain(Plain::Unit);
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refused> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.explorer.enter(self.place, self.depth, |_| Kind::Any);
        match self.explorer.node(self.place).map_or(0, |node| node.sample) {
            0 => visitor.visit_unit(),
            1 => visitor.visit_str("a"),
            2 => visitor.visit_u64(1),
            3 => visitor.visit_bool(true),
            4 => visitor.visit_map(Nothing),
            _ => visitor.visit_seq(Nothing),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.explorer.enter(self.place, self.depth, |_| Kind::Any);
        visitor.visit_unit()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match self.begin_option() {
            Some(content) => visitor.visit_some(content),
            None => visitor.visit_none(),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Refused> {
        if self.depth >= RECURSION_DEPTH {
            self.explorer.last = LastStep::RecursionEnd;
            return Err(Refused);
        }
        // A newtype has no bytes of its own.
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match self.begin_list() {
            Some(mut values) => visitor.visit_seq(&mut values),
            None => visitor.visit_seq(Nothing),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        match self.begin_map() {
            Some(entry) => visitor.visit_map(entry),
            None => visitor.visit_map(Nothing),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, Refused> {
        self.values(length, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.open(name, &[])?;
        let explorer = &mut *self.explorer;
        let value = Probe { explorer, place: self.place, depth: self.depth }.values(length, visitor)?;
        Self::close(self.explorer);
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.fields(name, fields, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let (mut probe, chosen) = self.begin_enum(name, variants)?;
        let value = visitor.visit_enum(chosen.of(&mut probe))?;
        Self::close(probe.explorer);
        Ok(value)
    }
}
