//! Lookup of streams in the index, and saving the index during appends.

mod reads;

use super::*;
use whizbang_core::store::StreamHint;

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
fn head_is_found_by_stream_and_by_hint() {
    let mut heads = LatestVersions::default();
    let streams: Vec<_> = (0..1000).map(|key| StreamHasher::new(1).stream("a", &key.to_string())).collect();
    let hints: Vec<_> =
        (1..).zip(&streams).map(|(nth, stream)| LatestVersions::hint(*stream, heads.add(*stream, head(nth)))).collect();
    for ((nth, stream), hint) in (1..).zip(&streams).zip(hints) {
        assert_eq!(heads.get(*stream), Some(head(nth)));
        let (found, number) = heads.hinted(hint).unwrap();
        assert_eq!((found, heads.at(number)), (*stream, Some((*stream, head(nth)))));
    }
    assert_eq!(heads.get(StreamHasher::new(1).stream("b", "1")), None);
}

/// An index with its log.
struct Logged {
    index: Index,
    log: Vec<(u64, Vec<u8>)>,
    committed: bool,
}

impl Logged {
    fn append(&mut self, draft: &whizbang_conformance::store::TurnBuilder) {
        let location = self.log.last().map_or(1, |(location, _)| location + 1_000);
        let mut record = Vec::new();
        let at = append::AppendContext { tag: 0, epoch: 1, location, committed: self.committed };
        draft.write(|turn| self.index.append_turn(turn, at, &mut record).unwrap());
        self.log.push((location, record));
    }

    /// Appends turn number `turn` of each stream: an event, a message to one of two shards, and a timer that replaces
    /// the timer of the turn before.
    fn turns(&mut self, streams: std::ops::Range<u64>, turn: u64) {
        use whizbang_conformance::store::TurnBuilder;
        for stream in streams {
            let to = ShardId::new(Name::from_static("shop").unwrap(), (stream % 2) as u16);
            let draft = TurnBuilder::new("actor", &stream.to_string(), 1_000 * stream + turn).at(turn, turn - 1);
            self.append(&draft.event("Happened", "1").send(&to, stream).set("pay", stream + turn));
        }
    }

    fn commit(&mut self) {
        let end = self.log.last().map_or(0, |(location, _)| location + 1);
        self.index.commit(end);
    }
}

#[test]
fn index_is_saved_in_slices_during_appends() {
    use crate::record::decode::Decoder;
    use crate::record::{Names, Record};
    use whizbang_conformance::store::TurnBuilder;
    use whizbang_core::store::Note;
    const ENTRIES: u64 = anchors::ENTRIES_AT_ONCE as u64;
    const STREAMS: u64 = 3 * ENTRIES + 100;
    let mut logged = Logged { index: Index::new(StreamHasher::new(1)), log: Vec::new(), committed: true };
    logged.turns(0..STREAMS, 1);
    // A stream with more dead letters than fit into a slice.
    let letter = |turn: u64| TurnBuilder::new("letters", "k", turn).at(turn, 0).dead(turn);
    (1..=ENTRIES + 100).for_each(|turn| logged.append(&letter(turn)));
    let mut letters = ENTRIES + 101;
    // Some turns are not committed when saving begins, both of existing streams and of new ones.
    logged.committed = false;
    logged.turns(0..50, 2);
    logged.turns(STREAMS..STREAMS + 50, 1);
    let begun = logged.index.committed();
    let mut saved = Vec::new();
    logged.index.begin_saving(&mut saved);
    assert!(saved.len() < 100, "{} bytes are written before the first slice", saved.len());
    let (mut slices, mut largest) = (0, 0);
    loop {
        let before = saved.len();
        let more = logged.index.save_next(&mut saved);
        slices += 1;
        largest = largest.max(saved.len() - before);
        if !more {
            break;
        }
        // Between slices, append turns of streams that are saved, not yet saved, and new. Set and clear timers, add and
        // resolve dead letters.
        logged.turns(40..50, slices + 2);
        logged.turns(STREAMS - 10..STREAMS, slices + 1);
        logged.turns(STREAMS + 100 * slices..STREAMS + 100 * slices + 10, 1);
        let cleared = TurnBuilder::new("actor", &(STREAMS - 20 - slices).to_string(), slices).at(2, 1).clear("pay");
        logged.append(&cleared);
        for resolved in [slices, ENTRIES + 101 - slices] {
            let message = MessageId::from_u128(u128::from(resolved) << 32 | 0x5EED);
            logged.append(&TurnBuilder::new("letters", "k", letters).at(letters, 0).note(Note::Resolved { message }));
            letters += 1;
        }
        logged.append(&letter(letters));
        letters += 1;
        logged.commit();
    }
    // Heads, anchors, two destinations and their end, sources, timers and dead letters. The last slice of timers and of
    // dead letters may be empty.
    assert!(slices >= 4 + 1 + 3 + 1 + 4 + 2, "{slices}");
    assert!(largest <= anchors::ENTRIES_AT_ONCE * 100, "{largest} bytes in one slice");

    let (mut names, mut decoder) = (Names::default(), Decoder(&saved));
    let mut restored = Index::restore(&mut decoder, StreamHasher::new(1), &mut names).unwrap();
    assert!(decoder.is_empty());
    assert_eq!(restored.committed(), begun, "the index is saved as of the beginning");
    assert_eq!(restored.dead_letter_count(), ENTRIES + 100);
    assert_eq!(restored.timer_counts().iter().map(|(_, count)| *count as u64).sum::<u64>(), STREAMS);
    for (location, record) in logged.log.iter().filter(|(location, _)| *location >= begun) {
        let (_, _, record) = Record::read(record, *location).unwrap();
        restored.apply(&record, *location, &mut names).unwrap();
    }
    let index = &mut logged.index;
    index.commit(u64::MAX);
    let streams = (0..STREAMS + 2_000).map(|stream| index.stream("actor", &stream.to_string()));
    assert!(streams.into_iter().all(|stream| index.head(stream) == restored.head(stream)));
    assert_eq!(index.position(), restored.position());
    assert_eq!(index.destinations(), restored.destinations());
    assert_eq!(index.dead_letters(None, usize::MAX), restored.dead_letters(None, usize::MAX));
    let timers = |index: &Index| {
        let mut timers = index.timers_due(Timestamp::from_millis(u64::MAX), usize::MAX);
        timers.sort_by(|one, other| one.key.cmp(&other.key));
        timers
    };
    assert_eq!(timers(index), timers(&restored));
    for position in (1..index.position()).step_by(1_000) {
        assert_eq!(index.events_from(position), restored.events_from(position));
    }
}

#[test]
fn hint_of_another_index_finds_nothing() {
    let (mut heads, mut others) = (LatestVersions::default(), LatestVersions::default());
    let (mine, theirs) = (StreamHasher::new(1).stream("a", "b"), StreamHasher::new(2).stream("a", "b"));
    heads.add(mine, head(1));
    others.add(theirs, head(1));
    let beyond = LatestVersions::hint(theirs, others.add(StreamHasher::new(2).stream("a", "c"), head(1)));
    for hint in [StreamHint::default(), LatestVersions::hint(theirs, 0), beyond, StreamHint::new(u64::MAX)] {
        assert_eq!(heads.hinted(hint), None, "{hint:?}");
    }
}

/// A log that counts the records it reads.
struct CountingLog<'a> {
    log: &'a [(u64, Vec<u8>)],
    reads: std::cell::Cell<u64>,
}

impl crate::traverse::Log for CountingLog<'_> {
    fn read(&self, location: Location) -> Result<bytes::Bytes, whizbang_core::store::StoreError> {
        self.reads.set(self.reads.get() + 1);
        let found = self.log.iter().find(|(at, _)| *at == location).expect("a record");
        Ok(bytes::Bytes::copy_from_slice(&found.1))
    }

    fn damaged(&self, location: Location, reason: crate::record::Malformed) -> whizbang_core::store::StoreError {
        panic!("{reason:?} at {location}");
    }
}

/// Large messages make small pages. A traversal passes up to 256 later records before it reaches the page, but only once.
#[test]
fn small_pages_read_each_record_a_few_times() {
    use crate::traverse;
    const TURNS: u64 = 1_000;
    const PAGE: u64 = 3;
    let mut logged = Logged { index: Index::new(StreamHasher::new(1)), log: Vec::new(), committed: true };
    logged.turns(0..TURNS, 1);
    let Logged { mut index, log, .. } = logged;
    let log = CountingLog { log: &log, reads: std::cell::Cell::new(0) };
    let (from, to) =
        (ShardId::new(Name::from_static("bank").unwrap(), 0), ShardId::new(Name::from_static("shop").unwrap(), 0));
    let mut after = 0;
    while after < TURNS / 2 {
        let destination = index.destination(&to).unwrap();
        let last = (after + PAGE).min(destination.last());
        let (start, mut walk) = (destination.from(last), Walk::default());
        let entries = traverse::outbox(&log, &from, &to, start, after + 1..=last, &mut walk).unwrap();
        assert!(entries.iter().map(|entry| entry.sequence).eq(after + 1..=last));
        index.keep_walk_to(&to, walk);
        after = last;
    }
    let reads = log.reads.replace(0);
    assert!(reads <= 3 * TURNS / 2, "{reads} reads for {} entries", TURNS / 2);
    let mut after = 0;
    while after < TURNS {
        let last = (after + PAGE).min(TURNS);
        let mut walk = Walk::default();
        let events = traverse::events(&log, index.events_from(last), after, last, &mut walk).unwrap();
        assert!(events.iter().map(|event| event.position).eq(after + 1..=last));
        index.keep_walk(walk);
        after = last;
    }
    let reads = log.reads.get();
    assert!(reads <= 3 * TURNS, "{reads} reads for {TURNS} events");
}
