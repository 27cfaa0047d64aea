//! What must hold of a saga that undoes its steps: only what was done is undone, all of it, the last first, each once.
//!
//! Called by the [check](super::check) with the stored turns of each stream. Which steps there are and that they shall be undone
//! is what the saga has taken down; whether a step was done is what its owner has committed, and whether that was known is which
//! replies the saga had taken by then. What the saga itself has concluded from them is not believed.

use std::collections::BTreeSet;

use crate::actor::{CompensationChange, PlannedCommand, compensation_change};
use crate::message::{Envelope, MessageId};
use crate::store::{Note, StoredTurn};

/// A step that may have been done and is not undone.
struct Step {
    command: MessageId,
    name: String,
    undo: PlannedCommand,
}

/// An undoing command under way.
struct Waiting {
    command: MessageId,
    name: String,
    step: MessageId,
}

/// Follows a saga from turn to turn.
struct Walk<R, S> {
    is_rejected: R,
    sent: S,
    /// The ids of the replies taken so far.
    heard: BTreeSet<MessageId>,
    /// In the order in which they were sent.
    steps: Vec<Step>,
    waiting: Option<Waiting>,
    begun: bool,
}

/// Whether the saga behind a stream has undone what it had to: what is wrong, if something is.
///
/// `is_rejected` says what the committed reply to a command says, `sent` what was sent under an id by a turn that undoes.
pub(super) fn undone(
    stream: &[StoredTurn],
    is_rejected: impl Fn(MessageId) -> Option<bool>,
    sent: impl Fn(MessageId) -> Option<Envelope>,
) -> Result<(), String> {
    let (heard, steps) = (BTreeSet::new(), Vec::new());
    let mut walk = Walk { is_rejected, sent, heard, steps, waiting: None, begun: false };
    stream.iter().try_for_each(|turn| walk.turn(turn).map_err(|reason| format!("{reason} (turn {})", turn.number)))
}

impl<R, S> Walk<R, S>
where
    R: Fn(MessageId) -> Option<bool>,
    S: Fn(MessageId) -> Option<Envelope>,
{
    fn turn(&mut self, turn: &StoredTurn) -> Result<(), String> {
        // A message that could not be handled is not taken yet.
        let aside = |note: &Note| matches!(note, Note::Attempt { .. } | Note::DeadLetter(_));
        if !turn.notes.iter().any(aside) {
            self.heard.insert(turn.id);
        }
        if self.waiting.as_ref().is_some_and(|waiting| self.is_done(waiting.command)) {
            let step = self.waiting.take().map(|waiting| waiting.step);
            self.steps.retain(|left| Some(left.command) != step);
        }
        for change in turn.notes.iter().filter_map(compensation_change) {
            match change {
                CompensationChange::Step { command, undo } => {
                    let sent = turn.sent.iter().find(|sent| sent.id == command);
                    let Some(name) = sent.map(|sent| sent.name.to_string()) else {
                        return Err(format!("takes down a step {command} that it does not send"));
                    };
                    self.steps.push(Step { command, name, undo });
                }
                CompensationChange::Begin { .. } => self.begun = true,
                CompensationChange::Sent { command } => self.undoes(command)?,
                CompensationChange::Retry { .. } => self.waiting = None,
                CompensationChange::GivenUp { command } => {
                    let given_up = self.waiting.take_if(|waiting| waiting.command == command);
                    let Some(Waiting { name, step, .. }) = given_up else {
                        return Err(format!("gives up {command}, which undoes nothing"));
                    };
                    if self.is_done(command) {
                        return Err(format!("gives up {name}, which was done"));
                    }
                    self.steps.retain(|left| left.command != step);
                }
                CompensationChange::Restarted => {
                    self.steps.clear();
                    (self.waiting, self.begun) = (None, false);
                }
                CompensationChange::Finished => {
                    self.nothing_is_left()?;
                    // Whatever it is asked for after its end, it was not told to undo it.
                    self.begun = false;
                }
                // What it has concluded; the replies say what is so.
                CompensationChange::Done { .. }
                | CompensationChange::Rejected { .. }
                | CompensationChange::Undone { .. } => {}
            }
        }
        if turn.notes.contains(&Note::Ended) && self.begun { self.nothing_is_left() } else { Ok(()) }
    }

    fn is_heard(&self, command: MessageId) -> bool {
        self.heard.contains(&MessageId::of_reply(command))
    }

    /// Whether the saga knows that a command was done, and that is so.
    fn is_done(&self, command: MessageId) -> bool {
        self.is_heard(command) && (self.is_rejected)(command) == Some(false)
    }

    /// It sends a command that undoes a step.
    fn undoes(&mut self, command: MessageId) -> Result<(), String> {
        let Some(envelope) = (self.sent)(command) else {
            return Err(format!("means to undo a step with {command} and does not send it"));
        };
        let name = envelope.name.to_string();
        if !self.begun {
            return Err(format!("sends {name} to undo a step before it was told to undo"));
        }
        if let Some(waiting) = &self.waiting {
            return Err(format!("sends {name} before it knows whether {} has undone a step", waiting.name));
        }
        if let Some(step) = self.steps.iter().find(|step| !self.is_heard(step.command)) {
            return Err(format!("sends {name} before it knows whether {} was done", step.name));
        }
        let Some(step) = self.steps.iter().rev().find(|step| self.is_done(step.command)) else {
            return Err(format!("sends {name} to undo a step, and has no done step that is not undone"));
        };
        if !is(&step.undo, &envelope) {
            let (of, undo) = (&envelope.key, &step.undo);
            return Err(format!(
                "sends {name} of `{of}` while {}, the last done step, is to be undone by {} of `{}`",
                step.name, undo.name, undo.key
            ));
        }
        self.waiting = Some(Waiting { command, name, step: step.command });
        Ok(())
    }

    /// It ends.
    fn nothing_is_left(&self) -> Result<(), String> {
        if let Some(waiting) = &self.waiting {
            return Err(format!("ends before it knows whether {} has undone a step", waiting.name));
        }
        if let Some(step) = self.steps.iter().find(|step| !self.is_heard(step.command)) {
            return Err(format!("has begun to undo and ends before it knows whether {} was done", step.name));
        }
        match self.steps.iter().find(|step| self.is_done(step.command)) {
            Some(step) => Err(format!(
                "has begun to undo and ends; {} was done, and {} was never sent or done",
                step.name, step.undo.name
            )),
            None => Ok(()),
        }
    }
}

/// Whether an envelope carries a command as it was planned.
fn is(planned: &PlannedCommand, envelope: &Envelope) -> bool {
    let of = (envelope.domain.as_str(), envelope.name.as_str(), envelope.key.as_str(), &envelope.payload[..]);
    (planned.domain.as_str(), planned.name.as_str(), planned.key.as_str(), &planned.payload[..]) == of
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::Timestamp;
    use crate::message::{Codec, Kind, Name, ReplyMode};
    use crate::store::SentMessage;

    const RESERVE: u128 = 1;
    const CHARGE: u128 = 2;
    const RELEASE: u128 = 11;
    const REFUND: u128 = 12;

    fn id(n: u128) -> MessageId {
        MessageId::from_u128(n)
    }

    fn name_of(n: u128) -> &'static str {
        match n {
            RESERVE => "Reserve",
            CHARGE => "Charge",
            RELEASE => "Release",
            _ => "Refund",
        }
    }

    fn planned(n: u128) -> PlannedCommand {
        PlannedCommand {
            domain: "shop".into(),
            shard: 0,
            key: "k".into(),
            name: name_of(n).into(),
            version: 1,
            codec: 1,
            payload: Vec::new(),
        }
    }

    /// A turn that takes a message, sends these and notes that.
    fn turn(taken: MessageId, sent: &[u128], changes: &[CompensationChange]) -> StoredTurn {
        let note = |change: &CompensationChange| {
            let mut bytes = Vec::new();
            Codec::Bincode.encode(change, &mut bytes).unwrap();
            Note::Own(Bytes::from(bytes))
        };
        let message = |n: &u128| SentMessage {
            id: id(*n),
            kind: Kind::Command,
            name: Name::new(name_of(*n)).unwrap(),
            wants: ReplyMode::Reply,
        };
        StoredTurn {
            number: 1,
            version: 0,
            time: Timestamp::default(),
            id: taken,
            correlation: taken,
            from: None,
            digest: None,
            timer: None,
            reply: Bytes::new(),
            reply_codec: Codec::Bincode,
            events: Vec::new(),
            timers: Vec::new(),
            sent: sent.iter().map(message).collect(),
            notes: changes.iter().map(note).collect(),
        }
    }

    /// Two steps are sent.
    fn steps() -> StoredTurn {
        let step = |command, undo| CompensationChange::Step { command: id(command), undo: planned(undo) };
        turn(id(100), &[RESERVE, CHARGE], &[step(RESERVE, RELEASE), step(CHARGE, REFUND)])
    }

    fn reply(to: u128, sent: &[u128], changes: &[CompensationChange]) -> StoredTurn {
        turn(MessageId::of_reply(id(to)), sent, changes)
    }

    fn begin() -> CompensationChange {
        CompensationChange::Begin { finally: Vec::new() }
    }

    fn sent(n: u128) -> CompensationChange {
        CompensationChange::Sent { command: id(n) }
    }

    fn ended(mut turn: StoredTurn) -> StoredTurn {
        turn.notes.push(Note::Ended);
        turn
    }

    /// Checks the turns; these commands were rejected.
    fn check(turns: &[StoredTurn], rejected: &[u128]) -> Result<(), String> {
        undone(
            turns,
            |command| Some(rejected.iter().any(|n| id(*n) == command)),
            |command| {
                let n = [RESERVE, CHARGE, RELEASE, REFUND].into_iter().find(|n| id(*n) == command)?;
                let (domain, name) = (Name::new("shop").unwrap(), Name::new(name_of(n)).unwrap());
                Some(Envelope {
                    key: "k".into(),
                    ..Envelope::new(command, Kind::Command, domain, name, Timestamp::default())
                })
            },
        )
    }

    fn is_found(turns: &[StoredTurn], rejected: &[u128], what: &str) {
        let reason = check(turns, rejected).expect_err(what);
        assert!(reason.contains(what), "{reason}");
    }

    #[test]
    fn all_done_steps_undone_the_last_first_is_right() {
        let turns = [
            steps(),
            reply(RESERVE, &[], &[]),
            turn(id(101), &[], &[begin()]),
            reply(CHARGE, &[REFUND], &[sent(REFUND)]),
            reply(REFUND, &[RELEASE], &[sent(RELEASE)]),
            ended(reply(RELEASE, &[], &[CompensationChange::Finished])),
        ];
        assert_eq!(check(&turns, &[]), Ok(()));
    }

    #[test]
    fn a_refused_step_needs_no_undoing_and_a_saga_may_end_without() {
        let refused = [
            steps(),
            reply(RESERVE, &[], &[]),
            reply(CHARGE, &[RELEASE], &[begin(), sent(RELEASE)]),
            ended(reply(RELEASE, &[], &[CompensationChange::Finished])),
        ];
        assert_eq!(check(&refused, &[CHARGE]), Ok(()));
        let completed = [steps(), reply(RESERVE, &[], &[]), ended(reply(CHARGE, &[], &[]))];
        assert_eq!(check(&completed, &[]), Ok(()));
    }

    #[test]
    fn an_undoing_command_that_a_person_has_sent_again_is_right() {
        let turns = [
            steps(),
            reply(RESERVE, &[], &[]),
            reply(CHARGE, &[RELEASE], &[begin(), sent(RELEASE)]),
            turn(id(101), &[RELEASE], &[CompensationChange::Retry { command: id(RELEASE) }, sent(RELEASE)]),
            ended(reply(RELEASE, &[], &[CompensationChange::Finished])),
        ];
        assert_eq!(check(&turns, &[CHARGE]), Ok(()));
    }

    #[test]
    fn step_whose_letter_was_discarded_may_stay_done() {
        let (charge, release) = (
            reply(CHARGE, &[REFUND], &[begin(), sent(REFUND)]),
            ended(reply(RELEASE, &[], &[CompensationChange::Finished])),
        );
        let given_up = CompensationChange::GivenUp { command: id(REFUND) };
        let turns = [
            steps(),
            reply(RESERVE, &[], &[]),
            charge,
            reply(REFUND, &[RELEASE], &[given_up.clone(), sent(RELEASE)]),
            release,
        ];
        assert_eq!(check(&turns, &[REFUND]), Ok(()));
        let mut hasty = turns.clone();
        if let Some(turn) = hasty.get_mut(3) {
            *turn = ended(reply(REFUND, &[], &[given_up.clone(), CompensationChange::Finished]));
        }
        is_found(&hasty, &[REFUND], "Reserve was done, and Release was never sent or done");
        is_found(&[steps(), reply(RESERVE, &[], &[given_up])], &[], "gives up");
    }

    #[test]
    fn restarted_saga_owes_nothing_of_its_first_run() {
        let turns = [
            steps(),
            ended(reply(RESERVE, &[], &[])),
            turn(
                id(101),
                &[CHARGE],
                &[
                    CompensationChange::Restarted,
                    CompensationChange::Step { command: id(CHARGE), undo: planned(REFUND) },
                ],
            ),
            reply(CHARGE, &[REFUND], &[begin(), sent(REFUND)]),
            ended(reply(REFUND, &[], &[CompensationChange::Finished])),
        ];
        assert_eq!(check(&turns, &[]), Ok(()));
    }

    #[test]
    fn undoing_in_the_order_of_the_steps_is_found() {
        let turns = [steps(), reply(RESERVE, &[], &[]), reply(CHARGE, &[RELEASE], &[begin(), sent(RELEASE)])];
        is_found(
            &turns,
            &[],
            "sends Release of `k` while Charge, the last done step, is to be undone by Refund of `k`",
        );
    }

    #[test]
    fn undoing_before_it_is_known_is_found() {
        let turns = [steps(), reply(RESERVE, &[RELEASE], &[begin(), sent(RELEASE)])];
        is_found(&turns, &[], "sends Release before it knows whether Charge was done");
    }

    #[test]
    fn undoing_what_was_refused_is_found() {
        let turns = [steps(), reply(RESERVE, &[], &[]), reply(CHARGE, &[REFUND], &[begin(), sent(REFUND)])];
        is_found(&turns, &[RESERVE, CHARGE], "sends Refund to undo a step, and has no done step that is not undone");
    }

    #[test]
    fn undoing_twice_is_found() {
        let turns = [
            steps(),
            reply(RESERVE, &[], &[]),
            reply(CHARGE, &[REFUND], &[begin(), sent(REFUND)]),
            turn(id(101), &[REFUND], &[sent(REFUND)]),
        ];
        is_found(&turns, &[], "sends Refund before it knows whether Refund has undone a step");
        let mut turns = turns;
        if let Some(last) = turns.last_mut() {
            *last = reply(REFUND, &[REFUND], &[sent(REFUND)]);
        }
        is_found(&turns, &[], "sends Refund of `k` while Reserve, the last done step, is to be undone by Release");
    }

    #[test]
    fn undoing_without_having_been_told_to_is_found() {
        let turns = [steps(), reply(RESERVE, &[], &[]), reply(CHARGE, &[REFUND], &[sent(REFUND)])];
        is_found(&turns, &[], "sends Refund to undo a step before it was told to undo");
    }

    #[test]
    fn a_done_step_that_is_left_is_found_however_the_saga_ends() {
        let left = "Reserve was done, and Release was never sent or done";
        let half = [steps(), reply(RESERVE, &[], &[]), reply(CHARGE, &[REFUND], &[begin(), sent(REFUND)])];
        let finished = [&half[..], &[ended(reply(REFUND, &[], &[CompensationChange::Finished]))]].concat();
        is_found(&finished, &[], left);
        let given_up = [&half[..], &[ended(reply(REFUND, &[], &[]))]].concat();
        is_found(&given_up, &[], left);
        let hasty = [&half[..], &[ended(turn(id(101), &[], &[]))]].concat();
        is_found(&hasty, &[], "ends before it knows whether Refund has undone a step");
        let deaf = [steps(), ended(reply(RESERVE, &[], &[begin()]))];
        is_found(&deaf, &[], "ends before it knows whether Charge was done");
    }

    #[test]
    fn a_reply_that_failed_to_be_taken_is_not_known() {
        let mut failed = reply(CHARGE, &[], &[]);
        failed.notes.push(Note::Attempt { message: failed.id, attempt: 1 });
        let turns = [steps(), reply(RESERVE, &[], &[]), failed, turn(id(101), &[REFUND], &[begin(), sent(REFUND)])];
        is_found(&turns, &[], "before it knows whether Charge was done");
    }
}
