//! Runs of ids are found, merged and dropped.

use super::*;
use crate::disk::Folder;

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
