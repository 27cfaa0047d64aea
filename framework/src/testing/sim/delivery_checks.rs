//! What must hold of those who take events and messages: each stream in its order, and nothing that is not there.
//!
//! Called by the [check](super::check) with what the stores hold.

use std::collections::BTreeMap;

use crate::message::{Name, ShardId};
use crate::store::{SourceKind, StoredEvent, StoredTurn, Watermark};

/// I8: whoever takes the events of a stream takes them in the order of their versions. (A gap is found as I7: what becomes a
/// dead letter behind another is taken in its place, too.) I6: and takes none that is not stored.
pub(super) fn in_order<'a>(
    logs: &BTreeMap<ShardId, Vec<StoredEvent>>,
    turns: impl Iterator<Item = (&'a ShardId, &'a Name, &'a str, &'a StoredTurn)>,
) -> Result<(), String> {
    let mut last: BTreeMap<_, u64> = BTreeMap::new();
    for (shard, actor, key, turn) in turns {
        let Some((source, position)) = turn.from.as_ref().filter(|(source, _)| source.kind != SourceKind::Direct)
        else {
            continue;
        };
        let place = usize::try_from(*position).ok().and_then(|position| position.checked_sub(1));
        let Some(event) = logs.get(&source.shard).and_then(|log| log.get(place?)) else {
            return Err(format!("I6: {actor} `{key}` took an event at {} {position}, where none is", source.shard));
        };
        let last = last.entry((shard, actor, key, &source.shard, &event.actor, &event.key)).or_default();
        if event.stream_version <= *last {
            return Err(format!(
                "I8: {actor} `{key}` took version {} of {} `{}` after version {last}",
                event.stream_version, event.actor, event.key
            ));
        }
        *last = event.stream_version;
    }
    Ok(())
}

/// I9: nobody has taken note of more than there is: what comes there later would never be seen. `head` is the last number of the
/// mark's source.
pub(super) fn not_ahead(to: &ShardId, mark: &Watermark, head: u64) -> Result<(), String> {
    if mark.through > head {
        let from = &mark.source.shard;
        return Err(format!("I9: {to} has taken {} messages from {from}, which has {head}", mark.through));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::clock::Timestamp;
    use crate::message::{Codec, MessageId};
    use crate::store::Source;

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
        }
    }

    /// A turn that takes the event at a position of the bank's log.
    fn takes(position: u64) -> StoredTurn {
        let (id, lane) = (MessageId::from_u128(1), SourceKind::Events { subscriber: name("saga") });
        StoredTurn {
            number: 1,
            version: 0,
            time: Timestamp::default(),
            id,
            correlation: id,
            from: Some((Source { shard: shard("bank"), kind: lane }, position)),
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

    /// Two events of ada's, one of bob's between them; a saga takes what stands at these positions.
    fn check(positions: &[u64]) -> Result<(), String> {
        let logs = BTreeMap::from([(shard("bank"), vec![event(1, "ada", 1), event(2, "bob", 1), event(3, "ada", 2)])]);
        let (home, actor) = (shard("sagas"), name("saga"));
        let turns: Vec<_> = positions.iter().map(|position| takes(*position)).collect();
        in_order(&logs, turns.iter().map(|turn| (&home, &actor, "key", turn)))
    }

    #[test]
    fn events_of_one_stream_are_taken_in_order_and_those_of_two_in_any() {
        assert_eq!(check(&[1, 2, 3]), Ok(()));
        assert_eq!(check(&[1, 3, 2]), Ok(()));
        assert_eq!(check(&[3, 2, 1]).unwrap_err(), "I8: saga `key` took version 1 of account `ada` after version 2");
        assert_eq!(check(&[1, 1]).unwrap_err(), "I8: saga `key` took version 1 of account `ada` after version 1");
    }

    #[test]
    fn an_event_that_is_not_stored_is_taken_by_nobody() {
        for position in [0, 4] {
            let reason = check(&[1, position]).unwrap_err();
            assert_eq!(reason, format!("I6: saga `key` took an event at bank/0 {position}, where none is"));
        }
    }

    #[test]
    fn nobody_has_taken_more_than_there_is() {
        let mark = Watermark { source: Source { shard: shard("bank"), kind: SourceKind::Direct }, through: 7 };
        assert_eq!(not_ahead(&shard("sagas"), &mark, 7), Ok(()));
        let reason = not_ahead(&shard("sagas"), &mark, 6).unwrap_err();
        assert_eq!(reason, "I9: sagas/0 has taken 7 messages from bank/0, which has 6");
    }
}
