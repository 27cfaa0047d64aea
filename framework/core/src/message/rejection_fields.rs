//! The fields of typed rejections, and the encoded form of rejections.
//!
//! Called by `#[derive(Rejection)]` and by the codecs. In JSON, the fields are the member `data` of the rejection. bincode
//! cannot omit a member, and stored rejections have two: there the fields follow the text, behind a NUL character. A program
//! that does not know of fields reads the code and a longer text.

use std::borrow::Cow;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use super::Rejection;
use crate::telemetry::{TARGET, error_chain};

/// Separates the text from the fields in bincode.
const SEPARATOR: char = '\0';

/// The type of a field of a typed rejection: any type that derives `Serialize` and `Deserialize`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a field of a rejection",
    label = "lacks `Serialize`, `Deserialize` or both",
    note = "derive both for `{Self}`: `#[derive(Serialize, Deserialize)]`"
)]
pub trait FieldValue: Sized {
    #[doc(hidden)]
    fn write(&self) -> Result<Value, serde_json::Error>;

    #[doc(hidden)]
    fn read(value: Value) -> Option<Self>;
}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned> FieldValue for T {
    fn write(&self) -> Result<Value, serde_json::Error> {
        serde_json::to_value(self)
    }

    fn read(value: Value) -> Option<Self> {
        serde_json::from_value(value).ok()
    }
}

/// The encoding and decoding of a field. It requires the type's traits in one place, so that a missing one is one error.
#[derive(Debug)]
pub struct FieldCoding<T> {
    write: fn(&T) -> Result<Value, serde_json::Error>,
    read: fn(Value) -> Option<T>,
}

impl<T> FieldCoding<T> {
    /// Returns the coding of `T`.
    pub fn of() -> Self
    where
        T: FieldValue,
    {
        Self { write: T::write, read: T::read }
    }
}

/// Collects the fields of a variant.
#[derive(Debug, Default)]
pub struct RejectionFields(Map<String, Value>);

impl RejectionFields {
    /// Adds a field. A value that JSON cannot represent, such as a map with keys that are not texts, is left out and logged.
    pub fn field<T>(mut self, name: &str, coding: FieldCoding<T>, value: &T) -> Self {
        match (coding.write)(value) {
            Ok(value) => drop(self.0.insert(name.to_owned(), value)),
            Err(error) => {
                tracing::error!(target: TARGET, field = name, error = %error_chain(&error),
                    "failed to encode a field of a rejection: sent without it",
                );
            }
        }
        self
    }

    /// Returns the rejection with these fields.
    pub fn rejection(self, domain: &str, reason: &str, text: String) -> Rejection {
        let data = (!self.0.is_empty()).then(|| Value::Object(self.0).to_string().into_boxed_str());
        Rejection { data, ..Rejection::new(format!("{domain}.{reason}"), text) }
    }
}

/// Returns the part of a rejection's code after the domain.
pub fn reason_in<'a>(rejection: &'a Rejection, domain: &str) -> Option<&'a str> {
    rejection.code().strip_prefix(domain)?.strip_prefix('.')
}

/// The fields of a received rejection.
#[derive(Debug)]
pub struct ReceivedFields(Map<String, Value>);

impl ReceivedFields {
    /// Returns the fields of a rejection; none if it has no data, or if that is not an object.
    pub fn of(rejection: &Rejection) -> Self {
        Self(rejection.data().and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default())
    }

    /// Returns a field. A missing one is `None` for an `Option`, like JSON's `null`.
    pub fn field<T>(&mut self, name: &str, coding: FieldCoding<T>) -> Option<T> {
        (coding.read)(self.0.remove(name).unwrap_or(Value::Null))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Rejection")]
struct Binary<'a> {
    code: Cow<'a, str>,
    text: Cow<'a, str>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename = "Rejection")]
struct Readable<'a> {
    code: Cow<'a, str>,
    text: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<Map<String, Value>>,
}

impl Serialize for Rejection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (code, text) = (Cow::Borrowed(self.code()), Cow::Borrowed(self.text()));
        if serializer.is_human_readable() {
            let data = self.data().and_then(|data| serde_json::from_str(data).ok());
            return Readable { code, text, data }.serialize(serializer);
        }
        let text = match self.data() {
            Some(data) => Cow::Owned(format!("{text}{SEPARATOR}{data}")),
            // A text with a separator of its own ends with one: no fields.
            None if text.contains(SEPARATOR) => Cow::Owned(format!("{text}{SEPARATOR}")),
            None => text,
        };
        Binary { code, text }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Rejection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let Readable { code, text, data } = Readable::deserialize(deserializer)?;
            let data = data.map(|data| Value::Object(data).to_string().into_boxed_str());
            return Ok(Self { data, ..Self::new(code.into_owned(), text.into_owned()) });
        }
        let Binary { code, text } = Binary::deserialize(deserializer)?;
        Ok(match text.rsplit_once(SEPARATOR) {
            Some((text, data)) => {
                let data = (!data.is_empty()).then(|| data.into());
                Self { data, ..Self::new(code.into_owned(), text.to_owned()) }
            }
            None => Self::new(code.into_owned(), text.into_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::Codec;
    use super::*;

    fn take<T: FieldValue>(fields: &mut ReceivedFields, name: &str) -> Option<T> {
        fields.field(name, FieldCoding::of())
    }

    fn round_trip(codec: Codec, rejection: &Rejection) -> (Vec<u8>, Rejection) {
        let mut bytes = Vec::new();
        codec.encode(rejection, &mut bytes).unwrap();
        let read = codec.decode(&bytes).unwrap();
        (bytes, read)
    }

    #[test]
    fn rejection_without_fields_has_its_former_bytes() {
        let plain = Rejection::new("a.b", "text");
        assert_eq!(round_trip(Codec::Json, &plain).0, br#"{"code":"a.b","text":"text"}"#);
        assert_eq!(round_trip(Codec::Bincode, &plain).0, b"\x03a.b\x04text");
    }

    #[test]
    fn fields_travel_in_each_codec() {
        let fields = RejectionFields::default().field("cents", FieldCoding::of(), &3u64);
        let fields = fields.field("by", FieldCoding::of(), &Some("ada".to_owned()));
        let rejection = fields.rejection("bank", "empty", "the account holds 3 cents".to_owned());
        assert_eq!((rejection.code(), rejection.text()), ("bank.empty", "the account holds 3 cents"));
        for codec in [Codec::Bincode, Codec::Json] {
            let (bytes, read) = round_trip(codec, &rejection);
            assert_eq!(read, rejection);
            if codec == Codec::Json {
                let json: Value = serde_json::from_slice(&bytes).unwrap();
                assert_eq!(json.pointer("/data/cents"), Some(&Value::from(3)));
            }
            let mut fields = ReceivedFields::of(&read);
            assert_eq!(take::<u64>(&mut fields, "cents"), Some(3));
            assert_eq!(take::<Option<String>>(&mut fields, "by"), Some(Some("ada".to_owned())));
            assert_eq!(take::<Option<String>>(&mut fields, "missing"), Some(None));
            assert_eq!(take::<u64>(&mut fields, "missing"), None);
        }
    }

    #[test]
    fn text_with_the_separator_is_kept() {
        for text in ["a\0b", "\0", "a\0", "a\0{}"] {
            let rejection = Rejection::new("a.b", text);
            for codec in [Codec::Bincode, Codec::Json] {
                assert_eq!(round_trip(codec, &rejection).1, rejection, "{text:?}");
            }
        }
    }

    #[test]
    fn value_that_json_cannot_represent_is_left_out() {
        let map = std::collections::BTreeMap::from([((1, 2), 3)]);
        let fields = RejectionFields::default().field("map", FieldCoding::of(), &map);
        let rejection = fields.field("n", FieldCoding::of(), &1).rejection("a", "b", String::new());
        assert_eq!(rejection.data(), Some(r#"{"n":1}"#));
    }

    #[test]
    fn data_of_a_stranger_yields_no_fields() {
        for data in ["[1]", "{", "3"] {
            let rejection = Rejection { data: Some(data.into()), ..Rejection::new("a.b", "text") };
            assert_eq!(take::<u64>(&mut ReceivedFields::of(&rejection), "n"), None);
        }
    }
}
