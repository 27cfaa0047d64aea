//! Values as they will be read: written, read back and compared before anything depends on them.
//!
//! Called by actors, workers and clients for each message that is stored or sent. serde lets a type write one thing and read another, and
//! no derive sees into types of other crates. A value that reads back differently would be acknowledged today and be another
//! after a restart, on another thread or on another node. So what is used is always what was read, and a value that does not read
//! back is an error before the commit.

use std::any::TypeId;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Codec, CodecError, Coded, Command, Message, Rejection, canonical};

/// Whether a value of a trusted type was checked. Its first value is, because serde's traits may be written by hand and a name
/// may stand for another type.
#[derive(Debug, Default)]
pub struct Trust(AtomicBool);

impl Trust {
    /// A record without a check.
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// Returns whether values need no further checks, and notes that this one is checked if they do.
    ///
    /// Read first: once the type is trusted, no thread writes to what all threads share.
    fn is_complete(&self) -> bool {
        self.0.load(Ordering::Relaxed) || {
            self.0.store(true, Ordering::Relaxed);
            false
        }
    }
}

/// Appends the bytes of a message to `into`, and returns the message as it reads from them; `None` if the type is trusted, whose
/// values read as they are. On an error `into` is as long as before.
///
/// Costs a second reading and a second writing, unless the type is trusted.
pub(crate) fn encode_verified<M: Message>(
    message: &M,
    codec: Codec,
    into: &mut Vec<u8>,
) -> Result<Option<M>, CodecError> {
    let start = into.len();
    message.encode(codec, into)?;
    if M::trust().is_some_and(Trust::is_complete) {
        return Ok(None);
    }
    let ways = CodecFns { write: M::encode, read: |codec, bytes| M::decode(M::VERSION, codec, bytes) };
    let read = read_back(message, codec, into.get(start..).unwrap_or_default(), ways);
    or_truncate(read.map(Some), M::NAME, start, into)
}

/// As [`encode_verified`], for a command: it must also read back with the key by which it is routed.
pub(crate) fn encode_command_verified<C: Command>(
    command: &C,
    codec: Codec,
    into: &mut Vec<u8>,
) -> Result<Option<C>, CodecError> {
    let start = into.len();
    let settled = encode_verified(command, codec, into)?;
    let key = settled.as_ref().map(|read| read.key()).filter(|key| *key != command.key());
    if let Some(key) = key {
        let reason =
            format!("its key `{}` reads as `{}`", command.key().as_str().escape_debug(), key.as_str().escape_debug());
        return or_truncate(Err(CodecError::Decode { reason }), C::NAME, start, into);
    }
    Ok(settled)
}

/// Appends the bytes of a reply to `into`, and returns it as it reads from them. On an error `into` is as long as before.
pub(crate) fn encode_reply_verified<R: Coded + 'static>(
    reply: Result<R, Rejection>,
    codec: Codec,
    into: &mut Vec<u8>,
) -> Result<Result<R, Rejection>, CodecError> {
    let start = into.len();
    R::write_reply(&reply, codec, into)?;
    if reply.is_err() || is_plain::<R>() {
        return Ok(reply);
    }
    let ways = CodecFns { write: R::write_reply, read: R::read_reply };
    let read = read_back(&reply, codec, into.get(start..).unwrap_or_default(), ways);
    or_truncate(read, std::any::type_name::<R>(), start, into)
}

/// Takes back what was written if it does not read back.
fn or_truncate<T>(read: Result<T, CodecError>, name: &str, start: usize, into: &mut Vec<u8>) -> Result<T, CodecError> {
    read.map_err(|error| {
        into.truncate(start);
        unreadable_error(name, &error)
    })
}

/// How a value is written and read.
pub(super) struct CodecFns<T> {
    pub(super) write: fn(&T, Codec, &mut Vec<u8>) -> Result<(), CodecError>,
    pub(super) read: fn(Codec, &[u8]) -> Result<T, CodecError>,
}

/// Reads what was written, and returns it if it is the value.
pub(super) fn read_back<T>(value: &T, codec: Codec, written: &[u8], ways: CodecFns<T>) -> Result<T, CodecError> {
    let read = (ways.read)(codec, written)?;
    let mut again = Vec::with_capacity(written.len());
    (ways.write)(&read, codec, &mut again)?;
    if again == written {
        return Ok(read);
    }
    let both = |one: &mut Vec<u8>, other: &mut Vec<u8>| {
        (ways.write)(value, Codec::Bincode, one).is_ok() && (ways.write)(&read, Codec::Bincode, other).is_ok()
    };
    compare_unordered(codec, written, &again, &both, &|bytes| (ways.read)(Codec::Bincode, bytes).is_ok())?;
    Ok(read)
}

/// Reads bincode of which the value is not known any more, and returns it if it would be written as the same.
pub(super) fn reread<T>(codec: Codec, written: &[u8], ways: CodecFns<T>) -> Result<T, CodecError> {
    let read = (ways.read)(codec, written)?;
    let mut again = Vec::with_capacity(written.len());
    (ways.write)(&read, codec, &mut again)?;
    if again != written {
        compare_unordered(codec, written, &again, &|_, _| false, &|bytes| (ways.read)(Codec::Bincode, bytes).is_ok())?;
    }
    Ok(read)
}

/// Compares the different bytes of a value and of the value that was read from them.
///
/// They may differ in one way: the entries of a `HashMap` or `HashSet` come in another order each time. `both` writes the two values
/// in bincode, in which tuples and lists are told apart, and `read` reads one of them.
#[cold]
fn compare_unordered(
    codec: Codec,
    written: &[u8],
    again: &[u8],
    both: &dyn Fn(&mut Vec<u8>, &mut Vec<u8>) -> bool,
    read: &dyn Fn(&[u8]) -> bool,
) -> Result<(), CodecError> {
    let in_bincode = |one: &[u8], other: &[u8]| {
        let (one, other) = (canonical::of_bincode(one, read)?, canonical::of_bincode(other, read)?);
        Some(one == other)
    };
    let is_equal = written.len() == again.len()
        && match codec {
            Codec::Bincode => in_bincode(written, again).unwrap_or(false),
            Codec::Json => {
                let (mut one, mut other) = (Vec::new(), Vec::new());
                let compared = if both(&mut one, &mut other) { in_bincode(&one, &other) } else { None };
                compared.unwrap_or_else(|| {
                    let one = canonical::of_json(written);
                    one.is_some() && one == canonical::of_json(again)
                })
            }
        };
    if is_equal { Ok(()) } else { Err(CodecError::Decode { reason: "it reads as another value".to_owned() }) }
}

/// The error of a value that was written and does not read back.
pub(super) fn unreadable_error(name: &str, error: &CodecError) -> CodecError {
    let cause = match error {
        CodecError::Decode { reason } | CodecError::Encode { reason } => reason.clone(),
        other => other.to_string(),
    };
    CodecError::Encode {
        reason: format!(
            "`{name}` does not read back as it was written: {cause}; remove serde attributes that treat reading and writing \
             differently, such as `skip_serializing_if`, `tag`, `untagged` and `flatten`"
        ),
    }
}

/// Returns whether a type is one of those that every codec is known to read back. The comparisons are constants.
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
