//! Streams, identified by a hash of their name.
//!
//! The index of a store with ten million streams must not contain their names, so it contains hashes of a fixed size. The
//! names are in the records, and each read compares them.

use std::hash::{BuildHasher, Hash, Hasher};

use whizbang_core::message::MessageId;

/// A stream: a 128-bit hash of the actor's type and key, with a secret seed.
///
/// A collision is not expected in the life of a store (10 million streams: 1 in 10^24). Even then the streams are not
/// mixed up: reading along the links compares the names, and the first turn of the later stream is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stream(pub(super) u64, pub(super) u64);

impl Stream {
    /// Returns the two halves for storage.
    pub fn halves(self) -> (u64, u64) {
        (self.0, self.1)
    }

    /// Creates a stream from its stored halves.
    pub fn from_halves(first: u64, second: u64) -> Self {
        Self(first, second)
    }
}

impl Hash for Stream {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// A 128-bit hash of a stream and a message id, keyed with the store's secret seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdHash(pub u64, pub u64);

/// Hashes names to [`Stream`]s.
#[derive(Clone, Debug)]
pub struct StreamHasher {
    /// The hash of the first half of a stream, and of the second half of an id.
    fast: foldhash::fast::FixedState,
    /// The hash of the other half, with another seed.
    quality: foldhash::quality::FixedState,
}

impl StreamHasher {
    /// Creates a hasher from the secret seed of a store.
    pub fn new(seed: u64) -> Self {
        Self {
            fast: foldhash::fast::FixedState::with_seed(seed),
            quality: foldhash::quality::FixedState::with_seed(seed.rotate_left(32) ^ 0x9E37_79B9_7F4A_7C15),
        }
    }

    /// Returns the stream of an actor and a key.
    ///
    /// Both halves are hashes with seeds of the store: a caller that chooses keys cannot make two streams equal.
    pub fn stream(&self, actor: &str, key: &str) -> Stream {
        fn feed<H: Hasher>(mut hasher: H, actor: &str, key: &str) -> u64 {
            // The length first, so that no other pair of names produces the same bytes.
            hasher.write_u8(actor.len() as u8);
            hasher.write(actor.as_bytes());
            hasher.write(key.as_bytes());
            hasher.finish()
        }
        Stream(feed(self.fast.build_hasher(), actor, key), feed(self.quality.build_hasher(), actor, key))
    }

    /// Returns the hash of a message id in a stream.
    pub(crate) fn id(&self, stream: Stream, id: MessageId) -> IdHash {
        hash(&self.fast, &self.quality, stream, id.as_u128())
    }
}

/// Hashes a stream and a message id.
fn hash(
    fast: &foldhash::fast::FixedState,
    quality: &foldhash::quality::FixedState,
    stream: Stream,
    id: u128,
) -> IdHash {
    fn feed<H: Hasher>(mut hasher: H, stream: Stream, id: u128) -> u64 {
        hasher.write_u64(stream.0);
        hasher.write_u64(stream.1);
        hasher.write_u128(id);
        hasher.finish()
    }
    IdHash(feed(quality.build_hasher(), stream, id), feed(fast.build_hasher(), stream, id))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// A caller that chooses keys must know the whole seed to make two streams equal.
    #[test]
    fn each_bit_of_the_seed_changes_both_halves() {
        let streams: Vec<Stream> = (0..64).map(|bit| StreamHasher::new(1 << bit).stream("a", "b")).collect();
        assert_eq!(streams.iter().map(|stream| stream.0).collect::<HashSet<_>>().len(), 64);
        assert_eq!(streams.iter().map(|stream| stream.1).collect::<HashSet<_>>().len(), 64);
    }

    #[test]
    fn id_is_hashed_with_its_stream() {
        let hasher = StreamHasher::new(1);
        let ids: HashSet<IdHash> = (0..10u64)
            .flat_map(|stream| (0..10u128).map(move |id| (stream, id)))
            .map(|(stream, id)| hasher.id(Stream(stream / 3, stream % 3), MessageId::from_u128(id)))
            .collect();
        assert_eq!(ids.len(), 100);
        let halves: HashSet<u64> = ids.iter().flat_map(|IdHash(first, second)| [*first, *second]).collect();
        assert_eq!(halves.len(), 200);
    }

    #[test]
    fn stream_is_restored_from_its_halves() {
        let stream = StreamHasher::new(1).stream("a", "b");
        let (first, second) = stream.halves();
        assert_eq!((stream.0, stream.1), (first, second));
        assert_eq!(Stream::from_halves(first, second), stream);
        let state = foldhash::fast::FixedState::with_seed(1);
        let hashes: HashSet<u64> = (0..100).map(|half| state.hash_one(Stream(half, 7))).collect();
        assert_eq!(hashes.len(), 100, "the streams of a table are spread over it");
    }
}
