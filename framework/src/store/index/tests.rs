//! What tells one stream from another in the index, and finds it again.

use super::*;
use crate::store::StreamHint;

#[test]
fn streams_with_the_same_letters_are_different() {
    let hasher = StreamHasher::new(1);
    assert_ne!(hasher.stream("ab", "c"), hasher.stream("a", "bc"));
    assert_ne!(hasher.stream("a", "b"), StreamHasher::new(2).stream("a", "b"));
    assert_eq!(hasher.stream("a", "b"), StreamHasher::new(1).stream("a", "b"));
}

fn head(number: u64) -> Head {
    Head { location: number * 10, number }
}

#[test]
fn a_head_is_found_by_its_stream_and_by_what_the_writer_was_told_of_it() {
    let mut heads = Heads::default();
    let streams: Vec<_> = (0..1000).map(|key| StreamHasher::new(1).stream("a", &key.to_string())).collect();
    let hints: Vec<_> =
        (1..).zip(&streams).map(|(nth, stream)| Heads::hint(*stream, heads.add(*stream, head(nth)))).collect();
    for ((nth, stream), hint) in (1..).zip(&streams).zip(hints) {
        assert_eq!(heads.get(*stream), Some(head(nth)));
        let (found, number) = heads.hinted(hint).unwrap();
        assert_eq!((found, heads.at(number)), (*stream, Some((*stream, head(nth)))));
    }
    assert_eq!(heads.get(StreamHasher::new(1).stream("b", "1")), None);
}

#[test]
fn a_hint_of_another_index_finds_nothing() {
    let (mut heads, mut others) = (Heads::default(), Heads::default());
    let (mine, theirs) = (StreamHasher::new(1).stream("a", "b"), StreamHasher::new(2).stream("a", "b"));
    heads.add(mine, head(1));
    others.add(theirs, head(1));
    let beyond = Heads::hint(theirs, others.add(StreamHasher::new(2).stream("a", "c"), head(1)));
    for hint in [StreamHint::default(), Heads::hint(theirs, 0), beyond, StreamHint::new(u64::MAX)] {
        assert_eq!(heads.hinted(hint), None, "{hint:?}");
    }
}
