//! Clients against logs: each acknowledged command has one decision, and every reply is stored.

use std::collections::BTreeMap;

use bytes::Bytes;
use whizbang::message::MessageId;
use whizbang::store::{Note, StoredTurn};

use super::{Broken, Found, Known, Ledger, Stage, Told};

/// The logs' record of one message from outside.
#[derive(Debug, Default)]
struct Decided {
    /// The place of the decision, and the reply.
    decisions: Vec<(String, Bytes)>,
    /// The number of times it has become a dead letter, less the number of times it was resolved.
    dead_letters: i64,
}

/// Returns true if a turn has decided on its message, and has not just counted a failed delivery or deferred it.
pub(super) fn is_decision(turn: &StoredTurn) -> bool {
    let put_aside = turn.notes.iter().any(|note| matches!(note, Note::DeadLetter(_)));
    let resolves = turn.notes.iter().any(|note| *note == Note::Resolved { message: turn.id });
    let marked = turn.digest.is_some() || turn.from.is_some() || turn.timer.is_some();
    !put_aside && (marked || resolves)
}

/// Returns how many decisions the logs hold.
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
            found.add(Broken::Doubled, format!("command {id} has {} decisions: {first} … {last}", decisions.len()));
        }
        if let [(place, _)] = decisions.as_slice()
            && *dead_letters > 0
        {
            found.add(Broken::Doubled, format!("command {id} is decided in {place} and is a dead letter"));
        }
        if !ledger.commands.contains_key(id) {
            found.add(Broken::Phantom, format!("{id} is in the logs and was never sent"));
        }
    }
    for (id, known) in &ledger.commands {
        check_told(*id, known, outside.get(id), stage, found);
    }
    for id in &ledger.contradicted {
        found.add(Broken::Phantom, format!("command {id} got two different replies"));
    }
    decisions
}

fn check_told(id: MessageId, known: &Known, decided: Option<&Decided>, stage: Stage, found: &mut Found) {
    let replies = decided.map(|decided| decided.decisions.as_slice()).unwrap_or_default();
    let is_dead_letter = decided.is_some_and(|decided| decided.dead_letters > 0);
    let was_dead_letter = decided.is_some();
    match &known.told {
        Told::Reply(_) if replies.is_empty() => {
            found.add(Broken::Lost, format!("command {id} was answered and no log holds its decision"));
        }
        Told::Reply(reply) => {
            for (place, _) in replies.iter().filter(|(_, stored)| stored != reply) {
                found.add(Broken::Phantom, format!("command {id} was answered otherwise than {place} says"));
            }
        }
        Told::Accepted if replies.is_empty() && !is_dead_letter && stage == Stage::Quiet => {
            found.add(Broken::Lost, format!("command {id} was accepted and was never decided"));
        }
        // Resolved in the meantime is fine: a person may have thrown it away.
        Told::DeadLetter if !was_dead_letter => {
            found.add(Broken::Lost, format!("command {id} was called a dead letter and no log holds it"));
        }
        Told::Unknown if known.is_refused() && (!replies.is_empty() || is_dead_letter) => {
            found.add(Broken::Phantom, format!("command {id} was refused, and yet the logs hold it"));
        }
        Told::Unknown | Told::Accepted | Told::DeadLetter => {}
    }
}
