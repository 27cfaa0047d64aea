//! Reading along the links: exact pages, the number of records that are read, and damage.

use std::cell::Cell;
use std::collections::BTreeMap;

use super::*;
use crate::index::append::AppendContext;
use crate::index::{Index, StreamHasher};
use crate::record::{RecordContext, Sent, write_sent, write_turn};
use whizbang_conformance::store::TurnBuilder;
use whizbang_core::store::Note;

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn shard(number: u16) -> ShardId {
    ShardId::new(name("shop"), number)
}

fn id(number: u64) -> MessageId {
    TurnBuilder::new("A", "", number).write(|turn| turn.id)
}

/// Records by location, and the number of reads.
#[derive(Default)]
struct Records {
    records: BTreeMap<Location, Bytes>,
    reads: Cell<usize>,
}

impl Log for Records {
    fn read(&self, location: Location) -> Result<Bytes, StoreError> {
        self.reads.set(self.reads.get() + 1);
        self.records.get(&location).cloned().ok_or_else(|| self.damaged(location, Malformed("no record")))
    }

    fn damaged(&self, location: Location, Malformed(reason): Malformed) -> StoreError {
        StoreError::Corrupt { file: "log".into(), offset: location, reason: reason.to_owned() }
    }
}

impl Records {
    /// Adds a record that was written with these numbers.
    fn put(&mut self, draft: &TurnBuilder, context: RecordContext<'_>) {
        let mut bytes = Vec::new();
        draft.write(|turn| write_turn(&mut bytes, turn, &context));
        self.records.insert(context.location, bytes.into());
    }

    /// Adds the record of a destination's progress, which no link leads to.
    fn put_progress(&mut self, location: Location) {
        let mut bytes = Vec::new();
        write_sent(&mut bytes, &shard(1), 1, 0, 1);
        self.records.insert(location, bytes.into());
    }

    fn reads(&self) -> usize {
        self.reads.replace(0)
    }
}

/// Returns the location and the reason of damage.
fn damage<T: std::fmt::Debug>(result: Result<T, StoreError>) -> (u64, String) {
    match result {
        Err(StoreError::Corrupt { offset, reason, .. }) => (offset, reason),
        other => panic!("no damage: {other:?}"),
    }
}

/// A log that an index has written. The record with number `n` is at the location `n * 10`.
struct Written {
    index: Index,
    log: Records,
}

impl Written {
    fn new() -> Self {
        Self { index: Index::new(StreamHasher::new(1)), log: Records::default() }
    }

    fn append(&mut self, draft: &TurnBuilder) -> Location {
        let location = self.log.records.len() as u64 * 10 + 10;
        let at = AppendContext { tag: 0, epoch: 1, location, committed: true };
        let mut bytes = Vec::new();
        draft.write(|turn| self.index.append_turn(turn, at, &mut bytes)).unwrap();
        self.log.records.insert(location, bytes.into());
        location
    }

    /// A stream of turns with one event each.
    fn stream(turns: u64) -> Self {
        let mut written = Self::new();
        for number in 1..=turns {
            written.append(&turn(number));
        }
        written
    }

    fn head(&self) -> Head {
        self.index.head(self.index.stream("Account", "ada")).unwrap()
    }
}

fn turn(number: u64) -> TurnBuilder {
    TurnBuilder::new("Account", "ada", number)
        .at(number, number.saturating_sub(1))
        .event("Happened", number.to_string())
}

fn snapshot(turn: u64, location: Location) -> Located {
    Located { location, snapshot: Snapshot { turn, version: turn, schema: 1, bytes: Bytes::new() } }
}

fn numbers(turns: &[StoredTurn]) -> Vec<u64> {
    turns.iter().map(|turn| turn.number).collect()
}

#[test]
fn stream_is_read_back_to_its_snapshot() {
    let written = Written::stream(5);
    let load = |snapshot: Option<Located>| {
        let state = load(&written.log, Some(written.head()), "Account", "ada", snapshot).unwrap();
        (state.snapshot.map(|snapshot| snapshot.turn), numbers(&state.turns), written.log.reads())
    };
    let whole = (None, vec![1, 2, 3, 4, 5], 5);
    assert_eq!(load(None), whole);
    for location in [0, 30] {
        assert_eq!(load(Some(snapshot(3, location))), (Some(3), vec![4, 5], 2), "at {location}");
    }
    assert_eq!(load(Some(snapshot(3, 20))), whole, "the snapshot of a turn that was lost");
    assert_eq!(load(Some(snapshot(5, 50))), (Some(5), vec![], 0));
    assert_eq!(load(Some(snapshot(6, 0))), whole, "the snapshot of a later turn");
    assert_eq!(load(Some(snapshot(0, 0))), whole);
    let empty = super::load(&written.log, None, "Account", "ada", Some(snapshot(1, 0))).unwrap();
    assert_eq!(empty, StreamState::default());
}

#[test]
fn only_a_stream_of_one_page_is_read_at_once() {
    let large = |turns: u64, bytes: usize| {
        let mut written = Written::new();
        for number in 1..=turns {
            let draft = TurnBuilder::new("Account", "ada", number).at(number, number - 1);
            written.append(&draft.event("Happened", vec![0; bytes]));
        }
        written
    };
    let third = PAGE_BYTES / 3;
    for (written, is_short, reads) in [
        (Written::stream(PAGE_TURNS), true, 256),
        (Written::stream(PAGE_TURNS + 1), false, 0),
        (large(3, third), true, 3),
        (large(4, third), false, 3),
        (large(1, 2 * PAGE_BYTES), true, 1),
        (large(2, 2 * PAGE_BYTES), false, 1),
    ] {
        let turns = written.head().number;
        let short = load_short(&written.log, Some(written.head()), "Account", "ada", None).unwrap();
        assert_eq!(short.as_ref().map(|state| state.turns.len() as u64), is_short.then_some(turns), "{turns}");
        assert_eq!(written.log.reads(), reads, "{turns}");
    }
    let written = large(4, third);
    let short = load_short(&written.log, Some(written.head()), "Account", "ada", Some(snapshot(1, 10))).unwrap();
    assert_eq!(numbers(&short.unwrap().turns), [2, 3, 4]);
    let other = load_short(&written.log, Some(written.head()), "Account", "bob", None);
    assert!(matches!(other, Err(StoreError::Corrupt { .. })), "{other:?}");
}

#[test]
fn page_begins_after_its_floor() {
    let written = Written::stream(6);
    for end in 1..=6 {
        for floor in 0..=end {
            let head = Head { location: end * 10, number: end };
            let page = page(&written.log, head, floor, "Account", "ada").unwrap();
            assert_eq!(numbers(&page), (floor + 1..=end).collect::<Vec<_>>());
            assert_eq!(written.log.reads() as u64, end - floor);
        }
    }
}

#[test]
fn page_has_at_most_256_turns() {
    for (turns, ends) in [(1, vec![1]), (256, vec![256]), (257, vec![257, 1]), (513, vec![513, 257, 1])] {
        let written = Written::stream(turns);
        let (found, pages) = page_ends(&written.log, written.head(), "Account", "ada", None).unwrap();
        assert_eq!(found, None);
        assert_eq!(pages.iter().map(|page| page.number).collect::<Vec<_>>(), ends);
        assert!(pages.iter().all(|page| page.location == page.number * 10));
    }
    let written = Written::stream(600);
    let (found, pages) = page_ends(&written.log, written.head(), "Account", "ada", Some(snapshot(300, 3_000))).unwrap();
    assert_eq!((found.unwrap().turn, pages.iter().map(|page| page.number).collect::<Vec<_>>()), (300, vec![600, 344]));
}

#[test]
fn page_ends_after_one_mebibyte() {
    for (bytes, ends) in
        [(PAGE_BYTES / 4, vec![8, 4]), (PAGE_BYTES / 4 - 1, vec![8, 3]), (PAGE_BYTES, vec![8, 7, 6, 5, 4, 3, 2, 1])]
    {
        let mut written = Written::new();
        for number in 1..=8 {
            let draft = |payload: usize| {
                TurnBuilder::new("Account", "ada", number).at(number, number - 1).event("Happened", vec![0; payload])
            };
            let more = |payload: usize| {
                let mut tried = Written::stream(number - 1);
                let location = tried.append(&draft(payload));
                tried.log.records[&location].len() - payload
            };
            let location = written.append(&draft(bytes - more(bytes / 2)));
            assert_eq!(written.log.records[&location].len(), bytes);
        }
        let (_, pages) = page_ends(&written.log, written.head(), "Account", "ada", None).unwrap();
        assert_eq!(pages.iter().map(|page| page.number).collect::<Vec<_>>(), ends, "records of {bytes} bytes");
    }
}

/// The context of a turn of a stream, with one event in each turn.
fn context(number: u64) -> RecordContext<'static> {
    let before = (number - 1) * 10;
    RecordContext {
        tag: 0,
        epoch: 1,
        location: number * 10,
        stream: before,
        position: number - 1,
        events: before,
        sent: &[],
    }
}

#[test]
fn stream_with_a_wrong_record_is_damaged() {
    let with = |draft: &TurnBuilder, context: RecordContext<'_>| {
        let mut written = Written::stream(4);
        written.log.put(draft, context);
        let head = Some(Head { location: 40, number: 4 });
        damage(load(&written.log, head, "Account", "ada", None))
    };
    let other = "a stream's link leads to another stream".to_owned();
    let two = TurnBuilder::new("Saga", "ada", 2).at(2, 1).event("Happened", "1");
    assert_eq!(with(&two, context(2)), (20, other.clone()));
    let two = TurnBuilder::new("Account", "bob", 2).at(2, 1).event("Happened", "1");
    assert_eq!(with(&two, context(2)), (20, other));
    let gap = "the numbers or versions of a stream's turns have a gap".to_owned();
    for wrong in [1, 3] {
        assert_eq!(with(&turn(2).at(wrong, 1), context(2)), (20, gap.clone()), "number {wrong}");
    }
    for wrong in [0, 2] {
        assert_eq!(with(&turn(2).at(2, wrong), context(2)), (20, gap.clone()), "version {wrong}");
    }
    assert_eq!(with(&turn(2), RecordContext { stream: 0, ..context(2) }), (20, gap.clone()), "no turn before");
    assert_eq!(with(&turn(1), RecordContext { stream: 5, ..context(1) }), (10, gap), "a turn before the first");
}

#[test]
fn link_to_something_else_is_damage() {
    let mut written = Written::stream(3);
    written.log.put_progress(20);
    let damage_of = |log: &Records| damage(load(log, Some(Head { location: 30, number: 3 }), "Account", "ada", None));
    assert_eq!(damage_of(&written.log), (20, "a link leads to a record that is not a turn".to_owned()));
    written.log.records.insert(20, Bytes::from_static(b"\x02"));
    assert_eq!(damage_of(&written.log), (20, "unknown record format".to_owned()));
    written.log.records.remove(&20);
    assert_eq!(damage_of(&written.log), (20, "no record".to_owned()));
}

#[test]
fn turn_is_found_by_actor_key_and_id() {
    let mut written = Written::new();
    let turn = |actor, key, message| TurnBuilder::new(actor, key, message);
    let wanted = written.append(&turn("Account", "ada", 1).outside(7));
    written.append(&turn("Account", "bob", 1).outside(7));
    written.append(&turn("Saga", "ada", 1).outside(7));
    written.append(&turn("Account", "ada", 2).at(2, 0).outside(7));
    written.append(&turn("Account", "ada", 1).at(3, 0));
    let again = written.append(&turn("Account", "ada", 1).at(4, 0).outside(7));
    let find = |places: &[Location]| {
        let found = find_turn(&written.log, places.iter().copied(), "Account", "ada", id(1)).unwrap();
        found.map(|turn| turn.number)
    };
    for location in written.log.records.keys() {
        let number = (*location == wanted).then_some(1).or((*location == again).then_some(4));
        assert_eq!(find(&[*location]), number, "at {location}");
    }
    assert_eq!((find(&[]), find(&[20, 30, again, wanted]), find(&[40, 50, wanted, again])), (None, Some(4), Some(1)));
}

/// Three records with events for each record without: the positions 1, 2 and 3, 4, 5, 6 and so on.
fn with_events() -> Written {
    let mut written = Written::new();
    for (number, events) in (1..).zip([1, 2, 0, 3].repeat(4)) {
        let draft = TurnBuilder::new("Account", "ada", number).at(number, 0);
        written.append(&(0..events).fold(draft, |draft, _| draft.event("Happened", "1")));
    }
    written
}

#[test]
fn events_are_read_from_the_records_that_have_them() {
    let written = with_events();
    // The first and the last position in each record that has events.
    let records: Vec<(u64, u64)> = written
        .log
        .records
        .iter()
        .filter_map(|(location, bytes)| {
            let turn = turn_of(bytes, *location);
            let count = turn.events_count() as u64;
            (count > 0).then_some((turn.position + 1, turn.position + count))
        })
        .collect();
    let end = written.index.position();
    assert_eq!((end, records.len()), (24, 12));
    let from = written.index.events_from(end);
    for after in 0..=end {
        for to in after + 1..=end {
            let mut walk = Walk::default();
            let events = events(&written.log, from, after, to, &mut walk).unwrap();
            assert!(events.iter().map(|event| event.position).eq(after + 1..=to), "{after} to {to}");
            let read = records.iter().filter(|(_, last)| *last > after).count();
            assert_eq!(written.log.reads(), read, "{after} to {to}");
        }
    }
}

fn turn_of(bytes: &Bytes, location: Location) -> TurnRecord<'_> {
    let Ok((_, _, Record::Turn(turn))) = Record::read(bytes, location) else { panic!("not a turn") };
    turn
}

#[test]
fn later_records_are_kept_for_the_next_page() {
    let to = shard(1);
    let mut written = Written::new();
    for number in 1..=30 {
        written.append(&turn(number).send(&to, number));
    }
    let mut walk = Walk::default();
    events(&written.log, 300, 0, 3, &mut walk).unwrap();
    written.index.keep_walk(walk);
    assert_eq!([1, 3, 4, 5, 30].map(|to| written.index.events_from(to)), [40, 40, 40, 50, 300]);
    let mut walk = Walk::default();
    outbox(&written.log, &shard(0), &to, 300, 1..=3, &mut walk).unwrap();
    written.index.keep_walk_to(&to, walk);
    let destination = written.index.destination(&to).unwrap();
    assert_eq!([1, 3, 4, 5, 30].map(|to| destination.from(to)), [40, 40, 40, 50, 300]);
}

#[test]
fn gap_in_the_positions_is_damage() {
    let gap = |log: &Records, from, after, to| damage(events(log, from, after, to, &mut Walk::default()));
    let expected = |location| (location, "the positions of the shard have a gap".to_owned());
    let written = Written::stream(4);
    assert_eq!(gap(&written.log, 30, 0, 4), expected(30), "the last one is missing");
    assert_eq!(gap(&written.log, 0, 0, 1), expected(0), "no record");
    let mut short = Written::stream(4);
    short.log.put(&turn(3), RecordContext { events: 10, ..context(3) });
    assert_eq!(gap(&short.log, 40, 0, 4), expected(40), "one in between is missing");
    short.log.put(&turn(3), RecordContext { events: 0, ..context(3) });
    assert_eq!(gap(&short.log, 40, 0, 4), expected(40), "the first ones are missing");
    // The right number of events with wrong positions.
    let mut double = Written::stream(2);
    double.log.put(&turn(1), RecordContext { position: 1, ..context(1) });
    assert_eq!(gap(&double.log, 20, 0, 2), expected(20), "one position twice");
}

/// Messages to two shards and to another domain. Some records have several for one shard.
fn with_messages() -> Written {
    let mut written = Written::new();
    let other = ShardId::new(name("bank"), 1);
    for (number, sends) in (1..).zip([&[1, 1][..], &[2], &[1, 2, 1, 1], &[], &[1], &[2, 2]].repeat(3)) {
        let mut draft = TurnBuilder::new("Account", "ada", number).at(number, 0).send(&other, 9);
        for to in sends {
            draft = draft.send(&shard(*to), number);
        }
        written.append(&draft);
    }
    written
}

#[test]
fn messages_are_read_from_the_records_that_have_them() {
    let mut written = with_messages();
    for (to, count) in [(1, 18), (2, 12)].map(|(to, count)| (shard(to), count)) {
        let destination = written.index.destination(&to).unwrap();
        assert_eq!(destination.last(), count);
        let from = destination.from(count);
        let records: Vec<u64> = written
            .log
            .records
            .iter()
            .filter_map(|(location, bytes)| {
                let turn = turn_of(bytes, *location);
                turn.outbox()
                    .filter(|entry| (entry.domain, entry.shard) == ("shop", to.shard))
                    .map(|entry| entry.sequence)
                    .last()
            })
            .collect();
        for first in 1..=count {
            for last in first..=count {
                let entries = outbox(&written.log, &shard(7), &to, from, first..=last, &mut Walk::default()).unwrap();
                assert!(entries.iter().map(|entry| entry.sequence).eq(first..=last), "{first} to {last}");
                assert!(entries.iter().all(|entry| entry.envelope.to == Some(to.clone())));
                assert!(entries.iter().all(|entry| entry.envelope.origin.as_ref().unwrap().shard == shard(7)));
                assert_eq!(written.log.reads(), records.iter().filter(|last| **last >= first).count());
            }
        }
    }
}

#[test]
fn gap_in_the_sequences_is_damage() {
    let to = shard(1);
    let sent = |sequence, before| [Sent { sequence, before }];
    let log = |sends: &[(Location, u64, Location)]| {
        let mut log = Records::default();
        for (location, sequence, before) in sends {
            let (number, sent) = (location / 10, sent(*sequence, *before));
            let draft = TurnBuilder::new("Account", "ada", number).at(number, 0).send(&to, 1);
            log.put(&draft, RecordContext { location: *location, sent: &sent, ..context(number) });
        }
        log
    };
    let read = |log: &Records, from, wanted| outbox(log, &shard(0), &to, from, wanted, &mut Walk::default());
    let gap = |location| (location, "the sequences for a destination have a gap".to_owned());
    let whole = log(&[(10, 1, 0), (20, 2, 10), (30, 3, 20)]);
    assert_eq!(read(&whole, 30, 1..=3).unwrap().len(), 3);
    assert_eq!(damage(read(&whole, 20, 1..=3)), gap(20), "the last one is missing");
    assert_eq!(damage(read(&whole, 0, 1..=1)), gap(0), "no record");
    assert_eq!(damage(read(&log(&[(10, 1, 0), (30, 3, 10)]), 30, 1..=3)), gap(30), "one in between is missing");
    assert_eq!(damage(read(&log(&[(20, 2, 0), (30, 3, 20)]), 30, 1..=3)), gap(30), "the first one is missing");
    let double = log(&[(10, 1, 0), (20, 3, 10), (30, 3, 20)]);
    assert_eq!(damage(read(&double, 30, 1..=3)), gap(30), "one sequence twice");
    let mut other = log(&[(20, 2, 10), (30, 3, 20)]);
    other.put(&turn(1).send(&shard(2), 1), RecordContext { sent: &sent(1, 0), ..context(1) });
    let reason = "a link does not lead to an entry for the destination";
    assert_eq!(damage(read(&other, 30, 1..=3)), (10, reason.to_owned()));
}

#[test]
fn dead_letter_is_read_from_its_record() {
    let mut written = Written::new();
    let both = written.append(&turn(1).dead(5).dead(6));
    let resolved = written.append(&turn(2).note(Note::Resolved { message: id(5) }));
    let found = dead_letters(&written.log, &[(id(6), both), (id(5), both)]).unwrap();
    let read = |letter: &DeadLetter| (letter.envelope.id, letter.key.clone(), letter.error.clone());
    let expected = [6, 5].map(|number| (id(number), "ada".to_owned(), format!("error {number}: caused by another")));
    assert_eq!(found.iter().map(read).collect::<Vec<_>>(), expected);
    let missing = |location: Location| (location, "a dead letter is missing from its record".to_owned());
    assert_eq!(damage(dead_letters(&written.log, &[(id(7), both)])), missing(both));
    assert_eq!(damage(dead_letters(&written.log, &[(id(5), resolved)])), missing(resolved));
    assert_eq!(dead_letters(&written.log, &[]).unwrap(), []);
}

#[test]
fn streams_are_named_by_their_records() {
    let mut written = Written::new();
    let heads = [("Account", "ada"), ("Saga", "ada"), ("Account", "bob")]
        .map(|(actor, key)| written.append(&TurnBuilder::new(actor, key, 1)));
    let named =
        [("Account", "ada"), ("Saga", "ada"), ("Account", "bob")].map(|(actor, key)| (name(actor), key.to_owned()));
    assert_eq!(streams(&written.log, &heads).unwrap(), named);
    written.log.put_progress(20);
    assert_eq!(damage(streams(&written.log, &heads)).0, 20);
}
