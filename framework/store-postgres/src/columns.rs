//! Columns of rows as PostgreSQL arrays in binary form.
//!
//! Called by the [queue](crate::queue), which adds a row with each append. The bytes are the message's bytes: nothing is
//! allocated per value, and nothing is converted when the statement is sent. Never reads anything.
//!
//! A group of a thousand turns is therefore about thirty parameters, each one block of memory, and not thousands of values.

use std::error::Error;

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};
use whizbang_core::clock::Timestamp;

/// The microseconds between 1970 and 2000, where PostgreSQL's time begins.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The last millisecond of the year 9999. Later times are shown as this one; the record keeps the true time.
const LAST_MILLIS: u64 = 253_402_300_799_999;

/// The values of one column, one for each row, as the elements of an array.
#[derive(Debug)]
pub(crate) struct Column {
    /// The type of one value.
    element: Type,
    /// The type of the parameter.
    array: Type,
    /// The number of elements.
    count: i32,
    /// The elements, each with its length, as PostgreSQL reads them.
    bytes: Vec<u8>,
}

impl Column {
    /// Creates a column whose elements and array have these types.
    pub(crate) fn new(element: Type, array: Type) -> Self {
        Self { element, array, count: 0, bytes: Vec::new() }
    }

    /// Creates a column of the type `smallint`.
    pub(crate) fn int2() -> Self {
        Self::new(Type::INT2, Type::INT2_ARRAY)
    }

    /// Creates a column of the type `integer`.
    pub(crate) fn int4() -> Self {
        Self::new(Type::INT4, Type::INT4_ARRAY)
    }

    /// Creates a column of the type `bigint`, for positions, locations and epochs.
    pub(crate) fn int8() -> Self {
        Self::new(Type::INT8, Type::INT8_ARRAY)
    }

    /// Creates a column of the type `text`. A value must not contain NUL: see [`key_text`].
    pub(crate) fn text() -> Self {
        Self::new(Type::TEXT, Type::TEXT_ARRAY)
    }

    /// Creates a column of the type `bytea`, for records and payloads.
    pub(crate) fn bytea() -> Self {
        Self::new(Type::BYTEA, Type::BYTEA_ARRAY)
    }

    /// Creates a column of the type `uuid`, for ids of messages.
    pub(crate) fn uuid() -> Self {
        Self::new(Type::UUID, Type::UUID_ARRAY)
    }

    /// Creates a column of the type `timestamptz`.
    pub(crate) fn timestamptz() -> Self {
        Self::new(Type::TIMESTAMPTZ, Type::TIMESTAMPTZ_ARRAY)
    }

    /// The type of the array.
    pub(crate) fn array_type(&self) -> Type {
        self.array.clone()
    }

    /// Adds a value with its length.
    fn push(&mut self, value: &[u8]) {
        self.count += 1;
        // A value is at most a turn's record, far below 2 GiB.
        self.bytes.extend_from_slice(&(value.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(value);
    }

    /// Adds a value of a column of the type `smallint`.
    pub(crate) fn push_i16(&mut self, value: i16) {
        self.push(&value.to_be_bytes());
    }

    /// Adds a value of a column of the type `integer`.
    pub(crate) fn push_i32(&mut self, value: i32) {
        self.push(&value.to_be_bytes());
    }

    /// Adds a number that counts something, so it is never beyond `i64`.
    pub(crate) fn push_u64(&mut self, value: u64) {
        self.push(&(value as i64).to_be_bytes());
    }

    /// Adds an id. PostgreSQL stores its bytes in the same order, so that ids sort by time.
    pub(crate) fn push_uuid(&mut self, value: u128) {
        self.push(&value.to_be_bytes());
    }

    /// Adds bytes, which are copied once.
    pub(crate) fn push_bytes(&mut self, value: &[u8]) {
        self.push(value);
    }

    /// Adds a text without NUL.
    pub(crate) fn push_text(&mut self, value: &str) {
        self.push(value.as_bytes());
    }

    /// Adds a time with a precision of milliseconds.
    pub(crate) fn push_time(&mut self, time: Timestamp) {
        self.push(&time_micros(time).to_be_bytes());
    }
}

/// A time as PostgreSQL counts it: in microseconds since the year 2000.
pub(crate) fn time_micros(time: Timestamp) -> i64 {
    time.as_millis().min(LAST_MILLIS) as i64 * 1000 - EPOCH_MICROS
}

impl ToSql for Column {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        let dimensions = i32::from(self.count > 0);
        out.reserve(20 + self.bytes.len());
        out.put_i32(dimensions);
        // No element is NULL.
        out.put_i32(0);
        out.put_u32(self.element.oid());
        if self.count > 0 {
            out.put_i32(self.count);
            // Indices begin with 1.
            out.put_i32(1);
            out.put_slice(&self.bytes);
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// An id, as PostgreSQL's `uuid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) u128);

impl ToSql for Id {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_u128(self.0);
        Ok(IsNull::No)
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::UUID
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Id {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        Ok(Self(u128::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::UUID
    }
}

/// A key as PostgreSQL's `text` can hold it: NUL is written `\0`, a backslash `\\`. Two keys never become the same text.
pub(crate) fn key_text(key: &str) -> std::borrow::Cow<'_, str> {
    if key.contains(['\\', '\0']) { key.replace('\\', "\\\\").replace('\0', "\\0").into() } else { key.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_different_texts() {
        let keys = ["a", "\0", "\\0", "\\\\0", "a\\\0", "\\"];
        let texts: std::collections::BTreeSet<_> = keys.iter().map(|key| key_text(key).into_owned()).collect();
        assert_eq!(texts.len(), keys.len());
        assert!(texts.iter().all(|text| !text.contains('\0')));
    }

    #[test]
    fn array_has_the_binary_form() {
        let mut column = Column::int4();
        let mut out = BytesMut::new();
        column.to_sql(&Type::INT4_ARRAY, &mut out).unwrap();
        assert_eq!(out[..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 23]);
        column.push_i32(7);
        out.clear();
        column.to_sql(&Type::INT4_ARRAY, &mut out).unwrap();
        assert_eq!(out[..], [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 23, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 7]);
    }
}
