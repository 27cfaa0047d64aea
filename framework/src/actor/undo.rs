//! What a saga has done and how it is undone: steps in order, compensation in reverse, each once.

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

/// One change of an [`Undo`], as the turn's note keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum UndoChange {
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

/// The steps of one saga and how far they are undone. Rebuilt from its notes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Undo {
    steps: Vec<Step>,
    undoing: Option<Undoing>,
    finished: bool,
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
pub(crate) enum UndoNext {
    /// Send this command, and wait for its reply.
    Send(PlannedCommand),
    /// Wait for a reply.
    Wait,
    /// Send these and end.
    Finish(Vec<PlannedCommand>),
}

impl Undo {
    pub(crate) const fn new() -> Self {
        Self { steps: Vec::new(), undoing: None, finished: false }
    }

    pub(crate) fn is_undoing(&self) -> bool {
        self.undoing.is_some() && !self.finished
    }

    /// Whether `command` is a step whose reply is awaited.
    pub(crate) fn is_step(&self, command: MessageId) -> bool {
        self.steps.iter().any(|step| step.command == command && step.state == StepState::Sent)
    }

    /// Whether `command` undoes the last step and its reply is awaited.
    pub(crate) fn is_waiting_for(&self, command: MessageId) -> bool {
        self.waiting().is_some_and(|waiting| waiting.undoing == command)
    }

    fn waiting(&self) -> Option<Waiting> {
        self.undoing.as_ref().and_then(|undoing| undoing.waiting)
    }

    /// What was waited for, if it was the reply to `command`.
    fn stop_waiting(&mut self, command: MessageId) -> Option<Waiting> {
        let undoing = self.undoing.as_mut()?;
        undoing.waiting.take_if(|waiting| waiting.undoing == command)
    }

    pub(crate) fn change(&mut self, change: &UndoChange) {
        match change {
            UndoChange::Step { command, undo } => {
                self.steps.push(Step { command: *command, undo: undo.clone(), state: StepState::Sent });
            }
            UndoChange::Done { command } => {
                for step in self.steps.iter_mut().filter(|step| step.command == *command) {
                    step.state = StepState::Done;
                }
            }
            UndoChange::Refused { command } => {
                self.steps.retain(|step| step.command != *command);
            }
            UndoChange::Begin { finally } => {
                // Asked for again while it goes on, it goes on: what is waited for stays. The last word on its end counts.
                let undoing = self.undoing.get_or_insert_default();
                if !finally.is_empty() {
                    undoing.finally.clone_from(finally);
                }
            }
            UndoChange::Sent { command } => {
                let step = self.to_undo().map(|step| step.command);
                if let Some(undoing) = &mut self.undoing {
                    undoing.waiting = Some(Waiting { undoing: *command, step });
                }
            }
            UndoChange::Undone { command } => {
                if let Some(waiting) = self.stop_waiting(*command) {
                    self.steps.retain(|step| Some(step.command) != waiting.step);
                }
            }
            UndoChange::Again { command } => drop(self.stop_waiting(*command)),
            UndoChange::Finished => self.finished = true,
        }
    }

    /// The step that is undone next: the last one.
    fn to_undo(&self) -> Option<&Step> {
        self.steps.last()
    }

    /// What to do now, if the saga undoes.
    ///
    /// A step whose reply has not come is waited for: it may or may not have been done, so it must neither be undone
    /// before it is known (the undoing would overtake it) nor be skipped (it would stay).
    pub(crate) fn next(&self) -> UndoNext {
        let Some(undoing) = &self.undoing else { return UndoNext::Wait };
        let unknown = self.steps.iter().any(|step| step.state == StepState::Sent);
        if undoing.waiting.is_some() || unknown {
            return UndoNext::Wait;
        }
        match self.to_undo() {
            Some(step) => UndoNext::Send(step.undo.clone()),
            None => UndoNext::Finish(undoing.finally.clone()),
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
        let mut undo = Undo::default();
        for n in 1..=3 {
            undo.change(&UndoChange::Step { command: id(n), undo: command(&format!("undo{n}")) });
        }
        undo.change(&UndoChange::Done { command: id(1) });
        undo.change(&UndoChange::Done { command: id(3) });
        undo.change(&UndoChange::Begin { finally: vec![command("cancel")] });
        assert_eq!(undo.next(), UndoNext::Wait, "the second step's reply is awaited");
        undo.change(&UndoChange::Refused { command: id(2) });
        assert_eq!(undo.next(), UndoNext::Send(command("undo3")));
        undo.change(&UndoChange::Sent { command: id(13) });
        assert_eq!(undo.next(), UndoNext::Wait);
        undo.change(&UndoChange::Undone { command: id(13) });
        assert_eq!(undo.next(), UndoNext::Send(command("undo1")));
        undo.change(&UndoChange::Sent { command: id(11) });
        undo.change(&UndoChange::Undone { command: id(99) });
        assert_eq!(undo.next(), UndoNext::Wait, "a foreign reply changes nothing");
        undo.change(&UndoChange::Undone { command: id(11) });
        assert_eq!(undo.next(), UndoNext::Finish(vec![command("cancel")]));
    }

    #[test]
    fn asked_for_again_and_with_a_step_more_it_undoes_each_once_all_the_same() {
        let mut undo = Undo::default();
        undo.change(&UndoChange::Step { command: id(1), undo: command("undo1") });
        undo.change(&UndoChange::Done { command: id(1) });
        undo.change(&UndoChange::Begin { finally: Vec::new() });
        undo.change(&UndoChange::Sent { command: id(11) });
        // A command that the saga handles meanwhile asks once more, and takes one more step.
        undo.change(&UndoChange::Begin { finally: vec![command("cancel")] });
        undo.change(&UndoChange::Step { command: id(2), undo: command("undo2") });
        assert_eq!(undo.next(), UndoNext::Wait, "the first step's undoing is awaited");
        undo.change(&UndoChange::Undone { command: id(11) });
        assert_eq!(undo.next(), UndoNext::Wait, "the second step's reply is awaited");
        undo.change(&UndoChange::Done { command: id(2) });
        assert_eq!(undo.next(), UndoNext::Send(command("undo2")));
        undo.change(&UndoChange::Sent { command: id(12) });
        undo.change(&UndoChange::Undone { command: id(12) });
        assert_eq!(undo.next(), UndoNext::Finish(vec![command("cancel")]));
    }
}
