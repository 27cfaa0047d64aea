//! The log is cut, spoilt, zeroed or partly gone: it is refused by name, or nothing that counts was hit. Never is anything
//! silently wrong, and never does anything panic.

use std::collections::{BTreeMap, BTreeSet};

use whizbang::clock::{Clock, Timestamp};
use whizbang::message::IdSource;
use whizbang::store::StoreError;
use whizbang::store::embedded::EmbeddedStore;

use crate::brief_or_long;
use crate::lives::{begin, is_right_and_goes_on, tell};
use crate::machine::{Fault, Kind, Machine};
use crate::picture::picture;
use crate::story::{Story, small};

type Files = BTreeMap<String, Vec<u8>>;

/// A log as it lies on the disk, and what a store may look like that was opened with it.
pub(crate) struct Log {
    pub(crate) story: Story,
    pub(crate) files: Files,
    pictures: BTreeSet<String>,
}

/// What has become of a spoilt store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Became {
    Whole,
    /// It says which of its files is damaged.
    Refused,
}

impl Log {
    /// A store that was closed in order: all of it was reported.
    pub(crate) fn closed(seed: u64) -> Self {
        let mut story = begin(seed);
        let mut life = story.look().unwrap();
        story.go_on(&mut life, 20).unwrap();
        drop(life);
        let files = story.machine.files();
        let pictures = story.pictures(story.reported()).into_iter().collect();
        Self { story, files, pictures }
    }

    /// A store whose process has ended before its last batch was reported, though all of it was written.
    fn unreported(seed: u64) -> Self {
        let (story, life) = tell(seed, None);
        let all = story.machine.calls();
        drop(life);
        let is_flush = |(kind, name): &(Kind, String)| *kind == Kind::SyncFile && name.starts_with("log-");
        let flush = all.iter().rposition(is_flush).unwrap();
        let (story, life) = tell(seed, Some((flush, Fault::Halt)));
        drop(life);
        let files = story.machine.files();
        let pictures: BTreeSet<_> = story.pictures(story.reported()).into_iter().collect();
        assert!(pictures.len() > 1, "nothing is unreported");
        Self { story, files, pictures }
    }

    /// The log's files, oldest first.
    fn segments(&self) -> Vec<String> {
        self.files.keys().filter(|name| name.starts_with("log-")).cloned().collect()
    }

    /// Where the last byte is that is not zero.
    fn end(&self) -> (String, usize) {
        let used = |name: &String| self.files[name].iter().rposition(|byte| *byte != 0).filter(|at| *at >= 512);
        self.segments().into_iter().rev().find_map(|name| used(&name).map(|at| (name, at))).unwrap()
    }

    fn spoilt(&self, name: &str, spoil: impl FnOnce(&mut Vec<u8>)) -> Files {
        let mut files = self.files.clone();
        spoil(files.get_mut(name).unwrap());
        files
    }

    /// What becomes of a store with these files.
    pub(crate) fn became(&self, files: &Files, what: &str) -> Became {
        let machine = Machine::with_files(files);
        let opened = EmbeddedStore::open_on(machine.disk(), &small(), Some(1));
        match opened.and_then(|store| picture(&store)) {
            Ok(seen) => {
                assert!(self.pictures.contains(&seen), "{what}: silently wrong");
                Became::Whole
            }
            Err(StoreError::Corrupt { file, .. }) => {
                assert!(file.to_string_lossy().contains("/log-"), "{what}: {} is no file of the log", file.display());
                Became::Refused
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
            // All of what is used, and some of what is not.
            if at % brief_or_long(if at < used { step } else { 97 }, 1) != 0 {
                continue;
            }
            let files = log.spoilt(&name, |bytes| bytes[at] ^= 1 << (at / 3 % 8));
            match log.became(&files, &format!("a bit of byte {at} of {name} was flipped")) {
                Became::Whole => whole += 1,
                Became::Refused => refused += 1,
            }
        }
    }
    assert!(whole > 20 && refused > 200, "{whole} whole, {refused} refused");
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    flip_bits(&Log::closed(1), 5);
}

#[test]
fn a_flipped_bit_takes_nothing_with_it_but_what_was_never_reported() {
    flip_bits(&Log::unreported(2), 41);
}

#[test]
fn a_log_that_is_shorter_than_it_was_made_is_refused() {
    let log = Log::closed(3);
    for name in log.segments() {
        for length in (0..log.files[&name].len()).step_by(brief_or_long(41, 1)) {
            let files = log.spoilt(&name, |bytes| bytes.truncate(length));
            assert_eq!(log.became(&files, &format!("{name} was cut to {length} bytes")), Became::Refused);
        }
    }
}

#[test]
fn a_log_that_ends_at_any_byte_is_read_up_to_its_last_whole_batch() {
    // Without checkpoints: one of them would know what is missing, and say so.
    let mut log = Log::closed(4);
    log.files.retain(|name, _| !name.starts_with("index-"));
    log.pictures = log.story.pictures(0).into_iter().collect();
    let (last, end) = log.end();
    let mut lengths = BTreeSet::new();
    for cut in (512..=end).rev().step_by(brief_or_long(13, 1)) {
        let files = log.spoilt(&last, |bytes| bytes[cut..].fill(0));
        assert_eq!(log.became(&files, &format!("{last} ends at {cut}")), Became::Whole);
        let mut story = log.story.on(&files);
        story.report_only(0);
        let life = story.look().unwrap();
        lengths.insert(story.reported());
        drop(life);
        story.machine.kill();
        if cut % 8 == 0 {
            is_right_and_goes_on(&mut story, 5);
        }
    }
    assert!(lengths.len() > 3, "only {lengths:?}");
}

#[test]
fn a_zeroed_sector_is_found_unless_it_takes_the_end_of_the_log_with_it() {
    let mut refused = 0;
    for seed in 10..brief_or_long(13, 60) {
        let mut log = Log::closed(seed);
        let (last, end) = log.end();
        for name in log.segments() {
            for sector in 0..log.files[&name].len() / 512 {
                // The mark that says what was durable is behind it. Where both are gone nothing tells them from a batch that
                // was never finished: then the log ends earlier, but what there is of it is right.
                let takes_end = name == last && (end - 23) / 512 <= sector && sector <= end / 512;
                if takes_end {
                    log.pictures = log.story.pictures(0).into_iter().collect();
                } else {
                    log.pictures = log.story.pictures(log.story.reported()).into_iter().collect();
                }
                let files = log.spoilt(&name, |bytes| bytes[sector * 512..][..512].fill(0));
                match log.became(&files, &format!("seed {seed}: sector {sector} of {name} was zeroed")) {
                    Became::Refused => refused += 1,
                    Became::Whole => {}
                }
            }
        }
    }
    assert!(refused > 30, "only {refused}");
}

#[test]
fn whatever_stands_behind_the_end_is_no_part_of_the_log() {
    let dice = IdSource::seeded(Clock::manual(Timestamp::from_millis(1)).0, 3);
    for seed in 20..brief_or_long(30, 200) {
        for log in [Log::closed(seed), Log::unreported(seed)] {
            let (last, end) = log.end();
            let segments = log.segments();
            let spare = segments.last().unwrap();
            let mut files = log.files.clone();
            files.get_mut(&last).unwrap()[end + 1..].fill_with(|| dice.next_u64() as u8);
            if *spare != last {
                files.get_mut(spare).unwrap()[512..].fill_with(|| dice.next_u64() as u8);
            }
            // A batch from elsewhere: the same bytes at another place.
            let batch = log.files[&last][512..end.min(900)].to_vec();
            if let Some(room) = files.get_mut(&last).unwrap().get_mut(end + 30..end + 30 + batch.len()) {
                room.copy_from_slice(&batch);
            }
            assert_eq!(log.became(&files, &format!("seed {seed}: garbage behind the end")), Became::Whole);
            is_right_and_goes_on(&mut log.story.on(&files), 10);
        }
    }
}

#[test]
fn a_missing_file_of_the_log_is_missed() {
    let log = Log::closed(5);
    let segments = log.segments();
    let (last, _) = log.end();
    for name in &segments {
        let mut files = log.files.clone();
        files.remove(name);
        let is_spare = *name > last;
        let expected = if is_spare { Became::Whole } else { Became::Refused };
        assert_eq!(log.became(&files, &format!("{name} is missing")), expected);
    }
    // Two files that changed places.
    let mut files = log.files.clone();
    let (first, second) = (files[&segments[0]].clone(), files[&segments[1]].clone());
    files.insert(segments[0].clone(), second);
    files.insert(segments[1].clone(), first);
    assert_eq!(log.became(&files, "two files have changed places"), Became::Refused);
}

#[test]
fn an_end_that_a_checkpoint_knows_is_missed() {
    let mut story = begin(6);
    let mut life = story.look().unwrap();
    story.go_on(&mut life, 40).unwrap();
    life.store.checkpoint();
    drop(life);
    let log = Log { files: story.machine.files(), pictures: BTreeSet::new(), story };
    let (last, end) = log.end();
    let mut files = log.files.clone();
    files.retain(|name, _| !name.starts_with("log-") || *name < last);
    assert_eq!(log.became(&files, "the end is missing"), Became::Refused);
    let files = log.spoilt(&last, |bytes| bytes[end - 60..].fill(0));
    assert_eq!(log.became(&files, "the end was zeroed"), Became::Refused);
}
