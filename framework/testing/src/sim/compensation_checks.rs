//! Rules for sagas that compensate: all completed steps are compensated, only those, in reverse order, each once.
//!
//! Called by the [store checks](super::store_checks) with the stored turns of each stream. Steps and the decision to compensate
//! come from the notes of the saga. Whether a step was completed comes from the reply that its owner committed, and whether the
//! saga knew that comes from the replies that it had handled. The saga's own conclusions are not trusted.

use std::collections::BTreeSet;

use whizbang_core::message::{Envelope, MessageId};
use whizbang_core::store::{Note, StoredTurn};
use whizbang_runtime::actor::{CompensationChange, compensation_change};
use whizbang_runtime::router::PlannedCommand;

/// A step that may have been completed and is not compensated.
struct Step {
    /// The id of the command that the compensation undoes.
    command: MessageId,
    /// The name of the step's command.
    name: String,
    /// The command that undoes it.
    compensation: PlannedCommand,
}

/// A compensating command without a reply.
struct PendingCompensation {
    /// The id of the command that compensates.
    command: MessageId,
    /// Its name.
    name: String,
    /// The command that this one undoes.
    step: MessageId,
}

/// The state of a saga, updated turn by turn.
struct Checker<R, S> {
    /// Decides whether the owner has rejected a command, from its committed reply.
    is_rejected: R,
    /// Returns the sent messages of a turn.
    sent: S,
    /// The ids of the replies that were handled.
    replies: BTreeSet<MessageId>,
    /// The open steps in the order in which they were sent.
    steps: Vec<Step>,
    /// The compensating command without a reply. The next one is sent after it.
    pending: Option<PendingCompensation>,
    /// The saga compensates.
    compensating: bool,
}

/// Checks the compensation of the saga with this stream.
///
/// `is_rejected` returns the committed outcome of a command. `sent` returns the message that a compensating turn sent.
pub(super) fn check_compensation(
    stream: &[StoredTurn],
    is_rejected: impl Fn(MessageId) -> Option<bool>,
    sent: impl Fn(MessageId) -> Option<Envelope>,
) -> Result<(), String> {
    let (replies, steps) = (BTreeSet::new(), Vec::new());
    let mut checker = Checker { is_rejected, sent, replies, steps, pending: None, compensating: false };
    stream.iter().try_for_each(|turn| checker.turn(turn).map_err(|reason| format!("{reason} (turn {})", turn.number)))
}

impl<R, S> Checker<R, S>
where
    R: Fn(MessageId) -> Option<bool>,
    S: Fn(MessageId) -> Option<Envelope>,
{
    fn turn(&mut self, turn: &StoredTurn) -> Result<(), String> {
        // A message that failed is not handled yet.
        let is_failed = |note: &Note| matches!(note, Note::Attempt { .. } | Note::DeadLetter(_));
        if !turn.notes.iter().any(is_failed) {
            self.replies.insert(turn.id);
        }
        if self.pending.as_ref().is_some_and(|pending| self.is_done(pending.command)) {
            let step = self.pending.take().map(|pending| pending.step);
            self.steps.retain(|left| Some(left.command) != step);
        }
        for change in turn.notes.iter().filter_map(compensation_change) {
            match change {
                CompensationChange::Step { command, undo: compensation } => {
                    let sent = turn.sent.iter().find(|sent| sent.id == command);
                    let Some(name) = sent.map(|sent| sent.name.to_string()) else {
                        return Err(format!("records a step {command} that it does not send"));
                    };
                    self.steps.push(Step { command, name, compensation });
                }
                CompensationChange::Begin { .. } => self.compensating = true,
                CompensationChange::Sent { command } => self.check_sent(command)?,
                CompensationChange::Retry { .. } => self.pending = None,
                CompensationChange::GivenUp { command } => {
                    let given_up = self.pending.take_if(|pending| pending.command == command);
                    let Some(PendingCompensation { name, step, .. }) = given_up else {
                        return Err(format!("gives up {command}, which compensates nothing"));
                    };
                    if self.is_done(command) {
                        return Err(format!("gives up {name}, which was completed"));
                    }
                    self.steps.retain(|left| left.command != step);
                }
                CompensationChange::Restarted => {
                    self.steps.clear();
                    (self.pending, self.compensating) = (None, false);
                }
                CompensationChange::Finished => {
                    self.check_complete()?;
                    // Steps added after the end are not part of this compensation.
                    self.compensating = false;
                }
                // Conclusions of the saga are ignored; the replies count.
                CompensationChange::Done { .. }
                | CompensationChange::Rejected { .. }
                | CompensationChange::Undone { .. }
                | CompensationChange::StepShape { .. }
                | CompensationChange::FinalShapes { .. } => {}
            }
        }
        if turn.notes.contains(&Note::Ended) && self.compensating { self.check_complete() } else { Ok(()) }
    }

    fn is_outbound_open(&self, command: MessageId) -> bool {
        self.replies.contains(&MessageId::of_reply(command))
    }

    /// Returns whether the saga has handled a reply that confirms the command.
    fn is_done(&self, command: MessageId) -> bool {
        self.is_outbound_open(command) && (self.is_rejected)(command) == Some(false)
    }

    /// Checks a compensating command.
    fn check_sent(&mut self, command: MessageId) -> Result<(), String> {
        let Some(envelope) = (self.sent)(command) else {
            return Err(format!("records the compensating command {command} but does not send it"));
        };
        let name = envelope.name.to_string();
        if !self.compensating {
            return Err(format!("sends {name} before compensation was requested"));
        }
        if let Some(pending) = &self.pending {
            return Err(format!("sends {name} before it has the reply to {}", pending.name));
        }
        if let Some(step) = self.steps.iter().find(|step| !self.is_outbound_open(step.command)) {
            return Err(format!("sends {name} before it has the reply to {}", step.name));
        }
        let Some(step) = self.steps.iter().rev().find(|step| self.is_done(step.command)) else {
            return Err(format!("sends {name} without a completed step to compensate"));
        };
        if !matches_plan(&step.compensation, &envelope) {
            let (actual, compensation) = (&envelope.key, &step.compensation);
            return Err(format!(
                "sends {name} of `{actual}`, but the last completed step {} is compensated by {} of `{}`",
                step.name, compensation.name, compensation.key
            ));
        }
        self.pending = Some(PendingCompensation { command, name, step: step.command });
        Ok(())
    }

    /// Checks that nothing is left to compensate when the saga ends.
    fn check_complete(&self) -> Result<(), String> {
        if let Some(pending) = &self.pending {
            return Err(format!("ends before it has the reply to {}", pending.name));
        }
        if let Some(step) = self.steps.iter().find(|step| !self.is_outbound_open(step.command)) {
            return Err(format!("ends compensation before it has the reply to {}", step.name));
        }
        match self.steps.iter().find(|step| self.is_done(step.command)) {
            Some(step) => Err(format!(
                "ends compensation although {} was completed and {} was not",
                step.name, step.compensation.name
            )),
            None => Ok(()),
        }
    }
}

/// Returns whether an envelope contains the planned command.
fn matches_plan(planned: &PlannedCommand, envelope: &Envelope) -> bool {
    let actual = (envelope.domain.as_str(), envelope.name.as_str(), envelope.key.as_str(), &envelope.payload[..]);
    (planned.domain.as_str(), planned.name.as_str(), planned.key.as_str(), &planned.payload[..]) == actual
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use whizbang_core::clock::Timestamp;
    use whizbang_core::message::{Codec, Kind, Name, ReplyMode};
    use whizbang_core::store::SentMessage;

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
            shape: None,
        }
    }

    /// Returns a turn that handles a message, sends commands and records changes.
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

    /// Returns a turn that sends two steps.
    fn steps() -> StoredTurn {
        let step =
            |command, compensation| CompensationChange::Step { command: id(command), undo: planned(compensation) };
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

    /// Checks turns in which some commands were rejected.
    fn check(turns: &[StoredTurn], rejected: &[u128]) -> Result<(), String> {
        check_compensation(
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

    fn assert_violation(turns: &[StoredTurn], rejected: &[u128], expected: &str) {
        let reason = check(turns, rejected).expect_err(expected);
        assert!(reason.contains(expected), "{reason}");
    }

    #[test]
    fn reverse_compensation_is_valid() {
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
    fn rejected_step_needs_no_compensation() {
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
    fn redriven_compensation_is_valid() {
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
    fn step_with_discarded_compensation_may_remain() {
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
        assert_violation(&hasty, &[REFUND], "Reserve was completed and Release was not");
        assert_violation(&[steps(), reply(RESERVE, &[], &[given_up])], &[], "gives up");
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
    fn compensation_in_forward_order_is_found() {
        let turns = [steps(), reply(RESERVE, &[], &[]), reply(CHARGE, &[RELEASE], &[begin(), sent(RELEASE)])];
        assert_violation(
            &turns,
            &[],
            "sends Release of `k`, but the last completed step Charge is compensated by Refund of `k`",
        );
    }

    #[test]
    fn compensation_before_reply_is_found() {
        let turns = [steps(), reply(RESERVE, &[RELEASE], &[begin(), sent(RELEASE)])];
        assert_violation(&turns, &[], "sends Release before it has the reply to Charge");
    }

    #[test]
    fn compensation_of_rejected_step_is_found() {
        let turns = [steps(), reply(RESERVE, &[], &[]), reply(CHARGE, &[REFUND], &[begin(), sent(REFUND)])];
        assert_violation(&turns, &[RESERVE, CHARGE], "sends Refund without a completed step to compensate");
    }

    #[test]
    fn repeated_compensation_is_found() {
        let turns = [
            steps(),
            reply(RESERVE, &[], &[]),
            reply(CHARGE, &[REFUND], &[begin(), sent(REFUND)]),
            turn(id(101), &[REFUND], &[sent(REFUND)]),
        ];
        assert_violation(&turns, &[], "sends Refund before it has the reply to Refund");
        let mut turns = turns;
        if let Some(last) = turns.last_mut() {
            *last = reply(REFUND, &[REFUND], &[sent(REFUND)]);
        }
        assert_violation(
            &turns,
            &[],
            "sends Refund of `k`, but the last completed step Reserve is compensated by Release",
        );
    }

    #[test]
    fn unrequested_compensation_is_found() {
        let turns = [steps(), reply(RESERVE, &[], &[]), reply(CHARGE, &[REFUND], &[sent(REFUND)])];
        assert_violation(&turns, &[], "sends Refund before compensation was requested");
    }

    #[test]
    fn remaining_step_is_found_at_any_end() {
        let left = "Reserve was completed and Release was not";
        let half = [steps(), reply(RESERVE, &[], &[]), reply(CHARGE, &[REFUND], &[begin(), sent(REFUND)])];
        let finished = [&half[..], &[ended(reply(REFUND, &[], &[CompensationChange::Finished]))]].concat();
        assert_violation(&finished, &[], left);
        let given_up = [&half[..], &[ended(reply(REFUND, &[], &[]))]].concat();
        assert_violation(&given_up, &[], left);
        let hasty = [&half[..], &[ended(turn(id(101), &[], &[]))]].concat();
        assert_violation(&hasty, &[], "ends before it has the reply to Refund");
        let deaf = [steps(), ended(reply(RESERVE, &[], &[begin()]))];
        assert_violation(&deaf, &[], "before it has the reply to Charge");
    }

    #[test]
    fn failed_reply_is_not_known() {
        let mut failed = reply(CHARGE, &[], &[]);
        failed.notes.push(Note::Attempt { message: failed.id, attempt: 1 });
        let turns = [steps(), reply(RESERVE, &[], &[]), failed, turn(id(101), &[REFUND], &[begin(), sent(REFUND)])];
        assert_violation(&turns, &[], "before it has the reply to Charge");
    }
}
