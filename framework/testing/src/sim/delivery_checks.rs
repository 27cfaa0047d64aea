//! Invariants of deliveries: events of a stream are handled in order, and only existing ones.
//!
//! Called by the [store checks](super::store_checks) with the stored turns.

use std::collections::BTreeMap;

use whizbang_core::message::{Name, ShardId};
use whizbang_core::store::{SourceKind, StoredEvent, StoredTurn, Watermark};

/// Checks I8: subscribers handle the events of a stream in the order of their versions. Checks I6: and only stored events.
///
/// Gaps are found as I7, because an event that becomes a dead letter behind another one is handled later. Workers promise no
/// order: a job that hangs or fails delays no other.
pub(super) fn events_in_order<'a>(
    logs: &BTreeMap<ShardId, Vec<StoredEvent>>,
    is_worker: impl Fn(&ShardId, &Name) -> bool,
    turns: impl Iterator<Item = (&'a ShardId, &'a Name, &'a str, &'a StoredTurn)>,
) -> Result<(), String> {
    let mut last: BTreeMap<_, u64> = BTreeMap::new();
    for (shard, actor, key, turn) in turns {
        let Some((source, position)) = turn.from.as_ref().filter(|(source, _)| source.kind != SourceKind::Direct)
        else {
            continue;
        };
        let index = usize::try_from(*position).ok().and_then(|position| position.checked_sub(1));
        let Some(event) = logs.get(&source.shard).and_then(|log| log.get(index?)) else {
            return Err(format!("I6: {actor} `{key}` handled a missing event at {} {position}", source.shard));
        };
        if is_worker(shard, actor) {
            continue;
        }
        let last = last.entry((shard, actor, key, &source.shard, &event.actor, &event.key)).or_default();
        if event.stream_version <= *last {
            return Err(format!(
                "I8: {actor} `{key}` handled version {} of {} `{}` after version {last}",
                event.stream_version, event.actor, event.key
            ));
        }
        *last = event.stream_version;
    }
    Ok(())
}

/// Checks I9: a watermark is not ahead of its source, or events that arrive there later would be skipped. `head` is the last
/// number of the source.
pub(super) fn watermark_not_ahead(to: &ShardId, watermark: &Watermark, head: u64) -> Result<(), String> {
    if watermark.through > head {
        let from = &watermark.source.shard;
        return Err(format!("I9: {to} has a watermark of {} for {from}, which has {head} messages", watermark.through));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use whizbang_core::clock::Timestamp;
    use whizbang_core::message::{Codec, MessageId};
    use whizbang_core::store::Source;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn shard(domain: &str) -> ShardId {
        ShardId::new(name(domain), 0)
    }

    fn event(position: u64, key: &str, version: u64) -> StoredEvent {
        let id = MessageId::from_u128(0);
        StoredEvent {
            position,
            actor: name("account"),
            key: key.into(),
            stream_version: version,
            name: name("Deposited"),
            version: 1,
            codec: Codec::Bincode,
            payload: Bytes::new(),
            time: Timestamp::default(),
            cause: id,
            correlation: id,
            traceparent: None,
            headers: Vec::new(),
        }
    }

    /// Returns a turn that handles the event at a position of the bank's log.
    fn turn_of_event(position: u64) -> StoredTurn {
        let (id, kind) = (MessageId::from_u128(1), SourceKind::Events { subscriber: name("saga") });
        StoredTurn {
            number: 1,
            version: 0,
            time: Timestamp::default(),
            id,
            correlation: id,
            from: Some((Source { shard: shard("bank"), kind }, position)),
            digest: None,
            timer: None,
            reply: Bytes::new(),
            reply_codec: Codec::Bincode,
            events: Vec::new(),
            timers: Vec::new(),
            sent: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Checks a saga that handles these positions of a log with two events of ada and one of bob between them.
    fn check(positions: &[u64]) -> Result<(), String> {
        check_role(positions, false)
    }

    fn check_role(positions: &[u64], is_worker: bool) -> Result<(), String> {
        let logs = BTreeMap::from([(shard("bank"), vec![event(1, "ada", 1), event(2, "bob", 1), event(3, "ada", 2)])]);
        let (shard_id, actor) = (shard("sagas"), name("saga"));
        let turns: Vec<_> = positions.iter().map(|position| turn_of_event(*position)).collect();
        events_in_order(&logs, |_, _| is_worker, turns.iter().map(|turn| (&shard_id, &actor, "key", turn)))
    }

    #[test]
    fn events_of_one_stream_must_be_in_order() {
        assert_eq!(check(&[1, 2, 3]), Ok(()));
        assert_eq!(check(&[1, 3, 2]), Ok(()));
        assert_eq!(check(&[3, 2, 1]).unwrap_err(), "I8: saga `key` handled version 1 of account `ada` after version 2");
        assert_eq!(check(&[1, 1]).unwrap_err(), "I8: saga `key` handled version 1 of account `ada` after version 1");
    }

    #[test]
    fn jobs_of_worker_may_end_in_any_order() {
        assert_eq!(check_role(&[3, 1], true), Ok(()));
        assert!(check_role(&[4], true).unwrap_err().starts_with("I6"));
    }

    #[test]
    fn missing_event_is_found() {
        for position in [0, 4] {
            let reason = check(&[1, position]).unwrap_err();
            assert_eq!(reason, format!("I6: saga `key` handled a missing event at bank/0 {position}"));
        }
    }

    #[test]
    fn watermark_ahead_of_source_is_found() {
        let watermark = Watermark { source: Source { shard: shard("bank"), kind: SourceKind::Direct }, through: 7 };
        assert_eq!(watermark_not_ahead(&shard("sagas"), &watermark, 7), Ok(()));
        let reason = watermark_not_ahead(&shard("sagas"), &watermark, 6).unwrap_err();
        assert_eq!(reason, "I9: sagas/0 has a watermark of 7 for bank/0, which has 6 messages");
    }
}
