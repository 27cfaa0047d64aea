//! Statements of a user: SQL that a store runs in its own transaction.

use std::borrow::Cow;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::message::MessageId;

/// The largest size of one statement with its values: 1 MiB.
pub const MAX_STATEMENT_BYTES: usize = 1024 * 1024;

/// A statement with the values of its parameters, for a store that [runs statements](super::Store::runs_statements).
///
/// The text is in the dialect of the store's database. In PostgreSQL the parameters are `$1`, `$2` and so on. The text never
/// contains values: a value that is part of the text can change its meaning.
///
/// ```
/// use whizbang::store::{SqlValue, Statement};
///
/// let statement = Statement::new("INSERT INTO orders (id, cents) VALUES ($1, $2)").bind("o1").bind(500_u32);
/// assert_eq!(statement.values(), [SqlValue::Text("o1".into()), SqlValue::Integer(500)]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    sql: Cow<'static, str>,
    values: Vec<SqlValue>,
}

impl Statement {
    /// Creates a statement without values.
    pub fn new(sql: impl Into<Cow<'static, str>>) -> Self {
        Self { sql: sql.into(), values: Vec::new() }
    }

    /// Adds the value of the next parameter.
    pub fn bind(mut self, value: impl Into<SqlValue>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Returns the text.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Returns the values, in the order of the parameters.
    pub fn values(&self) -> &[SqlValue] {
        &self.values
    }

    /// Returns the size in bytes of the text and the values.
    pub fn size(&self) -> usize {
        self.sql.len() + self.values.iter().map(SqlValue::size).sum::<usize>()
    }
}

/// The value of a parameter, by its type in the database.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum SqlValue {
    /// NULL of any type.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer: `bigint`.
    Integer(i64),
    /// A number: `double precision`.
    Float(f64),
    /// A text. PostgreSQL rejects U+0000.
    Text(String),
    /// Bytes: `bytea`.
    Bytes(Bytes),
    /// A UUID.
    Uuid(u128),
    /// A time: `timestamptz`.
    Time(Timestamp),
    /// A JSON text: `jsonb`. The database rejects a text that is not JSON.
    Json(String),
}

impl SqlValue {
    fn size(&self) -> usize {
        match self {
            Self::Null | Self::Bool(_) | Self::Integer(_) | Self::Float(_) | Self::Uuid(_) | Self::Time(_) => 16,
            Self::Text(text) | Self::Json(text) => text.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }
}

/// Converts each type into the value of a variant.
macro_rules! values {
    ($($from:ty => $variant:ident($to:expr)),* $(,)?) => {$(
        impl From<$from> for SqlValue {
            fn from(value: $from) -> Self {
                Self::$variant($to(value))
            }
        }
    )*};
}

values! {
    bool => Bool(std::convert::identity),
    i8 => Integer(i64::from),
    i16 => Integer(i64::from),
    i32 => Integer(i64::from),
    i64 => Integer(std::convert::identity),
    u8 => Integer(i64::from),
    u16 => Integer(i64::from),
    u32 => Integer(i64::from),
    f32 => Float(f64::from),
    f64 => Float(std::convert::identity),
    &str => Text(str::to_owned),
    &String => Text(String::clone),
    String => Text(std::convert::identity),
    &[u8] => Bytes(Bytes::copy_from_slice),
    Vec<u8> => Bytes(Bytes::from),
    Bytes => Bytes(std::convert::identity),
    u128 => Uuid(std::convert::identity),
    MessageId => Uuid(|id: MessageId| id.as_u128()),
    Timestamp => Time(std::convert::identity),
}

impl<T: Into<Self>> From<Option<T>> for SqlValue {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_counts_the_text_and_the_values() {
        let statement = Statement::new("SELECT $1, $2, $3").bind("four").bind(vec![0u8; 10]).bind(None::<i64>);
        assert_eq!(statement.size(), 17 + 4 + 10 + 16);
    }

    #[test]
    fn optional_values_are_null_or_the_value() {
        assert_eq!(SqlValue::from(None::<&str>), SqlValue::Null);
        assert_eq!(SqlValue::from(Some(7_u8)), SqlValue::Integer(7));
    }
}
