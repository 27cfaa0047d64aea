//! Runs of ids are found, merged and dropped.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::disk::Folder;
use crate::tests::memory_disk::MemoryDisk;

fn id(number: u64) -> IdHash {
    // Some ids share the first half.
    let first = (number / 3).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    IdHash(first, number)
}

fn time(millis: u64) -> Timestamp {
    Timestamp::from_millis(millis)
}

fn folder() -> (tempfile::TempDir, Arc<dyn Disk>) {
    let folder = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(Folder::new(folder.path()).unwrap());
    (folder, disk)
}

#[test]
fn ids_are_found_in_merged_runs_after_opening() {
    let (_folder, disk) = folder();
    let runs = IdRuns::open(&disk);
    let mut written = 0u64;
    for run in 0..13u64 {
        let entries = (0..500).map(|nth| (id(run * 500 + nth), run * 500 + nth + 1));
        // One id is handled again in every run.
        let entries = entries.chain([(id(7), 100_000 + run)]).collect();
        written += 500;
        runs.write(entries, written, time(run)).unwrap();
    }
    assert!(runs.len() < MERGE_WIDTH * 2, "{} runs", runs.len());
    for runs in [&runs, &IdRuns::open(&disk)] {
        assert_eq!(runs.through(), written);
        for number in (0..written).filter(|number| *number != 7) {
            assert_eq!(runs.find(id(number)).unwrap(), [number + 1], "{number}");
        }
        assert_eq!(runs.find(id(7)).unwrap().first(), Some(&100_012));
        assert!(runs.find(id(written)).unwrap().is_empty());
    }
}

#[test]
fn expired_runs_leave_no_file() {
    let (folder, disk) = folder();
    let runs = IdRuns::open(&disk);
    runs.write(vec![(id(1), 1)], 2, time(10)).unwrap();
    runs.write(vec![(id(2), 2)], 3, time(20)).unwrap();
    runs.forget(time(11)).unwrap();
    assert!(runs.find(id(1)).unwrap().is_empty());
    assert_eq!(runs.find(id(2)).unwrap(), [2]);
    runs.forget(time(21)).unwrap();
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [LIST]);
    assert_eq!(IdRuns::open(&disk).through(), 3);
}

#[test]
fn damaged_run_is_never_an_answer() {
    let (folder, disk) = folder();
    IdRuns::open(&disk).write((0..400).map(|nth| (id(nth), nth + 1)).collect(), 401, time(1)).unwrap();
    let path = folder.path().join(name(1));
    let whole = std::fs::read(&path).unwrap();
    for at in (0..whole.len()).step_by(97) {
        let mut damaged = whole.clone();
        damaged[at] ^= 16;
        std::fs::write(&path, &damaged).unwrap();
        let runs = IdRuns::open(&disk);
        for nth in 0..400 {
            match runs.find(id(nth)) {
                Ok(found) if runs.through() > 0 => assert_eq!(found, [nth + 1], "byte {at}, id {nth}"),
                _ => {}
            }
        }
    }
}

/// Returns a run of a file that holds these entries.
fn run_of(runs: &IdRuns, entries: &[Entry]) -> Arc<Run> {
    let mut entries = entries.iter().copied();
    runs.write_run(1000, time(5), &mut || Ok(entries.next())).unwrap()
}

fn all_of(run: &Arc<Run>) -> Vec<Entry> {
    let mut cursors = [RunCursor::new(run)];
    std::iter::from_fn(|| next_merged(&mut cursors).unwrap()).collect()
}

#[test]
fn run_of_any_length_is_read_as_it_was_written() {
    const PIECE: usize = BLOCKS_AT_ONCE * ENTRIES_PER_BLOCK;
    for count in [1, 169, 170, 171, 340, 341, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 2 * PIECE + 500] {
        let memory = MemoryDisk::default();
        let runs = IdRuns::open(&memory.disk());
        let entries: Vec<Entry> = (0..count as u64).map(|nth| (IdHash(nth * 3 + 1, nth), nth * 7 + 2)).collect();
        memory.take_calls();
        let written = run_of(&runs, &entries);
        let blocks = count.div_ceil(ENTRIES_PER_BLOCK);
        let writes = memory.take_calls_of("write");
        assert_eq!(writes.len(), blocks.div_ceil(BLOCKS_AT_ONCE).max(count / PIECE + 1) + 2, "{count}: {writes:?}");
        assert!(
            writes.iter().all(|call| call.rsplit_once('+').unwrap().1.parse::<usize>().unwrap() <= 64 * BLOCK_BYTES)
        );
        let opened = Arc::new(Run::open(&memory.disk(), written.number).unwrap());
        for run in [&written, &opened] {
            assert_eq!((run.count, run.newest, run.fences.len()), (count as u64, time(5), blocks));
            assert!(all_of(run) == entries, "{count}");
            memory.take_calls();
            for nth in [0, count / 2, count - 1] {
                let (id, location) = entries[nth];
                assert_eq!(run.find(id).unwrap(), Some(location));
                assert_eq!(run.find(IdHash(id.0 + 1, id.1)).unwrap(), None);
            }
            assert!(memory.take_calls().len() <= 6, "one block for each");
        }
        assert_eq!(opened.find(IdHash(0, 0)).unwrap(), None);
    }
}

#[test]
fn ids_with_the_same_first_half_are_found_in_any_block() {
    let memory = MemoryDisk::default();
    let runs = IdRuns::open(&memory.disk());
    let same = (0..600).map(|nth| (IdHash(1000, nth * 2), nth + 1));
    let below = (0..300).map(|nth| (IdHash(nth, 7), nth + 10_000));
    let above = (0..300).map(|nth| (IdHash(2000 + nth, 7), nth + 20_000));
    let entries: Vec<Entry> = below.chain(same).chain(above).collect();
    let run = run_of(&runs, &entries);
    for (id, location) in &entries {
        assert_eq!(run.find(*id).unwrap(), Some(*location));
        assert_eq!(run.find(IdHash(id.0, id.1 + 1)).unwrap(), None);
    }
    memory.take_calls();
    assert_eq!(run.find(IdHash(2299, 8)).unwrap(), None);
    assert_eq!(memory.take_calls_of("read").len(), 1, "other blocks cannot have it");
}

/// Puts runs with these numbers of ids in place of all others. The runs have no blocks.
fn claim_sizes(runs: &IdRuns, sizes: &[u64]) {
    let file = runs.disk.create("file").unwrap();
    let run = |(count, number): (&u64, u64)| {
        Arc::new(Run { number, count: *count, newest: time(1), fences: Vec::new(), file: Arc::clone(&file) })
    };
    runs.state.write().runs = sizes.iter().zip(1..).map(run).collect();
}

#[test]
fn only_runs_of_similar_size_are_merged() {
    const QUARTER: u64 = LARGEST_MERGE / 4;
    let cases: [(&[u64], bool); 9] = [
        (&[1, 1, 1], false),
        (&[1, 1, 1, 1], true),
        (&[1, 1, 1, 4], true),
        (&[4, 1, 1, 1], true),
        (&[1, 1, 1, 5], false),
        (&[1000, 1, 1, 1, 1], true),
        (&[1, 1, 1, 1, 5], false),
        (&[QUARTER; 4], true),
        (&[QUARTER, QUARTER, QUARTER, QUARTER + 1], false),
    ];
    for (sizes, merged) in cases {
        let runs = IdRuns::open(&MemoryDisk::default().disk());
        claim_sizes(&runs, sizes);
        assert_eq!(runs.merge().unwrap(), merged, "{sizes:?}");
        assert_eq!(runs.len(), if merged { sizes.len() - 3 } else { sizes.len() }, "{sizes:?}");
    }
}

#[test]
fn merged_run_has_the_last_turn_of_each_id() {
    let memory = MemoryDisk::default();
    let runs = IdRuns::open(&memory.disk());
    for run in 0..4 {
        runs.write(vec![(id(1), 10 + run), (id(20 + run), run)], 100 + run, time(50 - run)).unwrap();
    }
    assert_eq!((runs.len(), runs.through()), (1, 103));
    assert_eq!(runs.find(id(1)).unwrap(), [13], "the other turns are not kept");
    assert_eq!(all_of(&runs.state.read().runs[0]).len(), 5);
    assert_eq!(memory.names(), ["ids", "ids-0000000005"], "the merged files are removed");
    runs.forget(time(50)).unwrap();
    assert_eq!(runs.len(), 1, "its newest turn has not expired");
    runs.forget(time(51)).unwrap();
    assert_eq!((runs.len(), runs.through()), (0, 103));
}

#[test]
fn last_turn_of_a_repeated_id_is_kept() {
    let runs = IdRuns::open(&MemoryDisk::default().disk());
    runs.write(vec![(id(1), 5), (id(2), 1), (id(1), 9), (id(1), 7)], 10, time(1)).unwrap();
    assert_eq!(runs.find(id(1)).unwrap(), [9]);
    assert_eq!(runs.find(id(2)).unwrap(), [1]);
    runs.write(Vec::new(), 20, time(2)).unwrap();
    assert_eq!((runs.len(), runs.through()), (1, 20), "no file without ids");
}

#[test]
fn numbers_of_files_are_never_used_again() {
    let memory = MemoryDisk::default();
    memory.put("ids-0000000007", b"left by a crash");
    memory.put("identity", b"another file");
    let runs = IdRuns::open(&memory.disk());
    assert_eq!((runs.len(), runs.from(), runs.through()), (0, 0, 0));
    runs.reset(300);
    assert_eq!((runs.from(), runs.through()), (300, 300));
    runs.write(vec![(id(1), 301)], 310, time(1)).unwrap();
    assert_eq!(memory.names(), ["identity", "ids", "ids-0000000008"]);
    let opened = IdRuns::open(&memory.disk());
    assert_eq!((opened.len(), opened.from(), opened.through()), (1, 300, 310));
    opened.write(vec![(id(2), 311)], 320, time(1)).unwrap();
    assert_eq!(memory.names(), ["identity", "ids", "ids-0000000008", "ids-0000000009"]);
    opened.reset(0);
    assert_eq!((opened.len(), opened.from(), opened.through()), (0, 0, 0));
}

#[test]
fn failed_write_changes_nothing_and_leaves_no_file() {
    for call in
        ["create ids.new-run", "write ids.new-run", "sync ids.new-run", "rename ids.new-run", "rename ids.new ids"]
    {
        let memory = MemoryDisk::default();
        let runs = IdRuns::open(&memory.disk());
        runs.write(vec![(id(1), 1)], 2, time(1)).unwrap();
        memory.fail(call, io::ErrorKind::StorageFull);
        assert!(runs.write(vec![(id(2), 2)], 3, time(1)).is_err(), "{call}");
        memory.repair();
        for runs in [&runs, &IdRuns::open(&memory.disk())] {
            assert_eq!((runs.len(), runs.through()), (1, 2), "{call}");
            assert!(runs.find(id(2)).unwrap().is_empty(), "{call}");
        }
        assert!(!memory.names().contains(&UNFINISHED.to_owned()), "{call}");
        runs.write(vec![(id(3), 3)], 4, time(1)).unwrap();
        assert_eq!(memory.names().len(), 3, "{call}: {:?}", memory.names());
    }
}

#[test]
fn list_of_another_format_is_discarded() {
    let memory = MemoryDisk::default();
    IdRuns::open(&memory.disk()).write(vec![(id(1), 1)], 2, time(1)).unwrap();
    let list = memory.bytes(LIST);
    let mut content = list[..list.len() - 4].to_vec();
    content[7] += 1;
    let sum = crc32fast::hash(&content);
    content.extend_from_slice(&sum.to_le_bytes());
    memory.put(LIST, &content);
    assert_eq!(IdRuns::open(&memory.disk()).through(), 0);
    for at in 0..list.len() {
        let mut damaged = list.clone();
        damaged[at] ^= 1;
        memory.put(LIST, &damaged);
        assert_eq!(IdRuns::open(&memory.disk()).through(), 0, "byte {at}");
    }
    memory.put(LIST, &list);
    assert_eq!(IdRuns::open(&memory.disk()).through(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn runs_find_what_a_map_finds(batches in proptest::collection::vec(
        proptest::collection::vec((0u64..3, 0u64..200), 0..400), 1..12,
    )) {
        let memory = MemoryDisk::default();
        let runs = IdRuns::open(&memory.disk());
        let (mut last, mut location) = (BTreeMap::new(), 0);
        for batch in batches {
            let mut entries = Vec::new();
            for (first, second) in batch {
                location += 1;
                last.insert((first, second), location);
                entries.push((IdHash(first, second), location));
            }
            runs.write(entries, location, time(location)).unwrap();
            prop_assert_eq!(runs.through(), location);
        }
        for runs in [&runs, &IdRuns::open(&memory.disk())] {
            for first in 0..3 {
                for second in 0..201 {
                    let found = runs.find(IdHash(first, second)).unwrap();
                    prop_assert_eq!(found.first(), last.get(&(first, second)));
                    prop_assert!(found.is_sorted_by(|a, b| a > b), "newest first: {:?}", found);
                }
            }
        }
    }
}
