//! The segment size of the log changes from one run to the next. Small segments that were preallocated are too small
//! for later turns, and nothing may be lost because of that.

use std::collections::BTreeSet;
use std::sync::Arc;

use whizbang::clock::{Clock, Timestamp};
use whizbang::message::IdSource;
use whizbang::store::Store;
use whizbang::store::embedded::{EmbeddedConfig, EmbeddedStore};
use whizbang::testing::store::{Owner, TurnBuilder};

use crate::brief_or_long;
use crate::contents::{now, shard};
use crate::machine::{Fault, Machine};
use crate::restarts::{End, assert_intact_and_usable};
use crate::workload::{Workload, small};

/// The smallest possible segment size.
const SMALL: u64 = 4 * 1024;

/// The size of a turn that does not fit into a small segment.
const LARGE_TURN: usize = 20_000;

/// One run of a store whose turns all go to one stream.
struct Run {
    store: Arc<EmbeddedStore>,
    owner: Owner,
}

impl Run {
    fn start(machine: &Machine, segment_bytes: u64) -> Self {
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
        let before = self.owner.listener.reports().len();
        self.store.step();
        assert_eq!(self.owner.listener.reports().len(), before + 1, "turn {number} was not reported");
    }

    fn lengths(&self) -> Vec<usize> {
        now(self.owner.events(0, usize::MAX)).iter().map(|event| event.payload.len()).collect()
    }

    fn end(self, end: End, machine: &Machine) {
        // Before the store can close.
        end.apply(machine);
    }
}

/// Creates a store with `empty` small segments that were never written. Its next run has large segments and appends
/// `turns` turns that fit into none of the small ones.
fn grows(empty: u64, turns: u64, with_checkpoint: bool, end: End, seed: u64) {
    let what = format!("{empty} empty, {turns} turns, checkpoint {with_checkpoint}, {end:?}, seed {seed}");
    let machine = Machine::new(seed);
    let mut run = Run::start(&machine, SMALL);
    run.commit(1, 2500);
    // A segment is preallocated for each of these and never reached.
    for number in 0..empty {
        run.append(2 + number, 2500);
    }
    run.end(End::Kill, &machine);
    let segments = || machine.files().into_keys().filter(|name| name.starts_with("log-")).count() as u64;
    assert_eq!(segments(), 1 + empty, "{what}");

    let mut run = Run::start(&machine, 64 * 1024);
    if with_checkpoint {
        run.store.checkpoint();
    }
    let mut expected = vec![2500];
    for number in 2..2 + turns {
        run.commit(number, LARGE_TURN);
        expected.push(LARGE_TURN);
    }
    assert!(segments() > 1 + empty, "{what}: no segment is large enough");
    run.end(end, &machine);

    for number in 2 + turns..4 + turns {
        let mut run = Run::start(&machine, 64 * 1024);
        assert_eq!(run.lengths(), expected, "{what}");
        run.commit(number, LARGE_TURN / 2);
        expected.push(LARGE_TURN / 2);
        run.end(end, &machine);
    }
    assert_eq!(Run::start(&machine, SMALL).lengths(), expected, "{what}");
}

#[test]
fn too_small_segments_are_skipped_and_lose_nothing() {
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
fn any_segment_sizes_keep_reported_turns() {
    let random = IdSource::seeded(Clock::manual(Timestamp::from_millis(1)).0, 9);
    let (mut faulted, mut sizes) = (0, BTreeSet::new());
    for seed in 300..brief_or_long(340, 2_000) {
        let mut workload = Workload::new(seed);
        for run in 0..8 {
            workload.config = small().segment_bytes(SMALL << random.below(4));
            let end = if random.below(2) == 0 { End::Kill } else { End::PowerCut };
            println!("seed {seed}, run {run}: {:?}, {end:?}", workload.config);
            workload.machine.plan(random.below(120) as usize, Fault::Halt);
            if let Ok(mut run) = workload.open_and_check() {
                let _ = workload.run_steps(&mut run, 40);
                workload.record_commits(&run);
                faulted += usize::from(workload.machine.has_faulted());
                end.apply(&workload.machine);
            }
            end.apply(&workload.machine);
        }
        assert_intact_and_usable(&mut workload, 20);
        let files = workload.machine.files().into_iter().filter(|(name, _)| name.starts_with("log-"));
        sizes.extend(files.map(|(_, bytes)| bytes.len()));
    }
    assert!(faulted > 20 && sizes.len() == 4, "{faulted} runs ended early, segments of {sizes:?} bytes");
}
