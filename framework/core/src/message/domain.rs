//! Domains, and the shards of their keys.

use std::fmt;

use super::{Codec, Name};

/// A named set of message types with one owner. Derived with `#[derive(Domain)]`.
///
/// ```
/// use whizbang::prelude::*;
///
/// #[derive(Domain)]
/// struct Bank;
///
/// assert_eq!((Bank::NAME, Bank::SHARDS), ("bank", 16));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a domain",
    label = "expected a domain",
    note = "derive it: `#[derive(Domain)] struct {Self};`"
)]
pub trait Domain: 'static {
    /// The domain's name on the wire and in the store, `[A-Za-z0-9_-]{1,64}`. The derive uses the type's name in lower
    /// case.
    const NAME: &'static str;
    /// The number of shards of its keys: 1 to 1,024, by default 16. It can never change once something is stored.
    const SHARDS: u16 = 16;
    /// The codec of its messages, by default [`Codec::Bincode`].
    const CODEC: Codec = Codec::Bincode;
    /// The names of former actor types, events, commands and timers of the domain. Data stored under these names stays
    /// stored and is not read. The derive takes them from `retired("…")`.
    const RETIRED: &'static [&'static str] = &[];
}

/// A message that belongs to the domain `D`. The derives implement it next to [`Message`](super::Message), so that the
/// compiler can report a message of another domain in a list.
#[doc(hidden)]
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not belong to the domain `{D}`",
    label = "belongs to another domain",
    note = "`handles(…)`, `applies(…)` and `performs(…)` list messages of the own domain; other domains' events go into `reacts(…)` or `on(…)`",
    note = "a message whose traits are written by hand cannot be listed: derive it"
)]
pub trait Of<D> {}

/// The number of a shard within its domain, from 0.
pub type Shard = u16;

/// One shard of one domain.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId {
    /// The domain.
    pub domain: Name,
    /// The number of the shard.
    pub shard: Shard,
}

impl ShardId {
    /// Creates the id of a shard of a domain.
    pub fn new(domain: Name, shard: Shard) -> Self {
        Self { domain, shard }
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.shard)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Returns the shard of `key` in a domain of `shards` shards: CRC-32 (IEEE) of the key's UTF-8 bytes, modulo the number
/// of shards.
///
/// CRC-32 never changes and is available in every language, so that all clients compute the same shard.
pub fn shard_of(key: &str, shards: u16) -> Shard {
    let hash = crc32fast::hash(key.as_bytes());
    // The remainder is less than `shards`, so it fits.
    u16::try_from(hash % u32::from(shards.max(1))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_of_a_key_never_changes() {
        // Python: zlib.crc32(b"ada") % 16
        assert_eq!(shard_of("ada", 16), u16::try_from(crc32fast::hash(b"ada") % 16).unwrap());
        assert_eq!(crc32fast::hash(b"123456789"), 0xCBF4_3926);
        assert_eq!(shard_of("anything", 1), 0);
    }
}
