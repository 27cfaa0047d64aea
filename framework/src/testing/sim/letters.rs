//! Dead letters in a simulated cluster: what an operator does with them, and that each is brought to its end once.
//!
//! The operator is called by what [brings faults about](super::fault_scheduler), the rule by the [check](super::check).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Fault, FaultEvent, World};
use crate::actor::{Count, Failpoint, Failpoints};
use crate::client::SendError;
use crate::message::{Kind, MessageId, Name, ReplyMode};
use crate::node::{Node, NodeHandle};
use crate::store::{DeadLetter, Note, StoredTurn};

/// How often an operator looks.
const LOOK: Duration = Duration::from_millis(250);
/// How often it looks at most: for longer than a message is tried before it is a dead letter.
const LOOKS: u32 = 2_400;

/// What an operator does with a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorAction {
    /// Handles it again, and what waits behind it.
    Redrive,
    /// Throws it away.
    Discard,
}

/// What a node says of the dead letter of a message.
enum LetterFate {
    Found(Box<DeadLetter>),
    None,
    /// No node is there.
    Unknown,
}

impl World {
    /// Lets the next message of an actor that comes to a service fail until an operator takes care of it.
    pub(super) async fn poison(&self, service: usize, after: Duration, then: OperatorAction, count: &Count) {
        self.arm(service, &Failpoint::Poison, 1, count);
        let end = self.now() + Fault::PATIENCE;
        while count.get() == 0 && self.now() < end {
            tokio::time::sleep(LOOK).await;
        }
        Failpoints::disarm(count);
        let Some(message) = Failpoints::poisoned(count) else { return };
        self.0.tally.one(FaultEvent::MessagePoisoned);
        for _ in 0..LOOKS {
            tokio::time::sleep(LOOK).await;
            if matches!(self.letter_of(service, |letter| letter.envelope.id == message).await, LetterFate::Found(_)) {
                break;
            }
        }
        tokio::time::sleep(after).await;
        Failpoints::cure(message);
        let mut parked: Option<(Name, String)> = None;
        for _ in 0..LOOKS {
            match self.letter_of(service, |letter| letter.envelope.id == message).await {
                LetterFate::Found(letter) => {
                    parked = Some((letter.actor.clone(), letter.key.clone()));
                    self.tend(service, &letter, then).await;
                }
                // A redrive stops at the first letter that fails again: what is left behind the one that was poisoned is redriven.
                LetterFate::None => {
                    let Some((actor, key)) = &parked else { return };
                    let is_of_key = |letter: &DeadLetter| letter.actor == *actor && letter.key == *key;
                    match self.letter_of(service, is_of_key).await {
                        LetterFate::Found(letter) => self.tend(service, &letter, OperatorAction::Redrive).await,
                        LetterFate::None => return,
                        LetterFate::Unknown => {}
                    }
                }
                LetterFate::Unknown => {}
            }
            tokio::time::sleep(LOOK).await;
        }
        self.violated(format!("letters: {message} is still a dead letter, whatever an operator does"));
    }

    async fn tend(&self, service: usize, letter: &DeadLetter, then: OperatorAction) {
        let told = match then {
            OperatorAction::Redrive => self.redrive(service, letter).await,
            OperatorAction::Discard => self.discard(service, letter).await,
        };
        self.0
            .trace
            .add(format_args!("an operator: {then:?} {} {}: {told:?}", letter.envelope.name, letter.envelope.id));
    }

    /// Handles the dead letters of one key again, as [`Node::redrive`] does.
    ///
    /// # Errors
    /// As there; [`SendError::Stopped`] if no node of the service is running.
    pub async fn redrive(&self, service: usize, letter: &DeadLetter) -> Result<(), SendError> {
        let found = self.letter_of(service, |found| found.envelope.id == letter.envelope.id).await;
        let LetterFate::Found(letter) = found else { return Err(SendError::Stopped) };
        self.handle(service).ok_or(SendError::Stopped)?.redrive(&letter).await
    }

    /// Throws a dead letter away, as [`Node::discard`] does.
    ///
    /// # Errors
    /// As there; [`SendError::Stopped`] if no node of the service is running.
    pub async fn discard(&self, service: usize, letter: &DeadLetter) -> Result<(), SendError> {
        let found = self.letter_of(service, |found| found.envelope.id == letter.envelope.id).await;
        let LetterFate::Found(letter) = found else { return Err(SendError::Stopped) };
        self.handle(service).ok_or(SendError::Stopped)?.discard(&letter).await
    }

    fn handle(&self, service: usize) -> Option<NodeHandle> {
        self.0.services.get(service)?.node.borrow().as_ref().map(Node::handle)
    }

    /// The first dead letter that is wanted, as a node of the service lists it. Several actors may have failed on one event.
    async fn letter_of(&self, service: usize, is_wanted: impl Fn(&DeadLetter) -> bool) -> LetterFate {
        let Some(node) = self.handle(service) else { return LetterFate::Unknown };
        let Ok(letters) = node.dead_letters().await else { return LetterFate::Unknown };
        letters.into_iter().find(is_wanted).map_or(LetterFate::None, |letter| LetterFate::Found(Box::new(letter)))
    }
}

/// Whether the dead letters of one key are each brought to their end once, and their senders told. What is wrong, if something is.
pub(super) fn ended_once(stream: &[StoredTurn]) -> Result<(), String> {
    let mut open: BTreeMap<MessageId, &DeadLetter> = BTreeMap::new();
    let mut ended: BTreeSet<MessageId> = BTreeSet::new();
    for turn in stream {
        let (mut aside, mut ends) = (false, None);
        for note in &turn.notes {
            match note {
                Note::Attempt { .. } => aside = true,
                Note::DeadLetter(letter) => {
                    aside = true;
                    open.insert(letter.envelope.id, letter);
                }
                Note::Resolved { message } => {
                    if !ended.insert(*message) {
                        return Err(format!("brings {message} to its end a second time in turn {}", turn.number));
                    }
                    ends = Some(*message);
                    if let Some(letter) = open.remove(message) {
                        told(letter, turn)?;
                    }
                }
                _ => {}
            }
        }
        if !aside && turn.timer.is_none() && open.contains_key(&turn.id) {
            return Err(format!("handles {} in turn {}, and its dead letter stays", turn.id, turn.number));
        }
        // A timer has the same id each time.
        if !aside && ends != Some(turn.id) && turn.timer.is_none() && ended.contains(&turn.id) {
            return Err(format!(
                "handles {} in turn {}, which was a dead letter and brought to its end",
                turn.id, turn.number
            ));
        }
        if turn.timer.is_some() {
            ended.remove(&turn.id);
        }
    }
    Ok(())
}

/// The sender of a command that wants a reply gets one in the turn that brings the letter to its end.
fn told(letter: &DeadLetter, turn: &StoredTurn) -> Result<(), String> {
    let envelope = &letter.envelope;
    let wants = envelope.kind == Kind::Command && envelope.origin.is_some() && envelope.wants == ReplyMode::Reply;
    let reply = MessageId::of_reply(envelope.id);
    if wants && turn.sent.iter().all(|sent| sent.id != reply) {
        return Err(format!(
            "brings the dead letter {} {} to its end without a word to its sender",
            envelope.name, envelope.id
        ));
    }
    Ok(())
}
