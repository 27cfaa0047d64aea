//! The compensation log of a saga: steps in the order they were sent, undone in reverse, each once.
//!
//! Called by the [decision](super::routing) on a reply and by the [turn](super::turn), which applies changes before it appends
//! them. Every operation costs O(log n) in the number of open steps, so a saga of thousands of steps stays linear.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::message::{Codec, MessageId};

/// A command written down for later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlannedCommand {
    pub(crate) domain: String,
    pub(crate) shard: u16,
    pub(crate) key: String,
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) codec: u8,
    pub(crate) payload: Vec<u8>,
}

impl PlannedCommand {
    pub(crate) fn codec(&self) -> Codec {
        // Written by this module from a codec, so the number is known; bincode stands in if the log was made elsewhere.
        Codec::from_id(self.codec).unwrap_or(Codec::Bincode)
    }
}

/// One change of an [`Compensation`], as the turn's note keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CompensationChange {
    /// A command was sent that can be undone.
    Step { command: MessageId, undo: PlannedCommand },
    /// Its owner has done it.
    Done { command: MessageId },
    /// Its owner has refused it: nothing to undo.
    Refused { command: MessageId },
    /// From now on steps are undone.
    Begin { finally: Vec<PlannedCommand> },
    /// The undoing command of the last step not yet undone was sent.
    Sent { command: MessageId },
    /// It has been done.
    Undone { command: MessageId },
    /// The undoing command was rejected, and a person wants it sent again.
    Again { command: MessageId },
    /// All is undone; the last commands were sent.
    Finished,
    /// The undoing command was rejected, and an operator discarded that dead letter: its step stays done.
    GivenUp { command: MessageId },
    /// An ended saga starts again with an empty log.
    Restarted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum StepState {
    Sent,
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    command: MessageId,
    undo: PlannedCommand,
    state: StepState,
}

/// The open steps, in the order in which they were sent. Stored as a list.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<Step>", into = "Vec<Step>")]
struct Steps {
    /// By the order in which they were sent.
    sent: BTreeMap<u64, Step>,
    /// The place of each in `sent`, by its command.
    places: BTreeMap<MessageId, u64>,
    /// The number of steps whose reply has not come.
    unanswered: usize,
}

impl Steps {
    const fn new() -> Self {
        Self { sent: BTreeMap::new(), places: BTreeMap::new(), unanswered: 0 }
    }

    fn add(&mut self, step: Step) {
        let place = self.sent.last_key_value().map_or(0, |(last, _)| last + 1);
        self.remove(step.command);
        self.unanswered += usize::from(step.state == StepState::Sent);
        self.places.insert(step.command, place);
        self.sent.insert(place, step);
    }

    fn remove(&mut self, command: MessageId) {
        if let Some(step) = self.places.remove(&command).and_then(|place| self.sent.remove(&place)) {
            self.unanswered -= usize::from(step.state == StepState::Sent);
        }
    }

    fn get(&self, command: MessageId) -> Option<&Step> {
        self.sent.get(self.places.get(&command)?)
    }

    fn done(&mut self, command: MessageId) {
        let step = self.places.get(&command).and_then(|place| self.sent.get_mut(place));
        if let Some(step) = step.filter(|step| step.state == StepState::Sent) {
            step.state = StepState::Done;
            self.unanswered -= 1;
        }
    }
}

/// Equal if the same steps come in the same order.
impl PartialEq for Steps {
    fn eq(&self, other: &Self) -> bool {
        self.sent.values().eq(other.sent.values())
    }
}

impl Eq for Steps {}

impl From<Vec<Step>> for Steps {
    fn from(list: Vec<Step>) -> Self {
        let mut steps = Self::new();
        list.into_iter().for_each(|step| steps.add(step));
        steps
    }
}

impl From<Steps> for Vec<Step> {
    fn from(steps: Steps) -> Self {
        steps.sent.into_values().collect()
    }
}

/// How often a saga has run. Stored as a number: `false` and `true` of older versions are the first two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Run {
    #[default]
    First,
    /// All steps are undone.
    Finished,
    /// It has ended before and was started again.
    Again,
}

/// The steps of one saga and how far they are undone. Rebuilt from its notes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compensation {
    steps: Steps,
    undoing: Option<Undoing>,
    run: Run,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Undoing {
    finally: Vec<PlannedCommand>,
    waiting: Option<Waiting>,
}

/// An undoing command whose reply is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    undoing: MessageId,
    /// The step it undoes. Steps that were sent since stand behind it.
    step: Option<MessageId>,
}

/// What a saga that undoes has to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NextCompensation {
    /// Send this command, and wait for its reply.
    Send(PlannedCommand),
    /// Wait for a reply.
    Wait,
    /// Send these and end.
    Finish(Vec<PlannedCommand>),
}

impl Compensation {
    pub(crate) const fn new() -> Self {
        Self { steps: Steps::new(), undoing: None, run: Run::First }
    }

    pub(crate) fn is_undoing(&self) -> bool {
        self.undoing.is_some() && self.run != Run::Finished
    }

    /// Returns whether the saga has ended before and was started again.
    pub(crate) fn is_restarted(&self) -> bool {
        self.run == Run::Again
    }

    /// Whether `command` is a step whose reply is awaited.
    pub(crate) fn is_step(&self, command: MessageId) -> bool {
        self.steps.get(command).is_some_and(|step| step.state == StepState::Sent)
    }

    /// Whether `command` undoes the last step and its reply is awaited.
    pub(crate) fn is_waiting_for(&self, command: MessageId) -> bool {
        self.waiting().is_some_and(|waiting| waiting.undoing == command)
    }

    fn waiting(&self) -> Option<Waiting> {
        self.undoing.as_ref().and_then(|undoing| undoing.waiting)
    }

    /// Stops waiting for the reply to `command`: what was waited for, if it was that.
    fn stop_waiting(&mut self, command: MessageId) -> Option<Waiting> {
        let undoing = self.undoing.as_mut()?;
        undoing.waiting.take_if(|waiting| waiting.undoing == command)
    }

    pub(crate) fn change(&mut self, change: &CompensationChange) {
        match change {
            CompensationChange::Step { command, undo } => {
                self.steps.add(Step { command: *command, undo: undo.clone(), state: StepState::Sent });
            }
            CompensationChange::Done { command } => self.steps.done(*command),
            CompensationChange::Refused { command } => {
                self.steps.remove(*command);
            }
            CompensationChange::Begin { finally } => {
                // Asked for again while it goes on, it goes on: what is waited for stays. The last word on its end counts.
                let undoing = self.undoing.get_or_insert_default();
                if !finally.is_empty() {
                    undoing.finally.clone_from(finally);
                }
            }
            CompensationChange::Sent { command } => {
                let step = self.to_undo().map(|step| step.command);
                if let Some(undoing) = &mut self.undoing {
                    undoing.waiting = Some(Waiting { undoing: *command, step });
                }
            }
            // Either way it is not tried again. That a step given up was not undone stands in the log.
            CompensationChange::Undone { command } | CompensationChange::GivenUp { command } => {
                if let Some(step) = self.stop_waiting(*command).and_then(|waiting| waiting.step) {
                    self.steps.remove(step);
                }
            }
            CompensationChange::Again { command } => drop(self.stop_waiting(*command)),
            CompensationChange::Finished => self.run = Run::Finished,
            CompensationChange::Restarted => *self = Self { run: Run::Again, ..Self::new() },
        }
    }

    /// The step that is undone next: the last one.
    fn to_undo(&self) -> Option<&Step> {
        self.steps.sent.last_key_value().map(|(_, step)| step)
    }

    /// Returns what to do now, if the saga undoes.
    ///
    /// A step whose reply has not come is waited for: it may or may not have been done, so it must neither be undone
    /// before it is known (the undoing would overtake it) nor be skipped (it would stay).
    pub(crate) fn next(&self) -> NextCompensation {
        let Some(undoing) = &self.undoing else { return NextCompensation::Wait };
        if undoing.waiting.is_some() || self.steps.unanswered > 0 {
            return NextCompensation::Wait;
        }
        match self.to_undo() {
            Some(step) => NextCompensation::Send(step.undo.clone()),
            None => NextCompensation::Finish(undoing.finally.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u128) -> MessageId {
        MessageId::from_u128(n)
    }

    fn command(name: &str) -> PlannedCommand {
        PlannedCommand {
            domain: "stock".into(),
            shard: 0,
            key: "k".into(),
            name: name.into(),
            version: 1,
            codec: 1,
            payload: Vec::new(),
        }
    }

    #[test]
    fn steps_are_undone_in_reverse_each_once_and_refused_ones_never() {
        let mut undo = Compensation::default();
        for n in 1..=3 {
            undo.change(&CompensationChange::Step { command: id(n), undo: command(&format!("undo{n}")) });
        }
        undo.change(&CompensationChange::Done { command: id(1) });
        undo.change(&CompensationChange::Done { command: id(3) });
        undo.change(&CompensationChange::Begin { finally: vec![command("cancel")] });
        assert_eq!(undo.next(), NextCompensation::Wait, "the second step's reply is awaited");
        undo.change(&CompensationChange::Refused { command: id(2) });
        assert_eq!(undo.next(), NextCompensation::Send(command("undo3")));
        undo.change(&CompensationChange::Sent { command: id(13) });
        assert_eq!(undo.next(), NextCompensation::Wait);
        undo.change(&CompensationChange::Undone { command: id(13) });
        assert_eq!(undo.next(), NextCompensation::Send(command("undo1")));
        undo.change(&CompensationChange::Sent { command: id(11) });
        undo.change(&CompensationChange::Undone { command: id(99) });
        assert_eq!(undo.next(), NextCompensation::Wait, "a foreign reply changes nothing");
        undo.change(&CompensationChange::Undone { command: id(11) });
        assert_eq!(undo.next(), NextCompensation::Finish(vec![command("cancel")]));
    }

    #[test]
    fn asked_for_again_and_with_a_step_more_it_undoes_each_once_all_the_same() {
        let mut undo = Compensation::default();
        undo.change(&CompensationChange::Step { command: id(1), undo: command("undo1") });
        undo.change(&CompensationChange::Done { command: id(1) });
        undo.change(&CompensationChange::Begin { finally: Vec::new() });
        undo.change(&CompensationChange::Sent { command: id(11) });
        // A command that the saga handles meanwhile asks once more, and takes one more step.
        undo.change(&CompensationChange::Begin { finally: vec![command("cancel")] });
        undo.change(&CompensationChange::Step { command: id(2), undo: command("undo2") });
        assert_eq!(undo.next(), NextCompensation::Wait, "the first step's undoing is awaited");
        undo.change(&CompensationChange::Undone { command: id(11) });
        assert_eq!(undo.next(), NextCompensation::Wait, "the second step's reply is awaited");
        undo.change(&CompensationChange::Done { command: id(2) });
        assert_eq!(undo.next(), NextCompensation::Send(command("undo2")));
        undo.change(&CompensationChange::Sent { command: id(12) });
        undo.change(&CompensationChange::Undone { command: id(12) });
        assert_eq!(undo.next(), NextCompensation::Finish(vec![command("cancel")]));
    }

    #[test]
    fn step_given_up_leaves_the_rest_to_undo() {
        let mut undo = Compensation::default();
        for n in 1..=2 {
            undo.change(&CompensationChange::Step { command: id(n), undo: command(&format!("undo{n}")) });
            undo.change(&CompensationChange::Done { command: id(n) });
        }
        undo.change(&CompensationChange::Begin { finally: Vec::new() });
        undo.change(&CompensationChange::Sent { command: id(12) });
        undo.change(&CompensationChange::GivenUp { command: id(12) });
        assert_eq!(undo.next(), NextCompensation::Send(command("undo1")));
    }

    #[test]
    fn restart_forgets_all_steps() {
        let mut undo = Compensation::default();
        undo.change(&CompensationChange::Step { command: id(1), undo: command("undo1") });
        undo.change(&CompensationChange::Begin { finally: Vec::new() });
        undo.change(&CompensationChange::Finished);
        undo.change(&CompensationChange::Restarted);
        assert!(undo.is_restarted() && !undo.is_undoing() && !undo.is_step(id(1)));
        undo.change(&CompensationChange::Step { command: id(2), undo: command("undo2") });
        undo.change(&CompensationChange::Done { command: id(2) });
        undo.change(&CompensationChange::Begin { finally: Vec::new() });
        assert!(undo.is_undoing());
        assert_eq!(undo.next(), NextCompensation::Send(command("undo2")));
    }

    /// The form in which older versions stored it in snapshots.
    #[derive(Serialize)]
    struct Older {
        steps: Vec<Step>,
        undoing: Option<Undoing>,
        finished: bool,
    }

    #[test]
    fn stored_form_is_that_of_older_versions() {
        for (finished, run) in [(false, Run::First), (true, Run::Finished)] {
            let step = |n, state| Step { command: id(n), undo: command("u"), state };
            let list = vec![step(2, StepState::Done), step(1, StepState::Sent)];
            let undoing = Some(Undoing { finally: vec![command("f")], waiting: None });
            let (mut older, mut newer) = (Vec::new(), Vec::new());
            let undo = Compensation { steps: list.clone().into(), undoing: undoing.clone(), run };
            Codec::Bincode.encode(&Older { steps: list, undoing, finished }, &mut older).unwrap();
            Codec::Bincode.encode(&undo, &mut newer).unwrap();
            assert_eq!(older, newer);
            assert_eq!(Codec::Bincode.decode::<Compensation>(&older), Ok(undo));
        }
    }
}
