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

/// An index with a turn of each of the streams `from..to`, number `turn`; the records, as a log has them.
#[cfg(feature = "testing")]
fn append(index: &mut Index, log: &mut Vec<(u64, Vec<u8>)>, streams: std::ops::Range<u64>, turn: u64, committed: bool) {
    use crate::testing::store::Draft;
    for stream in streams {
        let location = log.last().map_or(1, |(location, _)| location + 1_000);
        let draft = Draft::new("actor", &stream.to_string(), stream).at(turn, turn - 1).event("Happened", "1");
        let mut record = Vec::new();
        let at = append::At { tag: 0, epoch: 1, location, committed };
        draft.write(|turn| index.append_turn(turn, at, &mut record).unwrap());
        log.push((location, record));
    }
}

#[cfg(feature = "testing")]
#[test]
fn index_is_saved_in_slices_while_appends_go_on() {
    use crate::store::record::{Names, Record, take::Take};
    const STREAMS: u64 = 3 * save::HEADS_AT_ONCE as u64 + 100;
    let (mut index, mut log) = (Index::new(StreamHasher::new(1)), Vec::new());
    append(&mut index, &mut log, 0..STREAMS, 1, true);
    // Some are not committed when it begins: of streams that have turns, and of new ones.
    append(&mut index, &mut log, 0..50, 2, false);
    append(&mut index, &mut log, STREAMS..STREAMS + 50, 1, false);
    let begun = index.committed();
    let (mut saved, mut behind) = (Vec::new(), Vec::new());
    index.begin_saving(&mut saved, &mut behind);
    let (mut slices, mut largest) = (0, 0);
    loop {
        let before = saved.len();
        let more = index.save_heads(&mut saved);
        slices += 1;
        largest = largest.max(saved.len() - before);
        if !more {
            break;
        }
        // The lock is free: turns of streams that are saved, that are not, and that are new.
        append(&mut index, &mut log, 40..50, slices + 2, false);
        append(&mut index, &mut log, STREAMS - 10..STREAMS, slices + 1, false);
        append(&mut index, &mut log, STREAMS + 100 * slices..STREAMS + 100 * slices + 10, 1, false);
        index.commit(log.last().unwrap().0 + 1);
    }
    saved.extend_from_slice(&behind);
    assert_eq!(slices, STREAMS.div_ceil(save::HEADS_AT_ONCE as u64));
    assert!(largest <= save::HEADS_AT_ONCE * 40, "{largest} bytes in one slice");

    let (mut names, mut take) = (Names::default(), Take(&saved));
    let mut restored = Index::restore(&mut take, StreamHasher::new(1), &mut names).unwrap();
    assert_eq!(restored.committed(), begun, "it is the index of the moment when it was begun");
    for (location, record) in log.iter().filter(|(location, _)| *location >= begun) {
        let (_, _, record) = Record::read(record, *location).unwrap();
        restored.apply(&record, *location, &mut names).unwrap();
    }
    index.commit(u64::MAX);
    let streams = (0..STREAMS + 1_000).map(|stream| index.stream("actor", &stream.to_string()));
    assert!(streams.into_iter().all(|stream| index.head(stream) == restored.head(stream)));
    assert_eq!(index.position(), restored.position());
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
