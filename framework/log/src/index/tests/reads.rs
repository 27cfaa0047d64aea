//! The reads of an index against a plain list of its records, and the rejection of records that do not follow.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::append::AppendContext;
use super::*;
use crate::record::decode::Decoder;
use crate::record::{Malformed, Names, Record, RecordContext, Sent, write_turn};
use whizbang_conformance::store::TurnBuilder;
use whizbang_core::store::SourceKind;

const STREAMS: u64 = 4;
const DESTINATIONS: u16 = 3;

fn shard(domain: &str, number: u16) -> ShardId {
    ShardId::new(Name::new(domain).unwrap(), number)
}

fn source(number: u16) -> Source {
    let kind = match number {
        0 => SourceKind::Direct,
        _ => SourceKind::Events { subscriber: Name::from_static("Saga").unwrap() },
    };
    Source { shard: shard("bank", number), kind }
}

/// A record to append.
#[derive(Clone, Debug)]
enum Made {
    Turn { stream: u64, events: u64, sends: Vec<u16>, outside: bool, floor: Option<(u16, u64)> },
    Advance { source: u16, through: u64 },
    Sent { to: u16, through: u64 },
}

#[derive(Clone, Debug)]
enum Step {
    Append(Made),
    Commit(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let floor = proptest::option::of((0..2u16, 0..9u64));
    let sends = proptest::collection::vec(0..DESTINATIONS, 0..3);
    let turn =
        (0..STREAMS, 0..3u64, sends, any::<bool>(), floor).prop_map(|(stream, events, sends, outside, floor)| {
            Step::Append(Made::Turn { stream, events, sends, outside: outside && floor.is_none(), floor })
        });
    prop_oneof![
        6 => turn,
        1 => (0..2u16, 0..9u64).prop_map(|(source, through)| Step::Append(Made::Advance { source, through })),
        1 => (0..DESTINATIONS, 0..5u64).prop_map(|(to, through)| Step::Append(Made::Sent { to, through })),
        3 => (0..4usize).prop_map(Step::Commit),
    ]
}

/// The records of a log in their order. The first ones are committed.
#[derive(Clone, Default)]
struct Reference {
    made: Vec<Made>,
    committed: usize,
}

fn location(nth: usize) -> Location {
    nth as u64 * 10 + 10
}

impl Reference {
    /// Returns the turns of a stream among the first `count` records.
    fn turns(&self, of: u64, count: usize) -> impl Iterator<Item = (usize, &Made)> {
        let records = self.made.iter().take(count).enumerate();
        records.filter(move |(_, made)| matches!(made, Made::Turn { stream, .. } if *stream == of))
    }

    fn head(&self, of: u64, count: usize) -> Option<Head> {
        let (last, _) = self.turns(of, count).last()?;
        Some(Head { location: location(last), number: self.turns(of, count).count() as u64 })
    }

    fn sum(&self, amount: impl Fn(&Made) -> u64) -> u64 {
        self.made.iter().take(self.committed).map(amount).sum()
    }

    fn max(&self, amount: impl Fn(&Made) -> Option<u64>) -> u64 {
        self.made.iter().take(self.committed).filter_map(amount).max().unwrap_or(0)
    }

    /// Returns the next record as a builder of a turn.
    fn draft(&self, made: &Made) -> Option<TurnBuilder> {
        let Made::Turn { stream, events, sends, outside, floor } = made else { return None };
        let count = self.made.len();
        let number = self.turns(*stream, count).count() as u64 + 1;
        let mut draft = TurnBuilder::new("Account", &stream.to_string(), count as u64).at(number, 0);
        for _ in 0..*events {
            draft = draft.event("Happened", "1");
        }
        for to in sends {
            draft = draft.send(&shard("shop", *to), 7);
        }
        draft = if *outside { draft.outside(7) } else { draft };
        Some(match floor {
            Some((from, floor)) => draft.from(&source(*from), 10, *floor),
            None => draft,
        })
    }

    /// Compares every read of the index with the committed records. Ids are not part of a saved index.
    fn check(&self, index: &mut Index, has_ids: bool) {
        let through = self.committed.checked_sub(1).map_or(0, |last| location(last) + 1);
        assert_eq!(index.committed(), through);
        assert_eq!(index.position(), self.sum(events_of));
        let mut heads = Vec::new();
        for of in 0..STREAMS {
            let stream = index.stream("Account", &of.to_string());
            let head = self.head(of, self.committed);
            assert_eq!((index.head(stream), index.newest(stream)), (head, self.head(of, self.made.len())));
            heads.extend(head.map(|head| head.location));
        }
        heads.sort_unstable();
        let mut found = index.heads();
        found.sort_unstable();
        assert_eq!(found, heads);
        let streams = (0..STREAMS).filter(|of| self.head(*of, self.made.len()).is_some()).count();
        assert_eq!(index.streams(), streams);
        let with_events = |(nth, made): (usize, &Made)| Some(location(nth)).filter(|_| events_of(made) > 0);
        let last = self.made.iter().enumerate().take(self.committed).rev().find_map(with_events);
        assert_eq!(index.events_from(index.position()), last.unwrap_or(0));
        self.check_destinations(index);
        for number in 0..2 {
            assert_eq!(index.watermark(&source(number)), self.watermark(number));
        }
        let risen: BTreeSet<_> = (0..2).filter(|number| self.watermark(*number) > 0).map(source).collect();
        assert!(index.watermarks().iter().map(|mark| mark.source.clone()).collect::<BTreeSet<_>>() == risen);
        for (nth, made) in self.made.iter().enumerate().filter(|_| has_ids) {
            let Made::Turn { stream, outside, .. } = made else { continue };
            let message = TurnBuilder::new("Account", "", nth as u64).write(|turn| turn.id);
            let id = index.id(index.stream("Account", &stream.to_string()), message);
            let is_found = *outside && nth < self.committed;
            assert_eq!(index.turns_with_id(id), Vec::from_iter(is_found.then(|| location(nth))));
        }
    }

    fn watermark(&self, number: u16) -> u64 {
        self.max(|made| match made {
            Made::Turn { floor: Some((from, through)), .. } if *from == number => Some(*through),
            Made::Advance { source, through } if *source == number => Some(*through),
            _ => None,
        })
    }

    fn check_destinations(&self, index: &mut Index) {
        let mut expected = Vec::new();
        for number in 0..DESTINATIONS {
            let is_to = |to: &&u16| **to == number;
            let last = self.sum(|made| match made {
                Made::Turn { sends, .. } => sends.iter().filter(is_to).count() as u64,
                _ => 0,
            });
            let confirmed = self.max(|made| match made {
                Made::Sent { to, through } if *to == number => Some(*through),
                _ => None,
            });
            let to = shard("shop", number);
            assert_eq!(index.destination(&to).map_or(0, Destination::last), last);
            if last > 0 {
                let sends = |made: &Made| matches!(made, Made::Turn { sends, .. } if sends.iter().any(|to| is_to(&to)));
                let tail = self.made.iter().take(self.committed).rposition(sends).map(location);
                assert_eq!(index.destination(&to).map(|destination| destination.from(last)), tail);
            }
            if last > 0 || confirmed > 0 {
                expected.push((to, confirmed, last));
            }
        }
        let mut found = index.destinations();
        found.sort();
        assert_eq!(found, expected);
    }
}

fn events_of(made: &Made) -> u64 {
    match made {
        Made::Turn { events, .. } => *events,
        _ => 0,
    }
}

/// Appends a record and returns its bytes.
fn append(index: &mut Index, reference: &mut Reference, made: Made, committed: bool) -> Vec<u8> {
    let at = AppendContext { tag: 0, epoch: 1, location: location(reference.made.len()), committed };
    let mut record = Vec::new();
    match (&made, reference.draft(&made)) {
        (_, Some(draft)) => {
            // A wrong number changes nothing.
            let Made::Turn { stream, .. } = made else { panic!("not a turn") };
            let expected = reference.turns(stream, reference.made.len()).count() as u64 + 1;
            for wrong in [expected - 1, expected + 1] {
                let refused = draft.clone().at(wrong, 0).write(|turn| index.append_turn(turn, at, &mut record));
                assert_eq!(refused.map(|_| ()), Err(OutOfTurn { expected }));
                assert!(record.is_empty());
            }
            let numbers = draft.write(|turn| index.append_turn(turn, at, &mut record)).unwrap();
            let events = reference.made.iter().chain([&made]).map(events_of).sum::<u64>();
            assert_eq!(numbers.position, events);
            let head = index.heads.hinted(numbers.stream).map(|(stream, number)| (stream, index.heads.at(number)));
            let stream = index.stream("Account", &stream.to_string());
            assert_eq!(head, Some((stream, index.newest(stream).map(|head| (stream, head)))));
        }
        (Made::Advance { source: from, through }, _) => {
            index.append_advance(&Watermark { source: source(*from), through: *through }, at, &mut record);
        }
        (Made::Sent { to, through }, _) => {
            index.append_sent(&shard("shop", *to), *through, at, &mut record);
        }
        (Made::Turn { .. }, None) => panic!("a turn has a draft"),
    }
    reference.made.push(made);
    record
}

proptest! {
    #[test]
    fn index_shows_the_committed_records(steps in proptest::collection::vec(step(), 0..50), at_once in any::<bool>()) {
        let mut index = Index::new(StreamHasher::new(1));
        let (mut reference, mut log) = (Reference::default(), Vec::new());
        for step in steps {
            match step {
                Step::Append(made) => {
                    let committed = at_once && reference.committed == reference.made.len();
                    log.push(append(&mut index, &mut reference, made, committed));
                    reference.committed += usize::from(committed);
                }
                Step::Commit(more) => {
                    reference.committed = (reference.committed + more).min(reference.made.len());
                    // The end of the last committed record, and an earlier location, which changes nothing.
                    if let Some(last) = reference.committed.checked_sub(1) {
                        index.commit(location(last) + 1);
                        index.commit(location(last));
                    }
                }
            }
            reference.check(&mut index, true);
            if let Some(pending) = reference.made.get(reference.committed).map(|_| location(reference.committed)) {
                // A record that begins at the end of the committed ones is not committed.
                index.commit(pending.min(index.committed()));
                reference.check(&mut index, true);
            }
        }
        // An index that was saved or rebuilt shows the same.
        let mut saved = Vec::new();
        index.begin_saving(&mut saved);
        prop_assert!((0..40).any(|_| !index.save_next(&mut saved)));
        prop_assert!(!index.save_next(&mut saved));
        let (names, mut decoder) = (&mut Names::default(), Decoder(&saved));
        let mut restored = Index::restore(&mut decoder, StreamHasher::new(1), names).unwrap();
        prop_assert!(decoder.is_empty());
        reference.made.truncate(reference.committed);
        reference.check(&mut restored, false);
        let mut rebuilt = Index::new(StreamHasher::new(1));
        for (nth, bytes) in log.iter().enumerate().take(reference.committed) {
            let (_, _, record) = Record::read(bytes, location(nth)).unwrap();
            rebuilt.apply(&record, location(nth), names).unwrap();
        }
        reference.check(&mut rebuilt, true);
    }
}

/// The record at the end of the committed ones, by the exact location.
#[test]
fn record_is_visible_after_a_commit_behind_its_location() {
    let (mut index, mut reference) = (Index::new(StreamHasher::new(1)), Reference::default());
    let made = Made::Turn { stream: 1, events: 1, sends: vec![1], outside: true, floor: Some((1, 5)) };
    append(
        &mut index,
        &mut reference,
        Made::Turn { stream: 1, events: 0, sends: vec![], outside: true, floor: None },
        true,
    );
    reference.committed = 1;
    append(&mut index, &mut reference, made, false);
    let (stream, shop) = (index.stream("Account", "1"), shard("shop", 1));
    let id = index.id(stream, TurnBuilder::new("Account", "", 0).write(|turn| turn.id));
    assert_eq!(index.turns_with_id(id), [location(0)]);
    index.commit(location(1));
    assert_eq!(index.head(stream), Some(Head { location: location(0), number: 1 }));
    assert_eq!((index.position(), index.watermark(&source(1)), index.destinations()), (0, 0, vec![]));
    index.commit(location(1) + 1);
    assert_eq!(index.head(stream), Some(Head { location: location(1), number: 2 }));
    assert_eq!((index.position(), index.watermark(&source(1)), index.destinations()), (1, 5, vec![(shop, 0, 1)]));
    // A turn that is only appended is not found by its id.
    append(
        &mut index,
        &mut reference,
        Made::Turn { stream: 1, events: 0, sends: vec![], outside: true, floor: None },
        false,
    );
    let id = index.id(stream, TurnBuilder::new("Account", "", 2).write(|turn| turn.id));
    index.commit(location(2));
    assert!(index.turns_with_id(id).is_empty());
    index.commit(location(2) + 1);
    assert_eq!(index.turns_with_id(id), [location(2)]);
}

#[test]
fn ids_that_are_stored_elsewhere_are_skipped() {
    let (mut index, mut reference) = (Index::new(StreamHasher::new(1)), Reference::default());
    index.skip_ids_before(location(1));
    for _ in 0..3 {
        append(
            &mut index,
            &mut reference,
            Made::Turn { stream: 1, events: 0, sends: vec![], outside: true, floor: None },
            true,
        );
    }
    assert_eq!(index.ids.len(), 2, "the record at the location is included");
}

/// Reading from the end of a long log would cost its length, and a location that is not committed may hold no record.
#[test]
fn links_are_followed_from_the_nearest_committed_record() {
    let to = shard("shop", 1);
    for committed in [255u64, 256, 257, 258, 511, 512, 513, 700] {
        let mut index = Index::new(StreamHasher::new(1));
        let place = |number: u64| number * 10;
        for number in 1..=committed + 300 {
            let at = AppendContext { tag: 0, epoch: 1, location: place(number), committed: number <= committed };
            let draft = TurnBuilder::new("Account", "ada", number).at(number, number - 1);
            let draft = draft.event("Happened", "1").send(&to, number);
            draft.write(|turn| index.append_turn(turn, at, &mut Vec::new())).unwrap();
        }
        let every_256th: Vec<_> = (1..=committed + 300).step_by(256).map(place).collect();
        assert_eq!(index.anchors, every_256th);
        let destination = index.destination(&to).unwrap();
        assert_eq!((destination.last(), &destination.anchors), (committed, &every_256th));
        for number in 1..=committed {
            let nearest = place((number.div_ceil(256) * 256 + 1).min(committed));
            assert_eq!(index.destination(&to).unwrap().from(number), nearest, "{number} of {committed}");
            assert_eq!(index.events_from(number), nearest, "{number} of {committed}");
        }
    }
}

#[test]
fn record_with_many_events_has_several_anchors() {
    let mut index = Index::new(StreamHasher::new(1));
    for (turn, events) in [(1, 256), (2, 0), (3, 1), (4, 600), (5, 167), (6, 1)] {
        let at = AppendContext { tag: 0, epoch: 1, location: turn * 10, committed: true };
        let draft = (0..events).fold(TurnBuilder::new("Account", "ada", turn), |draft, _| draft.event("Happened", "1"));
        draft.at(turn, 0).write(|turn| index.append_turn(turn, at, &mut Vec::new())).unwrap();
    }
    // The positions 1, 257, 513, 769 and 1025.
    assert_eq!((index.position(), &index.anchors), (1_025, &vec![10, 30, 40, 40, 60]));
}

/// Messages of one record have one location, so a link leads to an earlier record.
#[test]
fn messages_of_one_record_are_linked_to_the_record_before() {
    let (one, other) = (shard("shop", 1), shard("shop", 2));
    let sent = |sequence, before| Sent { sequence, before };
    for committed in [true, false] {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.next(&one, 10, committed), sent(1, 0));
        assert_eq!(outbox.next(&one, 10, committed), sent(2, 0));
        assert_eq!(outbox.next(&other, 10, committed), sent(1, 0));
        assert_eq!(outbox.next(&one, 20, committed), sent(3, 10));
        assert_eq!(outbox.next(&one, 20, committed), sent(4, 0));
        outbox.commit_through(20);
        let last = |outbox: &Outbox, to| outbox.destination(to).map(|to| (to.last(), to.from(to.last())));
        let through_first = if committed { (4, 20) } else { (2, 10) };
        assert_eq!((last(&outbox, &one), last(&outbox, &other)), (Some(through_first), Some((1, 10))));
        outbox.commit_through(21);
        assert_eq!((last(&outbox, &one), last(&outbox, &shard("shop", 3))), (Some((4, 20)), None));
        assert_eq!(outbox.heads(), [(one.clone(), 0, 4), (other.clone(), 0, 1)]);
        let number = outbox.number(&one);
        for (through, confirmed) in [(3, 3), (2, 3), (4, 4)] {
            outbox.through(number, through);
            assert_eq!(outbox.heads()[0], (one.clone(), confirmed, 4));
        }
    }
}

/// Applies records of turns that were written with these numbers. Returns the error of the last one.
fn applied(contexts: &[(TurnBuilder, RecordContext<'_>)]) -> Result<(), Malformed> {
    let (mut index, names) = (Index::new(StreamHasher::new(1)), &mut Names::default());
    let mut result = Ok(());
    for (draft, context) in contexts {
        assert_eq!(result, Ok(()), "an earlier record");
        let mut bytes = Vec::new();
        draft.write(|turn| write_turn(&mut bytes, turn, context));
        let (_, _, record) = Record::read(&bytes, context.location).unwrap();
        result = index.apply(&record, context.location, names);
    }
    result
}

#[test]
fn record_that_does_not_follow_is_damage() {
    let to = shard("shop", 1);
    let turn = |number| TurnBuilder::new("Account", "ada", number).at(number, 0).event("Happened", "1").send(&to, 1);
    let first_sent = [Sent { sequence: 1, before: 0 }];
    let sent = |sequence, before| [Sent { sequence, before }];
    let first = RecordContext { tag: 0, epoch: 1, location: 10, stream: 0, position: 0, events: 0, sent: &first_sent };
    let second_sent = sent(2, 10);
    let second = RecordContext { location: 20, stream: 10, position: 1, events: 10, sent: &second_sent, ..first };
    let follow = |number: u64, context: RecordContext<'_>| applied(&[(turn(1), first), (turn(number), context)]);
    assert_eq!(follow(2, second), Ok(()));
    let position = Err(Malformed("its position does not follow the last position"));
    assert_eq!(
        (follow(2, RecordContext { position: 0, ..second }), follow(2, RecordContext { position: 2, ..second })),
        (position, position)
    );
    let link = Err(Malformed("its link does not lead to the last event"));
    assert_eq!(follow(2, RecordContext { events: 0, ..second }), link);
    assert_eq!(follow(2, RecordContext { events: 11, ..second }), link);
    let number = Err(Malformed("its number does not follow its stream's last one"));
    assert_eq!((follow(1, second), follow(3, second)), (number, number));
    assert_eq!(applied(&[(turn(2), first)]), number, "the first turn of a stream");
    let stream = Err(Malformed("its link does not lead to its stream's last turn"));
    assert_eq!(follow(2, RecordContext { stream: 0, ..second }), stream);
    assert_eq!(follow(2, RecordContext { stream: 9, ..second }), stream);
    let entry = Err(Malformed("an outbox entry does not follow the last one for its destination"));
    for wrong in [sent(1, 10), sent(3, 10), sent(2, 0), sent(2, 9)] {
        assert_eq!(follow(2, RecordContext { sent: &wrong, ..second }), entry, "{wrong:?}");
    }
    // A turn without events needs no link to the last one.
    let plain = RecordContext { location: 20, stream: 10, position: 1, events: 0, sent: &[], ..first };
    assert_eq!(applied(&[(turn(1), first), (TurnBuilder::new("Account", "ada", 2).at(2, 1), plain)]), Ok(()));
}
