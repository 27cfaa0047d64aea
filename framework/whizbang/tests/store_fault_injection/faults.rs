//! The disk fails or is full: only durable turns are reported, every waiting caller gets an error, and a failed flush
//! is never repeated.

use std::sync::Arc;
use std::time::Duration;

use whizbang::store::embedded::EmbeddedStore;
use whizbang::store::{Store, StoreError};
use whizbang::testing::store::{Owner, RecordingListener, TurnBuilder, run};

use crate::brief_or_long;
use crate::contents::{contents, now, shard};
use crate::machine::{Fault, Kind, Machine};
use crate::restarts::{End, assert_intact_and_usable, calls, closed_once, second_run};
use crate::workload::small;

fn is_of_the_disk(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { .. } | StoreError::Full { .. })
}

/// Injects the fault at every call. Returns the number of stores that stopped, and of those that continued.
fn fail_at_every_call(fault: Fault, seeds: std::ops::Range<u64>) -> (usize, usize) {
    let (mut stopped, mut continued) = (0, 0);
    for seed in seeds {
        for call in 0..calls(seed) {
            let (mut workload, run) = second_run(seed, Some((call, fault)));
            let faulted = workload.machine.calls().get(call).cloned();
            println!("seed {seed}, call {call} {faulted:?}");
            match run {
                // The fault occurs while the store closes.
                Some(run) if faulted.is_none() => drop(run),
                // The store could not be opened; it can be opened now, in the same process.
                None => drop(workload.open_and_check().unwrap()),
                Some(mut run) => {
                    if let Some(error) = run.listener.error() {
                        assert!(is_of_the_disk(&error), "{error}");
                        let reported = workload.reported();
                        let refused = workload.run_steps(&mut run, 1).unwrap_err();
                        assert!(matches!(refused, StoreError::Closed), "{refused}");
                        workload.record_commits(&run);
                        assert_eq!(workload.reported(), reported, "a store that has failed reports nothing");
                        assert!(now(run.store.close()).is_err_and(|error| is_of_the_disk(&error)));
                        stopped += 1;
                    } else if let Err(error) = workload.run_steps(&mut run, 10) {
                        // The store failed before a listener existed.
                        assert!(matches!(error, StoreError::Closed), "{error}");
                        assert!(now(run.store.close()).is_err_and(|error| is_of_the_disk(&error)));
                        stopped += 1;
                    } else {
                        let is_flush =
                            |(kind, name): (Kind, String)| kind == Kind::SyncFile && name.starts_with("log-");
                        assert!(!faulted.is_some_and(is_flush), "a failed flush was ignored");
                        continued += 1;
                    }
                }
            }
            let end = if call % 2 == 0 { End::Kill } else { End::PowerCut };
            end.apply(&workload.machine);
            assert_intact_and_usable(&mut workload, 1 + call % 30);
        }
    }
    (stopped, continued)
}

#[test]
fn failure_of_any_call_reports_no_lost_turn() {
    let (stopped, continued) = fail_at_every_call(Fault::Broken, 300..brief_or_long(301, 330));
    assert!(stopped > 20 && continued > 20, "{stopped} stopped, {continued} continued");
}

#[test]
fn full_disk_at_any_call_loses_nothing() {
    let (stopped, continued) = fail_at_every_call(Fault::Full, 400..brief_or_long(401, 430));
    assert!(stopped > 10 && continued > 20, "{stopped} stopped, {continued} continued");
}

#[test]
fn failed_flush_stops_the_store_without_a_retry() {
    let mut workload = closed_once(1);
    let mut run = workload.open_and_check().unwrap();
    workload.run_steps(&mut run, 10).unwrap();
    let reported = workload.reported();
    workload.machine.breaks(Kind::SyncFile);
    let before = workload.machine.calls().len();
    let error = loop {
        if let Err(error) = workload.run_steps(&mut run, 10) {
            break error;
        }
    };
    assert!(is_of_the_disk(&error), "{error}");
    assert!(run.listener.error().is_some(), "the listener is notified");
    workload.record_commits(&run);
    assert_eq!(workload.reported(), reported, "nothing is reported");
    run.store.step();
    drop(run);
    let calls = workload.machine.calls();
    let flushes = calls[before..].iter().filter(|(kind, name)| *kind == Kind::SyncFile && name.starts_with("log-"));
    assert_eq!(flushes.count(), 1, "asked once: {:?}", &calls[before..]);
    workload.machine.kill();
    assert_intact_and_usable(&mut workload, 20);
}

#[test]
fn full_disk_refuses_turns_until_space_is_freed() {
    for seed in 500..brief_or_long(510, 600) {
        let mut workload = closed_once(seed);
        let mut run = workload.open_and_check().unwrap();
        let used: usize = workload.machine.files().values().map(Vec::len).sum();
        workload.machine.set_size(Some(used + 6000));
        let refused = loop {
            match workload.run_steps(&mut run, 10) {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
        workload.commit(&run).unwrap();
        let held = contents(&*run.store).map(drop);
        assert!(held.is_ok() || matches!(held, Err(StoreError::Full { .. })), "stored turns can be read: {held:?}");
        workload.machine.set_size(None);
        workload.run_steps(&mut run, 20).unwrap();
        drop(run);
        workload.machine.cut_power();
        assert_intact_and_usable(&mut workload, 10);
    }
}

#[test]
fn busy_threaded_store_retries_a_full_disk() {
    let machine = Machine::new(1);
    run(async {
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open_on(machine.disk(), &small(), None).unwrap());
        let listener = Arc::new(RecordingListener::default());
        let mut owner = Owner::take_with(&store, &shard("bank", 0), Arc::clone(&listener)).await;
        machine.set_size(Some(0));
        let mut turns = 0;
        let mut append = |owner: &mut Owner| {
            let draft = TurnBuilder::new("Account", "ada", turns).at(turns + 1, turns).event("Happened", vec![1; 300]);
            owner.append(&draft).inspect(|_| turns += 1)
        };
        while append(&mut owner).is_ok() {}
        assert!(matches!(append(&mut owner), Err(StoreError::Full { .. })));
        machine.set_size(None);
        let begun = tokio::time::Instant::now();
        // Without a pause: the sender does not know that the disk needs time.
        let last = loop {
            match append(&mut owner) {
                Ok(appended) => break appended,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "still {error}"),
            }
        };
        listener.until(last.ticket).await.unwrap();
    });
}
