//! The compensation log of a saga: steps in the order they were sent, undone in reverse, each once.
//!
//! Called by the [routing](super::routing) of a reply and by the [turn](super::turn), which applies changes before it
//! appends them. Every operation costs O(log n) in the number of open steps, so the cost of a saga grows linearly with
//! its steps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::planned_command::{SavedShapes, shapes_of};
use crate::router::PlannedCommand;
use whizbang_core::message::{Fingerprint, MessageId};

/// One change of a `Compensation`, as a turn's note stores it.
#[cfg_attr(not(feature = "testing"), allow(unreachable_pub, reason = "the simulated cluster reads it"))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompensationChange {
    /// A command was sent that can be undone.
    #[doc(hidden)]
    Step { command: MessageId, undo: PlannedCommand },
    /// Its owner has done it.
    #[doc(hidden)]
    Done { command: MessageId },
    /// Its owner has rejected it: nothing to undo.
    #[doc(hidden)]
    Rejected { command: MessageId },
    /// Compensation begins: from now on steps are undone.
    #[doc(hidden)]
    Begin { finally: Vec<PlannedCommand> },
    /// The compensating command of the last open step was sent.
    #[doc(hidden)]
    Sent { command: MessageId },
    /// The step is undone.
    #[doc(hidden)]
    Undone { command: MessageId },
    /// The compensating command was rejected, and an operator wants it sent again.
    #[doc(hidden)]
    Retry { command: MessageId },
    /// Every step is undone; the final commands were sent.
    Finished,
    /// The compensating command was rejected, and an operator discarded that dead letter: its step stays done.
    #[doc(hidden)]
    GivenUp { command: MessageId },
    /// An ended saga starts again with an empty log.
    Restarted,
    /// The fingerprint of a step's compensating command, behind its step.
    #[doc(hidden)]
    StepShape { command: MessageId, shape: u64 },
    /// The fingerprints of the final commands in their order, behind the beginning of the compensation.
    #[doc(hidden)]
    FinalShapes { shapes: Vec<Option<u64>> },
}

impl CompensationChange {
    /// Returns the change that stores the fingerprints of this one's commands, if they have any.
    pub(crate) fn shapes(&self) -> Option<Self> {
        match self {
            Self::Step { command, undo } => {
                undo.shape.map(|shape| Self::StepShape { command: *command, shape: shape.as_u64() })
            }
            Self::Begin { finally } => {
                let shapes = shapes_of(finally);
                (!shapes.is_empty()).then_some(Self::FinalShapes { shapes })
            }
            _ => None,
        }
    }
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
    by_order: BTreeMap<u64, Step>,
    /// The key of each command in `by_order`.
    order: BTreeMap<MessageId, u64>,
    /// The number of steps whose reply has not arrived.
    awaiting_reply: usize,
}

impl Steps {
    const fn new() -> Self {
        Self { by_order: BTreeMap::new(), order: BTreeMap::new(), awaiting_reply: 0 }
    }

    fn add(&mut self, step: Step) {
        let place = self.by_order.last_key_value().map_or(0, |(last, _)| last + 1);
        self.remove(step.command);
        self.awaiting_reply += usize::from(step.state == StepState::Sent);
        self.order.insert(step.command, place);
        self.by_order.insert(place, step);
    }

    fn remove(&mut self, command: MessageId) {
        if let Some(step) = self.order.remove(&command).and_then(|place| self.by_order.remove(&place)) {
            self.awaiting_reply -= usize::from(step.state == StepState::Sent);
        }
    }

    fn get(&self, command: MessageId) -> Option<&Step> {
        self.by_order.get(self.order.get(&command)?)
    }

    fn set_shape(&mut self, command: MessageId, shape: u64) {
        if let Some(step) = self.order.get(&command).and_then(|place| self.by_order.get_mut(place)) {
            step.undo.shape = Some(Fingerprint::from_u64(shape));
        }
    }

    fn mark_done(&mut self, command: MessageId) {
        let step = self.order.get(&command).and_then(|place| self.by_order.get_mut(place));
        if let Some(step) = step.filter(|step| step.state == StepState::Sent) {
            step.state = StepState::Done;
            self.awaiting_reply -= 1;
        }
    }
}

/// Equal if both hold the same steps in the same order.
impl PartialEq for Steps {
    fn eq(&self, other: &Self) -> bool {
        self.by_order.values().eq(other.by_order.values())
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
        steps.by_order.into_values().collect()
    }
}

/// The run that a saga is in. Stored as a number; the `false` and `true` of older versions are the first two values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum SagaRun {
    #[default]
    First,
    /// Every step is undone.
    Finished,
    /// It has ended and was started again.
    Restarted,
}

/// The steps of one saga and the progress of their compensation. Rebuilt from its notes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Compensation {
    steps: Steps,
    active: Option<ActiveCompensation>,
    run: SagaRun,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ActiveCompensation {
    finally: Vec<PlannedCommand>,
    awaited: Option<AwaitedReply>,
}

/// A compensating command whose reply is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct AwaitedReply {
    command: MessageId,
    /// The step that it undoes. Later steps come after it.
    step: Option<MessageId>,
}

/// The next action of a saga that compensates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NextCompensation {
    /// Send this command and await its reply.
    Send(PlannedCommand),
    /// Await a reply.
    Wait,
    /// Send these and end.
    Finish(Vec<PlannedCommand>),
}

impl Compensation {
    pub(crate) const fn new() -> Self {
        Self { steps: Steps::new(), active: None, run: SagaRun::First }
    }

    pub(crate) fn is_compensating(&self) -> bool {
        self.active.is_some() && self.run != SagaRun::Finished
    }

    /// Returns whether the saga has ended and was started again.
    pub(crate) fn is_restarted(&self) -> bool {
        self.run == SagaRun::Restarted
    }

    /// Returns whether `command` is a step whose reply is awaited.
    pub(crate) fn is_step(&self, command: MessageId) -> bool {
        self.steps.get(command).is_some_and(|step| step.state == StepState::Sent)
    }

    /// Returns whether `command` undoes the last step and its reply is awaited.
    pub(crate) fn is_awaiting(&self, command: MessageId) -> bool {
        self.awaited().is_some_and(|awaited| awaited.command == command)
    }

    fn awaited(&self) -> Option<AwaitedReply> {
        self.active.as_ref().and_then(|active| active.awaited)
    }

    /// Removes and returns the awaited reply if it is the one to `command`.
    fn take_awaited(&mut self, command: MessageId) -> Option<AwaitedReply> {
        let active = self.active.as_mut()?;
        active.awaited.take_if(|awaited| awaited.command == command)
    }

    pub(crate) fn apply(&mut self, change: &CompensationChange) {
        match change {
            CompensationChange::Step { command, undo } => {
                self.steps.add(Step { command: *command, undo: undo.clone(), state: StepState::Sent });
            }
            CompensationChange::Done { command } => self.steps.mark_done(*command),
            CompensationChange::Rejected { command } => {
                self.steps.remove(*command);
            }
            CompensationChange::Begin { finally } => {
                // A repeated request continues: the awaited reply stays. The latest final commands replace earlier
                // ones.
                let active = self.active.get_or_insert_default();
                if !finally.is_empty() {
                    active.finally.clone_from(finally);
                }
            }
            CompensationChange::Sent { command } => {
                let step = self.last_step().map(|step| step.command);
                if let Some(active) = &mut self.active {
                    active.awaited = Some(AwaitedReply { command: *command, step });
                }
            }
            // It is not tried again in either case. The log shows that an abandoned step was not undone.
            CompensationChange::Undone { command } | CompensationChange::GivenUp { command } => {
                if let Some(step) = self.take_awaited(*command).and_then(|awaited| awaited.step) {
                    self.steps.remove(step);
                }
            }
            CompensationChange::Retry { command } => drop(self.take_awaited(*command)),
            CompensationChange::StepShape { command, shape } => self.steps.set_shape(*command, *shape),
            CompensationChange::FinalShapes { shapes } => {
                let finally = self.active.iter_mut().flat_map(|active| &mut active.finally);
                for (planned, shape) in finally.zip(shapes) {
                    planned.shape = shape.map(Fingerprint::from_u64);
                }
            }
            CompensationChange::Finished => self.run = SagaRun::Finished,
            CompensationChange::Restarted => *self = Self { run: SagaRun::Restarted, ..Self::new() },
        }
    }

    /// Returns the fingerprints of the planned commands, for a snapshot.
    pub(crate) fn saved_shapes(&self) -> SavedShapes {
        let shape_of = |step: &Step| step.undo.shape.map(|shape| (step.command, shape.as_u64()));
        SavedShapes {
            steps: self.steps.by_order.values().filter_map(shape_of).collect(),
            finally: self.active.as_ref().map_or_else(Vec::new, |active| shapes_of(&active.finally)),
        }
    }

    /// Restores the fingerprints of a snapshot.
    pub(crate) fn restore_shapes(&mut self, saved: SavedShapes) {
        for (command, shape) in saved.steps {
            self.steps.set_shape(command, shape);
        }
        self.apply(&CompensationChange::FinalShapes { shapes: saved.finally });
    }

    /// Returns the step to undo next: the last one.
    fn last_step(&self) -> Option<&Step> {
        self.steps.by_order.last_key_value().map(|(_, step)| step)
    }

    /// Returns the next action of a saga that compensates.
    ///
    /// A step without a reply is awaited, because it may or may not have been done. Undoing it now could overtake it;
    /// skipping it would leave it done.
    pub(crate) fn next(&self) -> NextCompensation {
        let Some(active) = &self.active else { return NextCompensation::Wait };
        if active.awaited.is_some() || self.steps.awaiting_reply > 0 {
            return NextCompensation::Wait;
        }
        match self.last_step() {
            Some(step) => NextCompensation::Send(step.undo.clone()),
            None => NextCompensation::Finish(active.finally.clone()),
        }
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
