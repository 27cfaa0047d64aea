//! The log is truncated, corrupted, zeroed or partly missing: it is refused with the name of the file, or only
//! unreported data was hit. Damage is never silent and never causes a panic.

use std::collections::{BTreeMap, BTreeSet};

use whizbang::clock::{Clock, Timestamp};
use whizbang::message::IdSource;
use whizbang::store::StoreError;
use whizbang::store::embedded::EmbeddedStore;

use crate::brief_or_long;
use crate::contents::contents;
use crate::machine::{Fault, Kind, Machine};
use crate::restarts::{assert_intact_and_usable, closed_once, second_run};
use crate::workload::{Workload, small};

type Files = BTreeMap<String, Vec<u8>>;

/// A log as stored on the disk, and the valid contents of a store that opens it.
pub(crate) struct Log {
    pub(crate) workload: Workload,
    pub(crate) files: Files,
    valid_contents: BTreeSet<String>,
}

/// The outcome of opening a corrupt store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Whole,
    /// The error names the damaged file.
    Refused,
}

impl Log {
    /// Returns a store that was closed in order: all of it was reported.
    pub(crate) fn closed(seed: u64) -> Self {
        let mut workload = closed_once(seed);
        let mut run = workload.open_and_check().unwrap();
        workload.run_steps(&mut run, 20).unwrap();
        drop(run);
        let files = workload.machine.files();
        let valid_contents = workload.contents_from(workload.reported()).into_iter().collect();
        Self { workload, files, valid_contents }
    }

    /// Returns a store whose process ended before its last batch was reported, although all of it was written.
    fn unreported(seed: u64) -> Self {
        let (workload, run) = second_run(seed, None);
        let all = workload.machine.calls();
        drop(run);
        let is_flush = |(kind, name): &(Kind, String)| *kind == Kind::SyncFile && name.starts_with("log-");
        let flush = all.iter().rposition(is_flush).unwrap();
        let (workload, run) = second_run(seed, Some((flush, Fault::Halt)));
        drop(run);
        let files = workload.machine.files();
        let valid_contents: BTreeSet<_> = workload.contents_from(workload.reported()).into_iter().collect();
        assert!(valid_contents.len() > 1, "nothing is unreported");
        Self { workload, files, valid_contents }
    }

    /// Returns the segments of the log, oldest first.
    fn segments(&self) -> Vec<String> {
        self.files.keys().filter(|name| name.starts_with("log-")).cloned().collect()
    }

    /// Returns the position of the last byte that is not zero.
    fn end(&self) -> (String, usize) {
        let used = |name: &String| self.files[name].iter().rposition(|byte| *byte != 0).filter(|at| *at >= 512);
        self.segments().into_iter().rev().find_map(|name| used(&name).map(|at| (name, at))).unwrap()
    }

    fn corrupted(&self, name: &str, corrupt: impl FnOnce(&mut Vec<u8>)) -> Files {
        let mut files = self.files.clone();
        corrupt(files.get_mut(name).unwrap());
        files
    }

    /// Opens a store with these files and returns the outcome.
    pub(crate) fn outcome(&self, files: &Files, what: &str) -> Outcome {
        let machine = Machine::with_files(files);
        let opened = EmbeddedStore::open_on(machine.disk(), &small(), Some(1));
        match opened.and_then(|store| contents(&store)) {
            Ok(seen) => {
                assert!(self.valid_contents.contains(&seen), "{what}: silently wrong");
                Outcome::Whole
            }
            Err(StoreError::Corrupt { file, .. }) => {
                assert!(
                    file.to_string_lossy().contains("/log-"),
                    "{what}: {} is not a file of the log",
                    file.display()
                );
                Outcome::Refused
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }
}

fn flip_bits(log: &Log, step: usize) {
    let (mut whole, mut refused) = (0, 0);
    for name in log.segments() {
        let length = log.files[&name].len();
        let used = log.files[&name].iter().rposition(|byte| *byte != 0).unwrap() + 64;
        for at in 0..length {
            // Every used byte, and some of the unused ones.
            if at % brief_or_long(if at < used { step } else { 97 }, 1) != 0 {
                continue;
            }
            let files = log.corrupted(&name, |bytes| bytes[at] ^= 1 << (at / 3 % 8));
            match log.outcome(&files, &format!("a bit of byte {at} of {name} was flipped")) {
                Outcome::Whole => whole += 1,
                Outcome::Refused => refused += 1,
            }
        }
    }
    assert!(whole > 20 && refused > 200, "{whole} whole, {refused} refused");
}

#[test]
fn flipped_bit_is_detected_anywhere() {
    flip_bits(&Log::closed(1), 5);
}

#[test]
fn flipped_bit_loses_only_unreported_turns() {
    flip_bits(&Log::unreported(2), 41);
}

#[test]
fn log_shorter_than_its_segment_size_is_refused() {
    let log = Log::closed(3);
    for name in log.segments() {
        for length in (0..log.files[&name].len()).step_by(brief_or_long(41, 1)) {
            let files = log.corrupted(&name, |bytes| bytes.truncate(length));
            assert_eq!(log.outcome(&files, &format!("{name} was cut to {length} bytes")), Outcome::Refused);
        }
    }
}

#[test]
fn truncated_log_is_read_up_to_its_last_whole_batch() {
    // Without checkpoints: one of them would detect the missing data.
    let mut log = Log::closed(4);
    log.files.retain(|name, _| !name.starts_with("index-"));
    log.valid_contents = log.workload.contents_from(0).into_iter().collect();
    let (last, end) = log.end();
    let mut lengths = BTreeSet::new();
    for cut in (512..=end).rev().step_by(brief_or_long(13, 1)) {
        let files = log.corrupted(&last, |bytes| bytes[cut..].fill(0));
        assert_eq!(log.outcome(&files, &format!("{last} ends at {cut}")), Outcome::Whole);
        let mut workload = log.workload.on(&files);
        workload.report_only(0);
        let run = workload.open_and_check().unwrap();
        lengths.insert(workload.reported());
        drop(run);
        workload.machine.kill();
        if cut % 8 == 0 {
            assert_intact_and_usable(&mut workload, 5);
        }
    }
    assert!(lengths.len() > 3, "only {lengths:?}");
}

#[test]
fn zeroed_sector_is_detected_unless_at_the_end() {
    let mut refused = 0;
    for seed in 10..brief_or_long(13, 60) {
        let mut log = Log::closed(seed);
        let (last, end) = log.end();
        for name in log.segments() {
            for sector in 0..log.files[&name].len() / 512 {
                // The mark that says what was durable is behind it. Where both are lost, they cannot be distinguished
                // from a batch that was never finished: the log then ends earlier, but the rest of it is correct.
                let takes_end = name == last && (end - 23) / 512 <= sector && sector <= end / 512;
                if takes_end {
                    log.valid_contents = log.workload.contents_from(0).into_iter().collect();
                } else {
                    log.valid_contents = log.workload.contents_from(log.workload.reported()).into_iter().collect();
                }
                let files = log.corrupted(&name, |bytes| bytes[sector * 512..][..512].fill(0));
                match log.outcome(&files, &format!("seed {seed}: sector {sector} of {name} was zeroed")) {
                    Outcome::Refused => refused += 1,
                    Outcome::Whole => {}
                }
            }
        }
    }
    assert!(refused > 30, "only {refused}");
}

#[test]
fn bytes_behind_the_end_are_ignored() {
    let random = IdSource::seeded(Clock::manual(Timestamp::from_millis(1)).0, 3);
    for seed in 20..brief_or_long(30, 200) {
        for log in [Log::closed(seed), Log::unreported(seed)] {
            let (last, end) = log.end();
            let segments = log.segments();
            let spare = segments.last().unwrap();
            let mut files = log.files.clone();
            files.get_mut(&last).unwrap()[end + 1..].fill_with(|| random.next_u64() as u8);
            if *spare != last {
                files.get_mut(spare).unwrap()[512..].fill_with(|| random.next_u64() as u8);
            }
            // A copied batch: the same bytes at another offset.
            let batch = log.files[&last][512..end.min(900)].to_vec();
            if let Some(target) = files.get_mut(&last).unwrap().get_mut(end + 30..end + 30 + batch.len()) {
                target.copy_from_slice(&batch);
            }
            assert_eq!(log.outcome(&files, &format!("seed {seed}: garbage behind the end")), Outcome::Whole);
            assert_intact_and_usable(&mut log.workload.on(&files), 10);
        }
    }
}

#[test]
fn missing_segment_is_detected() {
    let log = Log::closed(5);
    let segments = log.segments();
    let (last, _) = log.end();
    for name in &segments {
        let mut files = log.files.clone();
        files.remove(name);
        let is_spare = *name > last;
        let expected = if is_spare { Outcome::Whole } else { Outcome::Refused };
        assert_eq!(log.outcome(&files, &format!("{name} is missing")), expected);
    }
    // Two swapped files.
    let mut files = log.files.clone();
    let (first, second) = (files[&segments[0]].clone(), files[&segments[1]].clone());
    files.insert(segments[0].clone(), second);
    files.insert(segments[1].clone(), first);
    assert_eq!(log.outcome(&files, "two files were swapped"), Outcome::Refused);
}

#[test]
fn end_known_to_a_checkpoint_is_required() {
    let mut workload = closed_once(6);
    let mut run = workload.open_and_check().unwrap();
    workload.run_steps(&mut run, 40).unwrap();
    run.store.checkpoint();
    drop(run);
    let log = Log { files: workload.machine.files(), valid_contents: BTreeSet::new(), workload };
    let (last, end) = log.end();
    let mut files = log.files.clone();
    files.retain(|name, _| !name.starts_with("log-") || *name < last);
    assert_eq!(log.outcome(&files, "the end is missing"), Outcome::Refused);
    let files = log.corrupted(&last, |bytes| bytes[end - 60..].fill(0));
    assert_eq!(log.outcome(&files, "the end was zeroed"), Outcome::Refused);
}
