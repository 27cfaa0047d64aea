//! Lives of a store that end in ways of their own, and whether everything is right afterwards.

use crate::machine::{Fault, Machine};
use crate::story::{Life, Story};

/// How a life ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Kill,
    PowerCut,
}

impl End {
    pub(crate) fn come(self, machine: &Machine) {
        match self {
            Self::Kill => machine.kill(),
            Self::PowerCut => machine.cut_power(),
        }
    }
}

/// How much a store is told in the life that something happens in.
pub(crate) const STEPS: usize = 120;

/// A store that was closed in order once.
pub(crate) fn begin(seed: u64) -> Story {
    let mut story = Story::new(seed);
    let mut life = story.open().unwrap();
    story.go_on(&mut life, STEPS / 4).unwrap();
    drop(life);
    story.machine.kill();
    story
}

/// A second life, with a fault at one of its calls; the life, if the store could be opened.
pub(crate) fn tell(seed: u64, fault: Option<(usize, Fault)>) -> (Story, Option<Life>) {
    let mut story = begin(seed);
    if let Some((call, fault)) = fault {
        story.machine.plan(call, fault);
    }
    let Ok(mut life) = story.look() else { return (story, None) };
    let told = story.go_on(&mut life, STEPS);
    // Not every call is one that a turn waits for.
    assert!(told.is_ok() || story.machine.has_struck(), "{told:?}");
    story.hear(&life);
    (story, Some(life))
}

/// How many calls a second life has.
pub(crate) fn calls(seed: u64) -> usize {
    let (story, life) = tell(seed, None);
    drop(life);
    let calls = story.machine.calls().len();
    assert!(calls > 150, "only {calls} calls");
    calls
}

/// After a life has ended somehow: everything is right, and the store goes on working.
pub(crate) fn is_right_and_goes_on(story: &mut Story, steps: usize) {
    let mut life = story.look().unwrap();
    story.go_on(&mut life, steps).unwrap();
    // Before it can close.
    story.machine.cut_power();
    drop(life);
    drop(story.look().unwrap());
}
