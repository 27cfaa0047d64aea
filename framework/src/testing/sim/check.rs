//! What must hold of every simulated cluster, read from the stores once nothing is under way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt;

use super::clients::Ack;
use super::{FaultEvent, World, delivery_checks, letters, undoing};
use crate::actor::restarts;
use crate::message::{MessageId, Name, ShardId};
use crate::router::MessageCard;
use crate::store::{
    DeadLetter, DeadLetterReason, Note, SentMessage, ShardReader, Source, SourceKind, Store as _, StoredEvent,
    StoredTurn,
};

/// All streams of a shard, by actor type and key.
pub(super) fn streams(reader: &Arc<dyn ShardReader>) -> Vec<(Name, String)> {
    let mut streams = reader.streams().now_or_never().and_then(Result::ok).unwrap_or_default();
    // What waits there for its key is taken by the key's own turn, and that is what is checked.
    streams.retain(|(actor, _)| actor.as_str() != crate::actor::DEFERRED);
    streams.sort();
    streams
}

pub(super) fn history(reader: &Arc<dyn ShardReader>, actor: &Name, key: &str) -> Vec<StoredTurn> {
    reader.history(actor, key).now_or_never().and_then(Result::ok).unwrap_or_default()
}

pub(super) fn events(reader: &Arc<dyn ShardReader>) -> Vec<StoredEvent> {
    reader.events(0, usize::MAX).now_or_never().and_then(Result::ok).unwrap_or_default()
}

type Shards = BTreeMap<ShardId, Arc<dyn ShardReader>>;

fn shards(world: &World) -> Shards {
    world.services().iter().flat_map(|service| world.shards_of(service)).collect()
}

fn through(reader: &Arc<dyn ShardReader>, source: &Source) -> u64 {
    reader.watermarks().into_iter().find(|mark| mark.source == *source).map_or(0, |mark| mark.through)
}

/// What is still to be done, if anything is.
pub(super) fn unsettled(world: &World) -> Option<String> {
    let shards = shards(world);
    for (shard, reader) in &shards {
        // It is settled for its sender, and its key or its worker has still to take it.
        let letters = reader.dead_letters(None, usize::MAX).now_or_never().and_then(Result::ok).unwrap_or_default();
        // A key that a fault has stuck is loaded again by itself.
        let jammed = |letter: &DeadLetter| {
            let mut services = world.services().iter();
            services.any(|service| service.disk.jams().has_stuck(shard, &letter.actor, &letter.key))
        };
        let stopped = |letter: &DeadLetter| {
            let mut all = letters.iter().filter(|other| other.reason == DeadLetterReason::Unloadable);
            all.any(|other| (&other.actor, &other.key) == (&letter.actor, &letter.key)) && !jammed(letter)
        };
        let mut deferred = letters.iter().filter(|letter| match letter.reason {
            DeadLetterReason::Deferred => true,
            DeadLetterReason::Unloadable => jammed(letter),
            _ => false,
        });
        if let Some(letter) = deferred.find(|letter| !stopped(letter)) {
            return Some(format!("{} waits for {} `{}` in {shard}", letter.envelope.name, letter.actor, letter.key));
        }
    }
    for (from, reader) in &shards {
        for (to, done, head) in reader.outbox_heads() {
            let source = Source { shard: from.clone(), kind: SourceKind::Direct };
            let taken = shards.get(&to).map_or(0, |to| through(to, &source));
            if taken < head {
                return Some(format!("{to} has taken {taken} of {head} messages from {from}"));
            }
            if done < head {
                return Some(format!(
                    "{from} still keeps what it sent to {to}: {done} of {head} are known to be taken"
                ));
            }
        }
    }
    for service in world.services() {
        let hosts = service.hosts.borrow();
        for domain in hosts.iter().flat_map(|hosts| &hosts.domains) {
            for actor in &domain.actors {
                // It is stored under the name that it had first.
                let names: Vec<_> = actor.names().filter_map(|name| Name::new(name).ok()).collect();
                let Some(subscriber) = names.first() else { continue };
                let taken: BTreeSet<_> = actor.takes.iter().map(|card| card.domain.as_str()).collect();
                for (from, reader) in shards.iter().filter(|(from, _)| taken.contains(from.domain.as_str())) {
                    let lanes = names.iter().map(|name| SourceKind::Events { subscriber: name.clone() });
                    let sources: Vec<_> = lanes.map(|lane| Source { shard: from.clone(), kind: lane }).collect();
                    let position = reader.position();
                    for (to, reader) in shards.iter().filter(|(to, _)| to.domain.as_str() == domain.name) {
                        let taken = || sources.iter().map(|source| through(reader, source)).max().unwrap_or(0);
                        let floor = if position > 0 { taken() } else { 0 };
                        if floor < position {
                            return Some(format!(
                                "{subscriber} in {to} has taken {floor} of {position} events of {from}"
                            ));
                        }
                    }
                }
            }
        }
    }
    None
}

/// A turn and where it stands.
struct Placed {
    shard: ShardId,
    actor: Name,
    key: String,
    turn: StoredTurn,
}

/// Everything that must hold once nothing is under way.
pub(super) fn all(world: &World) -> Result<(), String> {
    let shards = shards(world);
    let mut turns = Vec::new();
    for (shard, reader) in &shards {
        let mut logged = BTreeMap::new();
        for (event, expected) in events(reader).into_iter().zip(1..) {
            if event.position != expected {
                return Err(format!("I5: {shard} has an event at position {} in place {expected}", event.position));
            }
            logged.insert(event.position, event);
        }
        for (actor, key) in streams(reader) {
            let stream = history(reader, &actor, &key);
            contiguous(shard, &actor, &key, &stream, &mut logged)?;
            let undone = undoing::undone(
                &stream,
                |command| world.seen().is_rejected(command),
                |id| world.seen().sent_undoing(id),
            );
            undone.map_err(|reason| format!("I10: {}.{actor} `{key}` {reason}", shard.domain))?;
            let ended = letters::ended_once(&stream);
            ended.map_err(|reason| format!("letters: {}.{actor} `{key}` {reason}", shard.domain))?;
            turns.extend(stream.into_iter().map(|turn| Placed {
                shard: shard.clone(),
                actor: actor.clone(),
                key: key.clone(),
                turn,
            }));
        }
        if let Some(event) = logged.values().next() {
            return Err(format!("I5: the event at {shard} {} belongs to no turn", event.position));
        }
    }
    let jumped = world.0.tally.counts().contains_key(&FaultEvent::ClockJumped);
    if let Some(early) = world.seen().early_timer().filter(|_| !jumped) {
        return Err(early);
    }
    decided_once(world, &turns)?;
    acknowledged(world, &turns)?;
    sent_once(&turns)?;
    taken_once(world, &shards, &turns)?;
    let logs: BTreeMap<_, _> = shards.iter().map(|(shard, reader)| (shard.clone(), events(reader))).collect();
    delivery_checks::in_order(&logs, turns.iter().map(|at| (&at.shard, &at.actor, at.key.as_str(), &at.turn)))?;
    for (to, reader) in &shards {
        for mark in reader.watermarks() {
            let Some(from) = shards.get(&mark.source.shard) else { continue };
            let head = match &mark.source.kind {
                SourceKind::Events { .. } => from.position(),
                SourceKind::Direct => {
                    from.outbox_heads().into_iter().find(|(of, ..)| of == to).map_or(0, |(.., head)| head)
                }
            };
            delivery_checks::not_ahead(to, &mark, head)?;
        }
    }
    published(world, &shards)?;
    projected(world, &shards)?;
    ended(world, &shards, &turns)
}

/// I5: a stream's turns and versions are 1, 2, 3 …, and its events stand in the log.
fn contiguous(
    shard: &ShardId,
    actor: &Name,
    key: &str,
    stream: &[StoredTurn],
    logged: &mut BTreeMap<u64, StoredEvent>,
) -> Result<(), String> {
    let mut version = 0;
    for (turn, number) in stream.iter().zip(1..) {
        if turn.number != number || turn.version != version {
            return Err(format!(
                "I5: {actor} `{key}` in {shard} has turn {} at version {} where turn {number} at version {version} belongs",
                turn.number, turn.version
            ));
        }
        for event in &turn.events {
            version += 1;
            if event.stream_version != version {
                return Err(format!("I5: {actor} `{key}` has version {} in place {version}", event.stream_version));
            }
            if logged.remove(&event.position).as_ref() != Some(event) {
                return Err(format!("I5: {actor} `{key}` version {version} is not in the log of {shard}"));
            }
        }
    }
    Ok(())
}

/// I2: no message has two decisions.
fn decided_once(world: &World, turns: &[Placed]) -> Result<(), String> {
    let mut outside = BTreeMap::new();
    let mut placed: BTreeMap<(&ShardId, &Source, u64), &Placed> = BTreeMap::new();
    // An id counts for one key of a domain; a job stands in a stream of many.
    fn target<'a>(world: &World, at: &'a Placed) -> &'a str {
        if world.is_worker(&at.shard.domain, &at.actor) { "" } else { &at.key }
    }
    for at in turns {
        let described = |other: &Placed| {
            format!(
                "turn {} of {} `{}` and turn {} of {} `{}`",
                other.turn.number, other.actor, other.key, at.turn.number, at.actor, at.key
            )
        };
        // A dead letter has no reply; the decision comes when it is redriven.
        if at.turn.digest.is_some()
            && !at.turn.reply.is_empty()
            && let Some(other) = outside.insert((at.turn.id, &at.shard.domain, target(world, at)), at)
        {
            return Err(format!("I2: command {} was decided twice: {}", at.turn.id, described(other)));
        }
        if let Some((source, sequence)) = &at.turn.from
            && let Some(other) = placed.insert((&at.shard, source, *sequence), at)
        {
            return Err(format!("I2: message {sequence} of {} was taken twice: {}", source.shard, described(other)));
        }
    }
    Ok(())
}

/// I1 and I4: what a client was told is what is stored. I3: what it handed over is handled.
fn acknowledged(world: &World, turns: &[Placed]) -> Result<(), String> {
    let mut stored: BTreeMap<MessageId, Vec<&Placed>> = BTreeMap::new();
    for at in turns.iter().filter(|at| !at.turn.reply.is_empty() && at.turn.digest.is_some()) {
        stored.entry(at.turn.id).or_default().push(at);
    }
    for Ack { written, reply, .. } in world.0.clients.acks() {
        let told = format!("{}.{} {} for `{}`", written.domain, written.name, written.id, written.key);
        let under_id = stored.get(&written.id).into_iter().flatten();
        let mut decisions: Vec<_> = under_id.filter(|at| at.shard.domain.as_str() == written.domain).collect();
        // An id counts for one key; a job stands in a stream of many.
        if decisions.iter().any(|at| at.key == written.key) {
            decisions.retain(|at| at.key == written.key);
        }
        match decisions.first() {
            None => return Err(format!("I1: {told} was acknowledged and is not in the store")),
            Some(at) if at.turn.reply != reply => {
                return Err(format!("I4: {told} was replied to with something else than what is stored"));
            }
            Some(_) => {}
        }
    }
    let handled = turns.iter().filter(|at| at.turn.digest.is_some()).map(|at| at.turn.id).collect();
    world.posts_handled(&handled)
}

/// I3 and I12: what an actor has sent was taken by its destination, once.
fn sent_once(turns: &[Placed]) -> Result<(), String> {
    let direct =
        turns.iter().filter(|at| matches!(&at.turn.from, Some((source, _)) if source.kind == SourceKind::Direct));
    let mut taken: BTreeMap<MessageId, u32> = BTreeMap::new();
    for at in direct {
        *taken.entry(at.turn.id).or_default() += 1;
    }
    for at in turns {
        for SentMessage { id, .. } in &at.turn.sent {
            match taken.get(id) {
                Some(1) => {}
                Some(times) => {
                    return Err(format!("I2: {id}, sent by {} `{}`, was taken {times} times", at.actor, at.key));
                }
                None => {
                    return Err(format!(
                        "I3: {id}, sent by {} `{}` in turn {}, was taken by nobody and is in no outbox",
                        at.actor, at.key, at.turn.number
                    ));
                }
            }
        }
    }
    Ok(())
}

/// I7: each event was taken by everyone who takes it. (That nobody took it twice is I2.)
fn taken_once(world: &World, shards: &Shards, turns: &[Placed]) -> Result<(), String> {
    let taken: BTreeSet<(&str, &str, &str, &ShardId, u64)> = turns
        .iter()
        .filter_map(|at| {
            let (source, position) = at.turn.from.as_ref()?;
            let SourceKind::Events { subscriber } = &source.kind else { return None };
            Some((at.shard.domain.as_str(), subscriber.as_str(), at.key.as_str(), &source.shard, *position))
        })
        .collect();
    for (shard, reader) in shards {
        for event in events(reader) {
            for (domain, actor, key) in world.takers(shard, &event) {
                if !taken.contains(&(domain.as_str(), actor.as_str(), key.as_str(), shard, event.position)) {
                    return Err(format!("I7: {actor} `{key}` never took {} at {shard} {}", event.name, event.position));
                }
            }
        }
    }
    Ok(())
}

/// I7: every view contains every event of its sources. I9: and not more than there are.
fn projected(world: &World, shards: &Shards) -> Result<(), String> {
    for service in world.services() {
        for projection in service.hosts.borrow().iter().flat_map(|hosts| &hosts.projections) {
            let Ok(name) = Name::new(&projection.name) else { continue };
            let view = service.disk.view(&name).now_or_never().and_then(Result::ok).flatten();
            let checkpoint: BTreeMap<_, _> = view.into_iter().flat_map(|view| view.checkpoint).collect();
            for (shard, reader) in shards {
                let taken = |event: &StoredEvent| {
                    let mut takes = projection.takes.iter();
                    let is = |card: &MessageCard| card.names().any(|name| name == event.name.as_str());
                    takes.any(|card| card.domain == shard.domain.as_str() && is(card))
                };
                let last = events(reader).into_iter().rev().find(taken).map_or(0, |event| event.position);
                let saved = checkpoint.get(shard).copied().unwrap_or(0);
                if saved < last {
                    return Err(format!("I7: the view {name} was saved at {saved}, and takes {shard} {last}"));
                }
                let position = reader.position();
                if saved > position {
                    return Err(format!("I9: the view {name} was saved at {saved}, and {shard} ends at {position}"));
                }
            }
        }
    }
    Ok(())
}

/// I6: what was published is what is stored.
fn published(world: &World, shards: &Shards) -> Result<(), String> {
    let logs: BTreeMap<&ShardId, Vec<StoredEvent>> =
        shards.iter().map(|(shard, reader)| (shard, events(reader))).collect();
    for (shard, position, id) in world.broker().published() {
        let log = logs.get(&shard);
        let event = log.and_then(|log| log.get(usize::try_from(position).unwrap_or(usize::MAX).checked_sub(1)?));
        let stored = event.map(|event| MessageId::of_event(&shard, position, event.cause));
        if stored != Some(id) {
            return Err(format!("I6: the event published as {shard} {position} is not what is stored there"));
        }
    }
    Ok(())
}

/// I10: sagas have ended; and nothing waits for a person.
fn ended(world: &World, shards: &Shards, turns: &[Placed]) -> Result<(), String> {
    let letters = world.dead_letters();
    if world.wants_no_dead_letters()
        && let Some(letter) = letters.first()
    {
        return Err(format!(
            "{} `{}` has a dead letter, {}: {}",
            letter.actor, letter.key, letter.envelope.name, letter.error
        ));
    }
    if !world.wants_ended_sagas() {
        return Ok(());
    }
    let mut sagas = BTreeSet::new();
    for service in world.services() {
        for domain in service.hosts.borrow().iter().flat_map(|hosts| &hosts.domains) {
            let roles = domain.actors.iter().filter(|actor| actor.role == "saga");
            let named = roles.flat_map(|actor| actor.names());
            sagas.extend(named.map(|name| (domain.name.clone(), name.to_owned())));
        }
    }
    let mut open: BTreeMap<(&ShardId, &Name, &str), bool> = BTreeMap::new();
    for at in turns {
        if sagas.contains(&(at.shard.domain.to_string(), at.actor.to_string())) && shards.contains_key(&at.shard) {
            let begun = open.entry((&at.shard, &at.actor, &at.key)).or_default();
            *begun |= !at.turn.events.is_empty() || !at.turn.sent.is_empty();
        }
    }
    // The turns of a stream come in their order: a saga that was started again is open until it ends again.
    let mut ended = BTreeSet::new();
    for at in turns {
        let place = (&at.shard, &at.actor, at.key.as_str());
        if at.turn.notes.iter().any(restarts) {
            ended.remove(&place);
        }
        if at.turn.notes.contains(&Note::Ended) {
            ended.insert(place);
        }
    }
    open.retain(|place, _| !ended.contains(place));
    for letter in &letters {
        open.retain(|(_, actor, key), _| **actor != letter.actor || *key != letter.key);
    }
    match open.into_iter().find(|(_, begun)| *begun) {
        Some(((shard, actor, key), _)) => Err(format!("I10: the {actor} `{key}` in {shard} has not ended")),
        None => Ok(()),
    }
}
