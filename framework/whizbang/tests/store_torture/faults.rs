//! The disk fails or is full: nothing is reported that is not durable, whoever waits is told, and a flush is never tried again.

use std::sync::Arc;
use std::time::Duration;

use whizbang::store::embedded::EmbeddedStore;
use whizbang::store::{Store, StoreError};
use whizbang::testing::store::{Owner, RecordingListener, TurnBuilder, run};

use crate::brief_or_long;
use crate::lives::{End, begin, calls, is_right_and_goes_on, tell};
use crate::machine::{Fault, Kind, Machine};
use crate::picture::{now, picture, shard};
use crate::story::small;

fn is_of_the_disk(error: &StoreError) -> bool {
    matches!(error, StoreError::Io { .. } | StoreError::Full { .. })
}

/// How many stores have stopped, and how many went on as if nothing had been.
fn fail_at_every_call(fault: Fault, seeds: std::ops::Range<u64>) -> (usize, usize) {
    let (mut stopped, mut went_on) = (0, 0);
    for seed in seeds {
        for call in 0..calls(seed) {
            let (mut story, life) = tell(seed, Some((call, fault)));
            let struck = story.machine.calls().get(call).cloned();
            println!("seed {seed}, call {call} {struck:?}");
            match life {
                // The fault comes when it is closed.
                Some(life) if struck.is_none() => drop(life),
                // It could not even be opened; then it can be now, in the same process.
                None => drop(story.look().unwrap()),
                Some(mut life) => {
                    if let Some(error) = life.ears.error() {
                        assert!(is_of_the_disk(&error), "{error}");
                        let reported = story.reported();
                        let refused = story.go_on(&mut life, 1).unwrap_err();
                        assert!(matches!(refused, StoreError::Closed), "{refused}");
                        story.hear(&life);
                        assert_eq!(story.reported(), reported, "a store that has failed reports nothing");
                        assert!(now(life.store.close()).is_err_and(|error| is_of_the_disk(&error)));
                        stopped += 1;
                    } else if let Err(error) = story.go_on(&mut life, 10) {
                        // It has failed before anybody listened.
                        assert!(matches!(error, StoreError::Closed), "{error}");
                        assert!(now(life.store.close()).is_err_and(|error| is_of_the_disk(&error)));
                        stopped += 1;
                    } else {
                        let is_flush =
                            |(kind, name): (Kind, String)| kind == Kind::SyncFile && name.starts_with("log-");
                        assert!(!struck.is_some_and(is_flush), "a flush that failed went by");
                        went_on += 1;
                    }
                }
            }
            let end = if call % 2 == 0 { End::Kill } else { End::PowerCut };
            end.come(&story.machine);
            is_right_and_goes_on(&mut story, 1 + call % 30);
        }
    }
    (stopped, went_on)
}

#[test]
fn whatever_call_fails_nothing_is_reported_that_is_not_there_afterwards() {
    let (stopped, went_on) = fail_at_every_call(Fault::Broken, 300..brief_or_long(301, 330));
    assert!(stopped > 20 && went_on > 20, "{stopped} stopped, {went_on} went on");
}

#[test]
fn whatever_call_finds_the_disk_full_nothing_is_lost() {
    let (stopped, went_on) = fail_at_every_call(Fault::Full, 400..brief_or_long(401, 430));
    assert!(stopped > 10 && went_on > 20, "{stopped} stopped, {went_on} went on");
}

#[test]
fn after_a_flush_has_failed_the_store_stops_and_never_asks_again() {
    let mut story = begin(1);
    let mut life = story.look().unwrap();
    story.go_on(&mut life, 10).unwrap();
    let reported = story.reported();
    story.machine.breaks(Kind::SyncFile);
    let before = story.machine.calls().len();
    let error = loop {
        if let Err(error) = story.go_on(&mut life, 10) {
            break error;
        }
    };
    assert!(is_of_the_disk(&error), "{error}");
    assert!(life.ears.error().is_some(), "the listener is told");
    story.hear(&life);
    assert_eq!(story.reported(), reported, "nothing is reported");
    life.store.step();
    drop(life);
    let calls = story.machine.calls();
    let flushes = calls[before..].iter().filter(|(kind, name)| *kind == Kind::SyncFile && name.starts_with("log-"));
    assert_eq!(flushes.count(), 1, "asked once: {:?}", &calls[before..]);
    story.machine.kill();
    is_right_and_goes_on(&mut story, 20);
}

#[test]
fn a_full_disk_refuses_turns_and_once_there_is_room_they_go_on() {
    for seed in 500..brief_or_long(510, 600) {
        let mut story = begin(seed);
        let mut life = story.look().unwrap();
        let used: usize = story.machine.files().values().map(Vec::len).sum();
        story.machine.set_room(Some(used + 6000));
        let refused = loop {
            match story.go_on(&mut life, 10) {
                Ok(()) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, StoreError::Full { .. }), "{refused}");
        story.commit(&life).unwrap();
        let held = picture(&*life.store).map(drop);
        assert!(held.is_ok() || matches!(held, Err(StoreError::Full { .. })), "what is there can be read: {held:?}");
        story.machine.set_room(None);
        story.go_on(&mut life, 20).unwrap();
        drop(life);
        story.machine.cut_power();
        is_right_and_goes_on(&mut story, 10);
    }
}

#[test]
fn with_its_own_threads_a_full_disk_is_looked_at_again_however_busy_it_is() {
    let machine = Machine::new(1);
    run(async {
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open_on(machine.disk(), &small(), None).unwrap());
        let ears = Arc::new(RecordingListener::default());
        let mut owner = Owner::take_with(&store, &shard("bank", 0), Arc::clone(&ears)).await;
        machine.set_room(Some(0));
        let mut turns = 0;
        let mut append = |owner: &mut Owner| {
            let draft = TurnBuilder::new("Account", "ada", turns).at(turns + 1, turns).event("Happened", vec![1; 300]);
            owner.append(&draft).inspect(|_| turns += 1)
        };
        while append(&mut owner).is_ok() {}
        assert!(matches!(append(&mut owner), Err(StoreError::Full { .. })));
        machine.set_room(None);
        let begun = tokio::time::Instant::now();
        // Without a pause: whoever sends does not know that the disk needs time.
        let last = loop {
            match append(&mut owner) {
                Ok(appended) => break appended,
                Err(error) => assert!(begun.elapsed() < Duration::from_secs(20), "still {error}"),
            }
        };
        ears.until(last.ticket).await.unwrap();
    });
}
