//! JSON Schema (draft 2020-12) of the JSON form of a type, from its shape.

use serde_json::{Map, Value, json};
use whizbang_core::message::{Field, Plain, Shape, Variant};

/// Returns the JSON Schema of a shape.
///
/// A part that cannot be seen, and a type inside itself, is the schema `true`: it admits everything. So the schema admits every
/// value that the type accepts, and may admit more. Field aliases are left out: the schema shows the first name.
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

/// serde's form of a variant: its name, or an object with its name as the only member.
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
