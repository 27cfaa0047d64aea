//! The process or the machine ends at any call, and again while it recovers.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use whizbang::store::embedded::EmbeddedStore;
use whizbang::store::{CommitListener, Store, StoreError, Ticket};
use whizbang::testing::store::{Owner, TurnBuilder, run};

use crate::brief_or_long;
use crate::lives::{End, calls, is_right_and_goes_on, tell};
use crate::machine::{Fault, Machine};
use crate::picture::shard;
use crate::story::small;

fn crash_at_every_call(end: End, seeds: Range<u64>) {
    for seed in seeds {
        for call in 0..calls(seed) {
            let (mut story, life) = tell(seed, Some((call, Fault::Halt)));
            drop(life);
            assert!(story.machine.has_struck(), "seed {seed}, call {call}");
            println!("seed {seed}, call {call} {:?}", story.machine.calls().last());
            end.come(&story.machine);
            is_right_and_goes_on(&mut story, 1 + call % 30);
        }
    }
}

#[test]
fn whatever_call_a_power_cut_comes_at_what_was_reported_is_there() {
    crash_at_every_call(End::PowerCut, 1..brief_or_long(2, 60));
}

#[test]
fn whatever_call_a_kill_comes_at_what_was_reported_is_there() {
    crash_at_every_call(End::Kill, 100..brief_or_long(101, 130));
}

#[test]
fn a_second_crash_at_any_call_of_the_recovery_loses_nothing() {
    for (first, second) in [(End::PowerCut, End::PowerCut), (End::Kill, End::PowerCut)] {
        for seed in 200..brief_or_long(201, 210) {
            let mut struck = 0;
            for call in (0..calls(seed)).step_by(brief_or_long(97, 1)) {
                for again in 0.. {
                    let (mut story, life) = tell(seed, Some((call, Fault::Halt)));
                    drop(life);
                    first.come(&story.machine);
                    story.machine.plan(again, Fault::Halt);
                    drop(story.open());
                    let has_struck = story.machine.has_struck();
                    second.come(&story.machine);
                    println!("{first:?}, {second:?}, seed {seed}, call {call}, then {again}");
                    is_right_and_goes_on(&mut story, 1 + again % 30);
                    if !has_struck {
                        break;
                    }
                    struck += 1;
                }
            }
            assert!(struck > 100, "only {struck} second crashes");
        }
    }
}

/// Cuts the power once so many appends were reported.
struct Cutter {
    machine: Machine,
    after: usize,
    heard: AtomicUsize,
}

impl CommitListener for Cutter {
    fn committed(&self, through: Ticket) {
        // What is reported once the power is cut was durable before.
        if self.heard.swap(through as usize, Ordering::SeqCst) < self.after && through as usize >= self.after {
            self.machine.cut_power();
        }
    }

    fn failed(&self, _: StoreError) {}
}

#[test]
fn with_its_own_threads_nothing_that_was_reported_is_lost_in_a_power_cut() {
    const KEYS: u64 = 7;
    for seed in 0..brief_or_long(40, 2_000) {
        let machine = Machine::new(seed);
        let home = shard("bank", 0);
        let cutter = Arc::new(Cutter {
            machine: machine.clone(),
            after: 40 + seed as usize * 7 % 200,
            heard: AtomicUsize::new(0),
        });
        let appended = run(async {
            let store = EmbeddedStore::open_on(machine.disk(), &small(), None).unwrap();
            let mut writer = store.open(&home, 4, Arc::clone(&cutter) as Arc<_>).await.unwrap().writer;
            let mut appended = 0;
            loop {
                let (key, turn) = (format!("key-{}", appended % KEYS), appended / KEYS);
                let draft = TurnBuilder::new("Account", &key, appended)
                    .at(turn + 1, turn)
                    .event("Happened", appended.to_string());
                let alone = seed.is_multiple_of(2) && appended.is_multiple_of(3);
                match draft.write(|turn| if alone { writer.append_alone(turn) } else { writer.append(turn) }) {
                    Ok(told) => {
                        appended += 1;
                        if told.committed {
                            assert_eq!(cutter.heard.load(Ordering::SeqCst) as u64, appended, "seed {seed}");
                        }
                    }
                    Err(StoreError::Closed | StoreError::Io { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            appended
        });
        let heard = cutter.heard.load(Ordering::SeqCst) as u64;
        assert!(heard >= cutter.after as u64 && appended >= heard);
        run(async {
            let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open_on(machine.disk(), &small(), None).unwrap());
            let mut owner = Owner::take(&store, &home).await;
            let position = owner.reader.position();
            assert!((heard..=appended).contains(&position), "seed {seed}: {position} of {heard} to {appended}");
            let events = owner.events(0, usize::MAX).await;
            let said = |event: &whizbang::store::StoredEvent| String::from_utf8(event.payload.to_vec()).unwrap();
            assert!(events.iter().map(said).eq((0..position).map(|number| number.to_string())), "seed {seed}");
            owner.commit(&TurnBuilder::new("Account", "another", 1).event("Happened", "again")).await;
            tokio::time::timeout(Duration::from_secs(60), store.close()).await.unwrap().unwrap();
        });
    }
}
