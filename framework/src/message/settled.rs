//! Values as they will be read: written, read back and compared before anything depends on them.
//!
//! Called by actors, workers and clients for each message that is stored or sent. serde lets a type write one thing and read another, and
//! no derive sees into types of other crates. A value that reads back differently would be acknowledged today and be another
//! after a restart, on another thread or on another node. So what is used is always what was read, and a value that does not read
//! back is an error before the commit.

use std::any::TypeId;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Codec, CodecError, Coded, Message, Rejection, codec};

/// Values of a trusted type that are checked before the rest is not.
const CHECKED: u32 = 64;

/// A record of how many values of a type were checked.
#[derive(Debug, Default)]
pub struct Trust(AtomicU32);

impl Trust {
    /// A record without a check.
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Returns whether values need no further checks, and counts this one if they do.
    ///
    /// Read first: once the type is trusted, no thread writes to the counter that all threads share.
    fn is_complete(&self) -> bool {
        self.0.load(Ordering::Relaxed) >= CHECKED || {
            self.0.fetch_add(1, Ordering::Relaxed);
            false
        }
    }
}

/// Appends the bytes of a message to `into`, and returns the message as it reads from them. On an error `into` is as long as before.
///
/// Costs a second reading and a second writing, unless the type is trusted.
pub(crate) fn settle<M: Message>(message: M, codec: Codec, into: &mut Vec<u8>) -> Result<M, CodecError> {
    let start = into.len();
    message.encode(codec, into)?;
    if M::trust().is_some_and(Trust::is_complete) {
        return Ok(message);
    }
    let settled = read_back::<M>(codec, into.get(start..).unwrap_or_default());
    if settled.is_err() {
        into.truncate(start);
    }
    settled
}

/// As [`settle`], for a message that is read elsewhere.
pub(crate) fn verify<M: Message>(message: &M, codec: Codec, into: &mut Vec<u8>) -> Result<(), CodecError> {
    let start = into.len();
    message.encode(codec, into)?;
    if M::trust().is_some_and(Trust::is_complete) {
        return Ok(());
    }
    let settled = read_back::<M>(codec, into.get(start..).unwrap_or_default());
    if settled.is_err() {
        into.truncate(start);
    }
    settled.map(drop)
}

fn read_back<M: Message>(codec: Codec, written: &[u8]) -> Result<M, CodecError> {
    let read = || {
        let read = M::decode(M::VERSION, codec, written)?;
        let mut again = Vec::with_capacity(written.len());
        read.encode(codec, &mut again)?;
        codec::agree(written, &again)?;
        Ok(read)
    };
    read().map_err(|error| codec::unreadable(M::NAME, &error))
}

/// Appends the bytes of a reply to `into`, and returns it as it reads from them. On an error `into` is as long as before.
pub(crate) fn settle_reply<R: Coded + 'static>(
    reply: Result<R, Rejection>,
    codec: Codec,
    into: &mut Vec<u8>,
) -> Result<Result<R, Rejection>, CodecError> {
    let start = into.len();
    R::write_reply(&reply, codec, into)?;
    if reply.is_err() || is_plain::<R>() {
        return Ok(reply);
    }
    let written = into.get(start..).unwrap_or_default();
    let read = || {
        let read = R::read_reply(codec, written)?;
        let mut again = Vec::with_capacity(written.len());
        R::write_reply(&read, codec, &mut again)?;
        codec::agree(written, &again)?;
        Ok(read)
    };
    match read() {
        Ok(read) => Ok(read),
        Err(error) => {
            into.truncate(start);
            Err(codec::unreadable(std::any::type_name::<R>(), &error))
        }
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
