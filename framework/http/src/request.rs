//! The parts of an HTTP request as the JSON form of a message: path, query string and body.
//!
//! Called by the routes. A text of the path or of the query string becomes a number or a flag where the field of the message is
//! one.

use serde_json::{Map, Number, Value};
use whizbang_core::message::{Field, Plain, Shape, Variant};

use crate::problem::Problem;

/// The fields of a message that a request can give as texts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(Vec<Field>);

impl Fields {
    /// Returns the fields of a shape. `None` if it has no named fields.
    pub(crate) fn of(shape: &Shape) -> Option<Self> {
        match shape {
            Shape::Struct(fields) => Some(Self(fields.clone())),
            // A struct without fields is read from nothing.
            Shape::Plain(Plain::Unit) => Some(Self(Vec::new())),
            _ => None,
        }
    }

    /// Returns the fields in the order of the message.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Field> + Clone {
        self.0.iter()
    }

    /// Returns the field with a name, which may be an alias.
    pub(crate) fn find(&self, name: &str) -> Option<&Field> {
        self.0.iter().find(|field| field.names.iter().any(|known| known == name))
    }
}

/// Returns true if a value of this shape can be written as one text.
pub(crate) fn is_text(shape: &Shape) -> bool {
    match shape {
        Shape::Option(inner) => is_text(inner),
        Shape::Plain(plain) => !matches!(plain, Plain::Unit | Plain::Bytes),
        Shape::Enum(variants) => variants.iter().all(|variant| matches!(variant.shape, Shape::Plain(Plain::Unit))),
        Shape::Opaque => true,
        _ => false,
    }
}

/// Reads a text of a request as a value of a shape.
pub(crate) fn read_text(name: &str, text: &str, shape: &Shape) -> Result<Value, Problem> {
    let invalid = |kind: &str| Problem::invalid_request(format!("parameter `{name}` is not {kind}"));
    match shape {
        Shape::Option(inner) => read_text(name, text, inner),
        Shape::Plain(Plain::Bool) => text.parse().map(Value::Bool).map_err(|_| invalid("`true` or `false`")),
        Shape::Plain(Plain::F32 | Plain::F64) => {
            let number = text.parse().ok().and_then(Number::from_f64);
            number.map(Value::Number).ok_or_else(|| invalid("a number"))
        }
        Shape::Plain(Plain::Text | Plain::Char) | Shape::Opaque => Ok(Value::String(text.to_owned())),
        // The type checks the range.
        Shape::Plain(_) => {
            let signed = text.parse::<i64>().map(Number::from);
            let number = signed.or_else(|_| text.parse::<u64>().map(Number::from));
            number.map(Value::Number).map_err(|_| invalid("an integer"))
        }
        Shape::Enum(variants) => {
            let is_known = variants.iter().any(|Variant { name, .. }| name == text);
            is_known.then(|| Value::String(text.to_owned())).ok_or_else(|| invalid("one of the known names"))
        }
        _ => Err(invalid("a value that a text can express")),
    }
}

/// Reads the parameters of a query string. A list has its parameter several times.
pub(crate) fn read_query(fields: &Fields, pairs: &[(String, String)]) -> Result<Map<String, Value>, Problem> {
    let mut message = Map::new();
    for (name, text) in pairs {
        let unknown = || Problem::invalid_request(format!("unknown parameter `{name}`"));
        let field = fields.find(name).ok_or_else(unknown)?;
        if let Shape::List(item) = &field.shape {
            let item = read_text(name, text, item)?;
            match message.entry(name).or_insert_with(|| Value::Array(Vec::new())) {
                Value::Array(list) => list.push(item),
                other => *other = Value::Array(vec![item]),
            }
        } else if message.insert(name.clone(), read_text(name, text, &field.shape)?).is_some() {
            return Err(Problem::invalid_request(format!("parameter `{name}` occurs twice")));
        }
    }
    Ok(message)
}

/// Adds the parameters of the path. A body may repeat them only with the same value.
pub(crate) fn add_path(
    fields: &Fields,
    pairs: &[(String, String)],
    message: &mut Map<String, Value>,
) -> Result<(), Problem> {
    for (name, text) in pairs {
        let shape = fields.find(name).map_or(&Shape::Opaque, |field| &field.shape);
        let value = read_text(name, text, shape)?;
        match message.get(name) {
            Some(other) if *other != value => {
                return Err(Problem::invalid_request(format!("`{name}` differs between the path and the request")));
            }
            _ => message.insert(name.clone(), value),
        };
    }
    Ok(())
}
