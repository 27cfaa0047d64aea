//! Fallbacks of the prelude's `Serialize` and `Deserialize` for a type on which serde's own derive reported an error.
//!
//! Called by derived code. The functions that serde's derive generates shadow both; without them its one error would be
//! followed by a second.

use serde::de::{Deserializer, Error as _};
use serde::ser::{Error as _, Serializer};

/// The fallback for a missing `serialize`.
pub trait Serialized {
    /// Fails. Never runs, because the program does not compile.
    ///
    /// # Errors
    /// Always.
    fn serialize<T: ?Sized, S: Serializer>(_value: &T, _to: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("serde's derive reported an error"))
    }
}

impl<T: ?Sized> Serialized for T {}

/// The fallback for a missing `deserialize`.
pub trait Deserialized {
    /// Fails. Never runs, because the program does not compile.
    ///
    /// # Errors
    /// Always.
    fn deserialize<'de, T, D: Deserializer<'de>>(_from: D) -> Result<T, D::Error> {
        Err(D::Error::custom("serde's derive reported an error"))
    }
}

impl<T: ?Sized> Deserialized for T {}
