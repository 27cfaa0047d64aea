//! Verified encoding: a value is encoded, decoded and compared before anything depends on it.
//!
//! Called by actors, workers and clients for each message that is stored or sent. With serde, a type may write one
//! thing and read another, and no derive can inspect types of other crates. Such a value would be acknowledged today
//! and be a different one after a restart, on another thread or on another node. Therefore the decoded value is always
//! the one that is used, and a value that does not read back is an error before the commit.

use std::any::TypeId;
use std::sync::atomic::{AtomicBool, Ordering};

use super::read_back::{CodecFns, read_back, unreadable_error};
use super::{Codec, CodecError, Coded, Command, Message, Rejection};

/// The record of whether a value of a trusted type was verified. Its first value always is, because serde's traits may
/// be implemented by hand and a type's name in a derive may refer to another type.
#[derive(Debug, Default)]
pub struct Trust(AtomicBool);

impl Trust {
    /// Creates a record without a verified value.
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Returns whether values need no verification. Otherwise records that this one is verified.
    ///
    /// Reads first: once the type is trusted, no thread writes to the shared cache line.
    fn is_complete(&self) -> bool {
        self.0.load(Ordering::Relaxed) || {
            self.0.store(true, Ordering::Relaxed);
            false
        }
    }
}

/// Appends the encoded message to `into` and returns the decoded message, or `None` if the type is trusted and decodes
/// to equal values. On an error `into` keeps its length.
///
/// Costs one decoding and one more encoding, unless the type is trusted.
pub fn encode_verified<M: Message>(message: &M, codec: Codec, into: &mut Vec<u8>) -> Result<Option<M>, CodecError> {
    let start = into.len();
    message.encode(codec, into)?;
    if M::trust().is_some_and(Trust::is_complete) {
        return Ok(None);
    }
    let fns = CodecFns { write: M::encode, read: |codec, bytes| M::decode(M::WRITES, codec, bytes) };
    let read = read_back(message, codec, into.get(start..).unwrap_or_default(), fns);
    or_truncate(read.map(Some), M::NAME, start, into)
}

/// Like [`encode_verified`], for a command: it must also decode with the key by which it is routed.
pub fn encode_command_verified<C: Command>(
    command: &C,
    codec: Codec,
    into: &mut Vec<u8>,
) -> Result<Option<C>, CodecError> {
    let start = into.len();
    let decoded = encode_verified(command, codec, into)?;
    let key = decoded.as_ref().map(|read| read.key()).filter(|key| *key != command.key());
    if let Some(key) = key {
        let reason =
            format!("its key `{}` reads as `{}`", command.key().as_str().escape_debug(), key.as_str().escape_debug());
        return or_truncate(Err(CodecError::Decode { reason }), C::NAME, start, into);
    }
    Ok(decoded)
}

/// Appends the encoded reply to `into` and returns the decoded reply. On an error `into` keeps its length.
pub fn encode_reply_verified<R: Coded + 'static>(
    reply: Result<R, Rejection>,
    codec: Codec,
    into: &mut Vec<u8>,
) -> Result<Result<R, Rejection>, CodecError> {
    let start = into.len();
    R::write_reply(&reply, codec, into)?;
    if reply.is_err() || is_plain::<R>() {
        return Ok(reply);
    }
    let fns = CodecFns { write: R::write_reply, read: R::read_reply };
    let read = read_back(&reply, codec, into.get(start..).unwrap_or_default(), fns);
    or_truncate(read, std::any::type_name::<R>(), start, into)
}

/// Truncates `into` to `start` if the value does not read back.
fn or_truncate<T>(read: Result<T, CodecError>, name: &str, start: usize, into: &mut Vec<u8>) -> Result<T, CodecError> {
    read.map_err(|error| {
        into.truncate(start);
        unreadable_error(name, &error)
    })
}

/// Returns whether every codec is known to read back values of the type. The comparisons are constants.
fn is_plain<R: 'static>() -> bool {
    macro_rules! is_one_of {
        ($($type:ty),*) => { false $(|| TypeId::of::<R>() == TypeId::of::<$type>())* };
    }
    is_one_of!(
        (),
        bool,
        u8,
        u16,
        u32,
        u64,
        u128,
        usize,
        i8,
        i16,
        i32,
        i64,
        i128,
        isize,
        char,
        String,
        Option<bool>,
        Option<u32>,
        Option<u64>,
        Option<i64>,
        Option<String>,
        Vec<u8>,
        Vec<u64>,
        Vec<String>
    )
}

#[cfg(test)]
mod tests;
