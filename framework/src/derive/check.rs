//! The bounds that turn a mistake in a list into one error that says what to write.

use serde::de::DeserializeOwned;

use crate::message::{Codec, CodecError, Key};

/// The type of a field marked `#[key]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a key",
    label = "expected text, an integer or a UUID",
    note = "use `String`, an integer or `uuid::Uuid`, or write `impl<'a> From<&'a {Self}> for Key<'a>` for a type of your own"
)]
pub trait KeyField {
    /// The key that the field holds.
    fn key(&self) -> Key<'_>;
}

#[diagnostic::do_not_recommend]
impl<T> KeyField for T
where
    for<'a> Key<'a>: From<&'a T>,
{
    fn key(&self) -> Key<'_> {
        Key::from(self)
    }
}

/// The type that an older version of the message `New` had.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be upcast to `{New}`",
    label = "expected the type of an older version",
    note = "derive `Deserialize` for `{Self}` and write `impl From<{Self}> for {New}`"
)]
pub trait Upcast<New>: Sized {
    /// Reads the older version and makes the current one of it.
    ///
    /// # Errors
    /// What the codec says.
    fn upcast(codec: Codec, bytes: &[u8]) -> Result<New, CodecError>;
}

#[diagnostic::do_not_recommend]
impl<Old: DeserializeOwned + Into<New>, New> Upcast<New> for Old {
    fn upcast(codec: Codec, bytes: &[u8]) -> Result<New, CodecError> {
        codec.decode::<Old>(bytes).map(Old::into)
    }
}
