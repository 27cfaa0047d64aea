//! Decodes received messages and rejects those whose headers contradict their subject.
//!
//! Called by the consumer loop. [`Address`] checks the content against the subject.
//!
//! A message is either accepted as a whole or refused as a whole. The reason is for operators: it names headers and subjects
//! and never contains a payload.

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use serde_json::Value;

use super::excerpt::excerpt;
use super::headers;
use super::stored_message::StoredMessage;
use super::streams::{StreamContent, StreamSource};
use whizbang_core::bridge::{BridgeError, LastPublished, Notification, Request};
use whizbang_core::message::{Envelope, MAX_PAYLOAD_BYTES, Name, ShardId};
use whizbang_wire::Packet;
use whizbang_wire::subject::{Address, Namespace};

/// The maximum size in bytes of the headers that are copied with a refused message. A stream accepts 64 KiB of them.
const MAX_COPIED_HEADER_BYTES: usize = 16 * 1024;
/// The number of bytes that are copied of a payload larger than [`MAX_PAYLOAD_BYTES`].
const MAX_COPIED_OVERSIZE_BYTES: usize = 64 * 1024;

/// Decodes all envelopes in a message of a stream: a single one, or the events of a pack.
///
/// # Errors
/// [`BridgeError::Malformed`] and others with a reason for people. The message is refused as a whole, also a pack with one
/// invalid event: its events are read from the owner's log.
pub(super) fn envelopes(
    namespace: &Namespace,
    source: &StreamSource,
    message: &Message,
) -> Result<Vec<Envelope>, BridgeError> {
    let address = namespace.parse(&message.subject).ok_or_else(unexpected_subject)?;
    match (source.content, &address) {
        (StreamContent::Direct, Address::Direct { .. }) => {
            let owns = [(source.domain.clone(), source.shards)];
            Ok(vec![address.accept_message(envelope(message)?, &owns)?])
        }
        (StreamContent::Events, Address::Event { shard, .. } | Address::Events(shard))
            if shard.domain == source.domain =>
        {
            let events = match &address {
                Address::Events(_) => {
                    let headers: Vec<_> = headers::from_nats(message.headers.as_ref()).collect();
                    Packet::read_events(&headers, message.payload.clone())?
                }
                _ => vec![envelope(message)?],
            };
            address.accept_events(&events)?;
            Ok(events)
        }
        _ => Err(unexpected_subject()),
    }
}

/// Reads the headers and payload of a message as one envelope.
fn envelope(message: &Message) -> Result<Envelope, BridgeError> {
    Packet::read_envelope(headers::from_nats(message.headers.as_ref()), message.payload.clone())
}

/// Decodes a request. `owns` lists the domains of the node with their numbers of shards.
pub(super) fn request(namespace: &Namespace, owns: &[(Name, u16)], message: &Message) -> Result<Request, BridgeError> {
    let address = namespace.parse(&message.subject).ok_or_else(unexpected_subject)?;
    let headers: Vec<_> = headers::from_nats(message.headers.as_ref()).collect();
    address.accept_request(Packet::read_request(&headers, message.payload.clone())?, owns)
}

/// Decodes a notification.
pub(super) fn notification(namespace: &Namespace, message: &Message) -> Result<Notification, BridgeError> {
    let address = namespace.parse(&message.subject).ok_or_else(unexpected_subject)?;
    let headers: Vec<_> = headers::from_nats(message.headers.as_ref()).collect();
    let notification = Packet::read_notification(&headers, message.payload.clone())?;
    address.accept_notification(&notification)?;
    Ok(notification)
}

/// Returns the shard and the position that an event, a pack of events or a notification about the head of a log reports; `None` if
/// it is another message.
pub(super) fn reported_position(namespace: &Namespace, message: &Message) -> Option<(ShardId, u64)> {
    match namespace.parse(&message.subject)? {
        Address::Event { shard, .. } => {
            let position = message.headers.as_ref()?.get("ce-sequence")?.as_str().parse().ok()?;
            Some((shard, position))
        }
        Address::Events(shard) => {
            let headers: Vec<_> = headers::from_nats(message.headers.as_ref()).collect();
            let events = Packet::read_events(&headers, message.payload.clone()).ok()?;
            let position = events.into_iter().filter_map(|event| event.origin).map(|origin| origin.sequence).max()?;
            Some((shard, position))
        }
        Address::Head(_) => match notification(namespace, message).ok()? {
            Notification::Head { shard, position } => Some((shard, position)),
            Notification::Committed { .. } => None,
        },
        _ => None,
    }
}

/// Returns the error for a message on a subject that is not meant for it.
fn unexpected_subject() -> BridgeError {
    BridgeError::Malformed { reason: "the subject does not fit the content of the message".to_owned() }
}

/// Returns the copy of a refused message: its payload, headers and subject, and the reason of the refusal.
///
/// A message of a size that a node can send is copied completely. A larger one is truncated, so that a few of them cannot fill the
/// stream.
pub(super) fn refused_copy(message: &Message, error: &BridgeError) -> (HeaderMap, Bytes) {
    let mut kept = HeaderMap::new();
    let mut size = 0;
    for (name, values) in message.headers.iter().flat_map(HeaderMap::iter) {
        let name_text: &str = name.as_ref();
        // The broker must not apply headers that another party wrote.
        let is_command = name_text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"));
        for value in values.iter().filter(|_| !is_command) {
            size += name_text.len() + value.as_str().len();
            if size <= MAX_COPIED_HEADER_BYTES {
                kept.append(name.clone(), value.clone());
            }
        }
    }
    kept.insert("whizbang-refused", excerpt(&error.to_string()).as_str());
    kept.insert("whizbang-subject", excerpt(&message.subject).as_str());
    let limit = if message.payload.len() > MAX_PAYLOAD_BYTES { MAX_COPIED_OVERSIZE_BYTES } else { MAX_PAYLOAD_BYTES };
    (kept, message.payload.slice(..message.payload.len().min(limit)))
}

/// Returns the last event of a shard in a stored message; `None` if it cannot be read.
pub(super) fn last_event(shard: &ShardId, headers: &[(String, String)], payload: Bytes) -> Option<LastPublished> {
    let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let events = match Packet::read_events(&headers, payload.clone()) {
        Ok(events) => events,
        Err(_) => vec![Packet::read_envelope(headers.iter().copied(), payload).ok()?],
    };
    let origin = events.into_iter().filter_map(|event| event.origin).filter(|origin| origin.shard == *shard);
    origin.map(|origin| LastPublished::new(origin.sequence, origin.store)).max_by_key(|last| last.position)
}

/// Parses any bytes as a JetStream response to each kind of request. Returns true if one parser accepts them.
///
/// Called by `whizbang::testing::decoders` only.
#[doc(hidden)]
pub fn parses_response(payload: &[u8]) -> bool {
    let acknowledged = super::acknowledgement::parse_payload(payload);
    let Ok(answer) = serde_json::from_slice::<Value>(payload) else { return acknowledged.is_ok() };
    let _ = super::consumer_setup::ConsumerState::read(&answer).has_outstanding();
    let stored = StoredMessage::read(&answer);
    if let (Some(stored), Ok(name)) = (&stored, whizbang_core::message::Name::from_static("bank")) {
        let _ = last_event(&ShardId::new(name, 0), &stored.headers, stored.payload.clone());
    }
    let _ = delivery_numbers(answer.get("reply").and_then(Value::as_str).unwrap_or_default());
    acknowledged.is_ok() || stored.is_some()
}

/// Parses any bytes as a JSON request for events on any subject.
///
/// Called by `whizbang::testing::decoders` only.
///
/// # Errors
/// The error that the client would receive.
#[doc(hidden)]
pub fn parses_json_request(subject: &str, payload: &[u8]) -> Result<(), BridgeError> {
    super::json_request::events_request(&Namespace::default(), subject, payload).map(drop)
}

/// The numbers with which the server delivers a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeliveryNumbers {
    /// The number of deliveries of the message, with this one.
    pub(super) deliveries: u32,
    /// Its sequence in the stream.
    pub(super) sequence: u64,
    /// The number of messages that wait for the consumer after it.
    pub(super) pending: u64,
}

/// Returns the numbers in the subject of an acknowledgement. Missing ones count as the first delivery, and as 0.
pub(super) fn delivery_numbers(ack_subject: &str) -> DeliveryNumbers {
    // `$JS.ACK.stream.consumer.deliveries.sequence.of-consumer.time.pending`; later servers may put a domain and an account before
    // the stream.
    let tokens: Vec<&str> = ack_subject.split('.').collect();
    let index = if tokens.len() > 9 { 6 } else { 4 };
    let number = |after: usize| tokens.get(index + after).and_then(|token| token.parse().ok());
    DeliveryNumbers {
        deliveries: tokens.get(index).and_then(|token| token.parse().ok()).unwrap_or(1),
        sequence: number(1).unwrap_or(0),
        pending: number(4).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delivery_numbers_are_read_from_both_acknowledgement_forms() {
        for (reply, (deliveries, sequence, pending)) in [
            ("$JS.ACK.stream.consumer.3.10.7.1700000000000000000.5", (3, 10, 5)),
            ("$JS.ACK.hub.ABCDEF.stream.consumer.4.11.7.1700000000000000000.6.x", (4, 11, 6)),
            ("$JS.ACK", (1, 0, 0)),
        ] {
            assert_eq!(delivery_numbers(reply), DeliveryNumbers { deliveries, sequence, pending }, "{reply}");
        }
    }
}
