//! Shards against shards: what one has sent or recorded is taken by the other once, in order, and exists.

use std::collections::{BTreeMap, BTreeSet};

use whizbang::message::{MessageId, Name, ShardId};
use whizbang::store::{Source, SourceKind};

use super::row::contiguous;
use super::{Broken, Found, ShardLog, Stage};

/// The receiver that must take a number only once: a shard for messages sent to it, an actor type of a domain for events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Taker {
    source: Source,
    domain: Name,
    /// `None` for events: their taker may be in any shard of its domain.
    shard: Option<ShardId>,
}

pub(super) fn check(logs: &[ShardLog], stage: Stage, found: &mut Found) {
    let by_shard: BTreeMap<&ShardId, &ShardLog> = logs.iter().map(|log| (&log.shard, log)).collect();
    if by_shard.len() != logs.len() {
        found.add(Broken::Doubled, "two logs are of the same shard: the test has read one twice");
    }
    let mut taken = BTreeMap::<Taker, BTreeMap<u64, String>>::new();
    for log in logs {
        for stream in &log.streams {
            let named = stream.named(&log.shard);
            let mut last = BTreeMap::<&Source, u64>::new();
            for turn in &stream.turns {
                let Some((source, sequence)) = &turn.from else { continue };
                match last.insert(source, *sequence) {
                    Some(before) if before > *sequence => {
                        let place = format!("{named}: {sequence} of {} comes after {before}", written(source));
                        found.add(Broken::Misordered, place);
                    }
                    _ => {}
                }
                let taker = Taker {
                    source: source.clone(),
                    domain: log.shard.domain.clone(),
                    shard: (source.kind == SourceKind::Direct).then(|| log.shard.clone()),
                };
                let place = format!("{named} turn {}", turn.number);
                if let Some(first) = taken.entry(taker).or_default().insert(*sequence, place.clone()) {
                    let what = format!("{sequence} of {} is taken in {first} and in {place}", written(source));
                    found.add(Broken::Doubled, what);
                }
                if let Some(head) = head(&by_shard, source, &log.shard)
                    && *sequence > head
                {
                    let what = format!("{place} takes {sequence} of {}, which ends at {head}", written(source));
                    found.add(Broken::Phantom, what);
                }
            }
        }
    }
    for log in logs {
        check_outbox(log, found);
        check_watermarks(log, &by_shard, &taken, found);
        if stage == Stage::Quiet {
            check_arrivals(log, &by_shard, found);
        }
    }
    if stage == Stage::Quiet {
        check_sent(logs, &by_shard, found);
    }
}

/// Each message that a turn has sent has its number in the outbox.
fn check_outbox(log: &ShardLog, found: &mut Found) {
    let sent: usize = log.streams.iter().flat_map(|stream| &stream.turns).map(|turn| turn.sent.len()).sum();
    let given: u64 = log.outbox_heads.iter().map(|(_, _, last)| last).sum();
    if given != sent as u64 {
        let broken = if given < sent as u64 { Broken::Lost } else { Broken::Phantom };
        found.add(broken, format!("the turns of {} have sent {sent} messages, its outbox counts {given}", log.shard));
    }
}

/// Each message that a turn has sent is the message of another turn.
fn check_sent(logs: &[ShardLog], by_shard: &BTreeMap<&ShardId, &ShardLog>, found: &mut Found) {
    let turns = || logs.iter().flat_map(|log| &log.streams).flat_map(|stream| &stream.turns);
    let taken: BTreeSet<MessageId> = turns().map(|turn| turn.id).collect();
    // A turn does not say where it sent what: with a destination whose log is not known, anything may be there.
    for log in logs.iter().filter(|log| log.outbox_heads.iter().all(|(to, ..)| by_shard.contains_key(to))) {
        for stream in &log.streams {
            for turn in &stream.turns {
                for id in turn.sent.iter().map(|sent| sent.id).filter(|id| !taken.contains(id)) {
                    let place = format!("{} turn {}", stream.named(&log.shard), turn.number);
                    found.add(Broken::Lost, format!("{place} has sent {id}, which was never handled"));
                }
            }
        }
    }
}

fn written(source: &Source) -> String {
    match &source.kind {
        SourceKind::Direct => format!("what {} sent", source.shard),
        SourceKind::Events { subscriber } => format!("the events of {} for {subscriber}", source.shard),
    }
}

/// The last number that a source has given out for a destination, if its log is known.
fn head(by_shard: &BTreeMap<&ShardId, &ShardLog>, source: &Source, to: &ShardId) -> Option<u64> {
    let log = by_shard.get(&source.shard)?;
    Some(match source.kind {
        SourceKind::Events { .. } => log.position,
        SourceKind::Direct => log.outbox_heads.iter().find(|(shard, ..)| shard == to).map_or(0, |(_, _, last)| *last),
    })
}

/// A watermark is no higher than its source, and of what was sent directly every number up to it has its turn.
fn check_watermarks(
    log: &ShardLog,
    by_shard: &BTreeMap<&ShardId, &ShardLog>,
    taken: &BTreeMap<Taker, BTreeMap<u64, String>>,
    found: &mut Found,
) {
    for mark in &log.watermarks {
        let place = format!("{} has taken {} up to {}", log.shard, written(&mark.source), mark.through);
        if let Some(head) = head(by_shard, &mark.source, &log.shard)
            && mark.through > head
        {
            found.add(Broken::Phantom, format!("{place}, which ends at {head}"));
        }
        if mark.source.kind == SourceKind::Direct {
            let taker =
                Taker { source: mark.source.clone(), domain: log.shard.domain.clone(), shard: Some(log.shard.clone()) };
            let none = BTreeMap::new();
            let numbers = taken.get(&taker).unwrap_or(&none);
            let numbers: Vec<u64> = numbers.range(..=mark.through).map(|(number, _)| *number).collect();
            contiguous(&place, mark.through, &numbers, found);
        }
    }
}

/// All that was sent has been taken, and the sender's own idea of it is not ahead of the receiver.
fn check_arrivals(log: &ShardLog, by_shard: &BTreeMap<&ShardId, &ShardLog>, found: &mut Found) {
    for (to, through, last) in &log.outbox_heads {
        let Some(receiver) = by_shard.get(to) else { continue };
        let source = Source { shard: log.shard.clone(), kind: SourceKind::Direct };
        let taken = receiver.watermarks.iter().find(|mark| mark.source == source).map_or(0, |mark| mark.through);
        if taken < *last {
            let what = format!("{} has sent {last} to {to}, which has taken {taken}", log.shard);
            found.add(Broken::Lost, what);
        }
        if *through > taken {
            let what = format!("{} believes that {to} has taken {through}; it has taken {taken}", log.shard);
            found.add(Broken::Phantom, what);
        }
    }
}
