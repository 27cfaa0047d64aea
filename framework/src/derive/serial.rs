//! What the prelude's `Serialize` and `Deserialize` call where serde's own derive reported an error and wrote nothing.
//!
//! Both are shadowed by the functions that serde's derive writes; without them its one error would be followed by a second.

use serde::de::{Deserializer, Error as _};
use serde::ser::{Error as _, Serializer};

/// Stands in for a missing `serialize`.
pub trait Serialized {
    /// Never runs, because the program does not compile.
    ///
    /// # Errors
    /// Always.
    fn serialize<T: ?Sized, S: Serializer>(_value: &T, _to: S) -> Result<S::Ok, S::Error> {
        Err(S::Error::custom("serde's derive reported a mistake"))
    }
}

impl<T: ?Sized> Serialized for T {}

/// Stands in for a missing `deserialize`.
pub trait Deserialized {
    /// Never runs, because the program does not compile.
    ///
    /// # Errors
    /// Always.
    fn deserialize<'de, T, D: Deserializer<'de>>(_from: D) -> Result<T, D::Error> {
        Err(D::Error::custom("serde's derive reported a mistake"))
    }
}

impl<T: ?Sized> Deserialized for T {}
