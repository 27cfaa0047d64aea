//! One shard alone: versions, turns and positions without gaps, equal events in log and streams, timers that were set.

use std::collections::{BTreeMap, BTreeSet};

use whizbang::message::MessageId;
use whizbang::store::{Note, StoredEvent};

use super::sequence::contiguous;
use super::{Found, ShardLog, StreamLog, ViolationKind};

pub(super) fn check(log: &ShardLog, found: &mut Found) {
    let shard = &log.shard;
    let positions: Vec<u64> = log.events.iter().map(|event| event.position).collect();
    contiguous(&format!("{shard} positions"), log.position, &positions, found);
    for stream in &log.streams {
        check_stream(log, stream, found);
    }
    check_streams_against_log(log, found);
    check_dead_letters(log, found);
}

fn check_stream(log: &ShardLog, stream: &StreamLog, found: &mut Found) {
    let named = stream.named(&log.shard);
    let numbers: Vec<u64> = stream.turns.iter().map(|turn| turn.number).collect();
    contiguous(&format!("{named} turns"), stream.turns.len() as u64, &numbers, found);
    let events: Vec<&StoredEvent> = stream.turns.iter().flat_map(|turn| &turn.events).collect();
    let versions: Vec<u64> = events.iter().map(|event| event.stream_version).collect();
    contiguous(&format!("{named} versions"), events.len() as u64, &versions, found);
    for pair in events.windows(2).filter(|pair| pair[0].position > pair[1].position) {
        let (before, after) = (pair[0].position, pair[1].position);
        found.add(ViolationKind::Misordered, format!("{named}: position {after} comes after {before}"));
    }
    let mut version = 0;
    let mut set = BTreeSet::new();
    for turn in &stream.turns {
        if turn.version != version {
            let (number, says) = (turn.number, turn.version);
            found.add(
                ViolationKind::Misordered,
                format!("{named}: turn {number} is based on version {says}, not {version}"),
            );
        }
        version = turn.version + turn.events.len() as u64;
        if let Some(timer) = &turn.timer
            && !set.remove(timer)
        {
            found.add(
                ViolationKind::Phantom,
                format!("{named}: timer {timer} fired in turn {} but was not set", turn.number),
            );
        }
        for (timer, is_set) in &turn.timers {
            if *is_set {
                set.insert(timer.clone());
            } else {
                set.remove(timer);
            }
        }
        if turn.notes.contains(&Note::Ended) {
            set.clear();
        }
    }
}

/// Checks that the shard's log and its streams contain the same events.
fn check_streams_against_log(log: &ShardLog, found: &mut Found) {
    let in_log: BTreeMap<u64, &StoredEvent> = log.events.iter().map(|event| (event.position, event)).collect();
    let mut in_streams = BTreeMap::<u64, &StoredEvent>::new();
    for stream in &log.streams {
        for event in stream.turns.iter().flat_map(|turn| &turn.events) {
            let named = stream.named(&log.shard);
            if event.actor != stream.actor || event.key != stream.key {
                let (actor, key) = (&event.actor, &event.key);
                found.add(ViolationKind::Phantom, format!("{named} contains an event of {actor}/{key}"));
            }
            if in_streams.insert(event.position, event).is_some() {
                found.add(ViolationKind::Duplicated, format!("{named}: position {} occurs twice", event.position));
            }
            match in_log.get(&event.position) {
                None => {
                    found.add(ViolationKind::Lost, format!("{named}: position {} is not in the log", event.position))
                }
                Some(other) if *other != event => {
                    found.add(
                        ViolationKind::Phantom,
                        format!("{named}: position {} differs from the event in the log", event.position),
                    );
                }
                Some(_) => {}
            }
        }
    }
    for position in in_log.keys().filter(|position| !in_streams.contains_key(position)) {
        found.add(ViolationKind::Phantom, format!("{}: position {position} is in no stream", log.shard));
    }
}

/// Checks that the store lists the dead letters that the turns have created and not resolved.
fn check_dead_letters(log: &ShardLog, found: &mut Found) {
    let mut open = BTreeSet::<(String, String, MessageId)>::new();
    for stream in &log.streams {
        let named = |id: MessageId| (stream.actor.to_string(), stream.key.clone(), id);
        for note in stream.turns.iter().flat_map(|turn| &turn.notes) {
            match note {
                Note::DeadLetter(letter) => drop(open.insert(named(letter.envelope.id))),
                Note::Resolved { message } => drop(open.remove(&named(*message))),
                _ => {}
            }
        }
    }
    let mut listed = BTreeSet::new();
    for letter in &log.dead_letters {
        let name = (letter.actor.to_string(), letter.key.clone(), letter.envelope.id);
        let (actor, key, id) = &name;
        if !open.contains(&name) {
            found
                .add(ViolationKind::Phantom, format!("{}: dead letter {id} of {actor}/{key} is in no turn", log.shard));
        }
        if !listed.insert(name.clone()) {
            found.add(
                ViolationKind::Duplicated,
                format!("{}: dead letter {id} of {actor}/{key} is listed twice", log.shard),
            );
        }
    }
    for (actor, key, id) in open.difference(&listed) {
        found.add(ViolationKind::Lost, format!("{}: dead letter {id} of {actor}/{key} is not listed", log.shard));
    }
}
