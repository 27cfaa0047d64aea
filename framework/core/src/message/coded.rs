//! The bounds of encodable types, required in one place per type.
//!
//! serde's traits are not supertraits of a message, because the compiler would then report a missing one at every use
//! of the message. The derives require them once, at the type.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, CodecError, Rejection, Shape, state};

/// A type that a [`Codec`] encodes and decodes: any type that derives `Serialize` and `Deserialize`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written and read",
    label = "lacks `Serialize`, `Deserialize` or both",
    note = "derive both for `{Self}`: `#[derive(Serialize, Deserialize)]`"
)]
pub trait Coded: Sized {
    /// Appends the encoded value to `into`.
    ///
    /// # Errors
    /// The errors of [`Codec::encode`].
    fn write(&self, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Decodes a value from all of `bytes`.
    ///
    /// # Errors
    /// The errors of [`Codec::decode`].
    fn read(codec: Codec, bytes: &[u8]) -> Result<Self, CodecError>;

    /// Appends the encoded payload of a reply envelope to `into`.
    ///
    /// # Errors
    /// The errors of [`Codec::encode`].
    fn write_reply(reply: &Result<Self, Rejection>, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Decodes the payload of a reply envelope.
    ///
    /// # Errors
    /// The errors of [`Codec::decode`].
    fn read_reply(codec: Codec, bytes: &[u8]) -> Result<Result<Self, Rejection>, CodecError>;

    /// Returns the shape of the encoded type.
    fn shape(codec: Codec) -> Arc<Shape>
    where
        Self: 'static;

    /// Encodes the value as the state in a snapshot or a view, up to [`MAX_STATE_BYTES`](super::MAX_STATE_BYTES).
    ///
    /// # Errors
    /// [`CodecError`] if bincode cannot encode the type, or the state is too large.
    fn save(&self) -> Result<Vec<u8>, CodecError>;

    /// Decodes the state of a snapshot or a view.
    ///
    /// # Errors
    /// [`CodecError`] if the bytes are not a valid state of the type.
    fn restore(bytes: &[u8]) -> Result<Self, CodecError>;
}

/// The encoding and decoding of states of type `T`. Separate from messages, so that code that only states need is not
/// compiled for messages.
pub struct StateCoding<T> {
    save: fn(&T) -> Result<Vec<u8>, CodecError>,
    restore: fn(&[u8]) -> Result<T, CodecError>,
    shape: fn(Codec) -> Arc<Shape>,
}

impl<T> std::fmt::Debug for StateCoding<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StateCoding").finish_non_exhaustive()
    }
}

impl<T> StateCoding<T> {
    /// Returns the coding of `T`.
    pub const fn of() -> Self
    where
        T: Coded + 'static,
    {
        Self { save: T::save, restore: T::restore, shape: T::shape }
    }

    /// Encodes the state of a snapshot or a view.
    ///
    /// # Errors
    /// [`CodecError`] if bincode cannot encode the type, or the state is too large.
    pub fn save(&self, state: &T) -> Result<Vec<u8>, CodecError> {
        (self.save)(state)
    }

    /// Decodes a state.
    ///
    /// # Errors
    /// [`CodecError`] if the bytes are not a valid state of the type.
    pub fn restore(&self, bytes: &[u8]) -> Result<T, CodecError> {
        (self.restore)(bytes)
    }

    /// Returns the shape of the encoded state. Runs user code, which may panic.
    pub fn shape(&self) -> Option<Arc<Shape>> {
        Some((self.shape)(Codec::Bincode))
    }
}

#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned> Coded for T {
    fn write(&self, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError> {
        codec.encode(self, into)
    }

    fn read(codec: Codec, bytes: &[u8]) -> Result<Self, CodecError> {
        codec.decode(bytes)
    }

    fn write_reply(reply: &Result<Self, Rejection>, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError> {
        codec.encode(reply, into)
    }

    fn read_reply(codec: Codec, bytes: &[u8]) -> Result<Result<Self, Rejection>, CodecError> {
        codec.decode(bytes)
    }

    fn shape(codec: Codec) -> Arc<Shape>
    where
        Self: 'static,
    {
        Shape::of::<Self>(codec)
    }

    fn save(&self) -> Result<Vec<u8>, CodecError> {
        let mut bytes = Vec::new();
        state::encode_state(self, &mut bytes).map(|()| bytes)
    }

    fn restore(bytes: &[u8]) -> Result<Self, CodecError> {
        state::decode_state(bytes)
    }
}
