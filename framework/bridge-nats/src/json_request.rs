//! The JSON request for missing events, as clients in other languages send it, and its response; described in docs/wire.md.
//!
//! Called by the consumer loop. A subscriber to some event names cannot detect a gap in their sequence, because the sequence
//! numbers all events of the shard. It asks the owner instead: the response contains the events of these names, and the position
//! up to which it is complete.

use std::borrow::Cow;

use async_nats::Message;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::headers;
use whizbang_core::bridge::{BridgeError, Request};
use whizbang_core::message::{Codec, Envelope, Name};
use whizbang_wire::subject::{Address, Namespace};
use whizbang_wire::{Packet, percent};

/// The header that marks a JSON request; its value is the kind of request.
const REQUEST: &str = "whizbang-ask";
/// The only kind of request.
const EVENTS: &str = "events";
/// The maximum number of events of the log that are read for one response.
const LIMIT: u32 = 1024;
/// The maximum number of requested names.
const MAX_NAMES: usize = 256;
/// The size in bytes of a response without its events.
const RESPONSE_OVERHEAD: usize = 128;

/// The requested event names; an empty list requests all events.
pub(super) type Names = Vec<Name>;

/// The payload of a request: `{"after": 41, "names": ["Lent"]}`.
#[derive(Deserialize)]
struct EventsQuery {
    after: u64,
    /// The events of interest. Missing means all of them.
    #[serde(default)]
    names: Vec<String>,
}

/// Parses a JSON request; `None` if the message is not one.
pub(super) fn request(namespace: &Namespace, message: &Message) -> Option<Result<(Request, Names), BridgeError>> {
    let mut found = headers::from_nats(message.headers.as_ref()).filter(|(name, _)| *name == REQUEST);
    let (_, kind) = found.next()?;
    Some(match kind {
        EVENTS => events_request(namespace, &message.subject, &message.payload),
        _ => Err(malformed("unknown kind of JSON request")),
    })
}

/// Parses and checks a request for events.
pub(super) fn events_request(
    namespace: &Namespace,
    subject: &str,
    payload: &[u8],
) -> Result<(Request, Names), BridgeError> {
    let Some(Address::EventsRequest(shard)) = namespace.parse(subject) else {
        return Err(malformed("the subject does not accept requests for events"));
    };
    let query: EventsQuery = serde_json::from_slice(payload)
        .map_err(|error| malformed(format!("expected `{{\"after\": 0, \"names\": [\"…\"]}}`: {error}")))?;
    if query.names.len() > MAX_NAMES {
        return Err(malformed(format!("{} names exceed the limit of {MAX_NAMES}", query.names.len())));
    }
    let names = query.names.iter().map(|name| Name::new(name).map_err(|error| malformed(error.to_string())));
    Ok((Request::Events { shard, after: query.after, limit: LIMIT }, names.collect::<Result<_, _>>()?))
}

/// Returns the error that the client receives with its response.
fn malformed(reason: impl Into<String>) -> BridgeError {
    BridgeError::Malformed { reason: reason.into() }
}

/// Returns the response: the events after `after` with the requested names, as many as fit into `max_bytes`. `last` is the position
/// of the last event of the log.
pub(super) fn response(
    after: u64,
    events: &[Envelope],
    last: u64,
    names: &[Name],
    max_bytes: usize,
) -> Result<Packet, BridgeError> {
    let (mut list, mut through) = (Vec::new(), after.min(last));
    for event in events {
        if names.is_empty() || names.contains(&event.name) {
            let text = cloud_event(event)?;
            if list.len() + text.len() + RESPONSE_OVERHEAD > max_bytes {
                break;
            }
            if !list.is_empty() {
                list.push(b',');
            }
            list.extend(text);
        }
        through = event.origin.as_ref().map_or(through, |origin| origin.sequence);
    }
    let mut payload = format!("{{\"last\":{last},\"through\":{through},\"events\":[").into_bytes();
    payload.extend(list);
    payload.extend(b"]}");
    let headers = vec![(Cow::Borrowed("whizbang-answer"), EVENTS.to_owned())];
    Ok(Packet { headers, payload: Bytes::from(payload) })
}

/// Encodes an event in the JSON format of CloudEvents: its headers without `ce-`, and its payload as the log holds it.
fn cloud_event(event: &Envelope) -> Result<Vec<u8>, BridgeError> {
    if event.codec != Codec::Json || serde_json::from_slice::<serde::de::IgnoredAny>(&event.payload).is_err() {
        return Err(malformed(format!("events of `{}` are not JSON", event.domain)));
    }
    let packet = Packet::from_envelope(event)?;
    let attributes: Map<String, Value> = packet
        .headers
        .iter()
        .filter_map(|(name, value)| {
            let name = name.strip_prefix("ce-").or_else(|| (name == "traceparent").then_some("traceparent"))?;
            Some((name.to_owned(), json!(percent::decode(value)?)))
        })
        .collect();
    let mut text = serde_json::to_vec(&attributes).unwrap_or_default();
    text.pop();
    text.extend(b",\"data\":");
    text.extend(&event.payload);
    text.push(b'}');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use whizbang_core::clock::Timestamp;
    use whizbang_core::message::{Kind, MessageId, Origin, ShardId};

    fn event(position: u64, name: &str, payload: &str) -> Envelope {
        let named = |text: &str| Name::new(text).unwrap();
        let shard = ShardId::new(named("library"), 3);
        let origin = Origin {
            shard,
            actor: named("Book"),
            key: "é %".to_owned(),
            sequence: position,
            version: position,
            store: None,
        };
        let id = MessageId::from_u128(u128::from(position));
        let empty = Envelope::new(id, Kind::Event, named("library"), named(name), Timestamp::from_millis(0));
        Envelope {
            origin: Some(origin),
            key: String::new(),
            codec: Codec::Json,
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            ..empty
        }
    }

    fn read(page: Result<Packet, BridgeError>) -> Value {
        serde_json::from_slice(&page.unwrap().payload).unwrap()
    }

    #[test]
    fn response_has_requested_events_and_its_last_position() {
        let events = [event(5, "Lent", "{\"reader\":1.50}"), event(6, "Returned", "{}"), event(7, "Lent", "null")];
        let lent = [Name::new("Lent").unwrap()];
        let answer = response(4, &events, 9, &lent, 10_000);
        assert!(String::from_utf8_lossy(&answer.as_ref().unwrap().payload).contains("\"data\":{\"reader\":1.50}"));
        let found = read(answer);
        assert_eq!((&found["last"], &found["through"]), (&json!(9), &json!(7)));
        assert_eq!(found["events"].as_array().unwrap().len(), 2);
        let first = &found["events"][0];
        assert_eq!(
            (&first["type"], &first["subject"], &first["specversion"]),
            (&json!("library.Lent"), &json!("é %"), &json!("1.0"))
        );
        assert_eq!((&first["sequence"], &first["partitionkey"]), (&json!(format!("{:020}", 5)), &json!("library/3")));
        assert_eq!(read(response(4, &events, 9, &[], 10_000))["events"].as_array().unwrap().len(), 3);
        // Events that do not fit are requested next; events with other names take no space.
        let small = response(4, &events, 9, &lent, 700);
        assert_eq!(read(small)["through"], json!(6));
        assert_eq!(read(response(9, &[], 9, &lent, 700)), json!({ "last": 9, "through": 9, "events": [] }));
        assert_eq!(read(response(12, &[], 9, &lent, 700))["through"], json!(9), "no position that does not exist");
    }

    #[test]
    fn non_json_events_are_refused() {
        let compact = Envelope { codec: Codec::Bincode, ..event(1, "Lent", "{}") };
        assert!(response(0, &[compact], 1, &[], 10_000).is_err());
        assert!(response(0, &[event(1, "Lent", "{")], 1, &[], 10_000).is_err());
    }
}
