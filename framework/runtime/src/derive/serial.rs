//! Fallbacks of the prelude's `Serialize` and `Deserialize` for a type on which serde's own derive reported an error.
//!
//! Called by derived code, which has the trait in scope:
//!
//! ```text
//! use ::whizbang::derive::serial::Serialized as _;
//! __WhizbangDeposit::serialize(self, to)
//! ```
//!
//! If serde's derive succeeds, `__WhizbangDeposit` has a function `serialize` of its own, and the compiler prefers it to that of a
//! trait. If it fails, it has reported its error and generated nothing. The function of the trait is then called, so that no second
//! error about a missing function follows.

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
