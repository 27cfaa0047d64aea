//! Clients against logs: each acknowledged command has one decision, and every reply is stored.

use std::collections::BTreeMap;

use bytes::Bytes;
use whizbang::message::MessageId;
use whizbang::store::{Note, StoredTurn};

use super::{Found, Known, Ledger, Stage, Status, ViolationKind};

/// The logs' record of one command of an external caller.
#[derive(Debug, Default)]
struct Decided {
    /// The places of the decisions, with the replies.
    decisions: Vec<(String, Bytes)>,
    /// The number of times it became a dead letter, minus the number of times that was resolved.
    dead_letters: i64,
}

/// Returns true if a turn has decided on its message, and not only counted a failed delivery or deferred the message.
pub(super) fn is_decision(turn: &StoredTurn) -> bool {
    let put_aside = turn.notes.iter().any(|note| matches!(note, Note::DeadLetter(_)));
    let resolves = turn.notes.iter().any(|note| *note == Note::Resolved { message: turn.id });
    let marked = turn.digest.is_some() || turn.from.is_some() || turn.timer.is_some();
    !put_aside && (marked || resolves)
}

/// Returns the number of decisions in the logs.
pub(super) fn check(ledger: &Ledger, stage: Stage, found: &mut Found) -> usize {
    let mut outside = BTreeMap::<MessageId, Decided>::new();
    let mut decisions = 0;
    for log in &ledger.logs {
        for stream in &log.streams {
            for turn in &stream.turns {
                let is_decision = is_decision(turn);
                decisions += usize::from(is_decision);
                if is_decision && turn.digest.is_some() {
                    let place = format!("{} turn {}", stream.named(&log.shard), turn.number);
                    outside.entry(turn.id).or_default().decisions.push((place, turn.reply.clone()));
                }
                for note in &turn.notes {
                    match note {
                        Note::DeadLetter(letter) if letter.envelope.origin.is_none() => {
                            outside.entry(letter.envelope.id).or_default().dead_letters += 1;
                        }
                        Note::Resolved { message } => {
                            if let Some(decided) = outside.get_mut(message) {
                                decided.dead_letters -= 1;
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    for (id, decided) in &outside {
        let Decided { decisions, dead_letters } = decided;
        if let [(first, _), .., (last, _)] = decisions.as_slice() {
            found.add(
                ViolationKind::Duplicated,
                format!("command {id} has {} decisions: {first} … {last}", decisions.len()),
            );
        }
        if let [(place, _)] = decisions.as_slice()
            && *dead_letters > 0
        {
            found.add(ViolationKind::Duplicated, format!("command {id} is decided in {place} and is a dead letter"));
        }
        if !ledger.commands.contains_key(id) {
            found.add(ViolationKind::Phantom, format!("{id} is in the logs but was never sent"));
        }
    }
    for (id, known) in &ledger.commands {
        check_status(*id, known, outside.get(id), stage, found);
    }
    for id in &ledger.contradicted {
        found.add(ViolationKind::Phantom, format!("command {id} got two different replies"));
    }
    decisions
}

fn check_status(id: MessageId, known: &Known, decided: Option<&Decided>, stage: Stage, found: &mut Found) {
    let replies = decided.map(|decided| decided.decisions.as_slice()).unwrap_or_default();
    let is_dead_letter = decided.is_some_and(|decided| decided.dead_letters > 0);
    let was_dead_letter = decided.is_some();
    match &known.status {
        Status::Reply(_) if replies.is_empty() => {
            found.add(ViolationKind::Lost, format!("command {id} was replied to but no log has its decision"));
        }
        Status::Reply(reply) => {
            for (place, _) in replies.iter().filter(|(_, stored)| stored != reply) {
                found.add(ViolationKind::Phantom, format!("command {id} got a reply that differs from {place}"));
            }
        }
        Status::Accepted if replies.is_empty() && !is_dead_letter && stage == Stage::Idle => {
            found.add(ViolationKind::Lost, format!("command {id} was accepted but never decided"));
        }
        // A dead letter that was resolved since is correct: an operator may have discarded it.
        Status::DeadLetter if !was_dead_letter => {
            found.add(ViolationKind::Lost, format!("command {id} was reported as a dead letter but no log has it"));
        }
        Status::Unknown if known.is_refused() && (!replies.is_empty() || is_dead_letter) => {
            found.add(ViolationKind::Phantom, format!("command {id} was refused but is in the logs"));
        }
        Status::Unknown | Status::Accepted | Status::DeadLetter => {}
    }
}
