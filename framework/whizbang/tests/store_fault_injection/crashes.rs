//! The process or the machine ends at any call, and again while it recovers.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use whizbang::store::embedded::EmbeddedStore;
use whizbang::store::{CommitListener, Store, StoreError, Ticket};
use whizbang::testing::store::{Owner, TurnBuilder, run};

use crate::brief_or_long;
use crate::contents::shard;
use crate::machine::{Fault, Machine};
use crate::restarts::{End, assert_intact_and_usable, calls, second_run};
use crate::workload::small;

fn crash_at_every_call(end: End, seeds: Range<u64>) {
    for seed in seeds {
        for call in 0..calls(seed) {
            let (mut workload, run) = second_run(seed, Some((call, Fault::Halt)));
            drop(run);
            assert!(workload.machine.has_faulted(), "seed {seed}, call {call}");
            println!("seed {seed}, call {call} {:?}", workload.machine.calls().last());
            end.apply(&workload.machine);
            assert_intact_and_usable(&mut workload, 1 + call % 30);
        }
    }
}

#[test]
fn power_cut_at_any_call_keeps_reported_turns() {
    crash_at_every_call(End::PowerCut, 1..brief_or_long(2, 60));
}

#[test]
fn kill_at_any_call_keeps_reported_turns() {
    crash_at_every_call(End::Kill, 100..brief_or_long(101, 130));
}

#[test]
fn second_crash_at_any_call_of_the_recovery_loses_nothing() {
    for (first, second) in [(End::PowerCut, End::PowerCut), (End::Kill, End::PowerCut)] {
        for seed in 200..brief_or_long(201, 210) {
            let mut faulted = 0;
            for call in (0..calls(seed)).step_by(brief_or_long(97, 1)) {
                for again in 0.. {
                    let (mut workload, run) = second_run(seed, Some((call, Fault::Halt)));
                    drop(run);
                    first.apply(&workload.machine);
                    workload.machine.plan(again, Fault::Halt);
                    drop(workload.open());
                    let has_faulted = workload.machine.has_faulted();
                    second.apply(&workload.machine);
                    println!("{first:?}, {second:?}, seed {seed}, call {call}, then {again}");
                    assert_intact_and_usable(&mut workload, 1 + again % 30);
                    if !has_faulted {
                        break;
                    }
                    faulted += 1;
                }
            }
            assert!(faulted > 100, "only {faulted} second crashes");
        }
    }
}

/// A listener that cuts the power once a number of appends were reported.
struct Cutter {
    machine: Machine,
    after: usize,
    reported: AtomicUsize,
}

impl CommitListener for Cutter {
    fn committed(&self, through: Ticket) {
        // Appends that are reported after the power cut were durable before it.
        if self.reported.swap(through as usize, Ordering::SeqCst) < self.after && through as usize >= self.after {
            self.machine.cut_power();
        }
    }

    fn failed(&self, _: StoreError) {}
}

#[test]
fn threaded_store_keeps_reported_turns_in_a_power_cut() {
    const KEYS: u64 = 7;
    for seed in 0..brief_or_long(40, 2_000) {
        let machine = Machine::new(seed);
        let home = shard("bank", 0);
        let cutter = Arc::new(Cutter {
            machine: machine.clone(),
            after: 40 + seed as usize * 7 % 200,
            reported: AtomicUsize::new(0),
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
                    Ok(report) => {
                        appended += 1;
                        if report.committed {
                            assert_eq!(cutter.reported.load(Ordering::SeqCst) as u64, appended, "seed {seed}");
                        }
                    }
                    Err(StoreError::Closed | StoreError::Io { .. }) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            appended
        });
        let reported = cutter.reported.load(Ordering::SeqCst) as u64;
        assert!(reported >= cutter.after as u64 && appended >= reported);
        run(async {
            let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open_on(machine.disk(), &small(), None).unwrap());
            let mut owner = Owner::take(&store, &home).await;
            let position = owner.reader.position();
            assert!((reported..=appended).contains(&position), "seed {seed}: {position} of {reported} to {appended}");
            let events = owner.events(0, usize::MAX).await;
            let said = |event: &whizbang::store::StoredEvent| String::from_utf8(event.payload.to_vec()).unwrap();
            assert!(events.iter().map(said).eq((0..position).map(|number| number.to_string())), "seed {seed}");
            owner.commit(&TurnBuilder::new("Account", "another", 1).event("Happened", "again")).await;
            tokio::time::timeout(Duration::from_secs(60), store.close()).await.unwrap().unwrap();
        });
    }
}
