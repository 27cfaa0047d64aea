//! A hash of texts that never changes, for shapes and for the digests of early versions.

/// Returns a hash of a text that never changes. Not for texts from callers: collisions are easy to construct.
pub fn stable_hash(text: &str) -> u64 {
    fold_all(0x9E37_79B9_7F4A_7C15, text.as_bytes())
}

/// Continues `hash` with these bytes: eight at a time, each multiplied to 128 bits and folded into 64.
pub(super) fn fold_all(hash: u64, bytes: &[u8]) -> u64 {
    fn fold(hash: u64, word: u64) -> u64 {
        let wide = u128::from(hash ^ word) * 0xA076_1D64_78BD_642F;
        wide as u64 ^ (wide >> 64) as u64
    }
    // The length first, so that trailing zeros count.
    let (words, rest) = bytes.as_chunks::<8>();
    let hash = words.iter().fold(fold(hash, bytes.len() as u64), |hash, word| fold(hash, u64::from_le_bytes(*word)));
    fold(hash, rest.iter().rev().fold(0, |last, byte| last << 8 | u64::from(*byte)))
}
