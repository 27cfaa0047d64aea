//! The sizes of the log's files change from one life to the next: small files that were made before are too small for what
//! comes then, and nothing may be lost over that.

use std::collections::BTreeSet;
use std::sync::Arc;

use whizbang::clock::{Clock, Timestamp};
use whizbang::message::IdSource;
use whizbang::store::Store;
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedStore};
use whizbang::testing::store::{Owner, TurnBuilder};

use crate::brief_or_long;
use crate::lives::{End, is_right_and_goes_on};
use crate::machine::{Fault, Machine};
use crate::picture::{now, shard};
use crate::story::{Story, small};

/// Smaller than this no file of the log can be made.
const SMALL: u64 = 4 * 1024;

/// More than fits into a small file.
const LARGE_TURN: usize = 20_000;

/// One life of a store whose turns all go to one stream.
struct Life {
    store: Arc<EmbeddedStore>,
    owner: Owner,
}

impl Life {
    fn begin(machine: &Machine, segment_bytes: u64) -> Self {
        let config = EmbeddedConfig::default().segment_bytes(segment_bytes);
        let store = Arc::new(EmbeddedStore::open_on(machine.disk(), &config, Some(1)).unwrap());
        let owner = now(Owner::take(&(Arc::clone(&store) as Arc<dyn Store>), &shard("bank", 0)));
        Self { store, owner }
    }

    fn append(&mut self, number: u64, bytes: usize) {
        let draft = TurnBuilder::new("Account", "a", number).at(number, number - 1).event("Happened", vec![7; bytes]);
        self.owner.append(&draft).unwrap();
    }

    fn commit(&mut self, number: u64, bytes: usize) {
        self.append(number, bytes);
        let before = self.owner.ears.reports().len();
        self.store.step();
        assert_eq!(self.owner.ears.reports().len(), before + 1, "turn {number} was not reported");
    }

    fn lengths(&self) -> Vec<usize> {
        now(self.owner.events(0, usize::MAX)).iter().map(|event| event.payload.len()).collect()
    }

    fn end(self, end: End, machine: &Machine) {
        // Before it can close.
        end.come(machine);
    }
}

/// A store with `empty` small files that nothing was written to, in whose next life files are large, and `turns` turns that
/// fit into none of the small ones.
fn grows(empty: u64, turns: u64, with_checkpoint: bool, end: End, seed: u64) {
    let what = format!("{empty} empty, {turns} turns, checkpoint {with_checkpoint}, {end:?}, seed {seed}");
    let machine = Machine::new(seed);
    let mut life = Life::begin(&machine, SMALL);
    life.commit(1, 2500);
    // Each of these has a file made for it and never gets there.
    for number in 0..empty {
        life.append(2 + number, 2500);
    }
    life.end(End::Kill, &machine);
    let segments = || machine.files().into_keys().filter(|name| name.starts_with("log-")).count() as u64;
    assert_eq!(segments(), 1 + empty, "{what}");

    let mut life = Life::begin(&machine, 64 * 1024);
    if with_checkpoint {
        life.store.checkpoint();
    }
    let mut expected = vec![2500];
    for number in 2..2 + turns {
        life.commit(number, LARGE_TURN);
        expected.push(LARGE_TURN);
    }
    assert!(segments() > 1 + empty, "{what}: no file was made that is large enough");
    life.end(end, &machine);

    for number in 2 + turns..4 + turns {
        let mut life = Life::begin(&machine, 64 * 1024);
        assert_eq!(life.lengths(), expected, "{what}");
        life.commit(number, LARGE_TURN / 2);
        expected.push(LARGE_TURN / 2);
        life.end(end, &machine);
    }
    assert_eq!(Life::begin(&machine, SMALL).lengths(), expected, "{what}");
}

#[test]
fn files_that_are_too_small_for_a_turn_are_passed_over_and_nothing_behind_them_is_lost() {
    for seed in 0..brief_or_long(12, 200) {
        for (empty, turns) in [(1, 1), (1, 2), (1, 4), (2, 1), (2, 3)] {
            for with_checkpoint in [false, true] {
                grows(empty, turns, with_checkpoint, End::Kill, seed);
                grows(empty, turns, with_checkpoint, End::PowerCut, seed);
            }
        }
    }
}

#[test]
fn whatever_sizes_the_files_of_each_life_have_what_was_reported_is_there() {
    let dice = IdSource::seeded(Clock::manual(Timestamp::from_millis(1)).0, 9);
    let (mut struck, mut sizes) = (0, BTreeSet::new());
    for seed in 300..brief_or_long(340, 2_000) {
        let mut story = Story::new(seed);
        for life in 0..8 {
            story.config = small().segment_bytes(SMALL << dice.below(4));
            let end = if dice.below(2) == 0 { End::Kill } else { End::PowerCut };
            println!("seed {seed}, life {life}: {:?}, {end:?}", story.config);
            story.machine.plan(dice.below(120) as usize, Fault::Halt);
            if let Ok(mut life) = story.look() {
                let _ = story.go_on(&mut life, 40);
                story.hear(&life);
                struck += usize::from(story.machine.has_struck());
                end.come(&story.machine);
            }
            end.come(&story.machine);
        }
        is_right_and_goes_on(&mut story, 20);
        let files = story.machine.files().into_iter().filter(|(name, _)| name.starts_with("log-"));
        sizes.extend(files.map(|(_, bytes)| bytes.len()));
    }
    assert!(struck > 20 && sizes.len() == 4, "{struck} lives ended in the midst, files of {sizes:?} bytes");
}
