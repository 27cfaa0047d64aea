//! Timers against a plain list, and their save during changes.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use whizbang_core::message::{Codec, MessageId};

const ACTORS: [&str; 3] = ["Alpha", "Beta", "Gamma"];

fn actor(number: usize) -> Name {
    Name::new(ACTORS[number]).unwrap()
}

/// The stream of an actor: two keys for each type.
fn stream(actor: usize, key: u64) -> Stream {
    Stream(actor as u64, key)
}

fn timer(of: usize, key: u64, name: &str, turn: u64, due: u64) -> Timer {
    Timer {
        actor: actor(of),
        key: key.to_string(),
        name: name.to_owned(),
        turn,
        due: Timestamp::from_millis(due),
        version: 1,
        codec: Codec::Json,
        payload: Bytes::new(),
        correlation: MessageId::from_u128(u128::from(turn)),
    }
}

/// The reference: all timers in the order in which they were set.
type Model = Vec<(Stream, Timer)>;

fn remove(model: &mut Model, stream: Stream, name: &str) {
    model.retain(|(of, timer)| (*of, timer.name.as_str()) != (stream, name));
}

/// Returns the timers in the order in which they fire: those set first come first at the same time.
fn in_order(model: &Model) -> Model {
    let mut timers = model.clone();
    timers.sort_by_key(|(_, timer)| timer.due);
    timers
}

/// Compares every read with the reference.
fn check(timers: &Timers, model: &Model) {
    let ordered = in_order(model);
    assert_eq!(timers.len(), model.len());
    assert_eq!(timers.next(), ordered.first().map(|(_, timer)| timer.due));
    let count = |of: &Name| model.iter().filter(|(_, timer)| timer.actor == *of).count();
    let counts = (0..ACTORS.len()).map(actor).map(|of| (of.clone(), count(&of))).filter(|(_, count)| *count > 0);
    assert_eq!(timers.counts(), counts.collect::<Vec<_>>());
    for now in [0, 1, 3, 5, u64::MAX].map(Timestamp::from_millis) {
        let due: Vec<Timer> = ordered.iter().map(|(_, timer)| timer.clone()).filter(|timer| timer.due <= now).collect();
        for limit in [0, 1, 2, usize::MAX] {
            assert_eq!(timers.due(now, limit), due[..due.len().min(limit)]);
        }
        for of in (0..ACTORS.len()).map(actor) {
            let expected: Vec<_> = ordered.iter().map(|(_, timer)| timer).filter(|timer| timer.actor == of).collect();
            for limit in [1, 2, usize::MAX] {
                check_pages(timers, &of, now, limit, &expected);
            }
        }
    }
}

/// Reads the due timers of an actor page by page.
fn check_pages(timers: &Timers, of: &Name, now: Timestamp, limit: usize, expected: &[&Timer]) {
    let (mut after, mut read) = (TimerCursor::default(), 0);
    loop {
        let page = timers.of(of, after, now, limit);
        assert!(page.due.len() <= limit, "{} in a page of {limit}", page.due.len());
        for (_, timer) in &page.due {
            assert_eq!(timer, expected[read]);
            read += 1;
        }
        assert_eq!(page.next, expected.get(read).map(|timer| timer.due), "the next timer");
        let Some((last, _)) = page.due.last() else { break };
        after = *last;
    }
    assert_eq!(read, expected.iter().filter(|timer| timer.due <= now).count());
}

#[derive(Clone, Debug)]
enum Step {
    Set { actor: usize, key: u64, name: usize, due: u64 },
    Clear { actor: usize, key: u64, name: usize },
    Begin,
    Save(usize),
    Abort,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3usize, 0..2u64, 0..2usize, 0..6u64)
            .prop_map(|(actor, key, name, due)| Step::Set { actor, key, name, due }),
        4 => (0..3usize, 0..2u64, 0..2usize).prop_map(|(actor, key, name)| Step::Clear { actor, key, name }),
        1 => Just(Step::Begin),
        3 => (1..4usize).prop_map(Step::Save),
        1 => Just(Step::Abort),
    ]
}

/// A save that runs: the timers of its beginning, and those it has returned.
struct Saving {
    expected: Model,
    saved: Model,
}

impl Saving {
    /// Saves the next slice. Returns whether the save has ended.
    fn next(&mut self, timers: &mut Timers, limit: usize) -> bool {
        let slice = timers.save_next(limit);
        assert!(slice.len() <= limit, "{} in a slice of {limit}", slice.len());
        self.saved.extend(slice);
        timers.is_saved()
    }

    /// Checks that each timer of the beginning was returned once, and that those which are still set keep their order.
    fn check(&self, model: &Model) {
        let by_turn = |timers: &Model| {
            let mut timers = timers.clone();
            timers.sort_by_key(|(_, timer)| timer.turn);
            timers
        };
        assert_eq!(by_turn(&self.saved), by_turn(&self.expected));
        let mut restored = Timers::default();
        self.saved.iter().for_each(|(stream, timer)| restored.set(*stream, timer.clone()));
        for of in (0..ACTORS.len()).map(actor) {
            let kept = |timer: &&Timer| timer.actor == of && model.iter().any(|(_, now)| now == *timer);
            let page = restored.of(&of, TimerCursor::default(), Timestamp::from_millis(u64::MAX), usize::MAX);
            let ordered = in_order(&self.expected);
            let order: Vec<_> = ordered.iter().map(|(_, timer)| timer).filter(kept).collect();
            assert_eq!(page.due.iter().map(|(_, timer)| timer).filter(kept).collect::<Vec<_>>(), order);
        }
    }
}

proptest! {
    #[test]
    fn timers_are_saved_as_of_the_beginning(steps in proptest::collection::vec(step(), 0..120)) {
        let names = ["pay", "ship"];
        let (mut timers, mut model) = (Timers::default(), Model::new());
        let mut saving: Option<Saving> = None;
        for (step, turn) in steps.into_iter().zip(1..) {
            match step {
                Step::Set { actor, key, name, due } => {
                    let set = timer(actor, key, names[name], turn, due);
                    timers.set(stream(actor, key), set.clone());
                    remove(&mut model, stream(actor, key), names[name]);
                    model.push((stream(actor, key), set));
                }
                Step::Clear { actor, key, name } => {
                    timers.clear(stream(actor, key), names[name]);
                    remove(&mut model, stream(actor, key), names[name]);
                }
                Step::Begin => {
                    timers.begin_saving();
                    saving = Some(Saving { expected: model.clone(), saved: Vec::new() });
                }
                Step::Save(limit) => match saving.take() {
                    None => prop_assert_eq!(timers.save_next(limit), vec![]),
                    Some(mut running) => match running.next(&mut timers, limit) {
                        true => running.check(&model),
                        false => saving = Some(running),
                    },
                },
                Step::Abort => {
                    timers.abort_saving();
                    saving = None;
                }
            }
            prop_assert_eq!(timers.is_saved(), saving.is_none());
        }
        check(&timers, &model);
        if let Some(mut saving) = saving {
            let slices = (0..).take_while(|_| !saving.next(&mut timers, 2)).count();
            prop_assert!(slices <= 24, "{slices} slices");
            saving.check(&model);
        }
    }
}

/// A save that is behind the changes would never end.
#[test]
fn save_visits_no_timers_behind_its_last_one() {
    let mut timers = Timers::default();
    timers.set(stream(1, 0), timer(1, 0, "pay", 1, 5));
    timers.set(stream(1, 1), timer(1, 1, "pay", 2, 7));
    timers.begin_saving();
    // Before the first one, between the two, and behind the last one by due time and by type.
    for (nth, (of, due)) in (3..).zip([(0, 9), (1, 4), (1, 6), (1, 8), (2, 1)]) {
        timers.set(stream(of, nth), timer(of, nth, "pay", nth, due));
    }
    let mut turns = Vec::new();
    let mut slices = 0;
    while !timers.is_saved() {
        turns.extend(timers.save_next(1).into_iter().map(|(_, timer)| timer.turn));
        slices += 1;
    }
    assert_eq!((turns, slices), (vec![1, 2], 6), "five timers are visited, and the end is found");
}

#[test]
fn running_save_keeps_only_unvisited_timers() {
    let mut timers = Timers::default();
    (0..4).for_each(|key| timers.set(stream(0, key), timer(0, key, "pay", key + 1, key)));
    timers.begin_saving();
    assert_eq!(timers.save_next(2).len(), 2);
    timers.set(stream(0, 9), timer(0, 9, "pay", 9, 9));
    [0, 1, 2, 3, 9].into_iter().for_each(|key| timers.clear(stream(0, key), "pay"));
    let kept: Vec<u64> = timers.saving.as_ref().unwrap().cleared.iter().map(|(_, timer)| timer.turn).collect();
    assert_eq!((kept, timers.len(), timers.next()), (vec![3, 4], 0, None));
    assert_eq!([1, 1, 1].map(|limit| timers.save_next(limit).len()), [1, 1, 0]);
    assert!(timers.is_saved());
}
