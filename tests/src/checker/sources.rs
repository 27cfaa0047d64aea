//! Shards against shards: each message of one shard exists and is handled by the other once and in order.

use std::collections::{BTreeMap, BTreeSet};

use whizbang::message::{MessageId, Name, ShardId};
use whizbang::store::{Source, SourceKind};

use super::sequence::contiguous;
use super::{Found, ShardLog, Stage, ViolationKind};

/// The receiver that must handle a sequence only once: a shard for direct messages, an actor type of a domain for events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Receiver {
    source: Source,
    domain: Name,
    /// `None` for events: the handler may be in any shard of its domain.
    shard: Option<ShardId>,
}

pub(super) fn check(logs: &[ShardLog], stage: Stage, found: &mut Found) {
    let by_shard: BTreeMap<&ShardId, &ShardLog> = logs.iter().map(|log| (&log.shard, log)).collect();
    if by_shard.len() != logs.len() {
        found.add(ViolationKind::Duplicated, "two logs are of the same shard: the test has read one twice");
    }
    let mut handled = BTreeMap::<Receiver, BTreeMap<u64, String>>::new();
    for log in logs {
        for stream in &log.streams {
            let named = stream.named(&log.shard);
            let mut last = BTreeMap::<&Source, u64>::new();
            for turn in &stream.turns {
                let Some((source, sequence)) = &turn.from else { continue };
                match last.insert(source, *sequence) {
                    Some(before) if before > *sequence => {
                        let place = format!("{named}: {sequence} of {} comes after {before}", written(source));
                        found.add(ViolationKind::Misordered, place);
                    }
                    _ => {}
                }
                let receiver = Receiver {
                    source: source.clone(),
                    domain: log.shard.domain.clone(),
                    shard: (source.kind == SourceKind::Direct).then(|| log.shard.clone()),
                };
                let place = format!("{named} turn {}", turn.number);
                if let Some(first) = handled.entry(receiver).or_default().insert(*sequence, place.clone()) {
                    let what = format!("{sequence} of {} is handled in {first} and in {place}", written(source));
                    found.add(ViolationKind::Duplicated, what);
                }
                if let Some(head) = head(&by_shard, source, &log.shard)
                    && *sequence > head
                {
                    let what = format!("{place} handles {sequence} of {}, which ends at {head}", written(source));
                    found.add(ViolationKind::Phantom, what);
                }
            }
        }
    }
    for log in logs {
        check_outbox(log, found);
        check_watermarks(log, &by_shard, &handled, found);
        if stage == Stage::Idle {
            check_arrivals(log, &by_shard, found);
        }
    }
    if stage == Stage::Idle {
        check_sent(logs, &by_shard, found);
    }
}

/// Checks that each sent message of a turn has a sequence in the outbox.
fn check_outbox(log: &ShardLog, found: &mut Found) {
    let sent: usize = log.streams.iter().flat_map(|stream| &stream.turns).map(|turn| turn.sent.len()).sum();
    let given: u64 = log.outbox_heads.iter().map(|(_, _, last)| last).sum();
    if given != sent as u64 {
        let kind = if given < sent as u64 { ViolationKind::Lost } else { ViolationKind::Phantom };
        found.add(kind, format!("the turns of {} have sent {sent} messages, but its outbox has {given}", log.shard));
    }
}

/// Checks that each sent message of a turn is the message of another turn.
fn check_sent(logs: &[ShardLog], by_shard: &BTreeMap<&ShardId, &ShardLog>, found: &mut Found) {
    let turns = || logs.iter().flat_map(|log| &log.streams).flat_map(|stream| &stream.turns);
    let handled: BTreeSet<MessageId> = turns().map(|turn| turn.id).collect();
    // A turn does not record the destinations, so shards with a destination whose log is unknown are skipped.
    for log in logs.iter().filter(|log| log.outbox_heads.iter().all(|(to, ..)| by_shard.contains_key(to))) {
        for stream in &log.streams {
            for turn in &stream.turns {
                for id in turn.sent.iter().map(|sent| sent.id).filter(|id| !handled.contains(id)) {
                    let place = format!("{} turn {}", stream.named(&log.shard), turn.number);
                    found.add(ViolationKind::Lost, format!("{place} sent {id}, which was never handled"));
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

/// Returns the last sequence that a source has assigned for a destination, if its log is known.
fn head(by_shard: &BTreeMap<&ShardId, &ShardLog>, source: &Source, to: &ShardId) -> Option<u64> {
    let log = by_shard.get(&source.shard)?;
    Some(match source.kind {
        SourceKind::Events { .. } => log.position,
        SourceKind::Direct => log.outbox_heads.iter().find(|(shard, ..)| shard == to).map_or(0, |(_, _, last)| *last),
    })
}

/// Checks that a watermark is not ahead of its source, and that every direct message up to it has a turn.
fn check_watermarks(
    log: &ShardLog,
    by_shard: &BTreeMap<&ShardId, &ShardLog>,
    handled: &BTreeMap<Receiver, BTreeMap<u64, String>>,
    found: &mut Found,
) {
    for mark in &log.watermarks {
        let place = format!("{} has handled {} up to {}", log.shard, written(&mark.source), mark.through);
        if let Some(head) = head(by_shard, &mark.source, &log.shard)
            && mark.through > head
        {
            found.add(ViolationKind::Phantom, format!("{place}, which ends at {head}"));
        }
        if mark.source.kind == SourceKind::Direct {
            let receiver = Receiver {
                source: mark.source.clone(),
                domain: log.shard.domain.clone(),
                shard: Some(log.shard.clone()),
            };
            let none = BTreeMap::new();
            let numbers = handled.get(&receiver).unwrap_or(&none);
            let numbers: Vec<u64> = numbers.range(..=mark.through).map(|(number, _)| *number).collect();
            contiguous(&place, mark.through, &numbers, found);
        }
    }
}

/// Checks that every sent message was handled, and that the sender's watermark is not ahead of the receiver.
fn check_arrivals(log: &ShardLog, by_shard: &BTreeMap<&ShardId, &ShardLog>, found: &mut Found) {
    for (to, through, last) in &log.outbox_heads {
        let Some(receiver) = by_shard.get(to) else { continue };
        let source = Source { shard: log.shard.clone(), kind: SourceKind::Direct };
        let handled = receiver.watermarks.iter().find(|mark| mark.source == source).map_or(0, |mark| mark.through);
        if handled < *last {
            let what = format!("{} has sent {last} to {to}, which has handled {handled}", log.shard);
            found.add(ViolationKind::Lost, what);
        }
        if *through > handled {
            let what = format!("{}: watermark of {to} is {through} but it has handled {handled}", log.shard);
            found.add(ViolationKind::Phantom, what);
        }
    }
}
