//! JSON Schema (draft 2020-12) of the JSON form of a type, from its shape.
//!
//! Called by the description of the gateway, and by programs that publish the schemas of their messages. A shape lists the parts of
//! a type by their names in serde; it is traced without a value of the type.

use serde_json::{Map, Value, json};
use whizbang_core::message::{Field, Plain, Shape, Variant};

/// Returns the JSON Schema of a shape.
///
/// The schema admits every value that the type accepts, and may admit more: a part whose shape is unknown, and a type inside
/// itself, has the schema `true`, which admits everything. A field with aliases is shown under its first name.
///
/// ```
/// use serde_json::json;
/// use whizbang::message::{Codec, Shape};
///
/// let shape = Shape::of::<Option<u8>>(Codec::Json);
/// let schema = whizbang_http::json_schema(&shape);
/// assert_eq!(schema, json!({ "anyOf": [{ "type": "integer", "minimum": 0, "maximum": 255 }, { "type": "null" }] }));
/// ```
pub fn json_schema(shape: &Shape) -> Value {
    match shape {
        Shape::Option(inner) => json!({ "anyOf": [json_schema(inner), { "type": "null" }] }),
        Shape::List(item) => json!({ "type": "array", "items": json_schema(item) }),
        Shape::Map(_, value) => json!({ "type": "object", "additionalProperties": json_schema(value) }),
        Shape::Tuple(items) => json!({
            "type": "array", "prefixItems": items.iter().map(json_schema).collect::<Vec<_>>(),
            "minItems": items.len(), "maxItems": items.len(),
        }),
        Shape::Array(count, item) => {
            json!({ "type": "array", "items": json_schema(item), "minItems": count, "maxItems": count })
        }
        Shape::Struct(fields) => object(fields.iter()),
        Shape::Enum(variants) => json!({ "oneOf": variants.iter().map(variant).collect::<Vec<_>>() }),
        Shape::Plain(plain) => of_plain(*plain),
        _ => json!(true),
    }
}

/// Returns the schema of an object with these fields.
pub(crate) fn object<'a>(fields: impl Iterator<Item = &'a Field> + Clone) -> Value {
    let named = fields.filter_map(|field| Some((field.names.first()?.clone(), field)));
    let properties: Map<_, _> = named.clone().map(|(name, field)| (name, json_schema(&field.shape))).collect();
    let is_required = |field: &Field| !field.optional && !matches!(field.shape, Shape::Option(_));
    let required: Vec<_> = named.filter(|(_, field)| is_required(field)).map(|(name, _)| name).collect();
    let mut schema = json!({ "type": "object", "properties": properties });
    if let (false, Some(members)) = (required.is_empty(), schema.as_object_mut()) {
        members.insert("required".to_owned(), json!(required));
    }
    schema
}

/// Returns true for the shape of a value without content.
pub(crate) fn is_unit(shape: &Shape) -> bool {
    matches!(shape, Shape::Plain(Plain::Unit))
}

/// Returns the schema of a variant in serde's form: its name, or an object with its name as the only member.
fn variant(variant: &Variant) -> Value {
    let Variant { name, shape } = variant;
    match shape {
        Shape::Plain(Plain::Unit) => json!({ "const": name }),
        content => json!({
            "type": "object", "properties": { name: json_schema(content) }, "required": [name],
            "additionalProperties": false,
        }),
    }
}

/// Returns the schema of a value without parts. Integers have the range of their type, except those of 128 bits: their limits are
/// not exact in JSON.
fn of_plain(plain: Plain) -> Value {
    let integer = |minimum: Value, maximum: Value| json!({ "type": "integer", "minimum": minimum, "maximum": maximum });
    match plain {
        Plain::Unit => json!({ "type": "null" }),
        Plain::Bool => json!({ "type": "boolean" }),
        Plain::I8 => integer(json!(i8::MIN), json!(i8::MAX)),
        Plain::I16 => integer(json!(i16::MIN), json!(i16::MAX)),
        Plain::I32 => integer(json!(i32::MIN), json!(i32::MAX)),
        Plain::I64 => integer(json!(i64::MIN), json!(i64::MAX)),
        Plain::U8 => integer(json!(0), json!(u8::MAX)),
        Plain::U16 => integer(json!(0), json!(u16::MAX)),
        Plain::U32 => integer(json!(0), json!(u32::MAX)),
        Plain::U64 => integer(json!(0), json!(u64::MAX)),
        Plain::I128 => json!({ "type": "integer" }),
        Plain::U128 => json!({ "type": "integer", "minimum": 0 }),
        // JSON has no infinite numbers: serde_json writes them as null, and the framework refuses those.
        Plain::F32 | Plain::F64 => json!({ "type": "number" }),
        Plain::Char => json!({ "type": "string", "minLength": 1, "maxLength": 1 }),
        Plain::Text => json!({ "type": "string" }),
        Plain::Bytes => json!({ "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 255 } }),
        _ => json!(true),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::de::DeserializeOwned;
    use serde::{Deserialize, Serialize};
    use whizbang_core::message::{Codec, Shape};

    use super::*;

    #[derive(Clone, Debug, Serialize, Deserialize)]
    enum Part {
        Nothing,
        One(u8),
        Pair(i64, String),
        Named { flag: bool, letter: char },
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    struct Whole {
        parts: Vec<Part>,
        by_name: BTreeMap<String, i16>,
        maybe: Option<f64>,
        nested: Option<Box<Nested>>,
        fixed: [u32; 3],
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        left_out: Vec<u64>,
    }

    #[derive(Clone, Debug, Serialize, Deserialize)]
    struct Nested {
        tuple: (u8, bool),
        unit: (),
        wide: u128,
    }

    /// Checks a value against the keywords that [`json_schema`] writes. Fails on any other keyword.
    fn is_valid(schema: &Value, value: &Value) -> bool {
        let Value::Object(keywords) = schema else { return schema == &json!(true) };
        keywords.iter().all(|(keyword, rule)| match keyword.as_str() {
            "type" => match rule.as_str().unwrap() {
                "null" => value.is_null(),
                "boolean" => value.is_boolean(),
                "integer" => {
                    value.is_i64() || value.is_u64() || value.as_number().is_some_and(|n| !n.to_string().contains('.'))
                }
                "number" => value.is_number(),
                "string" => value.is_string(),
                "array" => value.is_array(),
                "object" => value.is_object(),
                other => panic!("unknown type {other}"),
            },
            "const" => rule == value,
            "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().unwrap()),
            "minLength" | "maxLength" => {
                value.as_str().is_none_or(|text| text.chars().count() as u64 == rule.as_u64().unwrap())
            }
            "minItems" | "maxItems" => value.as_array().is_none_or(|list| list.len() as u64 == rule.as_u64().unwrap()),
            "items" => value.as_array().is_none_or(|list| list.iter().all(|item| is_valid(rule, item))),
            "prefixItems" => {
                let rules = rule.as_array().unwrap();
                value.as_array().is_none_or(|list| list.iter().zip(rules).all(|(item, rule)| is_valid(rule, item)))
            }
            "anyOf" => rule.as_array().unwrap().iter().any(|rule| is_valid(rule, value)),
            "oneOf" => rule.as_array().unwrap().iter().filter(|rule| is_valid(rule, value)).count() == 1,
            "required" => value.as_object().is_none_or(|members| {
                rule.as_array().unwrap().iter().all(|name| members.contains_key(name.as_str().unwrap()))
            }),
            "properties" => value.as_object().is_none_or(|members| {
                members.iter().all(|(name, member)| rule.get(name).is_none_or(|rule| is_valid(rule, member)))
            }),
            "additionalProperties" => value.as_object().is_none_or(|members| {
                let known = keywords.get("properties").and_then(Value::as_object);
                let others = members.iter().filter(|(name, _)| known.is_none_or(|known| !known.contains_key(*name)));
                others.into_iter().all(|(_, member)| rule != &json!(false) && is_valid(rule, member))
            }),
            other => panic!("unknown keyword {other}"),
        })
    }

    fn part() -> impl Strategy<Value = Part> {
        prop_oneof![
            Just(Part::Nothing),
            any::<u8>().prop_map(Part::One),
            (any::<i64>(), ".{0,5}").prop_map(|(number, text)| Part::Pair(number, text)),
            any::<(bool, char)>().prop_map(|(flag, letter)| Part::Named { flag, letter }),
        ]
    }

    fn whole() -> impl Strategy<Value = Whole> {
        let nested = any::<((u8, bool), u64)>()
            .prop_map(|(tuple, wide)| Box::new(Nested { tuple, unit: (), wide: u128::from(wide) }));
        let parts = proptest::collection::vec(part(), 0..4);
        let by_name = proptest::collection::btree_map(".{0,3}", any::<i16>(), 0..3);
        let maybe = proptest::option::of(proptest::num::f64::NORMAL);
        let left_out = proptest::collection::vec(any::<u64>(), 0..2);
        (parts, by_name, maybe, proptest::option::of(nested), any::<[u32; 3]>(), left_out).prop_map(
            |(parts, by_name, maybe, nested, fixed, left_out)| Whole { parts, by_name, maybe, nested, fixed, left_out },
        )
    }

    fn schema_of<T: DeserializeOwned + 'static>() -> Value {
        json_schema(&Shape::of::<T>(Codec::Json))
    }

    proptest! {
        #[test]
        fn schema_admits_every_value_of_its_type(value in whole()) {
            let schema = schema_of::<Whole>();
            let value = serde_json::to_value(&value).unwrap();
            prop_assert!(is_valid(&schema, &value), "{value}\n{schema:#}");
        }
    }

    #[test]
    fn schema_rejects_values_that_the_type_rejects() {
        let schema = schema_of::<Whole>();
        let good = json!({
            "parts": ["Nothing", { "One": 255 }, { "Pair": [-1, "a"] }, { "Named": { "flag": true, "letter": "x" } }],
            "by_name": { "a": -1 }, "maybe": 0.5, "nested": { "tuple": [1, true], "unit": null, "wide": 1 }, "fixed": [1, 2, 3],
        });
        assert!(is_valid(&schema, &good) && Whole::deserialize(&good).is_ok());
        for (pointer, bad) in [
            ("/parts/0", json!("Other")),
            ("/parts/1/One", json!(256)),
            ("/parts/2/Pair", json!([1])),
            ("/parts/3/Named/letter", json!("xy")),
            ("/by_name/a", json!("one")),
            ("/maybe", json!("half")),
            ("/nested/tuple/1", json!(1)),
            ("/fixed", json!([1, 2])),
            ("/parts", json!(null)),
        ] {
            let mut value = good.clone();
            *value.pointer_mut(pointer).unwrap() = bad;
            assert!(Whole::deserialize(&value).is_err(), "{pointer}: the type accepts it");
            assert!(!is_valid(&schema, &value), "{pointer}: the schema admits it");
        }
    }
}
