//! The user's identifier of one aggregate or saga.

use std::borrow::Cow;
use std::num::{
    NonZeroI8, NonZeroI16, NonZeroI32, NonZeroI64, NonZeroI128, NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64,
    NonZeroU128,
};

/// The key of one aggregate or saga: UTF-8 text of 1 to [`Key::MAX_BYTES`] bytes, whatever characters it has.
///
/// A key never becomes a subject or a file name as it is, so every character is allowed.
///
/// It is made of text (`String`, `Box<str>`, `Arc<str>`, `Cow<str>`), an integer of a fixed size (zero allowed or not), or a
/// UUID. A type of your own is a key with `impl<'a> From<&'a Iban> for Key<'a>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key<'a>(Cow<'a, str>);

impl<'a> Key<'a> {
    /// The most bytes a key may have.
    pub const MAX_BYTES: usize = 256;

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key as owned text.
    pub fn into_string(self) -> String {
        self.0.into_owned()
    }

    /// Whether its length is allowed.
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
