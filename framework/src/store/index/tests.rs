//! What tells one stream from another in the index.

use super::*;

#[test]
fn streams_with_the_same_letters_are_different() {
    let hasher = StreamHasher::new(1);
    assert_ne!(hasher.stream("ab", "c"), hasher.stream("a", "bc"));
    assert_ne!(hasher.stream("a", "b"), StreamHasher::new(2).stream("a", "b"));
    assert_eq!(hasher.stream("a", "b"), StreamHasher::new(1).stream("a", "b"));
}
