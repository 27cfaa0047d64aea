//! Digests of messages, which distinguish a repeated message from another message with the same id.
//!
//! Called by actors and workers for messages from outside. The digest is stored in the log next to the id.

use super::hash::{fold_all, stable_hash};
use super::{Codec, Envelope};

/// The digest of a message, keyed with the secret of its store, with the data to compare it with an older one.
///
/// It covers name, schema version, codec and payload. The digest is SipHash-2-4 (Aumasson and Bernstein, 2012): without
/// the secret, a caller cannot construct two messages with the same digest. Earlier versions stored an unkeyed digest
/// of name and payload, which still [matches](Self::matches).
#[derive(Clone, Copy, Debug)]
pub struct Digest<'a> {
    value: u64,
    name: &'a str,
    payload: &'a [u8],
}

impl<'a> Digest<'a> {
    /// Returns the digest of an envelope's message.
    pub fn of(key: u128, envelope: &'a Envelope) -> Self {
        Self::new(key, &envelope.name, envelope.version, envelope.codec, &envelope.payload)
    }

    /// Returns the digest of a message.
    pub fn new(key: u128, name: &'a str, version: u32, codec: Codec, payload: &'a [u8]) -> Self {
        let mut hash = Sip::new(key);
        // Parts of variable length are hashed after their length.
        hash.word(name.len() as u64);
        hash.bytes(name.as_bytes());
        hash.word(u64::from(version) << 8 | u64::from(codec.id()));
        hash.word(payload.len() as u64);
        hash.bytes(payload);
        Self { value: hash.finish(), name, payload }
    }

    /// Wraps a digest from the log, to search for an equal one.
    #[doc(hidden)]
    pub fn stored(value: u64) -> Digest<'static> {
        Digest { value, name: "", payload: &[] }
    }

    /// Returns the value that is stored in the log.
    pub fn value(&self) -> u64 {
        self.value
    }

    /// Returns whether a digest from the log, of this version or an older one, may be of this message.
    pub fn matches(&self, stored: u64) -> bool {
        stored == self.value || stored == unkeyed(self.name, self.payload)
    }
}

/// SipHash-2-4 over whole words.
struct Sip([u64; 4]);

impl Sip {
    fn new(key: u128) -> Self {
        let (low, high) = (key as u64, (key >> 64) as u64);
        Self([
            low ^ 0x736f_6d65_7073_6575,
            high ^ 0x646f_7261_6e64_6f6d,
            low ^ 0x6c79_6765_6e65_7261,
            high ^ 0x7465_6462_7974_6573,
        ])
    }

    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.0;
        a = a.wrapping_add(b);
        c = c.wrapping_add(d);
        b = b.rotate_left(13) ^ a;
        d = d.rotate_left(16) ^ c;
        a = a.rotate_left(32);
        c = c.wrapping_add(b);
        a = a.wrapping_add(d);
        b = b.rotate_left(17) ^ c;
        d = d.rotate_left(21) ^ a;
        c = c.rotate_left(32);
        self.0 = [a, b, c, d];
    }

    fn word(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.round();
        self.0[0] ^= word;
    }

    /// Hashes bytes. The last word is padded with zeros, because the length was hashed before.
    fn bytes(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; 8];
            for (to, from) in last.iter_mut().zip(rest) {
                *to = *from;
            }
            self.word(u64::from_le_bytes(last));
        }
    }

    fn finish(mut self) -> u64 {
        self.0[2] ^= 0xFF;
        for _ in 0..4 {
            self.round();
        }
        let [a, b, c, d] = self.0;
        a ^ b ^ c ^ d
    }
}

/// Returns the unkeyed digest of early versions.
pub fn unkeyed(name: &str, payload: &[u8]) -> u64 {
    fold_all(stable_hash(name), payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(key: u128, name: &str, payload: &[u8]) -> u64 {
        Digest::new(key, name, 1, Codec::Json, payload).value()
    }

    #[test]
    fn digest_depends_on_every_part() {
        let mut digests = std::collections::BTreeSet::new();
        for length in 0..40 {
            let payload = vec![0; length];
            for (key, name) in [(1, "deposit"), (1, "withdraw"), (2, "deposit"), (1 << 64 | 1, "deposit")] {
                assert!(digests.insert(digest(key, name, &payload)), "{name} with {length} zeros");
            }
            assert!(digests.insert(Digest::new(1, "deposit", 2, Codec::Json, &payload).value()), "another version");
            assert!(digests.insert(Digest::new(1, "deposit", 1, Codec::Bincode, &payload).value()), "another codec");
            for at in 0..length {
                let mut other = payload.clone();
                other[at] = 1;
                assert!(digests.insert(digest(1, "deposit", &other)), "a one at {at} of {length}");
            }
        }
        assert_ne!(digest(1, "ab", b"c"), digest(1, "a", b"bc"));
    }

    #[test]
    fn digest_is_siphash_of_words() {
        // The reference vector for the bytes 0 to 7, whose last word contains the length; here that word is passed
        // explicitly.
        let key = u128::from_le_bytes(std::array::from_fn(|at| at as u8));
        let mut hash = Sip::new(key);
        hash.word(u64::from_le_bytes([0, 1, 2, 3, 4, 5, 6, 7]));
        hash.word(8 << 56);
        assert_eq!(hash.finish(), 0x93f5_f579_9a93_2462);
    }

    #[test]
    fn digests_never_change() {
        assert_eq!(digest(7, "deposit", b"0123456789"), DIGEST);
        assert_eq!(unkeyed("deposit", b"0123456789"), 0xB0C1_F3DE_05E4_3E6E);
        let now = Digest::new(7, "deposit", 1, Codec::Json, b"0123456789");
        assert!(now.matches(DIGEST) && now.matches(0xB0C1_F3DE_05E4_3E6E) && !now.matches(0));
    }

    const DIGEST: u64 = 0xF9C1_540C_F73B_D266;

    #[test]
    fn payloads_with_one_unkeyed_digest_are_told_apart() {
        // A word equal to the state of the unkeyed digest resets it, so everything before that word is ignored.
        let forget = |name: &str, first: u64| {
            let mut payload = first.to_le_bytes().to_vec();
            let fold = |hash: u64, word: u64| {
                let wide = u128::from(hash ^ word) * 0xA076_1D64_78BD_642F;
                wide as u64 ^ (wide >> 64) as u64
            };
            let state = fold(fold(fold_all(0x9E37_79B9_7F4A_7C15, name.as_bytes()), 24), first);
            payload.extend_from_slice(&state.to_le_bytes());
            payload.extend_from_slice(b"the same");
            payload
        };
        let (one, two) = (forget("withdraw", 1), forget("withdraw", 200));
        assert_eq!(unkeyed("withdraw", &one), unkeyed("withdraw", &two));
        let now = |payload| Digest::new(7, "withdraw", 1, Codec::Json, payload).value();
        assert_ne!(now(&one), now(&two));
        assert!(!Digest::new(7, "withdraw", 1, Codec::Json, &two).matches(now(&one)));
    }
}
