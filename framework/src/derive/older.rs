//! The one place in which a derive asks for the conversion of an older version.

use std::sync::Arc;

use super::{Split, Upcast};
use crate::message::{Codec, CodecError, Shape};

/// How an older version of `New` is read. Having one proves that it can be.
pub struct Upcasting<New> {
    read: fn(Codec, &[u8]) -> Result<New, CodecError>,
    shape: fn(Codec) -> Arc<Shape>,
}

/// How `Old` is read as `New`. A function and not a method: for those the compiler has an error text of its own.
pub const fn upcast<Old: Upcast<New>, New>() -> Upcasting<New> {
    Upcasting { read: Old::upcast, shape: Old::shape }
}

impl<New> Upcasting<New> {
    /// Reads a message of the older version and makes the current one of it.
    ///
    /// # Errors
    /// What the codec says about the older type.
    pub fn decode(&self, codec: Codec, bytes: &[u8]) -> Result<New, CodecError> {
        (self.read)(codec, bytes)
    }

    /// The shape of the older version.
    pub fn shape(&self, codec: Codec) -> Option<Arc<Shape>> {
        Some((self.shape)(codec))
    }
}

/// How an older version of the event `New`, which has become several events, is read.
pub struct Splitting<New> {
    read: fn(Codec, &[u8]) -> Result<Vec<New>, CodecError>,
    shape: fn(Codec) -> Arc<Shape>,
}

/// How `Old` is read as several `New`.
pub const fn split<Old: Split<New>, New>() -> Splitting<New> {
    Splitting { read: Old::split, shape: Old::shape }
}

impl<New> Splitting<New> {
    /// Reads an event of the older version and calls `each` with what it has become.
    ///
    /// # Errors
    /// What the codec says about the older type.
    pub fn each(&self, codec: Codec, bytes: &[u8], each: &mut dyn FnMut(New)) -> Result<(), CodecError> {
        (self.read)(codec, bytes).map(|all| all.into_iter().for_each(each))
    }

    /// Reads an event of the older version where only one is of use.
    ///
    /// # Errors
    /// What the codec says about the older type; [`CodecError::Decode`] if it is not exactly one.
    pub fn one(&self, codec: Codec, bytes: &[u8]) -> Result<New, CodecError> {
        let mut all = (self.read)(codec, bytes)?;
        let count = all.len();
        match all.pop() {
            Some(one) if count == 1 => Ok(one),
            _ => Err(CodecError::Decode { reason: format!("it was split into {count} events, and one is wanted") }),
        }
    }

    /// The shape of the older version.
    pub fn shape(&self, codec: Codec) -> Option<Arc<Shape>> {
        Some((self.shape)(codec))
    }
}
