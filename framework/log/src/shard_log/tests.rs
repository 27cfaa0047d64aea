//! The log of a shard as a store with rows uses it: the location of a record is the number of its row.

use std::fmt::Write as _;

use super::*;
use whizbang_conformance::store::TurnBuilder;
use whizbang_core::store::{DeadLetterReason, Note, SourceKind};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn shard(domain: &str, number: u16) -> ShardId {
    ShardId::new(name(domain), number)
}

fn id(number: u64) -> MessageId {
    TurnBuilder::new("A", "", number).write(|turn| turn.id)
}

fn millis(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn source() -> Source {
    Source { shard: shard("bank", 3), kind: SourceKind::Direct }
}

/// A log with its rows. Row `n` is `rows[n - 1]`.
struct Rows {
    log: ShardLog,
    rows: Vec<Bytes>,
}

impl Rows {
    fn new() -> Self {
        Self { log: ShardLog::new(7), rows: Vec::new() }
    }

    /// Appends a record with the next row.
    fn append<T>(&mut self, write: impl FnOnce(&mut ShardLog, u64, &mut Vec<u8>) -> T) -> T {
        let (location, mut bytes) = (self.rows.len() as u64 + 1, Vec::new());
        let result = write(&mut self.log, location, &mut bytes);
        self.rows.push(bytes.into());
        result
    }

    fn turn(&mut self, draft: &TurnBuilder) -> Given {
        self.append(|log, location, into| draft.write(|turn| log.append_turn(turn, 2, 5, location, into)).unwrap())
    }

    fn advance(&mut self, through: u64) -> u64 {
        let watermark = Watermark { source: source(), through };
        self.append(|log, location, into| log.append_advance(&watermark, 2, 5, location, into))
    }

    fn sent(&mut self, to: &ShardId, through: u64) -> u64 {
        self.append(|log, location, into| log.append_sent(to, through, 2, 5, location, into))
    }

    fn commit(&mut self) {
        self.log.commit(self.rows.len() as u64 + 1);
    }
}

/// A log with one record of each kind, all of them committed.
fn with_everything() -> Rows {
    let (mut rows, shop) = (Rows::new(), shard("shop", 1));
    rows.turn(
        &TurnBuilder::new("Account", "ada", 1).event("A", "1").event("B", "2").send(&shop, 1).send(&shop, 2).outside(9),
    );
    rows.turn(&TurnBuilder::new("Account", "ada", 2).at(2, 2).set("pay", 50).set("ship", 60).dead(8).dead(9));
    rows.turn(&TurnBuilder::new("Saga", "ada", 3).set("pay", 70).from(&source(), 4, 3).event("C", "3"));
    rows.sent(&shop, 1);
    rows.advance(6);
    rows.turn(&TurnBuilder::new("Account", "bob", 4).send(&shop, 3).send(&shard("shop", 2), 4));
    // The same message of another actor, which only waits.
    let mut letter = dead_letter(2, &rows.rows[1], id(8)).unwrap();
    letter.reason = DeadLetterReason::Deferred;
    rows.turn(&TurnBuilder::new("Saga", "bob", 5).note(Note::DeadLetter(Box::new(letter))));
    rows.commit();
    rows
}

/// Returns everything that the log shows, except for the ids.
fn seen(log: &mut ShardLog) -> String {
    let mut all = String::new();
    for (actor, key) in [("Account", "ada"), ("Account", "bob"), ("Saga", "ada"), ("Saga", "bob")] {
        write!(all, "{:?}{:?}", log.head(actor, key), log.newest(actor, key)).unwrap();
    }
    let (destinations, due) = (log.destinations(), log.timers_due(millis(u64::MAX), usize::MAX));
    write!(all, "{destinations:?}{due:?}{:?}{:?}", log.watermarks(), log.dead_letters(None, usize::MAX)).unwrap();
    write!(all, "{} {} {} {}", log.position(), log.committed(), log.streams(), log.dead_letter_count()).unwrap();
    all
}

#[test]
fn appended_record_is_visible_after_its_commit() {
    let (mut rows, shop) = (Rows::new(), shard("shop", 1));
    let draft = TurnBuilder::new("Account", "ada", 1).event("A", "1").event("B", "2").set("pay", 50).outside(9);
    let given = rows.turn(&draft.send(&shop, 1).send(&shop, 2).dead(8).from(&source(), 4, 3));
    assert_eq!(given.position, 2);
    let log = &mut rows.log;
    let head = Some(Head { location: 1, number: 1 });
    assert_eq!((log.head("Account", "ada"), log.newest("Account", "ada"), log.committed()), (None, head, 0));
    assert_eq!((log.position(), log.destinations(), log.next_timer()), (0, vec![], None));
    assert_eq!((log.watermark(&source()), log.dead_letter_count(), log.streams()), (0, 0, 1));
    log.commit(1);
    assert_eq!((log.head("Account", "ada"), log.committed()), (None, 1));
    log.commit(2);
    assert_eq!((log.head("Account", "ada"), log.committed(), log.position()), (head, 2, 2));
    assert_eq!((log.head("Account", "bob"), log.newest("Saga", "ada")), (None, None));
    assert_eq!(log.destinations(), [(shop.clone(), 0, 2)]);
    assert_eq!((log.watermark(&source()), log.watermarks().len()), (3, 1));
    assert_eq!((log.dead_letter_count(), log.dead_letters(None, 9)), (1, vec![(id(8), 1)]));
    // The hint of the turn before finds the stream of the next one.
    let mut bytes = Vec::new();
    let next = TurnBuilder::new("Account", "ada", 2).at(2, 2);
    let hinted = next
        .write(|turn| log.append_turn(&Turn { stream: given.stream, key: "", ..turn.clone() }, 2, 5, 2, &mut bytes));
    assert_eq!(hinted.map(|given| given.position), Ok(2));
    assert_eq!(log.newest("Account", "ada"), Some(Head { location: 2, number: 2 }));
}

#[test]
fn reads_return_the_committed_state() {
    let mut rows = with_everything();
    let (log, shop) = (&mut rows.log, shard("shop", 1));
    assert_eq!((log.position(), log.committed(), log.streams()), (3, 8, 4));
    assert_eq!((log.dead_letter_count(), log.dead_letters(None, 9).len()), (2, 3), "a deferred message is not counted");
    assert_eq!(log.head("Account", "ada"), Some(Head { location: 2, number: 2 }));
    assert_eq!(log.destinations(), [(shop.clone(), 1, 3), (shard("shop", 2), 0, 1)]);
    assert_eq!(log.destination(&shop, 1), Some((3, 6)));
    assert_eq!((log.destination(&shop, 99), log.destination(&shard("shop", 3), 1)), (Some((3, 6)), None));
    assert_eq!(log.watermarks(), [Watermark { source: source(), through: 6 }]);
    let due = |log: &ShardLog, now, limit| {
        log.timers_due(millis(now), limit).iter().map(|timer| timer.due).collect::<Vec<_>>()
    };
    assert_eq!(
        (due(log, 49, 9), due(log, 60, 9), due(log, 70, 1)),
        (vec![], vec![millis(50), millis(60)], vec![millis(50)])
    );
    assert_eq!(log.next_timer(), Some(millis(50)));
    assert_eq!(log.timer_counts(), [(name("Account"), 2), (name("Saga"), 1)]);
    let page = log.timers_of(&name("Account"), TimerCursor::default(), millis(50), 9);
    assert_eq!((page.due.len(), page.next), (1, Some(millis(60))));
    assert_eq!((log.turns_of("Account", "ada", id(1)), log.turns_of("Account", "ada", id(2))), (vec![1], vec![]));
    log.forget_ids(millis(u64::MAX), 1);
    assert!(log.turns_of("Account", "ada", id(1)).is_empty());
}

#[test]
fn progress_is_appended_with_the_position_of_the_log() {
    let mut rows = with_everything();
    assert_eq!((rows.advance(9), rows.sent(&shard("shop", 1), 3)), (3, 3));
    assert_eq!((rows.log.watermark(&source()), rows.log.destinations()[0].1), (6, 1));
    rows.commit();
    assert_eq!((rows.log.watermark(&source()), rows.log.destinations()[0].1), (9, 3));
}

#[test]
fn applied_rows_show_what_was_appended() {
    let mut rows = with_everything();
    let mut again = ShardLog::new(8);
    for (location, row) in (1..).zip(&rows.rows) {
        again.apply(location, row).unwrap();
        assert_eq!(again.committed(), location + 1);
    }
    assert_eq!(seen(&mut again), seen(&mut rows.log));
    assert_eq!(again.turns_of("Account", "ada", id(1)), [1]);
    assert_eq!(again.apply(8, &rows.rows[0]), Err("its position does not follow the last position"));
    assert_eq!(again.apply(8, b"\x02"), Err("unknown record format"));
    assert_eq!(seen(&mut again), seen(&mut rows.log), "damage changes nothing");
}

#[test]
fn turn_with_a_wrong_number_is_not_appended() {
    let mut rows = with_everything();
    for (number, expected) in [(2, 3), (4, 3)] {
        let mut bytes = Vec::new();
        let draft = TurnBuilder::new("Account", "ada", 5).at(number, 2).event("A", "1");
        let refused = draft.write(|turn| rows.log.append_turn_without_payloads(turn, 2, 5, 8, &mut bytes));
        assert_eq!((refused.map(|_| ()), bytes.len()), (Err(expected), 0));
    }
}

/// Appends a turn without its payloads, as the first record of a log.
fn without_payloads(draft: &TurnBuilder) -> Bytes {
    let mut rows = Rows::new();
    let given = rows.append(|log, location, into| {
        draft.write(|turn| log.append_turn_without_payloads(turn, 2, 5, location, into)).unwrap()
    });
    assert_eq!(given.position, draft.events_count() as u64);
    rows.rows.remove(0)
}

#[test]
fn payloads_are_stored_apart_from_the_record() {
    let draft = TurnBuilder::new("Account", "ada", 1).event("A", "one").event("B", "two").outside(9);
    let record = without_payloads(&draft);
    assert!(!record.windows(3).any(|window| window == b"one" || window == b"two"));
    let payloads = vec![Bytes::from_static(b"one"), Bytes::from_static(b"two")];
    let row = |payloads: &[Bytes]| TurnRow::new(1, record.clone(), payloads.to_vec());
    let read = |events: Vec<StoredEvent>| -> Vec<_> {
        events.into_iter().map(|event| (event.name.as_str().to_owned(), event.payload)).collect()
    };
    let expected = vec![("A".to_owned(), payloads[0].clone()), ("B".to_owned(), payloads[1].clone())];
    assert_eq!(read(row(&payloads).events().unwrap()), expected);
    assert_eq!(read(row(&payloads).to_turn("Account", "ada").unwrap().events), expected);
    let handled = row(&payloads).handled("Account", "ada", id(1)).unwrap();
    assert_eq!(read(handled.unwrap().events), expected);
    for count in [0, 1] {
        let short = row(&payloads[..count]);
        assert_eq!(short.events(), Err("the turn has another number of events"), "{count}");
        assert_eq!(short.to_turn("Account", "ada"), Err("the turn has another number of events"), "{count}");
    }
    // Events without payloads are stored in the same way.
    let empty = TurnBuilder::new("Account", "ada", 1).event("A", "").event("B", "").outside(9);
    assert_eq!(without_payloads(&empty), record);
}

#[test]
fn row_of_another_stream_is_damage() {
    let row = TurnRow::new(1, without_payloads(&TurnBuilder::new("Account", "ada", 1)), Vec::new());
    assert_eq!(row.to_turn("Account", "ada").unwrap().number, 1);
    for (actor, key) in [("Account", "bob"), ("Saga", "ada"), ("Saga", "bob")] {
        assert_eq!(row.to_turn(actor, key), Err("the turn belongs to another stream"), "{actor} {key}");
    }
}

#[test]
fn turn_is_handled_by_actor_key_and_id() {
    let handled = |draft: &TurnBuilder, actor: &str, key: &str, message| {
        let row = TurnRow::new(1, without_payloads(draft), Vec::new());
        row.handled(actor, key, id(message)).unwrap().map(|turn| turn.number)
    };
    let outside = TurnBuilder::new("Account", "ada", 1).outside(9);
    assert_eq!(handled(&outside, "Account", "ada", 1), Some(1));
    assert_eq!(handled(&outside, "Account", "ada", 2), None);
    assert_eq!(handled(&outside, "Account", "bob", 1), None);
    assert_eq!(handled(&outside, "Saga", "ada", 1), None);
    assert_eq!(handled(&TurnBuilder::new("Account", "ada", 1), "Account", "ada", 1), None, "not from outside");
}

#[test]
fn outbox_is_read_by_destination() {
    let (mut rows, one, two) = (Rows::new(), shard("shop", 1), shard("shop", 2));
    let bank = shard("bank", 1);
    rows.turn(&TurnBuilder::new("Account", "ada", 1).send(&one, 1).send(&bank, 2));
    rows.turn(&TurnBuilder::new("Account", "ada", 2).at(2, 0).send(&two, 3).send(&one, 4).send(&one, 5));
    let read = |location: u64, to| -> Result<(Vec<u64>, u64), Damage> {
        let records = OutboxRecords::read(location, &rows.rows[location as usize - 1], &shard("bank", 7), to)?;
        assert!(records.entries.iter().all(|entry| entry.envelope.to.as_ref() == Some(to)));
        Ok((records.entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), records.before))
    };
    assert_eq!((read(1, &one), read(1, &bank)), (Ok((vec![1], 0)), Ok((vec![1], 0))));
    assert_eq!((read(2, &one), read(2, &two)), (Ok((vec![2, 3], 1)), Ok((vec![1], 0))));
    assert_eq!(
        (read(1, &two), read(2, &bank)),
        (Err("the record has no entry for the destination"), Err("the record has no entry for the destination"))
    );
    assert_eq!(sent_by(1, &rows.rows[0]).unwrap(), [(one.clone(), 1), (bank, 1)]);
    assert_eq!(sent_by(2, &rows.rows[1]).unwrap(), [(two, 1), (one.clone(), 2), (one, 3)]);
}

#[test]
fn record_that_is_not_a_turn_is_recognized() {
    let mut rows = with_everything();
    let (progress, letter, damaged) = (rows.rows[3].clone(), rows.rows[1].clone(), Bytes::from_static(b"\x02"));
    let (other, format) = ("the record is not a turn", "unknown record format");
    assert_eq!((sent_by(4, &progress), sent_by(2, &letter)), (Ok(vec![]), Ok(vec![])));
    assert_eq!(sent_by(1, &damaged), Err(format));
    assert_eq!(stream(2, &letter), Ok((name("Account"), "ada".to_owned())));
    assert_eq!((stream(4, &progress), stream(1, &damaged)), (Err(other), Err(format)));
    assert_eq!((epoch(4, &progress), epoch(2, &letter), epoch(1, &damaged)), (Ok(5), Ok(5), Err(format)));
    assert_eq!(dead_letter(2, &letter, id(8)).map(|letter| (letter.envelope.id, letter.attempts)), Ok((id(8), 5)));
    assert_eq!(dead_letter(2, &letter, id(10)), Err("the record has no such dead letter"));
    assert_eq!((dead_letter(4, &progress, id(8)), dead_letter(1, &damaged, id(8))), (Err(other), Err(format)));
    let row = |bytes: &Bytes| TurnRow::new(4, bytes.clone(), Vec::new()).events();
    assert_eq!((row(&progress), row(&damaged)), (Err(other), Err(format)));
    let read = |bytes: &Bytes| OutboxRecords::read(4, bytes, &shard("bank", 1), &shard("shop", 1)).map(|_| ());
    assert_eq!((read(&progress), read(&damaged)), (Err(other), Err(format)));
    // The one of two dead letters with the id.
    let two = rows.turn(&TurnBuilder::new("Account", "eve", 9).dead(21).dead(22).note(Note::Ended));
    assert_eq!(two.position, 3);
    let of = |number| dead_letter(8, &rows.rows[7], id(number)).unwrap().envelope.id;
    assert_eq!([of(22), of(21)], [id(22), id(21)]);
}

#[test]
fn bound_covers_the_record() {
    let draft = TurnBuilder::new("Account", "ada", 1).event("A", vec![0; 10_000]).reply("ok");
    let mut rows = Rows::new();
    rows.turn(&draft);
    let bound = draft.write(turn_bound);
    assert!((rows.rows[0].len()..rows.rows[0].len() + 1_000).contains(&bound), "{bound}");
}

#[test]
fn saved_log_is_restored_as_of_the_beginning() {
    let mut rows = with_everything();
    let expected = seen(&mut rows.log);
    let mut saved = Vec::new();
    assert_eq!(rows.log.begin_saving(&mut saved), 8);
    rows.turn(&TurnBuilder::new("Account", "ada", 5).at(3, 2).event("D", "4").clear("pay"));
    rows.commit();
    assert!((0..40).any(|_| !rows.log.save_next(&mut saved)));
    let mut restored = ShardLog::restore(&saved, 7).unwrap();
    assert_eq!(seen(&mut restored), expected);
    restored.apply(8, &rows.rows[7]).unwrap();
    assert_eq!(seen(&mut restored), seen(&mut rows.log));
    let other = ShardLog::restore(&saved, 8).map(|_| ());
    assert_eq!(other, Err("its streams were hashed with another seed or function"));
    assert!(ShardLog::restore(&saved[..saved.len() - 1], 7).is_err());
    saved.push(0);
    assert_eq!(ShardLog::restore(&saved, 7).map(|_| ()), Err("trailing bytes"));
}

#[test]
fn aborted_save_begins_again() {
    let mut rows = with_everything();
    let (mut aborted, mut saved) = (Vec::new(), Vec::new());
    assert_eq!((rows.log.begin_saving(&mut aborted), rows.log.save_next(&mut aborted)), (8, true));
    rows.log.abort_saving();
    assert!(!rows.log.save_next(&mut aborted), "nothing is saved");
    rows.turn(&TurnBuilder::new("Account", "ada", 5).at(3, 2).event("D", "4").clear("pay"));
    rows.commit();
    assert_eq!(rows.log.begin_saving(&mut saved), 9);
    assert!((0..40).any(|_| !rows.log.save_next(&mut saved)));
    assert_eq!(seen(&mut ShardLog::restore(&saved, 7).unwrap()), seen(&mut rows.log));
}

#[test]
fn new_ids_are_saved_once() {
    let mut rows = Rows::new();
    let turn = |key: &str, message, number| TurnBuilder::new("Account", key, message).at(number, 0).outside(9);
    rows.turn(&turn("a", 1, 1));
    rows.commit();
    rows.log.note_new_ids();
    for (key, message, number) in [("b", 2, 1), ("b", 3, 2), ("d", 4, 1)] {
        rows.turn(&turn(key, message, number));
    }
    rows.commit();
    let log = &mut rows.log;
    assert_eq!((log.new_ids(2), log.new_ids(1)), (SavedIds::default(), SavedIds::default()));
    let (first, two, all) = (log.new_ids(3), log.new_ids(4), log.new_ids(u64::MAX));
    assert_eq!(two.bytes.len(), 2 * first.bytes.len());
    assert_eq!(all.bytes.len(), 3 * first.bytes.len());
    assert_eq!(all.newest, turn("b", 3, 2).write(|turn| turn.time), "the newest time, not that of the last record");
    log.saved_ids(4);
    assert_eq!(log.new_ids(4), SavedIds::default());
    assert_eq!([two.bytes.clone(), log.new_ids(u64::MAX).bytes].concat(), all.bytes);
    // Another log with the same seed finds the saved ids, and does not note them.
    let mut other = Rows::new();
    (1..=4).for_each(|through| assert_eq!(other.advance(through), 0));
    other.commit();
    other.log.note_new_ids();
    other.log.add_saved_ids(&two.bytes).unwrap();
    let found =
        [("a", 1), ("b", 2), ("b", 3), ("d", 4)].map(|(key, message)| other.log.turns_of("Account", key, id(message)));
    assert_eq!(found, [vec![], vec![2], vec![3], vec![]]);
    assert_eq!(other.log.new_ids(u64::MAX), SavedIds::default());
    for length in [1, 15, 17, first.bytes.len() - 1] {
        assert!(other.log.add_saved_ids(&first.bytes[..length]).is_err(), "cut at {length}");
    }
}
