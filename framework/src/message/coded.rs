//! What a codec can write and read, asked for in one place per type.
//!
//! serde's traits are no supertraits of a message: the compiler would repeat a missing one at every use of the message. The
//! derives ask once, at the type, and keep the answer.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Codec, CodecError, Rejection, Shape, codec};

/// A type that a [`Codec`] writes and reads: any that derives `Serialize` and `Deserialize`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written and read",
    label = "lacks `Serialize`, `Deserialize` or both",
    note = "derive both for `{Self}`: `#[derive(Serialize, Deserialize)]`"
)]
pub trait Coded: Sized {
    /// Appends its bytes to `into`.
    ///
    /// # Errors
    /// What [`Codec::encode`] says.
    fn write(&self, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Reads it from all of `bytes`.
    ///
    /// # Errors
    /// What [`Codec::decode`] says.
    fn read(codec: Codec, bytes: &[u8]) -> Result<Self, CodecError>;

    /// Appends the bytes of a reply envelope's payload to `into`.
    ///
    /// # Errors
    /// What [`Codec::encode`] says.
    fn write_reply(reply: &Result<Self, Rejection>, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError>;

    /// Reads a reply envelope's payload.
    ///
    /// # Errors
    /// What [`Codec::decode`] says.
    fn read_reply(codec: Codec, bytes: &[u8]) -> Result<Result<Self, Rejection>, CodecError>;

    /// The shape of its bytes.
    fn shape(codec: Codec) -> Arc<Shape>
    where
        Self: 'static;

    /// It as the state in a snapshot or a view, of up to [`MAX_STATE_BYTES`](super::MAX_STATE_BYTES).
    ///
    /// # Errors
    /// [`CodecError`] if the type has a form that bincode cannot write, or the state is too large.
    fn save(&self) -> Result<Vec<u8>, CodecError>;

    /// The state from a snapshot or a view.
    ///
    /// # Errors
    /// [`CodecError`] if the bytes are no such state.
    fn restore(bytes: &[u8]) -> Result<Self, CodecError>;
}

/// How states of the type `T` become bytes and back. Apart from the coding of messages, so that nothing is compiled for those
/// that only states need.
pub struct StateCoding<T> {
    save: fn(&T) -> Result<Vec<u8>, CodecError>,
    restore: fn(&[u8]) -> Result<T, CodecError>,
    shape: fn(Codec) -> Arc<Shape>,
}

impl<T> StateCoding<T> {
    /// The coding of `T`.
    pub const fn of() -> Self
    where
        T: Coded + 'static,
    {
        Self { save: T::save, restore: T::restore, shape: T::shape }
    }

    /// A state as bytes: a snapshot or a view.
    ///
    /// # Errors
    /// [`CodecError`] if the type has a form that bincode cannot write, or the state is too large.
    pub fn save(&self, state: &T) -> Result<Vec<u8>, CodecError> {
        (self.save)(state)
    }

    /// A state from bytes.
    ///
    /// # Errors
    /// [`CodecError`] if they are no such state.
    pub fn restore(&self, bytes: &[u8]) -> Result<T, CodecError> {
        (self.restore)(bytes)
    }

    /// The shape of the state's bytes. Runs user code, which may panic.
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
        codec::encode_state(self, &mut bytes).map(|()| bytes)
    }

    fn restore(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode_state(bytes)
    }
}
