//! The user's identifier of an aggregate or a saga.

use std::borrow::Cow;
use std::num::{
    NonZeroI8, NonZeroI16, NonZeroI32, NonZeroI64, NonZeroI128, NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64,
    NonZeroU128,
};

/// The key of an aggregate or a saga: UTF-8 text of 1 to [`Key::MAX_BYTES`] bytes with any characters.
///
/// A key is never used verbatim in a subject or a file name, so every character is allowed.
///
/// A key is created from text (`String`, `Box<str>`, `Arc<str>`, `Cow<str>`), an integer of fixed size (including the
/// nonzero types), or a UUID. A custom type becomes a key with `impl<'a> From<&'a Iban> for Key<'a>`:
///
/// ```
/// use whizbang::message::Key;
///
/// struct Iban(String);
///
/// impl<'a> From<&'a Iban> for Key<'a> {
///     fn from(iban: &'a Iban) -> Self {
///         Key::from(&iban.0)
///     }
/// }
///
/// assert_eq!(Key::from(&Iban("DE02".to_owned())).as_str(), "DE02");
/// assert_eq!(Key::from(&42u64).as_str(), "42");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key<'a>(Cow<'a, str>);

impl<'a> Key<'a> {
    /// The largest length of a key in bytes.
    pub const MAX_BYTES: usize = 256;

    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the key as owned text.
    pub fn into_string(self) -> String {
        self.0.into_owned()
    }

    /// Returns whether its length is allowed.
    pub fn is_valid(&self) -> bool {
        !self.0.is_empty() && self.0.len() <= Self::MAX_BYTES
    }
}

impl<'a> From<&'a str> for Key<'a> {
    fn from(text: &'a str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl<'a> From<&'a String> for Key<'a> {
    fn from(text: &'a String) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl From<String> for Key<'_> {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text))
    }
}

impl From<&uuid::Uuid> for Key<'_> {
    fn from(id: &uuid::Uuid) -> Self {
        Self(Cow::Owned(id.to_string()))
    }
}

macro_rules! key_from_text {
    ($($text:ty),*) => { $(
        impl<'a> From<&'a $text> for Key<'a> {
            fn from(text: &'a $text) -> Self {
                Self(Cow::Borrowed(text))
            }
        }
    )* };
}
key_from_text!(Box<str>, std::sync::Arc<str>, Cow<'_, str>);

macro_rules! key_from_number {
    ($($number:ty),*) => { $(
        impl From<&$number> for Key<'_> {
            fn from(number: &$number) -> Self {
                Self(Cow::Owned(number.to_string()))
            }
        }
    )* };
}
key_from_number!(u8, u16, u32, u64, u128, i8, i16, i32, i64, i128);
key_from_number!(NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64, NonZeroU128);
key_from_number!(NonZeroI8, NonZeroI16, NonZeroI32, NonZeroI64, NonZeroI128);
