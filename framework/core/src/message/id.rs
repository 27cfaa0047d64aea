//! Message ids and their sources.

use std::cell::Cell;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::ShardId;
use crate::clock::{Clock, Timestamp};

/// The id of an envelope and key of deduplication: 128 bits, displayed like a UUID.
///
/// An id created by an [`IdSource`] is a version 7 UUID and contains its time of creation. An id derived from an
/// idempotency key or from another id is a version 5 UUID and contains no time.
///
/// ```
/// use whizbang::message::MessageId;
///
/// // The same key for the same target is the same message, in every process.
/// let id = MessageId::from_idempotency_key("bank", "ada", "deposit-4711");
/// assert_eq!(id, MessageId::from_idempotency_key("bank", "ada", "deposit-4711"));
/// assert_ne!(id, MessageId::from_idempotency_key("bank", "bob", "deposit-4711"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MessageId(u128);

impl MessageId {
    /// Creates an id from its 128 bits.
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }

    /// Returns the 128 bits.
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// Returns the id for a caller's idempotency key, in one domain and for one target: the key of an aggregate or of a
    /// job.
    pub fn from_idempotency_key(domain: &str, target: &str, key: &str) -> Self {
        Self::hashed(&[b"key", domain.as_bytes(), target.as_bytes(), key.as_bytes()])
    }

    /// Returns the id of the message that fires a timer.
    pub fn of_timer(domain: &str, label: &str) -> Self {
        Self::hashed(&[b"key", domain.as_bytes(), label.as_bytes()])
    }

    /// Returns the id of the `index`-th message caused by the message `self` in the stream `stream`. It is the same in
    /// every replay.
    pub fn derive(self, stream: &str, index: u32) -> Self {
        Self::hashed(&[b"of", &self.0.to_be_bytes(), stream.as_bytes(), &index.to_be_bytes()])
    }

    /// Returns the id of the reply to the command `command`.
    pub fn of_reply(command: Self) -> Self {
        command.derive("reply", 0)
    }

    /// Returns the id of the event at `position` of a shard's log, caused by the message `cause`.
    pub fn of_event(shard: &ShardId, position: u64, cause: Self) -> Self {
        let place = [&shard.shard.to_be_bytes()[..], &position.to_be_bytes()[..]].concat();
        Self::hashed(&[b"event", shard.domain.as_bytes(), &place, &cause.0.to_be_bytes()])
    }

    fn hashed(parts: &[&[u8]]) -> Self {
        // Each part is preceded by its length, so that no two lists of parts produce the same text.
        let mut text = Vec::with_capacity(64);
        for part in parts {
            text.extend_from_slice(&(part.len() as u64).to_be_bytes());
            text.extend_from_slice(part);
        }
        Self(uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &text).as_u128())
    }

    /// Returns the time at which the id was created, if it contains one.
    pub fn time(self) -> Option<Timestamp> {
        let version = (self.0 >> 76) & 0xF;
        (version == 7).then(|| Timestamp::from_millis((self.0 >> 80) as u64))
    }

    /// Parses the output of `Display`.
    pub fn parse(text: &str) -> Option<Self> {
        uuid::Uuid::try_parse(text).ok().map(|id| Self(id.as_u128()))
    }
}

/// The number of milliseconds by which ids of a source may be ahead of its clock: far less than the five minutes that
/// owners accept.
const FARTHEST_AHEAD: u64 = 60_000;

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_u128(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A source of message ids and random numbers, seeded by the operating system or explicitly.
///
/// One per thread; not `Sync`. Ids of one source strictly increase, even when the wall clock steps back by up to a
/// minute. After a larger step they restart at the new time, because owners refuse ids that are far ahead of their
/// clocks.
///
/// ```
/// use whizbang::clock::{Clock, Timestamp};
/// use whizbang::message::IdSource;
///
/// let (clock, _) = Clock::manual(Timestamp::from_millis(1_000));
/// let ids = IdSource::seeded(clock, 7);
/// let (first, second) = (ids.message_id(), ids.message_id());
/// assert!(first < second);
/// assert_eq!(first.time(), Some(Timestamp::from_millis(1_000)));
/// ```
#[derive(Debug)]
pub struct IdSource {
    clock: Clock,
    state: Cell<u64>,
    last: Cell<u128>,
}

impl IdSource {
    /// Creates a source seeded by the operating system.
    pub fn random(clock: Clock) -> Self {
        use std::hash::{BuildHasher, Hasher};
        // `RandomState` is seeded by the operating system; its hash of nothing is 64 random bits.
        #[expect(clippy::disallowed_methods, reason = "the one place where a node's seed comes from outside")]
        let seed = std::collections::hash_map::RandomState::new().build_hasher().finish();
        Self::seeded(clock, seed)
    }

    /// Creates a source whose numbers all follow from `seed`.
    pub fn seeded(clock: Clock, seed: u64) -> Self {
        Self { clock, state: Cell::new(seed), last: Cell::new(0) }
    }

    /// Returns the clock of the ids.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Creates a source for another thread, whose numbers follow from those of this one.
    pub fn fork(&self) -> Self {
        Self::seeded(self.clock.clone(), self.next_u64())
    }

    /// Returns the next random number (SplitMix64, Steele et al., OOPSLA 2014).
    pub fn next_u64(&self) -> u64 {
        let state = self.state.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
        self.state.set(state);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Returns a random number in `0..bound`, or 0 if `bound` is 0.
    pub fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Creates a message id (UUID version 7, RFC 9562).
    pub fn message_id(&self) -> MessageId {
        self.message_id_at(self.clock.now())
    }

    /// Creates a message id for the time `now`, for callers that have just read the clock.
    pub fn message_id_at(&self, now: Timestamp) -> MessageId {
        let random = self.next_u64();
        let fresh = (u128::from(now.as_millis() & 0xFFFF_FFFF_FFFF) << 80)
            | (0x7 << 76)
            | (u128::from(random & 0x0FFF) << 64)
            | (0b10 << 62)
            | u128::from(random >> 2);
        // Within one millisecond, or after the clock has stepped back, the last id plus a random step preserves the
        // order. The step is added to the lowest 62 bits. A carry may change the fixed bits, which are then set again.
        let last = self.last.get();
        let ahead = ((last >> 80) as u64).saturating_sub(now.as_millis() & 0xFFFF_FFFF_FFFF);
        let id = if fresh > last || ahead > FARTHEST_AHEAD {
            fresh
        } else {
            let next = last + 1 + u128::from(random & 0xFFFF_FFFF);
            (next & !(0xF << 76) & !(0b11 << 62)) | (0x7 << 76) | (0b10 << 62)
        };
        let id = if id > last || ahead > FARTHEST_AHEAD { id } else { last + (1 << 80) };
        self.last.set(id);
        MessageId(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_one_source_rise_even_when_the_clock_steps_back() {
        let (clock, hand) = Clock::manual(Timestamp::from_millis(1_000_000));
        let ids = IdSource::seeded(clock, 7);
        let mut last = ids.message_id();
        for step in 0..100_000u64 {
            if step % 1000 == 0 {
                hand.set(Timestamp::from_millis(1_000_000 - step / 10));
            }
            let next = ids.message_id();
            assert!(next > last, "{next} after {last}");
            assert!(next.time().is_some());
            last = next;
        }
    }

    #[test]
    fn ids_follow_a_clock_that_is_set_back_by_an_hour() {
        let (clock, hand) = Clock::manual(Timestamp::from_millis(7_200_000));
        let ids = IdSource::seeded(clock, 7);
        let early = ids.message_id();
        hand.set(Timestamp::from_millis(3_600_000));
        let late = ids.message_id();
        assert_eq!(late.time(), Some(Timestamp::from_millis(3_600_000)));
        assert!(late < early && ids.message_id() > late);
    }

    #[test]
    fn same_seed_creates_the_same_ids() {
        let (clock, _) = Clock::manual(Timestamp::from_millis(5));
        let one = IdSource::seeded(clock.clone(), 42);
        let two = IdSource::seeded(clock, 42);
        assert_eq!(one.message_id(), two.message_id());
        assert_eq!(one.next_u64(), two.next_u64());
    }

    #[test]
    fn derived_ids_depend_on_every_part() {
        let id = MessageId::from_u128(9);
        assert_eq!(id.derive("a", 1), id.derive("a", 1));
        assert_ne!(id.derive("a", 1), id.derive("a", 2));
        assert_ne!(id.derive("a", 1), id.derive("b", 1));
        let of = MessageId::from_idempotency_key;
        let all = [of("ab", "c", "d"), of("a", "bc", "d"), of("a", "b", "cd"), of("ab", "c", "e")];
        assert!(all.iter().enumerate().all(|(at, id)| !all[..at].contains(id)), "{all:?}");
        assert_eq!(id.derive("a", 1).time(), None);
    }

    #[test]
    fn ids_are_read_as_they_are_written() {
        let id = IdSource::random(Clock::system()).message_id();
        assert_eq!(MessageId::parse(&id.to_string()), Some(id));
        assert_eq!(MessageId::parse("nothing"), None);
    }
}
