//! Dead letters in a simulated cluster: operator actions, and the rule that each dead letter is resolved once.
//!
//! Operators are started by the [fault scheduler](super::fault_scheduler); the rule is called by the
//! [store checks](super::store_checks).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Fault, FaultEvent, OperatorAction, World};
use whizbang_core::message::{Kind, MessageId, Name, ReplyMode};
use whizbang_core::store::{DeadLetter, Note, StoredTurn};
use whizbang_runtime::actor::{Count, Failpoint, Failpoints};
use whizbang_runtime::client::SendError;
use whizbang_runtime::node::{Node, NodeHandle};

/// Time between two looks of an operator.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// Maximum number of looks: covers all retries of a message before it becomes a dead letter.
const MAX_POLLS: u32 = 2_400;

/// The result of looking for a dead letter.
enum DeadLetterLookup {
    /// The dead letter is listed.
    Found(Box<DeadLetter>),
    /// It is not listed, or no longer.
    Missing,
    /// No node is running.
    Unknown,
}

impl World {
    /// Makes the next message of an actor to a service fail until an operator acts.
    pub(super) async fn poison(&self, service: usize, after: Duration, action: OperatorAction, count: &Count) {
        self.arm(service, &Failpoint::Poison, 1, count);
        let end = self.now() + Fault::MAX_WAIT;
        while count.get() == 0 && self.now() < end {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Failpoints::disarm(count);
        let Some(message) = Failpoints::poisoned(count) else { return };
        self.0.fault_counts.one(FaultEvent::MessagePoisoned);
        for _ in 0..MAX_POLLS {
            tokio::time::sleep(POLL_INTERVAL).await;
            if matches!(
                self.find_dead_letter(service, |dead_letter| dead_letter.envelope.id == message).await,
                DeadLetterLookup::Found(_)
            ) {
                break;
            }
        }
        tokio::time::sleep(after).await;
        Failpoints::cure(message);
        // Several subscribers may have failed on one event, each with a key of its own.
        let mut parked: BTreeSet<(Name, String)> = BTreeSet::new();
        for _ in 0..MAX_POLLS {
            let is_poisoned = |dead_letter: &DeadLetter| dead_letter.envelope.id == message;
            match self.find_dead_letter(service, is_poisoned).await {
                DeadLetterLookup::Found(dead_letter) => {
                    parked.insert((dead_letter.actor.clone(), dead_letter.key.clone()));
                    self.perform_action(service, &dead_letter, action).await;
                }
                // A redrive stops at the first dead letter that fails again, so the others of the keys must be redriven, too.
                DeadLetterLookup::Missing => {
                    let is_of_key = |dead_letter: &DeadLetter| {
                        parked.contains(&(dead_letter.actor.clone(), dead_letter.key.clone()))
                    };
                    match self.find_dead_letter(service, is_of_key).await {
                        DeadLetterLookup::Found(dead_letter) => {
                            self.perform_action(service, &dead_letter, OperatorAction::Redrive).await
                        }
                        DeadLetterLookup::Missing => return,
                        DeadLetterLookup::Unknown => {}
                    }
                }
                DeadLetterLookup::Unknown => {}
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        self.report_violation(format!("dead-letters: {message} is still a dead letter after all operator actions"));
    }

    /// Does what an operator does with a dead letter, and writes the outcome into the trace.
    async fn perform_action(&self, service: usize, dead_letter: &DeadLetter, action: OperatorAction) {
        let result = match action {
            OperatorAction::Redrive => self.redrive(service, dead_letter).await,
            OperatorAction::Discard => self.discard(service, dead_letter).await,
        };
        self.0.trace.add(format_args!(
            "an operator: {action:?} {} {}: {result:?}",
            dead_letter.envelope.name, dead_letter.envelope.id
        ));
    }

    /// Redrives the dead letters of one key, see [`Node::redrive`].
    ///
    /// # Errors
    /// The errors of [`Node::redrive`]; [`SendError::Stopped`] if no node of the service is running.
    pub async fn redrive(&self, service: usize, dead_letter: &DeadLetter) -> Result<(), SendError> {
        let found = self.find_dead_letter(service, |found| is_same(found, dead_letter)).await;
        let DeadLetterLookup::Found(dead_letter) = found else { return Err(SendError::Stopped) };
        let mut result = Err(SendError::Stopped);
        for node in self.handles(service) {
            result = node.redrive(&dead_letter).await;
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Discards a dead letter, see [`Node::discard`].
    ///
    /// # Errors
    /// The errors of [`Node::discard`]; [`SendError::Stopped`] if no node of the service is running.
    pub async fn discard(&self, service: usize, dead_letter: &DeadLetter) -> Result<(), SendError> {
        let found = self.find_dead_letter(service, |found| is_same(found, dead_letter)).await;
        let DeadLetterLookup::Found(dead_letter) = found else { return Err(SendError::Stopped) };
        let mut result = Err(SendError::Stopped);
        for node in self.handles(service) {
            result = node.discard(&dead_letter).await;
            if result.is_ok() {
                break;
            }
        }
        result
    }

    /// Returns the handles of the service's nodes. Only the owner of a dead letter's shard knows it.
    fn handles(&self, service: usize) -> Vec<NodeHandle> {
        self.0.services.get(service).map(|service| service.each_node(Node::handle)).unwrap_or_default()
    }

    /// Returns the first matching dead letter that a node of the service lists. Several actors may have failed on one event.
    async fn find_dead_letter(&self, service: usize, is_wanted: impl Fn(&DeadLetter) -> bool) -> DeadLetterLookup {
        let mut dead_letters = Vec::new();
        match self.0.services.get(service) {
            // A shard may be moving between nodes.
            Some(service) if service.has_several_nodes() => {
                for (_, reader) in self.shards_of(service) {
                    dead_letters.extend(reader.dead_letters(None, usize::MAX).await.unwrap_or_default());
                }
            }
            _ => {
                let Some(node) = self.handles(service).pop() else { return DeadLetterLookup::Unknown };
                let Ok(listed) = node.dead_letters().await else { return DeadLetterLookup::Unknown };
                dead_letters = listed;
            }
        }
        dead_letters
            .into_iter()
            .find(is_wanted)
            .map_or(DeadLetterLookup::Missing, |dead_letter| DeadLetterLookup::Found(Box::new(dead_letter)))
    }
}

/// Returns whether two dead letters are one message of one key.
fn is_same(one: &DeadLetter, other: &DeadLetter) -> bool {
    (one.envelope.id, &one.actor, &one.key) == (other.envelope.id, &other.actor, &other.key)
}

/// Checks that each dead letter of a stream is resolved once and that its sender gets a reply.
pub(super) fn resolved_once(stream: &[StoredTurn]) -> Result<(), String> {
    let mut open: BTreeMap<MessageId, &DeadLetter> = BTreeMap::new();
    let mut resolved: BTreeSet<MessageId> = BTreeSet::new();
    for turn in stream {
        let (mut is_failed, mut resolves_itself) = (false, false);
        for note in &turn.notes {
            match note {
                Note::Attempt { .. } => is_failed = true,
                Note::DeadLetter(dead_letter) => {
                    is_failed = true;
                    open.insert(dead_letter.envelope.id, dead_letter);
                }
                Note::Resolved { message } => {
                    if !resolved.insert(*message) {
                        return Err(format!("resolves {message} a second time in turn {}", turn.number));
                    }
                    // A redriven message may also resolve the dead letters of timers that it clears.
                    resolves_itself |= *message == turn.id;
                    if let Some(dead_letter) = open.remove(message) {
                        check_reply_sent(dead_letter, turn)?;
                    }
                }
                _ => {}
            }
        }
        if !is_failed && turn.timer.is_none() && open.contains_key(&turn.id) {
            return Err(format!("handles {} in turn {} without resolving its dead letter", turn.id, turn.number));
        }
        // A timer has the same id each time.
        if !is_failed && !resolves_itself && turn.timer.is_none() && resolved.contains(&turn.id) {
            return Err(format!("handles {} in turn {}, whose dead letter is already resolved", turn.id, turn.number));
        }
        if turn.timer.is_some() {
            resolved.remove(&turn.id);
        }
    }
    Ok(())
}

/// Checks that the turn that resolves the dead letter of a command sends the reply, if the sender wants one.
fn check_reply_sent(dead_letter: &DeadLetter, turn: &StoredTurn) -> Result<(), String> {
    let envelope = &dead_letter.envelope;
    let wants = envelope.kind == Kind::Command && envelope.origin.is_some() && envelope.wants == ReplyMode::Reply;
    let reply = MessageId::of_reply(envelope.id);
    if wants && turn.sent.iter().all(|sent| sent.id != reply) {
        return Err(format!(
            "resolves the dead letter {} {} without a reply to its sender",
            envelope.name, envelope.id
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use whizbang_core::clock::Timestamp;
    use whizbang_core::message::Codec;

    use super::*;

    const MESSAGE: MessageId = MessageId::from_u128(1);
    const TIMER: MessageId = MessageId::from_u128(2);

    /// Returns a turn that handles the message and resolves dead letters.
    fn turn(number: u64, resolved: &[MessageId]) -> StoredTurn {
        StoredTurn {
            number,
            version: 0,
            time: Timestamp::default(),
            id: MESSAGE,
            correlation: MESSAGE,
            from: None,
            digest: None,
            timer: None,
            reply: Bytes::new(),
            reply_codec: Codec::Bincode,
            events: Vec::new(),
            timers: Vec::new(),
            sent: Vec::new(),
            notes: resolved.iter().map(|message| Note::Resolved { message: *message }).collect(),
        }
    }

    #[test]
    fn redriven_message_may_resolve_timers_that_it_clears() {
        for resolved in [&[MESSAGE, TIMER], &[TIMER, MESSAGE]] {
            assert_eq!(resolved_once(&[turn(1, resolved)]), Ok(()));
        }
    }

    #[test]
    fn resolved_message_that_is_handled_again_is_found() {
        let error = resolved_once(&[turn(1, &[MESSAGE]), turn(2, &[])]).unwrap_err();
        assert!(error.ends_with("in turn 2, whose dead letter is already resolved"), "{error}");
        let error = resolved_once(&[turn(1, &[MESSAGE]), turn(2, &[MESSAGE])]).unwrap_err();
        assert!(error.ends_with("a second time in turn 2"), "{error}");
    }
}
