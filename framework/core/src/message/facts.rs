//! The constants of a message type, independent of the type.
//!
//! Used wherever messages are handled. Code that differs only in a name or a version is compiled once in this crate,
//! and not for each message in the user's program.

use super::{Codec, Domain, Message};

/// The constants of a message type.
#[derive(Clone, Copy, Debug)]
pub struct MessageFacts {
    #[doc(hidden)]
    pub domain: &'static str,
    #[doc(hidden)]
    pub shards: u16,
    /// The codec of the domain.
    pub codec: Codec,
    #[doc(hidden)]
    pub name: &'static str,
    /// The schema version that is written.
    #[doc(hidden)]
    pub version: u32,
    /// The former names.
    pub(crate) formerly: &'static [&'static str],
}

impl MessageFacts {
    #[doc(hidden)]
    pub const fn of<M: Message>() -> Self {
        Self {
            domain: M::Domain::NAME,
            shards: M::Domain::SHARDS,
            codec: M::Domain::CODEC,
            name: M::NAME,
            version: M::WRITES,
            formerly: M::FORMERLY,
        }
    }

    /// Returns the names that a stored or sent message of the type may have.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + use<> {
        std::iter::once(self.name).chain(self.formerly.iter().copied())
    }
}
