//! Invariants of the framework, checked against the stores once the cluster is idle.
//!
//! Called at the end of every run. The numbers I1 to I13 are those of docs/guarantees.md.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt;

use super::clients::AckedCommand;
use super::{FaultEvent, World, compensation_checks, dead_letters, delivery_checks};
use whizbang_core::message::{MessageId, Name, ShardId};
use whizbang_core::store::{
    DeadLetter, DeadLetterReason, Note, SentMessage, ShardReader, Source, SourceKind, Store as _, StoredEvent,
    StoredTurn,
};
use whizbang_runtime::actor::restarts;
use whizbang_runtime::router::MessageCard;

/// Returns all streams of a shard, by actor type and key.
pub(super) fn streams(reader: &Arc<dyn ShardReader>) -> Vec<(Name, String)> {
    let mut streams = reader.streams().now_or_never().and_then(Result::ok).unwrap_or_default();
    // Deferred messages are handled by a turn of their own key, which is checked instead.
    streams.retain(|(actor, _)| actor.as_str() != whizbang_runtime::actor::DEFERRED);
    streams.sort();
    streams
}

/// Returns the history of a stream. The stores of a simulation answer at once; one that cannot be read has no turns.
pub(super) fn history(reader: &Arc<dyn ShardReader>, actor: &Name, key: &str) -> Vec<StoredTurn> {
    reader.history(actor, key).now_or_never().and_then(Result::ok).unwrap_or_default()
}

/// Returns all events of a shard.
pub(super) fn events(reader: &Arc<dyn ShardReader>) -> Vec<StoredEvent> {
    reader.events(0, usize::MAX).now_or_never().and_then(Result::ok).unwrap_or_default()
}

/// The readers of all shards of a cluster.
type Shards = BTreeMap<ShardId, Arc<dyn ShardReader>>;

/// Returns the readers of all shards.
fn shards(world: &World) -> Shards {
    world.services().iter().flat_map(|service| world.shards_of(service)).collect()
}

/// Returns the watermark of a source, or 0.
fn through(reader: &Arc<dyn ShardReader>, source: &Source) -> u64 {
    reader
        .watermarks()
        .into_iter()
        .find(|watermark| watermark.source == *source)
        .map_or(0, |watermark| watermark.through)
}

/// Returns a description of work that is not finished.
pub(super) fn pending_work(world: &World) -> Option<String> {
    let shards = shards(world);
    for (shard, reader) in &shards {
        // Deferred messages are settled for their sender, but their key or worker has not handled them.
        let dead_letters =
            reader.dead_letters(None, usize::MAX).now_or_never().and_then(Result::ok).unwrap_or_default();
        // Keys that a fault made unreadable are retried without an operator.
        let is_blocked = |dead_letter: &DeadLetter| {
            let mut services = world.services().iter();
            services
                .any(|service| service.store.unreadable_keys().was_blocked(shard, &dead_letter.actor, &dead_letter.key))
        };
        let is_unloadable = |dead_letter: &DeadLetter| {
            let mut all = dead_letters.iter().filter(|other| other.reason == DeadLetterReason::Unloadable);
            all.any(|other| (&other.actor, &other.key) == (&dead_letter.actor, &dead_letter.key))
                && !is_blocked(dead_letter)
        };
        let mut deferred = dead_letters.iter().filter(|dead_letter| match dead_letter.reason {
            DeadLetterReason::Deferred => true,
            DeadLetterReason::Unloadable => is_blocked(dead_letter),
            _ => false,
        });
        if let Some(dead_letter) = deferred.find(|dead_letter| !is_unloadable(dead_letter)) {
            return Some(format!(
                "{} waits for {} `{}` in {shard}",
                dead_letter.envelope.name, dead_letter.actor, dead_letter.key
            ));
        }
    }
    for (from, reader) in &shards {
        for (to, done, head) in reader.outbox_heads() {
            let source = Source { shard: from.clone(), kind: SourceKind::Direct };
            let handled = shards.get(&to).map_or(0, |to| through(to, &source));
            if handled < head {
                return Some(format!("{to} has handled {handled} of {head} messages from {from}"));
            }
            if done < head {
                return Some(format!("{from} has {done} of {head} messages to {to} confirmed"));
            }
        }
    }
    for service in world.services() {
        let manifest = service.manifest.borrow();
        for domain in manifest.iter().flat_map(|manifest| &manifest.domains) {
            for actor in &domain.actors {
                // Streams are stored under the first name of the actor type.
                let names: Vec<_> = actor.names().filter_map(|name| Name::new(name).ok()).collect();
                let Some(subscriber) = names.first() else { continue };
                let handled: BTreeSet<_> = actor.takes.iter().map(|card| card.domain.as_str()).collect();
                for (from, reader) in shards.iter().filter(|(from, _)| handled.contains(from.domain.as_str())) {
                    let kinds = names.iter().map(|name| SourceKind::Events { subscriber: name.clone() });
                    let sources: Vec<_> = kinds.map(|kind| Source { shard: from.clone(), kind }).collect();
                    let position = reader.position();
                    for (to, reader) in shards.iter().filter(|(to, _)| to.domain.as_str() == domain.name) {
                        let handled = || sources.iter().map(|source| through(reader, source)).max().unwrap_or(0);
                        let floor = if position > 0 { handled() } else { 0 };
                        if floor < position {
                            return Some(format!(
                                "{subscriber} in {to} has handled {floor} of {position} events of {from}"
                            ));
                        }
                    }
                }
            }
        }
    }
    None
}

/// A turn with its shard and stream.
struct LocatedTurn {
    /// The shard of the stream.
    shard: ShardId,
    /// The actor type.
    actor: Name,
    /// The key.
    key: String,
    /// The turn.
    turn: StoredTurn,
}

/// Checks all invariants.
pub(super) fn all(world: &World) -> Result<(), String> {
    let shards = shards(world);
    let mut turns = Vec::new();
    for (shard, reader) in &shards {
        let mut logged = BTreeMap::new();
        for (event, expected) in events(reader).into_iter().zip(1..) {
            if event.position != expected {
                return Err(format!("I5: {shard} has position {} where {expected} is expected", event.position));
            }
            logged.insert(event.position, event);
        }
        for (actor, key) in streams(reader) {
            let stream = history(reader, &actor, &key);
            stream_is_contiguous(shard, &actor, &key, &stream, &mut logged)?;
            let compensated = compensation_checks::check_compensation(
                &stream,
                |command| world.step_log().is_rejected(command),
                |id| world.step_log().compensating_command(id),
            );
            compensated.map_err(|reason| format!("I10: {}.{actor} `{key}` {reason}", shard.domain))?;
            let resolved = dead_letters::resolved_once(&stream);
            resolved.map_err(|reason| format!("dead-letters: {}.{actor} `{key}` {reason}", shard.domain))?;
            turns.extend(stream.into_iter().map(|turn| LocatedTurn {
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
    let jumped = world.0.fault_counts.counts().contains_key(&FaultEvent::ClockJumped);
    if let Some(early) = world.step_log().early_timer().filter(|_| !jumped) {
        return Err(early);
    }
    commands_decided_once(world, &turns)?;
    replies_match_store(world, &turns)?;
    messages_handled_once(&turns)?;
    events_handled_once(world, &shards, &turns)?;
    let logs: BTreeMap<_, _> = shards.iter().map(|(shard, reader)| (shard.clone(), events(reader))).collect();
    let workers = workers(world);
    let is_worker = |shard: &ShardId, actor: &Name| workers.contains(&(shard.domain.to_string(), actor.to_string()));
    let stored = turns.iter().map(|at| (&at.shard, &at.actor, at.key.as_str(), &at.turn));
    delivery_checks::events_in_order(&logs, is_worker, stored)?;
    for (to, reader) in &shards {
        for watermark in reader.watermarks() {
            let Some(from) = shards.get(&watermark.source.shard) else { continue };
            let head = match &watermark.source.kind {
                SourceKind::Events { .. } => from.position(),
                SourceKind::Direct => {
                    from.outbox_heads().into_iter().find(|(of, ..)| of == to).map_or(0, |(.., head)| head)
                }
            };
            delivery_checks::watermark_not_ahead(to, &watermark, head)?;
        }
    }
    published_matches_store(world, &shards)?;
    views_are_complete(world, &shards)?;
    sagas_have_ended(world, &shards, &turns)
}

/// Checks I5: the turns and versions of a stream are 1, 2, 3 …, and its events are in the log.
fn stream_is_contiguous(
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
                "I5: {actor} `{key}` in {shard} has turn {} at version {}, expected turn {number} at version {version}",
                turn.number, turn.version
            ));
        }
        for event in &turn.events {
            version += 1;
            if event.stream_version != version {
                return Err(format!(
                    "I5: {actor} `{key}` has version {} where {version} is expected",
                    event.stream_version
                ));
            }
            if logged.remove(&event.position).as_ref() != Some(event) {
                return Err(format!("I5: {actor} `{key}` version {version} is not in the log of {shard}"));
            }
        }
    }
    Ok(())
}

/// Returns the workers by domain and name, under all their names.
fn workers(world: &World) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for service in world.services() {
        let manifest = service.manifest.borrow();
        for domain in manifest.iter().flat_map(|manifest| &manifest.domains) {
            let workers = domain.actors.iter().filter(|actor| actor.role == "worker");
            found.extend(workers.flat_map(|actor| actor.names().map(|name| (domain.name.clone(), name.to_string()))));
        }
    }
    found
}

/// Checks I2: every message has at most one decision.
fn commands_decided_once(world: &World, turns: &[LocatedTurn]) -> Result<(), String> {
    let mut decided = BTreeMap::new();
    let mut positions: BTreeMap<(&ShardId, &Source, u64), &LocatedTurn> = BTreeMap::new();
    // An id is unique per key of a domain; the stream of a worker holds jobs of many keys.
    fn target<'a>(world: &World, at: &'a LocatedTurn) -> &'a str {
        if world.is_worker(&at.shard.domain, &at.actor) { "" } else { &at.key }
    }
    for at in turns {
        let described = |other: &LocatedTurn| {
            format!(
                "turn {} of {} `{}` and turn {} of {} `{}`",
                other.turn.number, other.actor, other.key, at.turn.number, at.actor, at.key
            )
        };
        // A dead letter has no reply. Its decision follows when it is redriven.
        if at.turn.digest.is_some()
            && !at.turn.reply.is_empty()
            && let Some(other) = decided.insert((at.turn.id, &at.shard.domain, target(world, at)), at)
        {
            return Err(format!("I2: command {} was decided twice: {}", at.turn.id, described(other)));
        }
        if let Some((source, sequence)) = &at.turn.from
            && let Some(other) = positions.insert((&at.shard, source, *sequence), at)
        {
            return Err(format!("I2: message {sequence} of {} was handled twice: {}", source.shard, described(other)));
        }
    }
    Ok(())
}

/// Checks I1 and I4: replies to clients and publications match the store. Checks I3: posts are handled.
fn replies_match_store(world: &World, turns: &[LocatedTurn]) -> Result<(), String> {
    let mut stored: BTreeMap<MessageId, Vec<&LocatedTurn>> = BTreeMap::new();
    for at in turns.iter().filter(|at| !at.turn.reply.is_empty() && at.turn.digest.is_some()) {
        stored.entry(at.turn.id).or_default().push(at);
    }
    for AckedCommand { encoded, reply, .. } in world.0.clients.acks() {
        let command = format!("{}.{} {} for `{}`", encoded.domain, encoded.name, encoded.id, encoded.key);
        let under_id = stored.get(&encoded.id).into_iter().flatten();
        let mut decisions: Vec<_> = under_id.filter(|at| at.shard.domain.as_str() == encoded.domain).collect();
        // An id is unique per key; the stream of a worker holds jobs of many keys.
        if decisions.iter().any(|at| at.key == encoded.key) {
            decisions.retain(|at| at.key == encoded.key);
        }
        match decisions.first() {
            None => return Err(format!("I1: {command} was acknowledged but is not in the store")),
            Some(at) if at.turn.reply != reply => {
                return Err(format!("I4: {command} got a reply that differs from the stored one"));
            }
            Some(_) => {}
        }
    }
    let handled = turns.iter().filter(|at| at.turn.digest.is_some()).map(|at| at.turn.id).collect();
    world.check_publications(&handled)?;
    world.check_posts_handled(&handled)
}

/// Checks I3 and I12: every message of an actor was handled once by its destination.
fn messages_handled_once(turns: &[LocatedTurn]) -> Result<(), String> {
    let direct =
        turns.iter().filter(|at| matches!(&at.turn.from, Some((source, _)) if source.kind == SourceKind::Direct));
    let mut handled: BTreeMap<MessageId, u32> = BTreeMap::new();
    for at in direct {
        *handled.entry(at.turn.id).or_default() += 1;
    }
    for at in turns {
        for SentMessage { id, .. } in &at.turn.sent {
            match handled.get(id) {
                Some(1) => {}
                Some(times) => {
                    return Err(format!("I2: {id}, sent by {} `{}`, was handled {times} times", at.actor, at.key));
                }
                None => {
                    return Err(format!(
                        "I3: {id}, sent by {} `{}` in turn {}, was not handled and is in no outbox",
                        at.actor, at.key, at.turn.number
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Checks I7: every subscriber has handled each event. (Handling it twice is I2.)
fn events_handled_once(world: &World, shards: &Shards, turns: &[LocatedTurn]) -> Result<(), String> {
    let handled: BTreeSet<(&str, &str, &str, &ShardId, u64)> = turns
        .iter()
        .filter_map(|at| {
            let (source, position) = at.turn.from.as_ref()?;
            let SourceKind::Events { subscriber } = &source.kind else { return None };
            Some((at.shard.domain.as_str(), subscriber.as_str(), at.key.as_str(), &source.shard, *position))
        })
        .collect();
    for (shard, reader) in shards {
        for event in events(reader) {
            for (domain, actor, key) in world.subscribers(shard, &event) {
                if !handled.contains(&(domain.as_str(), actor.as_str(), key.as_str(), shard, event.position)) {
                    return Err(format!(
                        "I7: {actor} `{key}` did not handle {} at {shard} {}",
                        event.name, event.position
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Checks I7: every view contains every event of its sources. Checks I9: and no event that does not exist.
fn views_are_complete(world: &World, shards: &Shards) -> Result<(), String> {
    for service in world.services() {
        for projection in service.manifest.borrow().iter().flat_map(|manifest| &manifest.projections) {
            let Ok(name) = Name::new(&projection.name) else { continue };
            let view = service.store.view(&name).now_or_never().and_then(Result::ok).flatten();
            let checkpoint: BTreeMap<_, _> = view.into_iter().flat_map(|view| view.checkpoint).collect();
            for (shard, reader) in shards {
                let handled = |event: &StoredEvent| {
                    let mut takes = projection.takes.iter();
                    let is = |card: &MessageCard| card.names().any(|name| name == event.name.as_str());
                    takes.any(|card| card.domain == shard.domain.as_str() && is(card))
                };
                let last = events(reader).into_iter().rev().find(handled).map_or(0, |event| event.position);
                let saved = checkpoint.get(shard).copied().unwrap_or(0);
                if saved < last {
                    return Err(format!("I7: the view {name} was saved at {saved}, but subscribes to {shard} {last}"));
                }
                let position = reader.position();
                if saved > position {
                    return Err(format!("I9: the view {name} was saved at {saved}, but {shard} ends at {position}"));
                }
            }
        }
    }
    Ok(())
}

/// Checks I6: published events match the stored ones.
fn published_matches_store(world: &World, shards: &Shards) -> Result<(), String> {
    let logs: BTreeMap<&ShardId, Vec<StoredEvent>> =
        shards.iter().map(|(shard, reader)| (shard, events(reader))).collect();
    for (shard, position, id) in world.broker().published() {
        let log = logs.get(&shard);
        let event = log.and_then(|log| log.get(usize::try_from(position).unwrap_or(usize::MAX).checked_sub(1)?));
        let stored = event.map(|event| MessageId::of_event(&shard, position, event.cause));
        if stored != Some(id) {
            return Err(format!("I6: the event published as {shard} {position} differs from the stored one"));
        }
    }
    Ok(())
}

/// Checks I10: sagas have ended, and no dead letter is left for an operator.
fn sagas_have_ended(world: &World, shards: &Shards, turns: &[LocatedTurn]) -> Result<(), String> {
    let dead_letters = world.dead_letters();
    if world.forbids_dead_letters()
        && let Some(dead_letter) = dead_letters.first()
    {
        return Err(format!(
            "{} `{}` has a dead letter, {}: {}",
            dead_letter.actor, dead_letter.key, dead_letter.envelope.name, dead_letter.error
        ));
    }
    if !world.requires_ended_sagas() {
        return Ok(());
    }
    let mut sagas = BTreeSet::new();
    for service in world.services() {
        for domain in service.manifest.borrow().iter().flat_map(|manifest| &manifest.domains) {
            let roles = domain.actors.iter().filter(|actor| actor.role == "saga");
            let named = roles.flat_map(|actor| actor.names());
            sagas.extend(named.map(|name| (domain.name.clone(), name.to_owned())));
        }
    }
    let mut open: BTreeMap<(&ShardId, &Name, &str), bool> = BTreeMap::new();
    for at in turns {
        if sagas.contains(&(at.shard.domain.to_string(), at.actor.to_string())) && shards.contains_key(&at.shard) {
            let has_begun = open.entry((&at.shard, &at.actor, &at.key)).or_default();
            *has_begun |= !at.turn.events.is_empty() || !at.turn.sent.is_empty();
        }
    }
    // Turns are in order: a restarted saga is open until it ends again.
    let mut ended = BTreeSet::new();
    for at in turns {
        let stream_id = (&at.shard, &at.actor, at.key.as_str());
        if at.turn.notes.iter().any(restarts) {
            ended.remove(&stream_id);
        }
        if at.turn.notes.contains(&Note::Ended) {
            ended.insert(stream_id);
        }
    }
    open.retain(|stream_id, _| !ended.contains(stream_id));
    for dead_letter in &dead_letters {
        open.retain(|(_, actor, key), _| **actor != dead_letter.actor || *key != dead_letter.key);
    }
    match open.into_iter().find(|(_, has_begun)| *has_begun) {
        Some(((shard, actor, key), _)) => Err(format!("I10: the {actor} `{key}` in {shard} has not ended")),
        None => Ok(()),
    }
}
