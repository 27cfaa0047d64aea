//! The parts of a value that a probe provides to a type: elements, fields, entries, a variant.

use serde::de::value::StrDeserializer;
use serde::de::{DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor};

use super::Plain;
use super::explorer::{Explorer, Kind, LastStep, NodeId};
use super::probe::{Probe, Refused};

/// Provides the elements of a tuple or a list.
pub(super) struct Values<'a> {
    pub(super) explorer: &'a mut Explorer,
    pub(super) places: std::vec::IntoIter<NodeId>,
    pub(super) depth: usize,
}

impl<'de> SeqAccess<'de> for &mut Values<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refused> {
        match self.next() {
            Some(probe) => seed.deserialize(probe).map(Some),
            None => Ok(None),
        }
    }
}

impl Values<'_> {
    fn next(&mut self) -> Option<Probe<'_>> {
        let place = self.places.next()?;
        Some(Probe { explorer: self.explorer, place, depth: self.depth })
    }

    /// Records that the tuple at `place` was read. Elements that the type did not read are not part of it.
    pub(super) fn end(self, place: NodeId, length: usize) {
        let untaken = self.places.len();
        if untaken > 0
            && let Some(Kind::Tuple(places)) = self.explorer.node(place).map(|node| &mut node.kind)
        {
            places.truncate(length - untaken);
        }
    }
}

/// Provides the fields of a struct by name.
pub(super) struct NamedFields<'a> {
    pub(super) explorer: &'a mut Explorer,
    pub(super) order: std::vec::IntoIter<(&'static str, NodeId, Option<usize>)>,
    pub(super) place: NodeId,
    /// The field whose value is next.
    pub(super) at: Option<(NodeId, Option<usize>)>,
    pub(super) depth: usize,
}

impl<'de> MapAccess<'de> for &mut NamedFields<'_> {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refused> {
        match self.next_name() {
            Some(name) => seed.deserialize(name).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Refused> {
        seed.deserialize(self.value())
    }
}

impl NamedFields<'_> {
    fn next_name(&mut self) -> Option<StrDeserializer<'static, Refused>> {
        let (name, of, field) = self.order.next()?;
        self.at = Some((of, field));
        if let (Some(at), Some(field)) = (self.place, field) {
            self.explorer.path.truncate(self.depth);
            self.explorer.last = LastStep::Key(at, field);
        }
        Some(name.into_deserializer())
    }

    /// Returns a probe for the field whose name was returned last.
    fn value(&mut self) -> Probe<'_> {
        let (of, field) = self.at.take().unwrap_or((None, None));
        if let Some(at) = self.place {
            self.explorer.last = LastStep::Place(at);
            if let (Some(Kind::Struct { fields, .. }), Some(field)) =
                (self.explorer.node(Some(at)).map(|node| &mut node.kind), field)
                && let Some(field) = fields.get_mut(field)
            {
                field.visited = true;
            }
        }
        Probe { explorer: self.explorer, place: of, depth: self.depth }
    }
}

/// Provides one entry of a map.
pub(super) struct MapEntry<'a> {
    pub(super) explorer: &'a mut Explorer,
    pub(super) key: NodeId,
    pub(super) value: NodeId,
    pub(super) given: bool,
    pub(super) depth: usize,
}

impl<'de> MapAccess<'de> for MapEntry<'_> {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refused> {
        if std::mem::replace(&mut self.given, true) {
            return Ok(None);
        }
        let probe = Probe { explorer: self.explorer, place: self.key, depth: self.depth };
        seed.deserialize(probe).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Refused> {
        seed.deserialize(Probe { explorer: self.explorer, place: self.value, depth: self.depth })
    }
}

/// Provides nothing.
pub(super) struct Nothing;

impl<'de> SeqAccess<'de> for Nothing {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, _: T) -> Result<Option<T::Value>, Refused> {
        Ok(None)
    }
}

impl<'de> MapAccess<'de> for Nothing {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, _: K) -> Result<Option<K::Value>, Refused> {
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, _: T) -> Result<T::Value, Refused> {
        Err(Refused)
    }
}

/// Provides the chosen variant of an enum.
pub(super) struct ChosenVariant<'a> {
    pub(super) explorer: &'a mut Explorer,
    pub(super) place: NodeId,
    pub(super) at: usize,
    pub(super) name: &'static str,
    pub(super) of: NodeId,
    pub(super) depth: usize,
}

impl<'de, 'a> EnumAccess<'de> for ChosenVariant<'a> {
    type Error = Refused;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Refused> {
        let name: StrDeserializer<'_, Refused> = self.name.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl ChosenVariant<'_> {
    fn probe(&mut self) -> Probe<'_> {
        Probe { explorer: self.explorer, place: self.of, depth: self.depth }
    }

    /// Records that the variant has accepted its content.
    fn accepted(&mut self) {
        if let Some(Kind::Enum(variants)) = self.explorer.node(self.place).map(|node| &mut node.kind)
            && let Some(variant) = variants.get_mut(self.at)
        {
            variant.accepted = true;
        }
    }
}

impl<'de> VariantAccess<'de> for ChosenVariant<'_> {
    type Error = Refused;

    fn unit_variant(mut self) -> Result<(), Refused> {
        self.probe().plain(Plain::Unit);
        self.accepted();
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(mut self, seed: T) -> Result<T::Value, Refused> {
        let value = seed.deserialize(self.probe())?;
        self.accepted();
        Ok(value)
    }

    fn tuple_variant<V: Visitor<'de>>(mut self, length: usize, visitor: V) -> Result<V::Value, Refused> {
        let value = self.probe().values(length, visitor)?;
        self.accepted();
        Ok(value)
    }

    fn struct_variant<V: Visitor<'de>>(
        mut self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        let value = self.probe().fields("", fields, visitor)?;
        self.accepted();
        Ok(value)
    }
}
