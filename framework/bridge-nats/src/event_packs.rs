//! The messages that carry events: several of one shard share a message, because the broker's cost is per message.
//!
//! Used when a node publishes a page of its log. Only events that were committed already are packed: none waits for a pack to fill.

use whizbang_core::bridge::BridgeError;
use whizbang_core::message::{Codec, Envelope, ShardId};
use whizbang_wire::Packet;
use whizbang_wire::subject::Address;

/// The maximum number of events in one message.
const MAX_PACK_EVENTS: usize = 128;
/// The maximum payload of a message with several events in bytes.
const MAX_PACK_BYTES: usize = 32 * 1024;

/// Encodes events in their order, in as few messages as possible.
///
/// A JSON event has a message of its own under its name, with CloudEvents headers: clients in other languages may read it. Other
/// events are sent in packs, also a single one: one header costs a tenth of eighteen, for the publisher and for each subscriber.
///
/// # Errors
/// [`BridgeError::Malformed`] for an event without a log position, [`BridgeError::Oversize`] for one with headers above the limits.
pub(super) fn encode(mut events: &[Envelope], max_payload: usize) -> Result<Vec<(Address, Packet)>, BridgeError> {
    let max_bytes = MAX_PACK_BYTES.min(max_payload / 2);
    let mut messages = Vec::new();
    while let Some(first) = events.first() {
        let Some(shard) = first.origin.as_ref().map(|origin| origin.shard.clone()) else {
            return Err(BridgeError::Malformed { reason: "event without a log position".to_owned() });
        };
        let packable = events.iter().take(MAX_PACK_EVENTS).take_while(|next| is_packable(next, &shard)).count();
        let (address, packet, count) = if packable == 0 {
            let name = first.name.clone();
            (Address::Event { shard, name }, Packet::from_envelope(first)?, 1)
        } else {
            events.iter().take(packable).try_for_each(Packet::check)?;
            match Packet::of_first_events(events.get(..packable).unwrap_or_default(), max_bytes) {
                // The first event alone is larger than a pack.
                (_, 0) => (Address::Events(shard), Packet::from_events(std::slice::from_ref(first)), 1),
                (pack, count) => (Address::Events(shard), pack, count),
            }
        };
        messages.push((address, packet));
        events = events.get(count..).unwrap_or_default();
    }
    Ok(messages)
}

/// Returns true if an event may be sent in a pack of a shard.
fn is_packable(event: &Envelope, shard: &ShardId) -> bool {
    event.codec != Codec::Json && event.origin.as_ref().is_some_and(|origin| origin.shard == *shard)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use whizbang_core::message::{Kind, MessageId, Name, Origin};

    use whizbang_core::clock::Timestamp;

    use super::*;

    fn event(sequence: u64, shard: u16, bytes: usize) -> Envelope {
        let domain = Name::new("bank").unwrap();
        let (id, time) = (MessageId::from_u128(sequence.into()), Timestamp::from_millis(1));
        let mut event = Envelope::new(id, Kind::Event, domain.clone(), Name::new("filled").unwrap(), time);
        event.origin = Some(Origin {
            shard: ShardId::new(domain, shard),
            actor: Name::new("account").unwrap(),
            key: "a".to_owned(),
            sequence,
            version: 1,
            store: None,
        });
        event.payload = Bytes::from(vec![7; bytes]);
        event
    }

    /// Returns the events of each message, and checks the subject of each.
    fn sent(events: &[Envelope], max_payload: usize) -> Vec<Vec<Envelope>> {
        let read = |(address, packet): (Address, Packet)| {
            assert!(packet.payload.len() <= max_payload, "{}", packet.payload.len());
            let headers: Vec<(&str, &str)> = packet.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            match address {
                Address::Events(shard) => {
                    let events = Packet::read_events(&headers, packet.payload.clone()).unwrap();
                    assert!(events.iter().all(|event| event.origin.as_ref().unwrap().shard == shard));
                    events
                }
                Address::Event { shard, name } => {
                    let event = packet.envelope().unwrap();
                    assert!(
                        event.codec == Codec::Json
                            && event.name == name
                            && event.origin.as_ref().unwrap().shard == shard
                    );
                    vec![event]
                }
                other => panic!("{other:?}"),
            }
        };
        encode(events, max_payload).unwrap().into_iter().map(read).collect()
    }

    fn sizes(events: &[Envelope], max_payload: usize) -> Vec<usize> {
        let sent = sent(events, max_payload);
        assert_eq!(sent.concat(), events, "each event once, in order");
        sent.iter().map(Vec::len).collect()
    }

    #[test]
    fn messages_are_bounded_in_events_and_bytes() {
        let events = |count, bytes| (1..=count).map(|number| event(number, 0, bytes)).collect::<Vec<_>>();
        assert_eq!(sizes(&events(300, 1), 1 << 20), [128, 128, 44]);
        assert_eq!(sizes(&events(1, 1), 1 << 20), [1]);
        // Four with their headers do not fit into 32 KiB, and none shares a message that the server would refuse.
        assert_eq!(sizes(&events(7, 9000), 1 << 20), [3, 3, 1]);
        assert_eq!(sizes(&events(3, 9000), 12_000), [1, 1, 1]);
        assert_eq!(sizes(&[event(1, 0, 40_000), event(2, 0, 1), event(3, 0, 1)], 1 << 20), [1, 2]);
        assert_eq!(sizes(&[], 1 << 20), [] as [usize; 0]);
    }

    #[test]
    fn only_compact_events_of_one_shard_share_a_message() {
        let mut json = event(3, 0, 1);
        json.codec = Codec::Json;
        let events = [event(1, 0, 1), event(2, 0, 1), json, event(4, 0, 1), event(1, 1, 1), event(2, 1, 1)];
        assert_eq!(sizes(&events, 1 << 20), [2, 1, 1, 2]);
    }

    #[test]
    fn event_that_no_log_contains_is_refused() {
        let mut foreign = event(2, 0, 1);
        foreign.origin = None;
        assert!(matches!(encode(&[event(1, 0, 1), foreign], 1 << 20), Err(BridgeError::Malformed { .. })));
    }

    #[test]
    fn invalid_event_in_a_pack_is_refused() {
        let mut invalid = event(2, 0, 1);
        invalid.headers = vec![("no spaces".to_owned(), "x".to_owned())];
        assert!(encode(&[event(1, 0, 1), invalid], 1 << 20).is_err());
    }
}
